"""What a full MCL-OKD step costs next to plain training, and what a teacher's method costs next to KD.

    python benchmarks/step.py [--json FILE] [--rounds 5]
    python benchmarks/step.py --method crd [KNOB=VALUE ...] [--json FILE] [--rounds 5]

Both sides run in one process on one thread, taking turns (the order reversed every other round), and are timed in CPU
time of the process, which other load on the machine disturbs least. A full step draws negatives, runs M = 4 ResNet-32
peers and their heads, takes the loss and its gradient, steps SGD and updates the banks; the other side is four steps of
one ResNet-32 with cross-entropy, same optimiser and layout (NCHW, float32). The memory is the highest resident size
during the contrastive part alone (draw, loss, gradient, update) above the one before it; the banks are counted apart.

With --method both sides are training steps of one ResNet-20 that learns from a frozen ResNet-56, in batches of 64 out
of 50,000 images, with the same optimiser: one side with the named method, the other with kd. The teacher looks at the
batch in each step, as in training. KNOB=VALUE are knobs of the method without their `method.`, for instance

    python benchmarks/step.py --method crd negatives=per_sample
    python benchmarks/step.py --method wcord+kd wcord.negatives=batch kd.weight=1
"""

from __future__ import annotations

import argparse
import ctypes
import json
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from statistics import median

import torch
import torch.nn.functional as F
from torch import nn

from coterie.cohort import Cohort, Teachers
from coterie.cohort.facts import facts_of
from coterie.config import resolve
from coterie.core import Batch, CoterieError, Facts, Method
from coterie.core.combined import make_method as make_any
from coterie.methods.mcl_okd import MultiViewContrast
from coterie.nets.resnet_cifar import resnet20, resnet32, resnet56

NUM_PEERS, BATCH_SIZE, NUM_TRAIN, NUM_NEGATIVES, NUM_CLASSES, EMBEDDING_DIM = 4, 64, 50_000, 16_384, 100, 128
SHAPE = (3, 32, 32)
Step = Callable[[], None]


def main() -> None:
    """Measure, print a table and write the numbers on request."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers to FILE")
    parser.add_argument("--rounds", type=int, default=5, help="measurements of each side")
    parser.add_argument("--method", metavar="NAME", help="a method that learns from a teacher, to be compared with kd")
    parser.add_argument("knobs", nargs="*", metavar="KNOB=VALUE", help="its knobs, without `method.`")
    options = parser.parse_intermixed_args()
    if options.knobs and not options.method:
        parser.error("knobs belong to a method; name one with --method")
    rounds = max(1, options.rounds)
    try:
        numbers = measure_taught(options.method, options.knobs, rounds) if options.method else measure(rounds)
    except CoterieError as error:
        parser.error(str(error))
    for name, value in numbers.items():
        print(f"{name:24s} {value}")
    if options.json:
        options.json.write_text(json.dumps(numbers, indent=2) + "\n")


def measure(rounds: int) -> dict[str, object]:
    """Run both sides in turns.

    Args:
        rounds: measurements of each side, after two that do not count.

    Returns:
        Median times in milliseconds, their ratio with its range over the rounds, memory in MB.
    """
    torch.set_num_threads(1)
    torch.manual_seed(0)
    labels = torch.arange(NUM_TRAIN) % NUM_CLASSES
    batch = make_batch(labels)
    cohort = Cohort([resnet32(num_classes=NUM_CLASSES) for _ in range(NUM_PEERS)])
    method = make_method(cohort, labels)
    peak = contrastive_peak(method, batch)
    plain, full = take_turns(plain_step(batch), full_step(cohort, method, batch), rounds, times_first=NUM_PEERS)
    return {
        **ratio_of("full_step_ratio", full, plain),
        "contrastive_peak_mb": round(peak, 1),
        "bank_mb": round(method.bank.mebibytes * 2**20 / 1e6, 1),
        "plain_step_ms": round(median(plain) / NUM_PEERS, 1),
        "full_step_ms": round(median(full), 1),
        "rounds": rounds,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def measure_taught(name: str, knobs: list[str], rounds: int) -> dict[str, object]:
    """Run a step with a teacher's method and one with kd in turns.

    Args:
        name: the method, or several joined by a plus sign.
        knobs: `KNOB=VALUE`.
        rounds: measurements of each side, after two that do not count.

    Returns:
        Median times in milliseconds, their ratio with its range over the rounds.

    Raises:
        CoterieError: the method or a knob is unknown, or the method cannot learn from this teacher.
    """
    torch.set_num_threads(1)
    torch.manual_seed(0)
    labels = torch.arange(NUM_TRAIN) % NUM_CLASSES
    method_step, kd_step = taught_step(name, knobs, labels), taught_step("kd", [], labels)
    kd, own = take_turns(kd_step, method_step, rounds)
    return {
        "method": " ".join([name, *knobs]),
        **ratio_of("ratio_to_kd", own, kd),
        "kd_step_ms": round(median(kd), 1),
        "kd_step_ms_spread": spread(kd),
        "method_step_ms": round(median(own), 1),
        "method_step_ms_spread": spread(own),
        "rounds": rounds,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def taught_step(name: str, knobs: list[str], labels: torch.Tensor) -> Step:
    """A whole training step of a student with a teacher."""
    recipe = resolve({"method": {"name": name.split("+")}}, [f"method.{knob}" for knob in knobs])
    small, big = resnet20(num_classes=NUM_CLASSES), resnet56(num_classes=NUM_CLASSES)
    cohort, teachers = Cohort([small]), Teachers([big])
    facts = Facts(
        num_peers=1,
        leader=0,
        num_classes=NUM_CLASSES,
        embedding_dims=cohort.embedding_dims,
        labels=labels,
        num_epochs=240,
        stage_channels=tuple(net.stage_channels for net in cohort),
        peers=(facts_of(small, SHAPE),),
        teachers=(facts_of(big, SHAPE),),
    )
    method = make_any(recipe.method, recipe.method_config, facts)
    method.attach(cohort)
    needs = method.requirements()
    cohort.stage_maps = teachers.stage_maps = needs.stage_maps
    cohort.preactivations = teachers.preactivations = needs.preactivations
    batch = make_batch(labels, views=needs.views if isinstance(needs.views, int) else 1)
    return full_step(cohort, method, batch, teachers)


def take_turns(first: Step, second: Step, rounds: int, *, times_first: int = 1) -> tuple[list[float], list[float]]:
    """Time two steps in turns, the order reversed every other round: milliseconds of CPU time of each.

    Args:
        first: one side.
        second: the other side.
        rounds: measurements of each side, after two that do not count.
        times_first: how many of the first make one measurement.
    """
    times: tuple[list[float], list[float]] = [], []
    for turn in range(rounds + 2):
        for side in (0, 1) if turn % 2 == 0 else (1, 0):
            start = time.process_time()
            for _ in range(1 if side else times_first):
                (first, second)[side]()
            times[side].append((time.process_time() - start) * 1e3)
    return times[0][2:], times[1][2:]


def ratio_of(name: str, above: list[float], below: list[float]) -> dict[str, object]:
    """Quotient of the medians, and the range of the quotients of single rounds."""
    ratios = [a / b for a, b in zip(above, below, strict=True)]
    return {name: round(median(above) / median(below), 4), f"{name}_spread": spread(ratios, 4)}


def spread(values: list[float], digits: int = 1) -> list[float]:
    """Lowest and highest."""
    return [round(min(values), digits), round(max(values), digits)]


def make_batch(labels: torch.Tensor, views: int = 1) -> Batch:
    """One batch of noise with rows and labels of the training set."""
    indices = torch.randperm(NUM_TRAIN)[:BATCH_SIZE]
    images = torch.randn(views, BATCH_SIZE, *SHAPE)
    zero = torch.zeros((), dtype=torch.int64)
    return Batch(views=images, labels=labels[indices], indices=indices, epoch=zero, step=zero.clone())


def make_method(cohort: Cohort, labels: torch.Tensor) -> MultiViewContrast:
    """MCL-OKD with the paper's knobs for CIFAR-100."""
    facts = Facts(
        num_peers=NUM_PEERS,
        leader=cohort.leader,
        num_classes=NUM_CLASSES,
        embedding_dims=cohort.embedding_dims,
        labels=labels,
        num_epochs=300,
    )
    config = MultiViewContrast.Config(num_negatives=NUM_NEGATIVES, embedding_dim=EMBEDDING_DIM)
    return MultiViewContrast(config, facts)


