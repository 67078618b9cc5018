"""One writer per folder: a lock that the system frees when its holder ends, however it ends."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from coterie.core.errors import CheckpointError
from coterie.core.files import reason

_held: set[int] = set()


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock file `path`, which names the process and the host while it is held.

    The lock dies with the process: a kill leaves the file, not the lock, and the next run takes it over silently. Child
    processes do not inherit it, so workers that outlive a killed run do not block the next one.

    Args:
        path: the lock file; made when missing, never removed.

    Raises:
        CheckpointError: another process holds it, or the file cannot be made or locked.
    """
    descriptor = _acquire(path)
    _held.add(descriptor)
    try:
        _sign(descriptor, f"process {os.getpid()} on {socket.gethostname()}")
        yield
    finally:
        if descriptor in _held:
            _held.discard(descriptor)
            _sign(descriptor, "")
            os.close(descriptor)


def _acquire(path: Path) -> int:
    descriptor = -1
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(descriptor, 200, 0).decode(errors="replace").strip() or "another process"
        os.close(descriptor)
        raise CheckpointError(
            f"{path.parent} is in use by {holder}; wait for it, stop it, or give the run another folder"
        ) from None
    except OSError as error:
        if descriptor >= 0:
            os.close(descriptor)
        raise CheckpointError(f"cannot lock {path}: {reason(error)}; give the run another folder") from error
    return descriptor


def _sign(descriptor: int, text: str) -> None:
    with contextlib.suppress(OSError):  # a full disk costs the name in the message, not the run
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, text.encode(), 0)


def _forget() -> None:
    for descriptor in _held:
        os.close(descriptor)  # closing a copy keeps the parent's lock; unlocking it would not
    _held.clear()


os.register_at_fork(after_in_child=_forget)
