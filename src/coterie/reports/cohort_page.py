"""One run on one picture: learning curves of every peer, diversity over time, and who agrees with whom."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coterie.core.errors import DataError
from coterie.core.record import read_metrics
from coterie.reports.plots import save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class RunRows:
    """Rows of a log, by kind.

    Attributes:
        train: figures of training batches.
        validation: scores on the validation split, one row per evaluated epoch.
        diagnostics: diversity and shares of terms, one row per epoch.
        cohort: who takes part from an epoch on; empty where the cohort stays the same.
        exchange: what other jobs have said and what has come of it; empty without an exchange.
    """

    train: list[Row] = field(default_factory=list)
    validation: list[Row] = field(default_factory=list)
    diagnostics: list[Row] = field(default_factory=list)
    cohort: list[Row] = field(default_factory=list)
    exchange: list[Row] = field(default_factory=list)

    def peers_in(self, epoch: int, count: int) -> list[int]:
        """Numbers of the `count` peers that took part in an epoch, counted from 0."""
        known = [list(row["peers"]) for row in self.cohort if row["epoch"] <= epoch]
        return known[-1] if known else list(range(count))

    def by_peer(self, rows: Sequence[Row], key: str) -> dict[int, list[tuple[Row, Any]]]:
        """Rows and what they say of each peer under a key, by number of the peer."""
        found: dict[int, list[tuple[Row, Any]]] = {}
        for row in rows:
            for peer, value in zip(self.peers_in(row["epoch"], len(row[key])), row[key], strict=True):
                found.setdefault(peer, []).append((row, value))
        return dict(sorted(found.items()))

    @property
    def alarms(self) -> list[str]:
        """What was wrong with the cohort, with the epochs it was seen in."""
        seen: dict[str, list[int]] = {}
        for row in self.diagnostics:
            for alarm in row["alarms"]:
                seen.setdefault(alarm, []).append(int(row["epoch"]) + 1)
        return [f"{alarm}: first in epoch {epochs[0]}, {len(epochs)} epochs in all" for alarm, epochs in seen.items()]


def read_rows(folder: Path) -> RunRows:
    """Read the log of a run, which may still be running.

    Raises:
        DataError: there is nothing in it yet.
    """
    rows = RunRows()
    for row in read_metrics(folder / "metrics.jsonl"):
        getattr(rows, str(row["kind"]), []).append(row)
    if not rows.train:
        raise DataError(f"{folder} has no rows in metrics.jsonl; train first, or give another run")
    return rows


def cohort_page(rows: RunRows, path: Path) -> None:
    """Draw a run.

    Args:
        rows: of its log.
        path: the PNG to write; its folder is made when missing.

    Raises:
        CheckpointError: the file cannot be written.
    """
    from matplotlib.figure import Figure  # half a second, and only needed here

    figure = Figure(figsize=(11, 6.6), dpi=130, layout="constrained")
    panels = figure.subplots(2, 3)
    _losses(panels[0][0], rows.train)
    _accuracies(panels[0][1], rows)
    _shares(panels[0][2], rows.diagnostics)
    _diversity(panels[1][0], rows.diagnostics)
    _matrix(panels[1][1], rows, "agreement", "share of equal answers, last epoch")
    _matrix(panels[1][2], rows, "similarity", "CKA of embeddings, last epoch")
    save_figure(figure, path)


def _losses(axes: Axes, rows: Sequence[Row]) -> None:
    for name in _names(rows, "terms"):
        _plot(axes, [(row["step"], row["terms"][name]) for row in rows if name in row["terms"]], name)
    _finish(axes, "terms of the loss, unweighted", "batch")


def _accuracies(axes: Axes, rows: RunRows) -> None:
    if not rows.validation:
        for peer, points in rows.by_peer(rows.train, "accuracy").items():
            _plot(axes, [(row["step"], top1) for row, top1 in points], f"peer {peer}")
        _finish(axes, "training: top-1 in %", "batch")
        return
    for peer, points in rows.by_peer(rows.validation, "peers").items():
        _plot(axes, [(row["epoch"] + 1, scores["top1"]) for row, scores in points], f"peer {peer}")
    _plot(axes, [(row["epoch"] + 1, row["ensemble"]["top1"]) for row in rows.validation], "ensemble", color="black")
    _finish(axes, "validation: top-1 in %", "epoch")


def _shares(axes: Axes, rows: Sequence[Row]) -> None:
    key = "gradient_share"
    for name in _names(rows, key):
        _plot(axes, [(row["epoch"] + 1, 100 * row[key][name]) for row in rows if name in row[key]], name)
    _finish(axes, "share of each term in the gradient, %", "epoch")


def _diversity(axes: Axes, rows: Sequence[Row]) -> None:
    for key, label in (("agreement", "equal answers"), ("similarity", "CKA"), ("divergence", "KL in nats")):
        _plot(axes, [(row["epoch"] + 1, _mean_pair(row[key])) for row in rows], label)
    _finish(axes, "diversity: mean over pairs of peers", "epoch")


def _names(rows: Sequence[Row], key: str) -> list[str]:
    """Names under a key of any of the rows, in the order they come up."""
    return list(dict.fromkeys(chain.from_iterable(row[key] for row in rows)))


def _plot(axes: Axes, points: Sequence[tuple[float, float]], label: str, color: str | None = None) -> None:
    xs, ys = zip(*points, strict=True) if points else ((), ())
    axes.plot(xs, ys, label=label, linewidth=1.2, color=color)


def _mean_pair(matrix: Sequence[Sequence[float]]) -> float:
    pairs = [value for i, row in enumerate(matrix) for j, value in enumerate(row) if i != j]
    return sum(pairs) / len(pairs) if pairs else 0.0


def _matrix(axes: Axes, rows: RunRows, key: str, title: str) -> None:
    axes.set_title(title, fontsize=9, loc="left")
    if not rows.diagnostics:
        return
    last = rows.diagnostics[-1]
    matrix = last[key]
    names = [f"peer {m}" for m in rows.peers_in(last["epoch"], len(matrix))]
    axes.imshow(matrix, vmin=0, vmax=1, cmap="Blues")
    axes.set_xticks(range(len(matrix)), names, fontsize=8)
    axes.set_yticks(range(len(matrix)), names, fontsize=8)
    for i, row in enumerate(matrix):
        for j, value in enumerate(row):
            axes.text(j, i, f"{value:.2f}", ha="center", va="center", color="white" if value > 0.6 else "black")


def _finish(axes: Axes, title: str, unit: str) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set_title(title, fontsize=9, loc="left")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel(unit, fontsize=8)
    axes.tick_params(labelsize=8)
    axes.grid(color="0.9")
    axes.spines[["top", "right"]].set_visible(False)
    if axes.get_lines():
        axes.legend(fontsize=7, frameon=False)
