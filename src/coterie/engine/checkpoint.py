"""Checkpoints of a run: at any instant at least one complete, verified one is on disk once the first was saved.

A checkpoint is written into a folder of its own beside its place, brought to disk, then renamed; the oldest is retired
after that. Reading takes the newest whole one; a damaged one is set aside, never deleted, and named in a warning.
"""

from __future__ import annotations

import contextlib
import os
import re
import warnings
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path

from coterie.core.crash import crash_point
from coterie.core.errors import CheckpointError, ConfigError
from coterie.core.files import (
    PREVIOUS,
    RecordWarning,
    is_taken,
    reason,
    remove_leftovers,
    remove_tree,
    sync_folder,
    unused_path,
)
from coterie.engine.checkpoint_files import (
    DamagedCheckpoint,
    free_space,
    no_space,
    read_checkpoint,
    require_space,
    write_checkpoint,
)
from coterie.engine.snapshot import Snapshot, digest

_STEP = re.compile(r"(?:\.old-)?step-(\d{8,18})")


class CheckpointWarning(RecordWarning):
    """A damaged checkpoint was set aside and an older one is used."""


class CheckpointStore:
    """The newest checkpoints of a run, in folders `step-00000012`.

    Everything that writes expects the caller to hold the lock of the run (`RunFolder.lock`). Order and retention go by
    step number; the clock is only noted down.

    Args:
        folder: `checkpoints/` of a run; made by the first save.
        keep: how many to keep, newest first.
        keep_every: steps between those that are kept for good besides; 0 for none, see `expendable`.

    Attributes:
        held: a step that is being copied elsewhere and must stay until then; -1 for none.

    Raises:
        ConfigError: `keep` is below 2, which would leave nothing to fall back to.

    Example:
        >>> import tempfile, torch
        >>> store = CheckpointStore(Path(tempfile.mkdtemp()) / "checkpoints")
        >>> for step in (1, 2, 3):
        ...     _ = store.save(step, Snapshot(tensors={"peer0": {"w": torch.ones(2)}}, values={"epoch": 0}))
        >>> step, snapshot = store.load_newest()
        >>> store.steps(), step, snapshot.section("peer0")["w"].tolist()
        ([2, 3], 3, [1.0, 1.0])
    """

    def __init__(self, folder: Path, keep: int = 2, keep_every: int = 0) -> None:
        if keep < 2:
            raise ConfigError(f"train.keep is {keep} and must be at least 2, so that a damaged checkpoint has a spare")
        self.folder = folder
        self.keep = keep
        self.keep_every = keep_every
        self.held = -1

    def steps(self) -> list[int]:
        """Step numbers of the checkpoints on disk, whole or not, rising.

        Raises:
            CheckpointError: the folder is a symbolic link, which nothing here follows.
        """
        _refuse_link(self.folder)
        if not self.folder.is_dir():
            return []
        found = (_STEP.fullmatch(path.name) for path in self.folder.iterdir())
        return sorted({int(match[1]) for match in found if match})

    def path_of(self, step: int) -> Path:
        """Where the checkpoint of a step is or would be."""
        return self.folder / f"step-{step:08d}"

    def save(self, step: int, snapshot: Snapshot, *, now: float | None = None) -> Path:
        """Store a snapshot and retire the oldest checkpoint.

        A step that is there with equal content is left as it is, so resuming twice without a step between is harmless.

        Args:
            step: steps taken.
            snapshot: the state after them.
            now: seconds since 1970 to note in the manifest; the clock's by default.

        Returns:
            The folder of the checkpoint.

        Raises:
            CheckpointError: the disk is full or not writable; older checkpoints are intact and training can go on.
        """
        target = self.path_of(step)
        if not self._holds(step, snapshot):
            _make(self.folder)
            save_to(target, step, snapshot, now=now)
        self.retire(step)
        return target

    def retire(self, saved: int) -> None:
        """Remove what is no longer kept; what cannot be removed stays, with a warning.

        Args:
            saved: a step that is whole and stays whatever its number.
        """
        for old in expendable(self.steps(), self.keep, self.keep_every):
            if old not in (saved, self.held):
                _retire(_previous(self.path_of(old)))
                _retire(self.path_of(old))

    def load(self, step: int) -> Snapshot:
        """Read the checkpoint of one step; see `load_newest` for errors, but nothing is set aside."""
        found, snapshot = load_from(self.path_of(step))
        if found != step:
            raise DamagedCheckpoint(f"{self.path_of(step)} says it is of step {found}; use another checkpoint")
        return snapshot

    def load_newest(self, *, read_only: bool = False) -> tuple[int, Snapshot] | None:
        """Read the newest checkpoint that is whole; newer, damaged ones are renamed to `.bad-...` with a warning.

        Args:
            read_only: warn only and change nothing on disk; for readers that do not hold the lock of the run.

        Returns:
            The step and the snapshot, or None when nothing was ever saved.

        Raises:
            CheckpointError: all are damaged (then all are left where they are), one may not be read, or one is of a
                newer format.
        """
        damaged: dict[int, DamagedCheckpoint] = {}
        for step in reversed(self.steps()):
            try:
                snapshot = self.load(step)
            except DamagedCheckpoint as error:
                damaged[step] = error
                continue
            for bad, damage in damaged.items():
                self._report(bad, damage, read_only=read_only)
            return step, snapshot
        if damaged:
            raise self._none_whole(damaged.values())
        return None

    def set_all_aside(self) -> None:
        """Rename all checkpoints to `.aside-...`, so that a run can start over; nothing is deleted."""
        for step in self.steps():
            path = self._found(step)
            path.rename(unused_path(self.folder, f".aside-{path.name.lstrip('.')}"))

    def clean(self) -> None:
        """Remove what an interrupted save left; call it only while holding the lock of the run."""
        remove_leftovers(self.folder)

    def _holds(self, step: int, snapshot: Snapshot) -> bool:
        if step not in self.steps():
            return False
        try:
            return digest(self.load(step)) == digest(snapshot)
        except DamagedCheckpoint as damage:
            self._report(step, damage, read_only=False)
            return False

    def _none_whole(self, damages: Iterable[DamagedCheckpoint]) -> CheckpointError:
        listed = ", ".join(str(damage).rpartition(";")[0] for damage in damages)
        return CheckpointError(
            f"no checkpoint in {self.folder} is whole: {listed}; restore one, or start over with"
            f" coterie train --resume {self.folder.parent} --fresh"
        )

    def _found(self, step: int) -> Path:
        path = self.path_of(step)
        return path if is_taken(path) else _previous(path)

    def _report(self, step: int, damage: DamagedCheckpoint, *, read_only: bool) -> None:
        path = self._found(step)
        aside = unused_path(self.folder, f".bad-{path.name.lstrip('.')}")
        if not read_only:
            try:
                path.rename(aside)
                sync_folder(self.folder)
            except OSError as error:
                raise CheckpointError(f"cannot rename damaged {path}: {reason(error)}; move it away") from error
        done = "passed over" if read_only else f"renamed to {aside.name}"
        message = f"checkpoint of step {step} is damaged and was {done}: {damage}"
        warnings.warn(message, CheckpointWarning, stacklevel=4)


