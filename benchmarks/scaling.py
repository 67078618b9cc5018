"""What a second process brings: peers apart, or a batch shared, against the same steps in one process.

All ways and the single process take turns in the same two processes, with one thread each, by the clock on the wall:
what they wait for each other counts. The machine must be idle and have two cores for it. What it can give is measured
beside: two processes that take steps on half the batch each and send nothing. Virtual cores may share a real one.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from statistics import median

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import start_processes

from benchmarks.learners import Learner, make_learner
from benchmarks.sizes import Setting
from benchmarks.table import Line, Row, Skipped
from benchmarks.timing import Step, cpu_ms, ratio, repeated, take_turns
from coterie.config import TrainConfig
from coterie.core.allocator import keep_freed_memory
from coterie.core.world import ALONE, World, inside
from coterie.engine import Interrupt, ParallelStep, Together
from coterie.engine.cores import calm_messengers, own_cores
from coterie.engine.mesh import lines

_SMALL, _WIDE = (4, "resnet20"), (2, "resnet8x4")  # the second works four times as long between exchanges
_ROWS: dict[str, tuple[str, float | None, tuple[int, str]]] = {
    "machine": ("half the batch in each of two, nothing sent", None, _SMALL),
    "peers": ("peers in two", 1.7, _SMALL),
    "data": ("batch in two", 1.6, _SMALL),
    "norm": ("batch and batch norm in two", 1.6, _SMALL),
    "machine_wide": ("half the batch in each of two, nothing sent", None, _WIDE),
    "wide": ("batch in two", 1.6, _WIDE),
}
_STEPS = 2  # in one measurement
_TIMEOUT = timedelta(minutes=5)


def scaling(setting: Setting) -> Iterator[Line]:
    """Time steps of mutual learning, and those of the same cohort in two processes."""
    if setting.device.type != "cpu" or not (dist.is_available() and hasattr(os, "fork")):
        yield Skipped("scaling", "it is about two processes with one core each; use --device cpu on Linux or macOS")
        return
    with tempfile.TemporaryDirectory() as folder:
        start_processes(_work, (setting, folder), nprocs=2, start_method="spawn")  # type: ignore[no-untyped-call]
        times, own = json.loads((Path(folder) / "times").read_text())
    for key, (title, limit, (count, net)) in _ROWS.items():
        alone = _alone((count, net))
        yield Row(
            key=f"scaling.{key}",
            title=f"DML, {count} {net}: one process / {title}",
            measured=ratio(times[alone], times[key]),
            limit=limit,
            at_least=True,
            note=f"{_ms(times, alone, key)}; of it the processor worked {_ms(own, alone, key)} for one process",
        )


def _alone(cohort: tuple[int, str]) -> str:
    return f"one {cohort}"


def _ms(times: Mapping[str, list[float]], alone: str, key: str) -> str:
    return f"{median(times[alone]) / _STEPS:.0f} ms / {median(times[key]) / _STEPS:.0f} ms"


def _work(rank: int, setting: Setting, folder: str) -> None:
    torch.set_num_threads(1)
    with own_cores(rank, 2):
        _take_turns(rank, setting, folder)


def _take_turns(rank: int, setting: Setting, folder: str) -> None:
    """Take the steps of one rank; rank 0 writes down the times."""
    keep_freed_memory()
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2, timeout=_TIMEOUT)
    control = dist.new_group(backend="gloo", timeout=_TIMEOUT)
    shared = World(rank=rank, size=2, control=control)
    apart = replace(shared, **lines(rank, 2, TrainConfig(peer_ranks=2), _TIMEOUT))
    worlds = {"peers": apart, "data": shared, "norm": replace(shared, global_norm=False), "wide": shared}
    sides = {key: _step(setting, _ROWS[key][2], world) for key, world in worlds.items()}
    half = replace(setting, sizes=replace(setting.sizes, batch=setting.sizes.batch // 2))
    sides |= {key: _step(half, _ROWS[key][2], ALONE) for key in ("machine", "machine_wide")}
    sides |= {_alone(cohort): _step(setting, cohort, ALONE) if rank == 0 else _nothing for cohort in (_SMALL, _WIDE)}
    calm_messengers()
    own: dict[str, list[float]] = {key: [] for key in sides}
    noted = {key: _noting(step, own[key]) for key, step in sides.items()}
    times = take_turns(noted, rounds=setting.rounds, timer=_wall_ms, warm_up=1)
    if rank == 0:
        (Path(folder) / "times").write_text(json.dumps([times, own]))
    dist.barrier()
    os._exit(0)  # the wrapper around the gradients would outlive its group


def _step(setting: Setting, cohort: tuple[int, str], world: World) -> Step:
    """A few steps of this rank, of so many peers of a network."""
    sizes = replace(setting.sizes, peers=cohort[0], net=cohort[1])
    learner: Learner = make_learner(replace(setting, sizes=sizes), "dml", world=world)
    if not world.alone:
        learner.run.step = ParallelStep(Together(world, Interrupt()))

    def step() -> None:
        with inside(world):
            learner.step()

    return repeated(step, _STEPS)


def _noting(step: Step, times: list[float]) -> Step:
    """The same step, whose CPU time in this process is noted."""
    return lambda: times.append(cpu_ms(step))


def _nothing() -> None:
    """What the other process does meanwhile."""


def _wall_ms(step: Step) -> float:
    """Milliseconds from the moment when both processes begin to the one when both are done."""
    dist.barrier()
    start = time.perf_counter()
    step()
    dist.barrier()
    return (time.perf_counter() - start) * 1e3
