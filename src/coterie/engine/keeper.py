"""When checkpoints are written, and what happens when one cannot be."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

from coterie.core.errors import CheckpointError, one_line
from coterie.core.files import JsonValue
from coterie.core.record import MetricsLog
from coterie.engine.background import BackgroundWriter
from coterie.engine.checkpoint import CheckpointStore, CheckpointWarning
from coterie.engine.loop import Run
from coterie.engine.meters import Meters
from coterie.engine.snapshot import Snapshot
from coterie.engine.state import capture

PATIENCE = 3
"""Saves that may fail in a row before a run gives up."""

_ENDLESS = sys.maxsize


class CheckpointKeeper:
    """Writes a checkpoint every so many batches, or after every epoch.

    In the background a thread writes a copy of the state while training goes on, one at a time: a save waits for the
    one before. How it went is told at the next step. The last checkpoint, and the one of a polite stop, are written
    before `save` returns.

    Args:
        store: where they go.
        meters: the open row of the log; it is checked first, so that no checkpoint holds what is not finite.
        log: its length belongs to a checkpoint, so that a resumed run cuts what comes after.
        every: batches between checkpoints; 0 for one per epoch.
        facts: plain values stored with each checkpoint: what the run must find unchanged.
        background: write in a thread.

    Attributes:
        extra: more plain values to store.
        on_saved: told each step that is whole on disk and its epoch, in the thread that has written it.
    """

    def __init__(
        self,
        *,
        store: CheckpointStore,
        meters: Meters,
        log: MetricsLog,
        every: int,
        facts: Mapping[str, JsonValue],
        background: bool = False,
    ) -> None:
        self.store = store
        self.meters = meters
        self.log = log
        self.every = every
        self.facts = facts
        self.background = background
        self.extra: dict[str, JsonValue] = {}
        self.on_saved: Callable[[int, Snapshot], None] = _tell_nobody
        self._writer = BackgroundWriter()
        self._failed = 0

    def on_step(self, run: Run) -> None:
        """Save when the number of batches has reached a multiple of `every`, and tell of a save that has failed.

        Raises:
            NumericError: a loss or a weight is not finite; older checkpoints are sound.
            CheckpointError: too many saves in a row have failed.
        """
        if self.every and run.passed(self.every):
            self.save(run, PATIENCE)
        elif self._writer.done:
            self.settle()

    def on_epoch(self, run: Run) -> None:
        """Save after each epoch when `every` is 0, and always after the last."""
        last = run.clock.epoch == run.epochs
        if not self.every or last:
            self.save(run, patience=1 if last else PATIENCE)

    def snapshot(self, run: Run) -> Snapshot:
        """Gather what a checkpoint holds of a run; see `coterie.engine.state.capture`."""
        return capture(run, self.meters)

    def save(self, run: Run, patience: int = 1) -> None:
        """Write a checkpoint; when the disk refuses, warn and train on, less than `patience` times in a row.

        Args:
            run: between two steps.
            patience: with 1 the checkpoint is on disk when this returns; with more it may be on its way there.

        Raises:
            NumericError: a loss or a weight is not finite; older checkpoints are sound.
            CheckpointError: too many saves in a row have failed.
        """
        self.meters.check(run)
        snapshot = self.snapshot(run)
        values = {**snapshot.values, **self.extra, "facts": self.facts, "log_bytes": self.log.size()}
        snapshot = replace(snapshot, values=values)
        write = partial(self._write, run.batches)
        last = patience == 1
        self.settle(_ENDLESS if last else patience)
        if self.background and not last:
            self._writer.begin(snapshot, write)
            return
        with self._judged(patience):
            write(snapshot)

    def settle(self, patience: int = PATIENCE) -> None:
        """Wait for the write that is under way, if there is one, and hear how it went; see `save`."""
        if self._writer.busy:
            with self._judged(patience):
                self._writer.result()

    def close(self) -> None:
        """Finish the write that is under way and end its thread; what fails is a warning, as the run has ended."""
        try:
            self._writer.result()
        except Exception as error:
            warnings.warn(f"the last save has failed: {one_line(error)}", CheckpointWarning, stacklevel=3)
        self._writer.close()

    def _write(self, step: int, snapshot: Snapshot) -> None:
        self.log.sync()
        self.store.save(step, snapshot)
        self.on_saved(step, snapshot)

    @contextmanager
    def _judged(self, patience: int) -> Iterator[None]:
        """Count a save that fails; `patience` of them in a row are an error."""
        try:
            yield
        except CheckpointError as error:
            self._failed += 1
            if self._failed >= patience:
                raise
            warnings.warn(f"{error}; training goes on", CheckpointWarning, stacklevel=4)
            return
        self._failed = 0


def _tell_nobody(step: int, snapshot: Snapshot) -> None:
    """Take note of nothing."""