def expendable(steps: Sequence[int], keep: int, every: int = 0) -> list[int]:
    """Name the checkpoints that are not kept: all but the newest, and but the first one at or after each multiple.

    Args:
        steps: numbers of the checkpoints there are, rising.
        keep: how many of the newest stay.
        every: steps between two that stay for good; 0 for none.

    Example:
        >>> expendable([100, 200, 300, 400, 500], keep=2), expendable([100, 200, 300, 400, 500], keep=2, every=200)
        ([100, 200, 300], [100, 300])
        >>> expendable([100, 250, 300, 450, 500, 600], keep=1, every=200)  # none was saved at 200, the next one counts
        [100, 300, 500]
    """
    for_good = _first_at(steps, every) if every else ()
    return [step for step in steps[:-keep] if step not in for_good]


def _first_at(steps: Sequence[int], every: int) -> Collection[int]:
    """The first step at or after each multiple."""
    return {step // every: step for step in reversed(steps) if step >= every}.values()


def save_to(folder: Path, step: int, snapshot: Snapshot, *, now: float | None = None) -> None:
    """Write one checkpoint at a fixed place, replacing the one that is there; for `best/`.

    Args:
        folder: the checkpoint itself; its parent must exist.
        step: steps taken.
        snapshot: the state after them.
        now: seconds since 1970 to note in the manifest; the clock's by default.

    Raises:
        CheckpointError: the disk is full or not writable; what was there is intact.
    """
    previous = _previous(folder)
    with _staged(folder, step, snapshot, now) as temporary:
        if is_taken(folder):
            _retire(previous)
            folder.rename(previous)  # `load_from` looks here while the place is empty
            crash_point("previous-kept")
        into_place(temporary, folder)
    _retire(previous)


def into_place(temporary: Path, target: Path) -> None:
    """Rename a folder that is whole on disk, so that it is there or not there after any crash."""
    temporary.rename(target)
    crash_point("checkpoint-renamed")
    sync_folder(target.parent)
    crash_point("parent-synced")


def load_from(folder: Path) -> tuple[int, Snapshot]:
    """Read one checkpoint folder without changing anything: `best/`, one of `checkpoints/`, or a stranger's.

    Args:
        folder: the checkpoint itself.

    Returns:
        The step and the snapshot, on the CPU.

    Raises:
        CheckpointError: it is missing, damaged, a pickle or of a newer format.
    """
    interrupted = not is_taken(folder) and _previous(folder).is_dir()
    return read_checkpoint(_previous(folder) if interrupted else folder)


@contextlib.contextmanager
def _staged(target: Path, step: int, snapshot: Snapshot, now: float | None) -> Iterator[Path]:
    """Write a checkpoint beside its place for the body to rename; whatever fails, nothing of it stays."""
    temporary = target.with_name(f".tmp-{target.name}-{os.getpid()}")
    remove_tree(temporary)
    try:
        require_space(target.parent, step, snapshot)
        write_checkpoint(temporary, step, snapshot, now=now)
        yield temporary
    except OSError as error:
        remove_tree(temporary)
        need, free = snapshot.num_bytes, free_space(target.parent)
        raise no_space(target.parent, step, need, free, why=reason(error)) from error
    except BaseException:
        remove_tree(temporary)
        raise


def _refuse_link(folder: Path) -> None:
    if folder.is_symlink():
        raise CheckpointError(f"{folder} is a symbolic link, which a run does not follow; remove it")


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointError(f"cannot make {folder}: {reason(error)}; give the run another folder") from error


def _retire(path: Path) -> None:
    doomed = path.with_name(f".del-{path.name.lstrip('.')}-{os.getpid()}")
    try:
        remove_tree(doomed)
        path.rename(doomed)
    except FileNotFoundError:
        return
    except OSError as error:
        message = f"{path} could not be removed: {reason(error)}; remove it by hand"
        warnings.warn(message, RecordWarning, stacklevel=3)
        return
    crash_point("retired")
    remove_tree(doomed)
    crash_point("removed")


def _previous(folder: Path) -> Path:
    return folder.with_name(f"{PREVIOUS}{folder.name}")
