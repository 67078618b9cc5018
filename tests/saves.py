"""Checkpoints whose writing is watched and held up."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from coterie.engine import CheckpointStore
from coterie.engine.keeper import CheckpointKeeper
from coterie.engine.snapshot import Snapshot


def saving(change: Callable[[int], object], patch: pytest.MonkeyPatch) -> list[int]:
    """Do something before each checkpoint is written; the steps that were whole, in order."""
    whole: list[int] = []
    save = CheckpointStore.save

    def changed(self: CheckpointStore, step: int, snapshot: Snapshot, **options: Any) -> Path:
        change(step)
        path = save(self, step, snapshot, **options)
        whole.append(step)
        return path

    patch.setattr(CheckpointStore, "save", changed)
    return whole


def held_up(keeper: type[CheckpointKeeper], patch: pytest.MonkeyPatch, until: int = 9) -> list[tuple[int, int]]:
    """Write a checkpoint of a step before `until` only when two more are taken; its step and the last one by then."""
    taken, before = [0], list[tuple[int, int]]()
    on_step = keeper.on_step

    def counting(self: CheckpointKeeper, run: Any) -> None:
        on_step(self, run)
        taken.append(run.batches)

    def wait(step: int) -> None:
        end = time.monotonic() + 20
        while step < until and taken[-1] < step + 2 and time.monotonic() < end:
            time.sleep(0.001)
        before.append((step, taken[-1]))

    patch.setattr(keeper, "on_step", counting)
    saving(wait, patch)
    return before
