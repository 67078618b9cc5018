"""When checkpoints are written, and what happens when one cannot be."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import replace

from coterie.core.errors import CheckpointError
from coterie.core.files import JsonValue
from coterie.core.record import MetricsLog
from coterie.engine.checkpoint import CheckpointStore, CheckpointWarning
from coterie.engine.loop import Run
from coterie.engine.meters import Meters
from coterie.engine.snapshot import Snapshot
from coterie.engine.state import capture

_PATIENCE = 3  # saves that may fail in a row before a run gives up


class CheckpointKeeper:
    """Writes a checkpoint every so many batches, or after every epoch.

    Args:
        store: where they go.
        meters: the open row of the log; it is checked first, so that no checkpoint holds what is not finite.
        log: its length belongs to a checkpoint, so that a resumed run cuts what comes after.
        every: batches between checkpoints; 0 for one per epoch.
        facts: plain values stored with each checkpoint: what the run must find unchanged.
    """

    def __init__(
        self, *, store: CheckpointStore, meters: Meters, log: MetricsLog, every: int, facts: Mapping[str, JsonValue]
    ) -> None:
        self.store = store
        self.meters = meters
        self.log = log
        self.every = every
        self.facts = facts
        self.extra: dict[str, JsonValue] = {}
        self._failed = 0

    def on_step(self, run: Run) -> None:
        """Save when the number of batches has reached a multiple of `every`."""
        if self.every and run.passed(self.every):
            self.save(run, _PATIENCE)

    def on_epoch(self, run: Run) -> None:
        """Save after each epoch when `every` is 0, and always after the last."""
        last = run.clock.epoch == run.epochs
        if not self.every or last:
            self.save(run, patience=1 if last else _PATIENCE)

    def snapshot(self, run: Run) -> Snapshot:
        """Gather what a checkpoint holds of a run; see `coterie.engine.state.capture`."""
        return capture(run, self.meters)

    def save(self, run: Run, patience: int = 1) -> None:
        """Write a checkpoint; when the disk refuses, warn and train on, less than `patience` times in a row.

        Raises:
            NumericError: a loss or a weight is not finite; older checkpoints are sound.
            CheckpointError: too many saves in a row have failed.
        """
        self.meters.check(run)
        snapshot = self.snapshot(run)
        values = {**snapshot.values, **self.extra, "facts": self.facts, "log_bytes": self.log.offset()}
        try:
            self.store.save(run.batches, replace(snapshot, values=values))
        except CheckpointError as error:
            self._failed += 1
            if self._failed >= patience:
                raise
            warnings.warn(f"{error}; training goes on", CheckpointWarning, stacklevel=2)
            return
        self._failed = 0
