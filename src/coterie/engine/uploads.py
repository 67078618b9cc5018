"""A thread that copies finished checkpoints to a second place, and never keeps training waiting."""

from __future__ import annotations

import threading
import warnings

from coterie.core.errors import CoterieError, one_line
from coterie.core.types import Batch, Peers, Terms
from coterie.engine.checkpoint import CheckpointStore, CheckpointWarning
from coterie.engine.loop import Run
from coterie.engine.mirror import Mirror

_PAUSES = (1.0, 60.0)  # seconds after the first failure in a row, doubled up to the second number
_LAST_TRIES = 3  # failures in a row after which a run that is over no longer waits


class Uploads:
    """Copies the newest checkpoint, then the newest one again; what is overtaken meanwhile is left out.

    A failure is a warning at the next step, is counted and tried again after a pause that grows. The checkpoint that is
    being copied is held in its store, so that a slow copy ends.

    Args:
        mirror: where they go.
        store: where they come from.
        patience: seconds that `close` waits for the last one.

    Attributes:
        mirrored: newest step that is whole there; 0 for none.
        failures: how often copying has failed.
    """

    def __init__(self, mirror: Mirror, store: CheckpointStore, *, patience: float) -> None:
        self.mirrored = 0
        self.failures = 0
        self._mirror = mirror
        self._store = store
        self._patience = patience
        self._wanted = -1
        self._in_a_row = 0
        self._closing = False
        self._complaints: list[str] = []
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def offer(self, step: int) -> None:
        """Let a checkpoint that is whole on disk be copied; returns at once."""
        with self._changed:
            self._wanted = step
            self._changed.notify()
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="mirror", daemon=True)
            self._thread.start()

    def on_step(self, run: Run, peers: Peers, terms: Terms, batch: Batch) -> None:
        """Warn of what has failed since the last step."""
        if self._complaints:
            self._warn()

    def on_epoch(self, run: Run) -> None:
        """Nothing happens at the end of an epoch."""

    def close(self) -> None:
        """Wait for the newest checkpoint to be copied, as long as that may succeed; then end. May be called twice."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join(self._patience)
            if self._thread.is_alive():
                self._complaints.append(f"copying to {self._mirror.remote} takes more than {self._patience:g} s")
            if self._wanted >= 0 or self._thread.is_alive():
                self._complaints.append(
                    f"the newest checkpoint in {self._mirror.remote} is of step {self.mirrored}, later ones are in"
                    f" {self._store.folder} only"
                )
        self._thread = None
        self._warn()

    def _warn(self) -> None:
        while self._complaints:
            warnings.warn(self._complaints.pop(0), CheckpointWarning, stacklevel=3)

    def _work(self) -> None:
        while (step := self._next()) >= 0:
            try:
                self._mirror.publish(step, self._store.path_of(step))
                self.mirrored, self._in_a_row = step, 0
                self._mirror.retire(self._store.keep, self._store.keep_every)
            except (CoterieError, OSError) as error:
                self._fail(step, error)
            finally:
                self._store.held = -1

    def _next(self) -> int:
        """Wait for a checkpoint to copy and hold it; -1 when there will be none."""
        with self._changed:
            if self._in_a_row:
                first, most = _PAUSES
                pause = min(first * 2 ** (self._in_a_row - 1), most)
                self._changed.wait_for(lambda: self._closing, pause)
            self._changed.wait_for(lambda: self._wanted >= 0 or self._closing)
            if self._closing and self._in_a_row >= _LAST_TRIES:
                return -1
            step, self._wanted = self._wanted, -1
            self._store.held = step
            return step

    def _fail(self, step: int, error: Exception) -> None:
        with self._changed:
            self.failures += 1
            self._in_a_row += 1
            if self.mirrored != step:
                self._wanted = max(self._wanted, step)
            if self._in_a_row == 1:
                said = f"checkpoint of step {step} could not be copied: {one_line(error)}"
                self._complaints.append(f"{said}; it is tried again, training goes on")