def full_step(cohort: Cohort, method: Method, batch: Batch, teachers: Teachers | None = None) -> Step:
    """A whole training step of a method, teachers included."""
    optimizer = make_optimizer(nn.ModuleList([cohort, method]))

    def step() -> None:
        taught = batch if teachers is None else teachers(batch)
        peers = cohort(batch.views)
        total = method.losses(peers, taught).total()
        optimizer.zero_grad()
        total.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        with torch.no_grad():
            method.after_step(peers, taught)
        batch.step.add_(1)

    return step


def plain_step(batch: Batch) -> Step:
    """A training step of one network with labels only."""
    net = resnet32(num_classes=NUM_CLASSES)
    optimizer = make_optimizer(net)

    def step() -> None:
        loss = F.cross_entropy(net(batch.views[0]), batch.labels)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return step


def make_optimizer(module: nn.Module) -> torch.optim.Optimizer:
    """SGD as in the paper's recipe."""
    return torch.optim.SGD(module.parameters(), lr=0.05, momentum=0.9, nesterov=True, weight_decay=5e-4)


def contrastive_peak(method: MultiViewContrast, batch: Batch) -> float:
    """Highest resident memory during one contrastive part above the one before it, in MB; nan where /proc is missing.

    Run before the networks have left freed memory behind, and after handing back what there is, so that nothing is
    hidden in it.
    """
    marker, status = Path("/proc/self/clear_refs"), Path("/proc/self/status")
    if not marker.exists():
        return float("nan")
    embeddings = F.normalize(torch.randn(NUM_PEERS, BATCH_SIZE, EMBEDDING_DIM), dim=-1).requires_grad_()
    with suppress(AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    marker.write_text("5")
    before = _kibibytes(status, "VmRSS")
    contrast = method.contrast(embeddings, method.candidates(batch))
    contrast.loss.backward()  # type: ignore[no-untyped-call]
    method.bank.update(batch.indices, embeddings.detach())
    return (_kibibytes(status, "VmHWM") - before) * 1024 / 1e6


def _kibibytes(status: Path, field: str) -> int:
    line = next(line for line in status.read_text().splitlines() if line.startswith(field))
    return int(line.split()[1])


if __name__ == "__main__":
    main()
