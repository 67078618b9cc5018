"""The folder of a run: what the engine writes and reports read.

runs/NAME/
    recipe.toml        the resolved recipe, itself a recipe
    environment.json   versions and hardware
    status.json        how far the run is and how it ended
    metrics.jsonl      one row per logged step; the same for the same recipe
    timing.jsonl       one row per logged step; seconds, images/s, peak of memory, never the same twice
    result.json        what was measured at the end
    fewshot.json       accuracy on new classes by ways and shots
    report*.png        pictures
    best/              the checkpoint that was best on validation
    checkpoints/       the newest checkpoints
    heartbeats/        what each process was last heard to do
    export/            the leader, ready to ship
    .lock              held while a process writes here
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import os
import threading
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from coterie.core.crash import crash_point
from coterie.core.environment import describe_environment
from coterie.core.errors import CheckpointError, ConfigError
from coterie.core.files import (
    JsonValue,
    RecordWarning,
    finite,
    open_regular,
    read_json,
    reason,
    remove_leftovers,
    unused_path,
    write_json_atomically,
    write_text_atomically,
)
from coterie.core.lock import locked

State = Literal["running", "done", "preempted", "failed"]

_WORDS = {"nan": float("nan"), "inf": float("inf"), "-inf": float("-inf")}


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """How far a run is and how it ended; what a scheduler reads where exit codes get lost.

    Attributes:
        state: `running`, `done`, `preempted` (continue it with `--resume`) or `failed`.
        step: steps taken.
        epoch: epochs begun, counted from 0.
        exit_code: of the process; None while it runs.
        message: the error in one line, or empty.
        saved: step of the newest checkpoint of this process that is whole on disk.
        mirrored: step of its newest checkpoint that is whole in `train.mirror`.
        mirror_failures: how often copying to `train.mirror` has failed.
    """

    state: State
    step: int = 0
    epoch: int = 0
    exit_code: int | None = None
    message: str = ""
    saved: int = 0
    mirrored: int = 0
    mirror_failures: int = 0


class RunFolder:
    """The paths of a run's folder, and how to write there. Making this object touches nothing.

    Args:
        path: the folder, which need not exist.
        writes: whether this process may write there; of several that train together only one does, and to the others
            the folder is empty.
    """

    def __init__(self, path: str | os.PathLike[str], *, writes: bool = True) -> None:
        self.path = Path(path)
        self.writes = writes
        self.recipe = self.path / "recipe.toml"
        self.environment = self.path / "environment.json"
        self.status = self.path / "status.json"
        self.metrics = self.path / "metrics.jsonl"
        self.timing = self.path / "timing.jsonl"
        self.result = self.path / "result.json"
        self.best = self.path / "best"
        self.checkpoints = self.path / "checkpoints"
        self.heartbeats = self.path / "heartbeats"
        self.export = self.path / "export"
        self.lock_file = self.path / ".lock"
        self._made = False
        self._status_lock = threading.Lock()

    def __str__(self) -> str:
        return repr(str(self.path))

    def create(self) -> RunFolder:
        """Make the folder and its parents, and prove that it can be written; call it before any training.

        Returns:
            This object.

        Raises:
            ConfigError: the path is a file, cannot be made or written, or holds a symbolic link where a run writes.
        """
        if not self.writes:
            return self
        probe = self.path / f".tmp-probe-{os.getpid()}"
        try:
            self._made = self._made or not self.path.exists()
            self.path.mkdir(parents=True, exist_ok=True)
            probe.touch()
            probe.unlink()
        except (OSError, ValueError) as error:
            raise ConfigError(f"cannot write in run folder {self}: {reason(error)}; give another") from error
        self._refuse_links()
        return self

    def remove_if_unused(self) -> None:
        """Remove the folder when this object has made it and no run was started in it; call it holding the lock."""
        if not self._made or list(self.path.iterdir()) != [self.lock_file]:
            return
        with contextlib.suppress(OSError):
            self.lock_file.unlink()
            self.path.rmdir()

    def existing(self) -> RunFolder:
        """Return this object if a run was ever started in the folder.

        Raises:
            ConfigError: the folder or its recipe is missing.
        """
        if not self.recipe.is_file():
            raise ConfigError(f"{self} is not the folder of a run (no recipe.toml); give a folder of runs/")
        return self

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Be the only process that writes here; what an interrupted writer left is removed first.

        Raises:
            CheckpointError: another process holds the lock; it is named with its host.
        """
        if not self.writes:
            yield
            return
        with locked(self.lock_file):
            remove_leftovers(self.path)
            remove_leftovers(self.checkpoints)
            remove_leftovers(self.heartbeats)
            yield

    def write_recipe(self, text: str) -> None:
        """Store the resolved recipe, TOML."""
        if self.writes:
            write_text_atomically(self.recipe, text)

    def write_environment(self, name: str, **facts: JsonValue) -> None:
        """Store versions and hardware of this process, how tables call the run, and more facts about it."""
        if self.writes:
            write_json_atomically(self.environment, {"name": name, **describe_environment(), **facts})

    def add_to_environment(self, **facts: JsonValue) -> None:
        """Store more about how a run is computed, beside what `write_environment` stored."""
        if self.writes:
            write_json_atomically(self.environment, {**self.read_environment(), **facts})

    def read_environment(self) -> Mapping[str, JsonValue]:
        """Read what `write_environment` stored; empty when there is no such file.

        Raises:
            CheckpointError: the file is damaged.
        """
        if not self.writes or not self.environment.exists():
            return {}
        value = read_json(self.environment)
        if not isinstance(value, Mapping):
            raise CheckpointError(f"{self.environment} is not a JSON object; remove the file")
        return value

    def set_aside(self) -> None:
        """Rename log and results to `.aside-...`, so that the run can start over; nothing is deleted.

        Raises:
            CheckpointError: a file cannot be renamed.
        """
        for path in (self.result, self.metrics, self.timing, self.best):
            try:
                if self.writes and path.exists():
                    path.rename(unused_path(self.path, f".aside-{path.name}"))
            except OSError as error:
                raise CheckpointError(f"cannot rename {path}: {reason(error)}; move it away") from error

    def write_result(self, result: Mapping[str, JsonValue]) -> None:
        """Store what was measured at the end."""
        if self.writes:
            write_json_atomically(self.result, result)

    def write_status(self, status: Status) -> None:
        """Store the status; a disk that is full costs the file and a warning, not the run."""
        try:
            with self._status_lock:  # a thread that saves tells of it too
                if self.writes:
                    write_json_atomically(self.status, dataclasses.asdict(status))
        except CheckpointError as error:
            warnings.warn(str(error), RecordWarning, stacklevel=2)

    def read_status(self) -> Status | None:
        """Read the status, or None when no run has written one.

        Raises:
            CheckpointError: the file is not a status.
        """
        if not self.status.exists():
            return None
        value = read_json(self.status)
        try:
            status = Status(**value)  # type: ignore[arg-type]
        except TypeError:
            status = None
        if status is None or status.state not in get_args(State):
            raise CheckpointError(f"{self.status} is not the status of a run; remove the file")
        return status

    def _refuse_links(self) -> None:
        for path in vars(self).values():
            if isinstance(path, Path) and path != self.path and path.is_symlink():
                raise ConfigError(f"{str(path)!r} is a symbolic link, which a run does not follow; remove it")


