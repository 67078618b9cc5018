"""The figure on waiting: how often a training step makes the host and an accelerator wait for each other."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import replace

import torch

from benchmarks.learners import make_learner
from benchmarks.methods import measurable
from benchmarks.sizes import Setting
from benchmarks.table import Row
from benchmarks.timing import Ratio, Step
from coterie.core.waiting import noted_waits


def waits_of(step: Step, device: torch.device) -> list[str]:
    """Name the operations of a step that wait: counted by dispatch, and on CUDA by the driver too.

    Args:
        step: what is watched.
        device: where it runs.
    """
    with noted_waits() as found:
        step()
    return found if device.type != "cuda" else [*found, *_cuda_waits(step)]


def waiting(setting: Setting) -> Iterator[Row]:
    """Count the waits of a whole MCL-OKD step, and of a step of every method at a smaller size."""
    found = waits_of(make_learner(setting).step, setting.device)
    yield _row("waits.mcl_okd", "host synchronisations, MCL-OKD step", found)
    sizes = setting.sizes
    fewer = replace(sizes, batch=min(8, sizes.batch), num_train=min(2_000, sizes.num_train))
    there = replace(setting, sizes=fewer)
    total: list[str] = []
    for name in measurable(setting):
        learner = make_learner(there, name)
        total += [f"{name}: {wait}" for wait in waits_of(learner.step, setting.device)]
    yield _row("waits.methods", "host synchronisations, steps of all methods", total)


def _row(key: str, title: str, found: list[str]) -> Row:
    count = float(len(found))
    note = ", ".join(sorted(set(found)))
    return Row(key=key, title=title, measured=Ratio(count, count, count), unit="", limit=0.0, note=note)


def _cuda_waits(step: Step) -> list[str]:
    torch.cuda.synchronize()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return ["synchronisation" for warning in caught if "called a synchronizing" in str(warning.message)]
