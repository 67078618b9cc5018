"""One checkpoint on disk: a folder of safetensors files, `values.json` and, written last, a manifest with hashes.

The manifest makes the folder: size and SHA-256 of every file, the step and the versions that wrote it. Hashes find what
accidents do, flipped bits included, which safetensors itself does not notice. Nothing here can run code from a file.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeGuard, TypeVar

import safetensors.torch
import torch
from safetensors import SafetensorError

from coterie.core.crash import crash_point
from coterie.core.environment import package_version
from coterie.core.errors import CheckpointError
from coterie.core.files import JsonValue, open_regular, read_json, reason, sha256_of, sync_file, sync_folder, write_new
from coterie.engine.snapshot import Snapshot, Tensors, as_mapping, values_json
from coterie.engine.tensor_files import write_tensors

T = TypeVar("T")

FORMAT = 1
"""Version of the layout; raised when an older reader could not read what is written."""

MANIFEST = "MANIFEST.json"
VALUES = "values.json"

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,199}\.(safetensors|json)")
_HASH = re.compile(r"[0-9a-f]{64}")
_MARGIN = 1.1
_POINTS = {VALUES: "values-written", MANIFEST: "manifest-written"}


class DamagedCheckpoint(CheckpointError):
    """A checkpoint whose content is not what was written; another one may be whole."""


@dataclass(frozen=True, slots=True)
class Entry:
    """What the manifest says about a file: bytes and SHA-256."""

    size: int
    sha256: str


def write_checkpoint(folder: Path, step: int, snapshot: Snapshot, *, now: float | None = None) -> None:
    """Write a checkpoint into a new folder, hashing on the way, and bring every byte to disk.

    Args:
        folder: made here, must not exist; the caller renames it into place and removes it after an error.
        step: steps taken when the snapshot was made.
        snapshot: tensors on any device; copied to the CPU one at a time.
        now: seconds since 1970 to note down; the clock's by default.

    Raises:
        CheckpointError: a tensor cannot be stored.
        OSError: as the system reports it, disk full included.
    """
    folder.mkdir()
    entries: dict[str, Entry] = {}
    for stem, tensors in snapshot.tensors.items():
        _require_name(f"{stem}.safetensors")
        path = folder / f"{stem}.safetensors"
        entries[path.name] = Entry(*write_tensors(path, tensors))
        crash_point("tensors-unsynced")
    values = values_json(snapshot.values)
    write_new(folder / VALUES, [values])
    entries[VALUES] = Entry(len(values), hashlib.sha256(values).hexdigest())
    write_new(folder / MANIFEST, [_manifest(step, entries, time.time() if now is None else now)])
    crash_point("manifest-unsynced")
    for name in (*entries, MANIFEST):  # all together: most disks then work once
        sync_file(folder / name)
        crash_point(_POINTS.get(name, "tensors-written"))
    sync_folder(folder)
    crash_point("folder-synced")


def read_checkpoint(folder: Path) -> tuple[int, Snapshot]:
    """Read a checkpoint, verifying names, sizes and hashes; nothing is changed on disk.

    Args:
        folder: a checkpoint; neither it nor its files may be symbolic links.

    Returns:
        The step and the snapshot, on the CPU.

    Raises:
        DamagedCheckpoint: a file is missing, altered, or not what its name says.
        CheckpointError: it is no checkpoint, may not be read, or is of a newer format.
    """
    step, entries = read_manifest(folder)
    tensors: dict[str, Tensors] = {}
    for name, entry in entries.items():
        _verify(folder / name, entry)
        if name != VALUES:
            tensors[name.removesuffix(".safetensors")] = _read_tensors(folder / name)
    values = _guard(lambda: read_json(folder / VALUES, limit=entries[VALUES].size), folder / VALUES)
    if not isinstance(values, Mapping):
        raise DamagedCheckpoint(f"{folder / VALUES} is not a JSON object; use another checkpoint")
    return step, Snapshot(tensors=tensors, values=values)


def read_manifest(folder: Path) -> tuple[int, dict[str, Entry]]:
    """Read the manifest of a checkpoint without opening what it names; see `read_checkpoint` for errors."""
    _require_folder(folder)
    path = folder / MANIFEST
    manifest = as_mapping(_guard(lambda: read_json(path), path))
    version, step = manifest.get("format"), manifest.get("step")
    if not _whole(version) or not _whole(step):
        raise DamagedCheckpoint(f"{path} is not the manifest of a checkpoint; use another checkpoint")
    if version > FORMAT:
        raise CheckpointError(
            f"{folder} was written by format {version}, this version reads up to {FORMAT}; upgrade coterie"
        )
    entries = {name: _entry(path, name, given) for name, given in as_mapping(manifest.get("files")).items()}
    if VALUES not in entries:
        raise DamagedCheckpoint(f"{path} does not name {VALUES}; use another checkpoint")
    return step, entries


def require_space(folder: Path, step: int, snapshot: Snapshot) -> None:
    """Refuse a save that would not fit, before a byte is written.

    Raises:
        CheckpointError: free space is less than 1.1 times what is needed.
    """
    need = int((snapshot.num_bytes + len(values_json(snapshot.values))) * _MARGIN)
    free = free_space(folder)
    if free < need:
        raise no_space(folder, step, need, free)


def require_free(folder: Path, size: int) -> None:
    """Refuse to fetch what would not fit, before a byte is written.

    Raises:
        CheckpointError: free space is less than 1.1 times the size.
    """
    free = free_space(folder)
    if free < size * _MARGIN:
        raise CheckpointError(f"cannot fetch {size} bytes to {folder}: {free} are free; make room")


def verify_files(folder: Path, entries: Mapping[str, Entry]) -> None:
    """Read files against sizes and hashes of a manifest; raises `DamagedCheckpoint` for the first that differs."""
    for name, entry in entries.items():
        _verify(folder / name, entry)


def free_space(folder: Path) -> int:
    """Bytes that this user may still write where a folder is."""
    return shutil.disk_usage(folder).free


def no_space(folder: Path, step: int, need: int, free: int, why: str = "not enough space") -> CheckpointError:
    """The error of a save that failed on a full disk; older checkpoints are untouched."""
    return CheckpointError(
        f"cannot save step {step} in {folder}: {why}, {need} bytes needed and {free} free;"
        " make room, older checkpoints are intact"
    )


def _manifest(step: int, entries: Mapping[str, Entry], now: float) -> bytes:
    manifest = {
        "format": FORMAT,
        "step": step,
        "saved": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(now)),
        "coterie": package_version(),
        "torch": torch.__version__,
        "files": {name: asdict(entry) for name, entry in entries.items()},
    }
    return json.dumps(manifest, indent=1).encode() + b"\n"


def _entry(path: Path, name: str, given: JsonValue) -> Entry:
    _require_name(name, where=f"{path} names")
    fields = as_mapping(given)
    size, sha256 = fields.get("size"), fields.get("sha256")
    if not _whole(size) or not isinstance(sha256, str) or not _HASH.fullmatch(sha256):
        raise DamagedCheckpoint(f"{path} gives no size and SHA-256 for {name}; use another checkpoint")
    return Entry(size, sha256)


def _verify(path: Path, entry: Entry) -> None:
    size = _guard(lambda: _size_of(path), path)
    if size != entry.size:
        raise DamagedCheckpoint(f"{path} has {size} bytes and must have {entry.size}; use another checkpoint")
    found = _guard(lambda: sha256_of(path), path)
    if found != entry.sha256:
        raise DamagedCheckpoint(
            f"{path} has SHA-256 {found[:12]}... and must have {entry.sha256[:12]}...; use another checkpoint"
        )


def _size_of(path: Path) -> int:
    with open_regular(path) as file:
        return os.fstat(file.fileno()).st_size


def _read_tensors(path: Path) -> Tensors:
    open_regular(path).close()  # refuses links and pipes, which the library would follow
    try:
        loaded = safetensors.torch.load_file(path)
        return {name: tensor.clone() for name, tensor in loaded.items()}  # loaded ones are windows on the file
    except (SafetensorError, OSError, ValueError, KeyError, RuntimeError) as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> DamagedCheckpoint:
    with open_regular(path) as file:
        head = file.read(2)  # the size of a header may begin like this too: look only when nothing else fits
    if head in (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"):
        return DamagedCheckpoint(
            f"{path} is a pickle, which could run code and is never loaded; convert it to safetensors in a sandbox"
        )
    return DamagedCheckpoint(f"{path} is not a safetensors file ({error}); use another checkpoint")


def _guard(read: Callable[[], T], path: Path) -> T:
    """Call `read`; whatever it cannot read is damage, but for a file that this user may not open."""
    try:
        return read()
    except CheckpointError as error:
        if isinstance(error.__cause__, PermissionError):
            raise
        raise DamagedCheckpoint(f"{error}, or use another checkpoint") from error
    except OSError as error:
        raise DamagedCheckpoint(f"cannot read {path}: {reason(error)}; use another checkpoint") from error


def _require_folder(folder: Path) -> None:
    if folder.is_symlink():
        raise DamagedCheckpoint(f"{folder} is a symbolic link, which is not followed; give the folder itself")
    if folder.is_file():
        raise DamagedCheckpoint(
            f"{folder} is a file and a checkpoint is a folder; pickles (.pt, .pth) could run code and are never loaded,"
            " convert them to safetensors in a sandbox"
        )
    if not folder.is_dir():
        raise CheckpointError(f"{folder} does not exist; give the folder of a checkpoint")


def _require_name(name: str, where: str = "a checkpoint cannot hold") -> None:
    if not _NAME.fullmatch(name):
        raise DamagedCheckpoint(
            f"{where} {name[:80]!r}; only plain .safetensors and .json names inside the folder are allowed"
        )


def _whole(value: JsonValue) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