class MetricsLog:
    """Rows of numbers, one JSON object per line, that can be cut back to where a checkpoint was taken.

    A checkpoint keeps `offset()`; the run that continues from it calls `truncate` with that number, so that each step
    has exactly one row whatever happened in between.

    Args:
        path: the `.jsonl` file; made by the first row.
        writes: whether this process keeps the log; to another one it is empty.
    """

    def __init__(self, path: Path, *, writes: bool = True) -> None:
        self.path = path
        self.writes = writes
        self._unwritten = b""
        self._warned = False

    def append(self, row: Mapping[str, JsonValue]) -> None:
        """Add a row; floats that are not finite are written as the words `nan`, `inf` and `-inf`.

        A disk that is full costs one warning; the rows are kept in memory and written with the next one that fits.
        """
        if not self.writes:
            return
        self._unwritten += json.dumps(finite(row), allow_nan=False).encode() + b"\n"
        try:
            _append(self.path, self._unwritten)
        except OSError as error:
            if not self._warned:
                self._warned = True
                message = f"cannot write {self.path}: {reason(error)}; training goes on, make room for the log"
                warnings.warn(message, RecordWarning, stacklevel=2)
            return
        self._unwritten = b""
        crash_point("row-written")

    def offset(self) -> int:
        """Bring the rows to disk and return their length in bytes, for a checkpoint to keep."""
        self.sync()
        return self.size()

    def size(self) -> int:
        """Length of the rows in bytes, on disk or on their way there."""
        return self.path.stat().st_size if self.writes and self.path.exists() else 0

    def sync(self) -> None:
        """Bring the rows to disk; a disk that refuses costs rows, not the run."""
        if not self.writes or not self.path.exists():
            return
        with open_regular(self.path) as file, contextlib.suppress(OSError):
            os.fsync(file.fileno())

    def truncate(self, offset: int) -> None:
        """Cut rows that were written after a checkpoint; 0 removes all.

        Args:
            offset: what `offset()` returned when the checkpoint was taken.

        Raises:
            CheckpointError: the file cannot be read or cut.
        """
        self._unwritten = b""
        if not self.writes:
            return
        if not self.path.exists():
            self._miss(0, offset)
            return
        with open_regular(self.path) as file:
            kept = file.read(offset)
        self._miss(len(kept), offset)
        end = kept.rfind(b"\n") + 1  # a row that lost its end goes with what follows
        try:
            os.truncate(self.path, end)
        except OSError as error:
            raise CheckpointError(f"cannot cut {self.path}: {reason(error)}; make the file writable") from error

    def _miss(self, found: int, wanted: int) -> None:
        if found < wanted:
            message = f"{self.path} has {found} bytes where the checkpoint knew {wanted}; its last rows are lost"
            warnings.warn(message, RecordWarning, stacklevel=3)


def read_metrics(path: Path) -> list[dict[str, JsonValue]]:
    """Read the rows of a log; a last line that lost its end is left out.

    Args:
        path: `metrics.jsonl` or `timing.jsonl` of a run, which may be running.

    Returns:
        The rows in order, with the words `nan`, `inf` and `-inf` turned back into floats; none for a missing file.

    Raises:
        CheckpointError: a line is not a JSON object.
    """
    if not path.exists():
        return []
    with open_regular(path) as file:
        *lines, _ = file.read().split(b"\n")
    return [_parse_row(line, f"{path} line {number}") for number, line in enumerate(lines, start=1)]


def _parse_row(line: bytes, where: str) -> dict[str, JsonValue]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        row = None
    if not isinstance(row, dict):
        raise CheckpointError(f"{where} is not a JSON object; remove the line")
    return {key: _WORDS.get(value, value) if isinstance(value, str) else value for key, value in row.items()}


def _append(path: Path, content: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    before = os.fstat(descriptor).st_size
    try:
        if os.write(descriptor, content) < len(content):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    except OSError:
        os.ftruncate(descriptor, before)
        raise
    finally:
        os.close(descriptor)
