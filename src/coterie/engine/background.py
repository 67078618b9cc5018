"""One thread that writes a copy of the state while training goes on."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from coterie.engine.host_copy import HostCopy
from coterie.engine.snapshot import Snapshot


class BackgroundWriter:
    """Copies a snapshot and hands the copy to a thread; never more than one is under way.

    The thread is made by the first write and stays until `close`. Hashing, writing and syncing leave Python's lock to
    the thread that trains.

    Attributes:
        busy: whether the outcome of a write has not been asked for yet.
    """

    def __init__(self) -> None:
        self._copy = HostCopy()
        self._pool: ThreadPoolExecutor | None = None
        self._under_way: Future[None] | None = None

    @property
    def busy(self) -> bool:
        """Whether a write was begun whose outcome `result` has not told yet."""
        return self._under_way is not None

    @property
    def done(self) -> bool:
        """Whether the write that was begun has ended, well or not."""
        return self._under_way is not None and self._under_way.done()

    def begin(self, snapshot: Snapshot, write: Callable[[Snapshot], None]) -> None:
        """Copy a snapshot and let the thread write the copy.

        Args:
            snapshot: of live tensors, which may change as soon as this returns.
            write: what to do with the copy.

        Raises:
            CheckpointError: a tensor cannot be stored.
        """
        assert not self.busy, "ask for the result of the write before"
        copied = self._copy.take(snapshot)
        self._pool = self._pool or ThreadPoolExecutor(1, "checkpoints")
        self._under_way = self._pool.submit(write, copied)

    def result(self) -> None:
        """Wait for the write that was begun, if any, and raise what it has raised."""
        under_way, self._under_way = self._under_way, None
        if under_way is not None:
            under_way.result()

    def close(self) -> None:
        """Wait for the write that was begun, end the thread and give back the memory; may be called twice."""
        if self._pool is not None:
            self._pool.shutdown()
        self._pool, self._copy = None, HostCopy()
