"""Steps of several gloo processes on this machine: their time and what they send, beside the model of `scale`."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import TypeVar

import torch
import torch.distributed as dist

from benchmarks.learners import Learner, build, make_learner, plain_step
from benchmarks.scale import Links, Load, Mesh, cost
from benchmarks.sizes import Setting, Sizes
from benchmarks.timing import Step
from coterie.config import TrainConfig
from coterie.core.allocator import keep_freed_memory
from coterie.core.world import world
from coterie.engine import Interrupt, joined
from coterie.engine.cores import own_cores, usable_cores
from coterie.engine.parallel import ParallelStep

Found = TypeVar("Found")

_STEPS, _WARM_UP = 10, 3
_PATIENCE = timedelta(seconds=300)
_LOOPBACK = Path("/proc/net/dev")
_SIZES = Sizes(net="resnet20", batch=64, peers=2, num_train=5_000, negatives=4_096)


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What was measured of steps.

    Attributes:
        seconds: median of the steps, on rank 0.
        sent: bytes that a rank sends in a step: what went through the loopback device, divided by the ranks.
    """

    seconds: float
    sent: float


def check(sizes: Sequence[int], path: Path | None, *, local_norm: bool = False) -> int:
    """Print measured steps beside simulated ones, and write both on request.

    Nothing else may use the loopback device meanwhile, or what it sends is counted.

    Args:
        sizes: numbers of ranks.
        path: where to write, or None.
        local_norm: let each rank normalise by its own images.
    """
    torch.set_num_threads(1)
    setting, cores = Setting(sizes=_SIZES), usable_cores()
    load, links = measured_load(setting), in_processes(2, measured_links, 1 << 20)
    load = replace(load, norms=()) if local_norm else load
    print("| ranks | measured ms | model ms | model / measured | measured MB sent | model MB | model / measured |")
    print("| ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    rows = []
    for size in sizes:
        turns = max(1.0, size / cores)  # of ranks on a core
        slow = replace(load, **{name: getattr(load, name) * turns for name in _TIMES})
        seen = in_processes(size, measured_steps, setting, not local_norm)
        said = cost(slow, Mesh(data=size), setting.sizes.batch, links)
        rows.append({"ranks": size, "measured": asdict(seen), "model": {"seconds": said.seconds, "sent": said.sent}})
        print(
            f"| {size} | {seen.seconds * 1e3:.0f} | {said.seconds * 1e3:.0f} | {said.seconds / seen.seconds:.2f}"
            f" | {seen.sent / 1e6:.2f} | {said.sent / 1e6:.2f} | {said.sent / seen.sent if seen.sent else 1:.2f} |",
            flush=True,
        )
    if path is not None:
        found = {"cores": cores, "links": asdict(links), "load": asdict(load), "rows": rows}
        path.write_text(json.dumps(found, indent=1) + "\n")
    return 0


_TIMES = "image_seconds", "whole_seconds", "step_seconds"


def measured_load(setting: Setting) -> Load:
    """What one process takes for peers, images and the method, from steps of a whole and of a quarter of a batch."""
    learner = make_learner(setting, knobs=[f"num_negatives={setting.sizes.negatives}"])
    part = replace(setting, sizes=replace(setting.sizes, batch=setting.sizes.batch // 4))
    plain = plain_step(setting, learner.batch, setting.sizes.net)
    less = plain_step(part, make_learner(part).batch, setting.sizes.net)
    whole, quarter, full = (_median(step) for step in (plain, less, learner.step))
    per_image = (whole - quarter) / (0.75 * setting.sizes.batch)
    net = build(setting.sizes.net, setting.sizes)
    norms = (module for module in net.modules() if isinstance(module, torch.nn.BatchNorm2d))
    peers = setting.sizes.peers
    return Load(
        peers=peers,
        parameters=sum(parameter.numel() for parameter in learner.run.objective.parameters()) // peers,
        tensors=len(list(learner.run.objective.parameters())) // peers,
        norms=tuple(module.num_features for module in norms),
        says=setting.sizes.classes + sum(learner.run.objective.cohort.embedding_dims) // peers,
        image_seconds=per_image,
        whole_seconds=(full - peers * whole) / setting.sizes.batch,
        step_seconds=whole - per_image * setting.sizes.batch,
        overlap=0.0,
    )


def measured_links(size: int) -> Links:
    """Latency and bandwidth between two ranks, from all-reduces of one number and of many."""
    few, many = torch.zeros(1), torch.zeros(size)
    short = _median(lambda: dist.all_reduce(few), 50)
    long = _median(lambda: dist.all_reduce(many))
    return Links(latency=short / 2, bandwidth=many.nbytes / max(long - short, 1e-9))


def measured_steps(setting: Setting, sync_batch_norm: bool = True) -> Seen:
    """Take steps of MCL-OKD together with the other ranks."""
    with joined(TrainConfig(sync_batch_norm=sync_batch_norm), Interrupt()) as together:
        learner = make_learner(setting, knobs=[f"num_negatives={setting.sizes.negatives}"])
        if not together.world.alone:
            learner.run.step = ParallelStep(together)
            _take_share(learner)

        def step() -> None:
            together.meet(0)
            learner.step()

        for _ in range(_WARM_UP):
            step()
        with _counted() as sent:
            seconds = median([_seconds(step) for _ in range(_STEPS)])
        learner.run.step = None  # type: ignore[assignment]
    return Seen(seconds=seconds, sent=sent[0] / _STEPS / together.world.size)


def in_processes(size: int, work: Callable[..., Found], *given: object) -> Found:
    """Call a function of a module in so many processes that are set up as ranks; what rank 0 returns."""
    with tempfile.TemporaryDirectory() as folder:
        meeting = str(Path(folder) / "meeting")
        with ProcessPoolExecutor(size, mp_context=get_context("spawn")) as pool:
            calls = [pool.submit(_as_rank, rank, size, meeting, work, given) for rank in range(size)]
            found = [call.result() for call in calls]
    return found[0]


def _as_rank(rank: int, size: int, meeting: str, work: Callable[..., Found], given: tuple[object, ...]) -> Found:
    torch.set_num_threads(1)
    keep_freed_memory()
    with own_cores(rank, size):
        dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=size, timeout=_PATIENCE)
        try:
            return work(*given)
        finally:
            dist.destroy_process_group()


def _take_share(learner: Learner) -> None:
    batch = learner.batch
    rows = world().share(torch.arange(batch.views.shape[1]))
    learner.run.loader.batch = learner.batch = batch.with_views(batch.views[:, rows].contiguous())  # type: ignore[attr-defined]


def _median(step: Step, times: int = _STEPS) -> float:
    """Seconds of the clock, after some that warm up."""
    for _ in range(_WARM_UP):
        step()
    return median([_seconds(step) for _ in range(times)])


def _seconds(step: Step) -> float:
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


@contextmanager
def _counted() -> Iterator[list[float]]:
    """Bytes that go through the loopback device while the body runs, in the list that is given when it ends."""
    found: list[float] = []
    dist.barrier()
    before = _sent()
    yield found
    dist.barrier()
    found.append(_sent() - before)


def _sent() -> float:
    for line in _LOOPBACK.read_text().splitlines() if _LOOPBACK.exists() else ():
        name, _, counters = line.partition(":")
        if name.strip() == "lo":
            return float(counters.split()[8])
    return 0.0
