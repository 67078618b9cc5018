"""Sums of losses and correct answers, kept on the device and read once per row of the log."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from coterie.core.errors import NumericError, ShapeError
from coterie.core.types import Batch, Peers, Terms
from coterie.engine.loop import Run

Row = dict[str, Any]


class Meters:
    """Watcher that writes a row of training figures every so many batches, and at the end of each epoch.

    Nothing is read from the device in between, so the loop never waits for it.

    Args:
        every: batches between rows; 0 for one row per epoch.
        emit: receives each row: `kind`, `epoch`, `step`, `loss`, `terms`, `accuracy` per peer, `lr`.
        emit_timing: receives `step`, `seconds` since the last row and `images_per_second`; kept apart because times
            differ between runs that are otherwise equal to the bit.
    """

    def __init__(self, *, every: int, emit: Callable[[Row], None], emit_timing: Callable[[Row], None]) -> None:
        self.every = every
        self.emit = emit
        self.emit_timing = emit_timing
        self._names: list[str] = []
        self._sums: Tensor | None = None
        self._since = time.perf_counter()

    def on_step(self, run: Run, peers: Peers, terms: Terms, batch: Batch) -> None:
        """Add the figures of a batch; write a row when it is time.

        Raises:
            NumericError: a loss of the row is not finite.
            ShapeError: the terms are others than those of the batches before.
        """
        self._take_names([term.name for term in terms])
        row = _sums_of(peers, terms, batch)
        self._sums = row if self._sums is None else self._sums + row
        if self.every and run.batches % self.every == 0:
            self._write(run)

    def on_epoch(self, run: Run) -> None:
        """Write what has gathered since the last row; raises `NumericError` as `check` does."""
        self.check(run)
        self._write(run)

    def state(self) -> tuple[dict[str, Tensor], list[str]]:
        """Sums `[1 + 1 + terms + M]` since the last row, and the names of the terms."""
        return ({} if self._sums is None else {"sums": self._sums}), list(self._names)

    def load_state(self, tensors: Mapping[str, Tensor], names: list[str], device: torch.device) -> None:
        """Take over what `state` returned."""
        self._names = list(names)
        self._sums = tensors["sums"].to(device) if "sums" in tensors else None

    def check(self, run: Run) -> None:
        """Read sums and weights, and raise if a loss was or a weight is not finite.

        Raises:
            NumericError: a term since the last row or a parameter is infinite or not a number.
        """
        if self._sums is not None:
            self._figures(self._sums.tolist())
        broken = run.objective.broken()
        if broken:
            raise _not_finite(f"{len(broken)} parameters are not finite, {broken[0]} for one")

    def _take_names(self, names: list[str]) -> None:
        if self._sums is not None and names != self._names:
            raise ShapeError(
                f"a method returned the terms {names} after {self._names}; return the same in every step, with weight 0"
                " where one does not count"
            )
        self._names = names

    def _write(self, run: Run) -> None:
        sums = self._sums
        if sums is None:
            return
        self._sums = None
        loss, terms, accuracy, images = self._figures(sums.tolist())
        self.emit(
            {
                "kind": "train",
                "epoch": run.clock.epoch,
                "step": run.batches,
                "loss": loss,
                "terms": terms,
                "accuracy": accuracy,
                "lr": run.stepper.rate,
            }
        )
        now = time.perf_counter()
        seconds, self._since = now - self._since, now
        self.emit_timing({"step": run.batches, "seconds": seconds, "images_per_second": images / seconds})

    def _figures(self, sums: list[float]) -> tuple[float, dict[str, float], list[float], float]:
        images, *means = sums[0], *(value / sums[0] for value in sums[1:])
        loss, values, accuracy = means[0], means[1 : 1 + len(self._names)], means[1 + len(self._names) :]
        terms = dict(zip(self._names, values, strict=True))
        _check_finite(loss, terms)
        return loss, terms, [100.0 * value for value in accuracy], images


def _sums_of(peers: Peers, terms: Terms, batch: Batch) -> Tensor:
    """Images, total, terms and correct answers of every peer, `[1 + 1 + terms + M]`, summed over the batch."""
    size = float(batch.size)
    losses = torch.stack([terms.total(), *(term.value for term in terms)]).detach().double() * size
    correct = torch.stack([(peer.logits.argmax(dim=1) == batch.labels).sum() for peer in peers]).double()
    return torch.cat([losses.new_full((1,), size), losses, correct])


def _check_finite(loss: float, terms: Mapping[str, float]) -> None:
    bad = [name for name, value in terms.items() if not math.isfinite(value)]
    if bad or not math.isfinite(loss):
        raise _not_finite(f"the loss is not finite (terms: {', '.join(bad) or 'total'})")


def _not_finite(what: str) -> NumericError:
    return NumericError(
        f"{what}; no checkpoint holds it: start a new run with a lower optim.lr, with optim.warmup_epochs or optim.clip"
    )
