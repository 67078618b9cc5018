"""Files that are whole or absent: written beside their place, brought to disk, then renamed; links never followed."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import json
import math
import os
import shutil
import stat
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

from coterie.core.crash import crash_point
from coterie.core.errors import CheckpointError

JsonValue: TypeAlias = "bool | int | float | str | Sequence[JsonValue] | Mapping[str, JsonValue] | None"
"""What a JSON file can hold."""

LEFTOVERS = (".tmp-", ".del-")
"""Prefixes of names that only an interrupted writer leaves behind."""
PREVIOUS = ".old-"
"""Prefix of what stands in for a folder while it is replaced."""


class RecordWarning(UserWarning):
    """A run goes on although something beside it could not be written or read."""


def write_text_atomically(path: Path, text: str) -> None:
    """Write a file so that a reader or a crash meets the old text or the new one, never a part.

    A symbolic link at `path` is replaced, not followed.

    Args:
        path: where the text goes; its folder must exist.
        text: written as UTF-8.

    Raises:
        CheckpointError: the folder is missing, full or not writable.
    """
    temporary = path.with_name(f".tmp-{path.name}-{os.getpid()}")
    try:
        write_synced(temporary, text.encode())
        crash_point("file-written")
        temporary.replace(path)
        crash_point("file-renamed")
        sync_folder(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise CheckpointError(f"cannot write {path}: {reason(error)}; make room or give another folder") from error


def write_json_atomically(path: Path, value: JsonValue) -> None:
    """Write strict JSON, indented, by `write_text_atomically`; floats that are not finite become words (`finite`)."""
    write_text_atomically(path, json.dumps(finite(value), indent=2, allow_nan=False, ensure_ascii=False) + "\n")


def write_synced(path: Path, content: bytes) -> None:
    """Write a new file under the umask and bring it to disk; what was at `path` is replaced, links not followed.

    Raises:
        OSError: as the system reports it, disk full included.
    """
    path.unlink(missing_ok=True)
    write_new(path, [content])
    sync_file(path)


def write_new(path: Path, pieces: Iterable[bytes | memoryview]) -> None:
    """Write a file that must not exist, under the umask; it is not on disk before `sync_file`.

    Raises:
        OSError: as the system reports it, disk full included.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    try:
        for piece in pieces:
            rest = memoryview(piece)
            while rest:
                rest = rest[os.write(descriptor, rest) :]
    finally:
        os.close(descriptor)


def sync_file(path: Path) -> None:
    """Bring a file to disk; links are not followed.

    Raises:
        OSError: as the system reports it.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(folder: Path) -> None:
    """Bring the names in a folder to disk, so that a rename outlives a loss of power."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some file systems sync names by themselves and refuse to be asked
            raise
    finally:
        os.close(descriptor)


def open_regular(path: Path) -> io.BufferedReader:
    """Open a regular file for reading; the caller closes it.

    Raises:
        CheckpointError: it is missing, a symbolic link, a folder, a pipe or not readable.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot read {path}: {reason(error)}; restore the file") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise CheckpointError(f"cannot read {path}: not a regular file; restore the file")
    return open(descriptor, "rb")  # noqa: PTH123 - a descriptor, not a path


def read_json(path: Path, *, limit: int = 64 << 20) -> JsonValue:
    """Read a JSON file that may be damaged or a stranger's.

    Args:
        path: a regular file; links are not followed.
        limit: bytes above which it is refused unread.

    Raises:
        CheckpointError: it is missing, too large or not JSON.
    """
    with open_regular(path) as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise CheckpointError(f"{path} is larger than {limit} bytes; restore the file")
    try:
        value: JsonValue = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not JSON; restore the file") from error
    return value


def sha256_of(path: Path) -> str:
    """SHA-256 of a regular file, as 64 hexadecimal digits."""
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def finite(value: JsonValue) -> JsonValue:
    """Copy a value with every float that JSON cannot hold replaced by the word `nan`, `inf` or `-inf`.

    Example:
        >>> finite({"loss": float("nan"), "steps": [1, float("-inf")]})
        {'loss': 'nan', 'steps': [1, '-inf']}
    """
    if isinstance(value, float):
        return value if math.isfinite(value) else repr(float(value))
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return list(map(finite, value))
    return value


def remove_leftovers(folder: Path) -> None:
    """Remove what an interrupted writer left in a folder; call it only while holding the lock of the run.

    A predecessor `.old-NAME` goes where NAME has taken its place.
    """
    if not folder.is_dir():
        return
    for path in list(folder.iterdir()):
        if path.name.startswith(LEFTOVERS) or _is_replaced(path):
            remove_tree(path)


def _is_replaced(path: Path) -> bool:
    return path.name.startswith(PREVIOUS) and is_taken(path.with_name(path.name.removeprefix(PREVIOUS)))


def remove_tree(path: Path) -> None:
    """Remove a file, a link or a folder with all it holds; links go, what they point at stays.

    What cannot be removed is left with a warning: it costs space, not the run.
    """
    try:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    except OSError as error:
        message = f"{path} could not be removed: {reason(error)}; remove it by hand"
        warnings.warn(message, RecordWarning, stacklevel=2)


def unused_path(folder: Path, name: str) -> Path:
    """A path in a folder that nothing has yet: `name`, or `name-1`, `name-2`, ..."""
    candidates = [folder / name, *(folder / f"{name}-{number}" for number in range(1, 1000))]
    return next(path for path in candidates if not is_taken(path))


def is_taken(path: Path) -> bool:
    """Whether anything has this name, a link that leads nowhere included."""
    return path.is_symlink() or path.exists()


def reason(error: Exception) -> str:
    """What the system says about an error, in a few words and without the path."""
    return (isinstance(error, OSError) and error.strerror) or str(error)
