"""What a person sees during training: a live line on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from coterie.core.types import Batch, Peers, Terms
from coterie.engine.loop import Run


class Display:
    """Watcher that shows progress, time left, images per second, loss terms and the accuracy of every peer.

    On a terminal one bar is redrawn; anywhere else one line is printed per epoch. Figures are those of the last row of
    the log, so showing them costs the loop nothing.

    Args:
        epochs: length of the run.
        console: where to write.
        quiet: print nothing at all.
    """

    def __init__(self, epochs: int, console: Console, *, quiet: bool = False) -> None:
        self.epochs = epochs
        self.console = console
        self.quiet = quiet
        self._live = console.is_terminal and not quiet
        self._progress = Progress(
            TextColumn("epoch {task.fields[epoch]}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[figures]}"),
            console=console,
            disable=not self._live,
        )
        self._task = self._progress.add_task("train", total=None, epoch=f"1/{epochs}", figures="")
        self._train = ""
        self._validation = ""
        self._partners = ""
        self._speed = 0.0
        self._began = time.perf_counter()
        self._first: int | None = None

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def on_step(self, run: Run, peers: Peers, terms: Terms, batch: Batch) -> None:
        """Move the bar."""
        if self._first is None:
            self._first, self._began = run.batches - 1, time.perf_counter()
        if self._live:
            self._progress.update(
                self._task,
                total=self.epochs * run.loader.batches_per_epoch,
                completed=run.batches,
                epoch=f"{run.clock.epoch + 1}/{self.epochs}",
                figures=self._figures(),
            )

    def on_epoch(self, run: Run) -> None:
        """Print a line when there is no terminal."""
        if not self._live and not self.quiet:
            done = run.batches - (self._first or 0)
            left = (time.perf_counter() - self._began) / max(done, 1)
            left *= self.epochs * run.loader.batches_per_epoch - run.batches
            line = f"epoch {run.clock.epoch + 1}/{self.epochs}  {self._figures()}  {left:.0f} s left"
            self.console.print(line, highlight=False, soft_wrap=True, markup=False)

    def on_row(self, row: dict[str, Any]) -> None:
        """Take the figures of a row of `metrics.jsonl`."""
        takes = {"train": self._take_train, "validation": self._take_validation, "exchange": self._take_exchange}
        take = takes.get(row["kind"])
        if take is not None:
            take(row)

    def _take_train(self, row: dict[str, Any]) -> None:
        terms = " ".join(f"{name} {value:.3f}" for name, value in row["terms"].items())
        accuracy = " ".join(f"{value:.1f}" for value in row["accuracy"])
        self._train = f"loss {row['loss']:.3f} ({terms})  peers {accuracy} %"

    def _take_validation(self, row: dict[str, Any]) -> None:
        leader, ensemble = row["leader"]["top1"], row["ensemble"]["top1"]
        self._validation = f"  validation: leader {leader:.2f} % ensemble {ensemble:.2f} %"

    def _take_exchange(self, row: dict[str, Any]) -> None:
        ages = {said["job"]: row["step"] - said["step"] for said in row["adopted"]}
        heard = ", ".join(f"{job} {abs(age)} steps {'old' if age >= 0 else 'ahead'}" for job, age in ages.items())
        self._partners = f"  partners: {heard}" if heard else self._partners

    def on_timing(self, row: dict[str, Any]) -> None:
        """Take the speed of a row of `timing.jsonl`."""
        self._speed = row["images_per_second"]

    def _figures(self) -> str:
        return f"{self._train}  {self._speed:.0f} images/s{self._validation}{self._partners}" if self._train else ""
