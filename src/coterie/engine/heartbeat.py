"""Signs of life: what each process of a run is doing, in a small file of its own that people and schedulers can read.

A file is rewritten between phases, at most once a second unless the phase is a rare one, and never by a thread: a
process that hangs or is gone is one whose sign grows old.
"""

from __future__ import annotations

import json
import os
import socket
import time
from contextlib import suppress
from dataclasses import asdict, astuple, dataclass
from pathlib import Path
from typing import Any

from coterie.core.errors import CheckpointError
from coterie.core.files import read_json

_EVERY = 1.0  # seconds
_FREQUENT = frozenset({"data", "waiting", "step", "training"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Sign:
    """What a process was doing when it was last heard of.

    Attributes:
        rank: of the process.
        step: batches done.
        phase: `data`, `waiting` for the others, `step`, `saving`, ...
        time: seconds since 1970.
        process: its number on its host.
        host: where it runs.
    """

    rank: int
    step: int
    phase: str
    time: float
    process: int
    host: str


_NUMBER = (int, float)
_KINDS: tuple[Any, ...] = (_NUMBER, _NUMBER, str, _NUMBER, _NUMBER, str)  # of the attributes of a sign, in their order


class Heartbeat:
    """Writes the signs of this process.

    Args:
        folder: `heartbeats/` of a run; made when the run is there, as it need not be on hosts that share no disk with
            the first.
        rank: of this process.
    """

    def __init__(self, folder: Path, rank: int = 0) -> None:
        self._folder = folder
        self._rank = rank
        self._host = socket.gethostname()
        self._next = 0.0

    def beat(self, phase: str, step: int) -> None:
        """Say what this process begins to do; costs nothing when it has said something in the last second.

        Args:
            phase: what it does.
            step: batches done.
        """
        now = time.monotonic()
        if now < self._next and phase in _FREQUENT:
            return
        self._next = now + _EVERY
        sign = Sign(rank=self._rank, step=step, phase=phase, time=time.time(), process=os.getpid(), host=self._host)
        with suppress(OSError):  # a full disk or a folder that is elsewhere costs the sign, not the run
            self._write(json.dumps(asdict(sign)))

    def clear(self) -> None:
        """Remove the signs of all processes; for the first one, when a run begins or goes on."""
        with suppress(OSError):
            for path in self._folder.glob("rank*.json"):
                path.unlink(missing_ok=True)

    def _write(self, text: str) -> None:
        if self._folder.is_symlink() or not (self._folder.parent / "recipe.toml").is_file():
            return  # no run yet, and none may come of it
        self._folder.mkdir(exist_ok=True)
        temporary = self._folder / f".tmp-rank{self._rank}-{os.getpid()}"
        try:
            temporary.write_text(text, encoding="utf-8")
            temporary.replace(self._folder / f"rank{self._rank}.json")
        except OSError:
            temporary.unlink(missing_ok=True)
            raise


def read_signs(folder: Path) -> list[Sign]:
    """Read the signs of all processes of a run, in order of ranks; files that are none are passed over.

    Args:
        folder: `heartbeats/` of a run.
    """
    found = [sign for path in folder.glob("rank*.json") if (sign := _read(path)) is not None]
    return sorted(found, key=lambda sign: sign.rank)


def _read(path: Path) -> Sign | None:
    try:
        value = read_json(path, limit=10_000)
        sign = Sign(**value)  # type: ignore[arg-type]
    except (CheckpointError, TypeError):
        return None
    return sign if all(map(isinstance, astuple(sign), _KINDS)) else None
