"""How a run stands: its status, when each of its processes was last heard of, and how to go on."""

from __future__ import annotations

import os
import re
import socket
import time
from dataclasses import dataclass
from pathlib import Path

from coterie.core.record import RunFolder, Status, read_metrics
from coterie.core.world import ALONE
from coterie.engine import Interrupt, Sign, Together, read_signs
from coterie.engine.snapshot import as_count
from coterie.experiment.running import store_for

_UNSAID = Status(state="running")  # of a run that was killed before it could say more
_OPEN = ("running", "gone")
_IN_ORDER = ("running", "done")
_HOLDER = re.compile(r"process (\d+) on (.+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """How a run stands.

    Attributes:
        state: `running`, `done`, `preempted`, `failed`, or `gone`: nobody works on it, and nobody said why.
        epoch: epochs begun, counted from 0.
        step: batches done, as far as is known.
        exit_code: of the run; None while it runs or when it is gone.
        message: the error in one line, or empty.
        signs: what each process was last heard to do.
        ages: seconds since then, in the same order.
        checkpoint: the step of the newest checkpoint; None when there is none.
        next: how to go on; empty when there is nothing to do.
    """

    state: str
    epoch: int
    step: int
    exit_code: int | None
    message: str
    signs: tuple[Sign, ...]
    ages: tuple[float, ...]
    checkpoint: int | None
    next: str


def standing_of(folder: Path) -> Standing:
    """Look at the folder of a run, which may be running; nothing is changed or locked.

    Args:
        folder: of the run.

    Raises:
        ConfigError: it is not the folder of a run.
        CheckpointError: its status cannot be read.
    """
    run = RunFolder(folder).existing()
    status, signs, now = run.read_status() or _UNSAID, read_signs(run.heartbeats), time.time()
    steps = store_for(run, Together(ALONE, Interrupt())).steps()
    state = _state_of(run, status)
    epoch, step = _logged(run)
    heard = [sign.step for sign in signs if state in _OPEN]
    return Standing(
        state=state,
        epoch=max(status.epoch, epoch),
        step=max([status.step, step, *heard]),
        exit_code=status.exit_code,
        message=status.message,
        signs=tuple(signs),
        ages=tuple(max(0.0, now - sign.time) for sign in signs),
        checkpoint=next(reversed(steps), None),
        next="" if state in _IN_ORDER else f"coterie train --resume {folder}",
    )


def _state_of(run: RunFolder, status: Status) -> str:
    said: str = status.state
    return "gone" if said == "running" and _holder_is_gone(run.lock_file) else said


def _logged(run: RunFolder) -> tuple[int, int]:
    """Epoch and step of the last row of the log."""
    row = next(reversed(read_metrics(run.metrics)), {})
    return as_count(row.get("epoch")), as_count(row.get("step"))


def _holder_is_gone(lock: Path) -> bool:
    """Whether the process that has signed a lock is of this host and no longer there, or has left it unsigned."""
    text = lock.read_text(encoding="utf-8", errors="replace").strip() if lock.is_file() else ""
    found = _HOLDER.fullmatch(text)
    if found is None or found[2] != socket.gethostname():
        return not text
    return not _is_there(int(found[1]))


def _is_there(process: int) -> bool:
    try:
        os.kill(process, 0)
    except OSError as error:
        return not isinstance(error, ProcessLookupError)
    return True
