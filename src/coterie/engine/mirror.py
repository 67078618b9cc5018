"""Checkpoints in a second place: what is there, what is put there, and what is fetched from there.

MIRROR/
    recipe.toml, environment.json, metrics.jsonl, timing.jsonl, result.json
    checkpoints/step-00000012/...
    best/step-00000010/...

Files of a checkpoint go first and its manifest last, created only if it is absent: a folder without a manifest does not
exist. Nothing is changed in place, so what is listed is whole, or found out by its hashes when it is fetched.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path

from coterie.core.crash import crash_point
from coterie.core.errors import CheckpointError
from coterie.core.files import is_taken, reason, remove_tree, sync_file, sync_folder, unused_path, write_synced
from coterie.core.record import RunFolder
from coterie.engine.checkpoint import CheckpointWarning, expendable, into_place
from coterie.engine.checkpoint_files import MANIFEST, DamagedCheckpoint, read_manifest, require_free, verify_files
from coterie.engine.remote import Remote

_STEP = re.compile(r"step-(\d{8,18})")
_LISTED = 1 << 20  # bytes of a manifest at most
_SMALL = 1 << 30  # bytes of a log at most


class Mirror:
    """The copy of a run elsewhere.

    Args:
        remote: where it is.
        folder: of the run on this machine.
    """

    def __init__(self, remote: Remote, folder: RunFolder) -> None:
        self.remote = remote
        self.folder = folder

    def steps(self, kind: str = "checkpoints") -> list[int]:
        """Steps that have a manifest, rising; `kind` is `checkpoints` or `best`."""
        return [step for step in self._begun(kind) if self.remote.size(f"{_place(kind, step)}/{MANIFEST}") is not None]

    def publish(self, step: int, source: Path) -> None:
        """Copy a checkpoint, the best one, the recipe and the logs.

        Args:
            step: of the checkpoint.
            source: its folder on this machine, which must stay meanwhile.

        Raises:
            CheckpointError: the store cannot be reached or refuses, or another run writes there.
        """
        for path in (*self._small(), self.folder.result):
            if path.exists():
                self.remote.write(path.name, path.read_bytes())
        if self.folder.best.is_dir():
            self._publish_best()
        self._copy(source, _place("checkpoints", step))

    def retire(self, keep: int, every: int) -> None:
        """Remove checkpoints by the rule of `expendable`, and what is left of copies that were never finished."""
        whole = self.steps()
        unfinished = sorted(set(self._begun("checkpoints")).difference(whole))
        torn = [step for step in unfinished if step < max(whole, default=0)]
        self._remove("checkpoints", [*expendable(whole, keep, every), *torn])

    def fetch(self, after: int = -1) -> int | None:
        """Bring the newest whole checkpoint, the best one, recipe and logs to this machine.

        What is damaged is passed over with a warning; nothing there is changed.

        Args:
            after: fetch a checkpoint of a later step only.

        Returns:
            The step that was fetched, or None when there is none.

        Raises:
            CheckpointError: the store cannot be reached, or the disk of this machine is full.
        """
        newer = [step for step in reversed(self.steps()) if step > after]
        try:
            return self._fetch_first(newer)
        except OSError as error:
            raise CheckpointError(
                f"cannot fetch checkpoints to {self.folder}: {reason(error)}; make room or give another folder"
            ) from error

    def fetch_small(self) -> bool:
        """Bring recipe and environment to this machine, which is enough to begin with; whether there is a recipe."""
        self.folder.path.mkdir(parents=True, exist_ok=True)
        found = [self._fetch_small(path) for path in (self.folder.recipe, self.folder.environment)]
        return found[0]

    def _begun(self, kind: str) -> list[int]:
        return sorted(int(match[1]) for name in self.remote.names(kind) if (match := _STEP.fullmatch(name)))

    def _publish_best(self) -> None:
        step = read_manifest(self.folder.best)[0]
        self._copy(self.folder.best, _place("best", step))
        self._remove("best", sorted(set(self._begun("best")) - {step}))

    def _copy(self, source: Path, place: str) -> None:
        """Copy a folder with a manifest; one that is there with the same content stays."""
        listed = (source / MANIFEST).read_bytes()
        there = self.remote.read(f"{place}/{MANIFEST}", limit=_LISTED)
        if there == listed:
            return
        if there is not None:
            self.remote.remove(f"{place}/{MANIFEST}")  # from now on it does not exist
        self._upload(source, place)
        if (source / MANIFEST).read_bytes() != listed:
            raise CheckpointError(f"{source} was replaced while it was copied")
        crash_point("mirror-files")
        self.remote.create(f"{place}/{MANIFEST}", listed)
        crash_point("mirror-manifest")

    def _upload(self, source: Path, place: str) -> None:
        for name in read_manifest(source)[1]:
            self.remote.upload(source / name, f"{place}/{name}")
            crash_point("mirror-file")

    def _remove(self, kind: str, steps: Iterable[int]) -> None:
        for place in (_place(kind, step) for step in steps):
            self.remote.remove(f"{place}/{MANIFEST}")
            self.remote.remove_folder(place)

    def _fetched(self, place: str, target: Path) -> bool:
        """Bring a folder with a manifest into place, and tell whether it is whole."""
        temporary = target.with_name(f".tmp-{target.name}")
        remove_tree(temporary)
        temporary.mkdir()
        try:
            self._download(place, temporary)
        except DamagedCheckpoint as damage:
            message = f"{place} in {self.remote} is damaged and was passed over: {damage}"
            warnings.warn(message, CheckpointWarning, stacklevel=4)
            remove_tree(temporary)
            return False
        if is_taken(target):  # and damaged, or nothing would have been fetched
            target.rename(unused_path(target.parent, f".bad-{target.name}"))
        into_place(temporary, target)
        return True

    def _fetch_first(self, newer: Sequence[int]) -> int | None:
        self.folder.checkpoints.mkdir(parents=True, exist_ok=True)
        if newer:
            self._fetch_rest()
        targets = ((step, self.folder.checkpoints / f"step-{step:08d}") for step in newer)
        return next((step for step, target in targets if self._fetched(_place("checkpoints", step), target)), None)

    def _download(self, place: str, folder: Path) -> None:
        write_synced(folder / MANIFEST, self.remote.read(f"{place}/{MANIFEST}", limit=_LISTED) or b"")
        _, entries = read_manifest(folder)
        require_free(folder, sum(entry.size for entry in entries.values()))
        for name, entry in entries.items():
            self._download_file(place, folder, name, entry.size)
        verify_files(folder, entries)
        sync_folder(folder)

    def _download_file(self, place: str, folder: Path, name: str, expected: int) -> None:
        size = self.remote.size(f"{place}/{name}")
        if size != expected:
            raise DamagedCheckpoint(f"{name} has {size} bytes and must have {expected}; use another checkpoint")
        self.remote.download(f"{place}/{name}", folder / name)
        sync_file(folder / name)

    def _fetch_rest(self) -> None:
        for path in self._small():
            self._fetch_small(path)
        self._fetch_best()

    def _fetch_best(self) -> None:
        for step in reversed(self.steps("best")):
            remove_tree(self.folder.best)
            if self._fetched(_place("best", step), self.folder.best):
                return

    def _fetch_small(self, path: Path) -> bool:
        content = self.remote.read(path.name, limit=_SMALL)
        if content is not None:
            write_synced(path, content)
        return content is not None

    def _small(self) -> tuple[Path, ...]:
        return self.folder.recipe, self.folder.environment, self.folder.metrics, self.folder.timing


def _place(kind: str, step: int) -> str:
    return f"{kind}/step-{step:08d}"
