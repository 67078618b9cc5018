"""Scores on the held-out part of the training set after each epoch, and the weights that were best there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from coterie.core.types import Batch, Peers, Terms
from coterie.engine import Run
from coterie.metrics import CohortScores, Measured


class Validation:
    """Watcher that scores the cohort on the validation split every so many epochs, and after the last.

    Args:
        score: scores the cohort as it stands.
        every: epochs between evaluations.
        emit: receives each row: `kind`, `epoch`, `step`, `leader`, `peers`, `ensemble`.
        on_best: called when the leader's top-1 exceeds all before, with the row.

    Attributes:
        best: the leader's best top-1 so far, in per cent; below 0 before the first.
    """

    def __init__(
        self,
        *,
        score: Callable[[], CohortScores[Measured]],
        every: int,
        emit: Callable[[dict[str, Any]], None],
        on_best: Callable[[dict[str, Any]], None],
    ) -> None:
        self.score = score
        self.every = every
        self.emit = emit
        self.on_best = on_best
        self.best = -1.0

    def on_step(self, run: Run, peers: Peers, terms: Terms, batch: Batch) -> None:
        """Nothing between epochs."""

    def on_epoch(self, run: Run) -> None:
        """Score, log, and report a new best."""
        epoch = run.clock.epoch + 1
        if epoch % self.every and epoch != run.epochs:
            return
        scores = self.score()
        row = {"kind": "validation", "epoch": run.clock.epoch, "step": run.batches, **scores.as_dict()}
        self.emit(row)
        if scores.leader.top1 > self.best:
            self.best = scores.leader.top1
            self.on_best(row)
