"""What a full MCL-OKD step costs next to plain training, and the memory its contrastive part adds.

    python benchmarks/step.py [--json FILE] [--rounds 5]

Both sides run in one process on one thread, taking turns (the order reversed every other round), and are timed in CPU
time of the process, which other load on the machine disturbs least. A full step draws negatives, runs M = 4 ResNet-32
peers and their heads, takes the loss and its gradient, steps SGD and updates the banks; the other side is four steps of
one ResNet-32 with cross-entropy, same optimiser and layout (NCHW, float32). The memory is the highest resident size
during the contrastive part alone (draw, loss, gradient, update) above the one before it; the banks are counted apart.
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

from coterie.cohort.cohort import Cohort
from coterie.core import Batch, Facts
from coterie.methods.mcl_okd import MultiViewContrast
from coterie.nets.resnet_cifar import resnet32

NUM_PEERS, BATCH_SIZE, NUM_TRAIN, NUM_NEGATIVES, NUM_CLASSES, EMBEDDING_DIM = 4, 64, 50_000, 16_384, 100, 128
Step = Callable[[], None]


def main() -> None:
    """Measure, print a table and write the numbers on request."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers to FILE")
    parser.add_argument("--rounds", type=int, default=5, help="measurements of each side")
    options = parser.parse_args()
    numbers = measure(max(1, options.rounds))
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
    sides = {"plain": plain_step(batch), "full": full_step(cohort, method, batch)}
    times: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(rounds + 2):
        for name in sorted(sides, reverse=turn % 2 == 1):
            start = time.process_time()
            for _ in range(NUM_PEERS if name == "plain" else 1):
                sides[name]()
            times[name].append((time.process_time() - start) * 1e3)
    plain, full = times["plain"][2:], times["full"][2:]
    ratios = sorted(f / p for f, p in zip(full, plain, strict=True))
    return {
        "full_step_ratio": round(median(full) / median(plain), 4),
        "full_step_ratio_spread": [round(ratios[0], 4), round(ratios[-1], 4)],
        "contrastive_peak_mb": round(peak, 1),
        "bank_mb": round(method.bank.mebibytes * 2**20 / 1e6, 1),
        "plain_step_ms": round(median(plain) / NUM_PEERS, 1),
        "full_step_ms": round(median(full), 1),
        "rounds": rounds,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def make_batch(labels: torch.Tensor) -> Batch:
    """One batch of noise with rows and labels of the training set."""
    indices = torch.randperm(NUM_TRAIN)[:BATCH_SIZE]
    views = torch.randn(1, BATCH_SIZE, 3, 32, 32)
    zero = torch.zeros((), dtype=torch.int64)
    return Batch(views=views, labels=labels[indices], indices=indices, epoch=zero, step=zero.clone())


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


def full_step(cohort: Cohort, method: MultiViewContrast, batch: Batch) -> Step:
    """A whole MCL-OKD training step."""
    optimizer = make_optimizer(nn.ModuleList([cohort, method]))

    def step() -> None:
        peers = cohort(batch.views)
        total = method.losses(peers, batch).total()
        optimizer.zero_grad()
        total.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        with torch.no_grad():
            method.after_step(peers, batch)
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
