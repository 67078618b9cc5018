"""Pictures of runs: learning curves over seeds, as PNG."""

from __future__ import annotations

import operator
import statistics
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from coterie.core.errors import CheckpointError, DataError
from coterie.reports.tables import NAME_LENGTH, plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

# Okabe and Ito's colours, told apart by colour-blind readers; line styles repeat them.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_STYLES = ("-", "--", ":", "-.")
_FEW_POINTS = 20

Curve = Mapping[int, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """The curves of one recipe, one per seed; each maps an epoch, counted from 0, to a number.

    Attributes:
        name: of the recipe.
        accuracy: top-1 of the leader on the validation split after an epoch, in percent; empty curves without a split.
        loss: mean total loss of an epoch's training steps.
    """

    name: str
    accuracy: Sequence[Curve]
    loss: Sequence[Curve]


def learning_curves(series: Sequence[Series], path: Path) -> None:
    """Draw validation accuracy and training loss over epochs: a line for the mean, a band for the spread over seeds.

    Without any validation result the loss is drawn alone, and the other way round. An epoch is drawn when every seed of
    the recipe has it.

    Args:
        series: one per recipe, drawn in this order.
        path: the PNG to write; its folder is made when missing.

    Raises:
        DataError: there is nothing to draw.
        CheckpointError: the file cannot be written.
    """
    from matplotlib.figure import Figure  # half a second, and only needed here

    accuracy, loss = [one.accuracy for one in series], [one.loss for one in series]
    drawn = _with_points(
        {
            "leader on the validation split: top-1 in %": accuracy,
            "training loss (terms differ between methods)": loss,
        }
    )
    figure = Figure(figsize=(0.8 + 4.6 * len(drawn), 4.2), dpi=150, layout="constrained")
    panels = figure.subplots(1, len(drawn), squeeze=False)[0]
    for axes, (title, curves) in zip(panels, drawn.items(), strict=True):
        _panel(axes, curves, title)
    _legend(figure, panels[0].get_lines(), [_legend_name(one.name) for one in series])
    if max(map(len, accuracy + loss)) > 1:
        figure.suptitle("mean over seeds; band: one standard deviation", fontsize=9, color="0.35")
    save_figure(figure, path)


def save_figure(figure: Figure, path: Path) -> None:
    """Write a PNG that depends on nothing but the figure; letters that the font does not have are left empty.

    Args:
        figure: finished.
        path: the file; its folder is made when missing.

    Raises:
        CheckpointError: the file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Glyph .* missing")
            figure.savefig(path, format="png", metadata={"Software": "coterie"})
    except OSError as error:
        raise CheckpointError(f"cannot write {path}: {error.strerror}; free space or choose another folder") from error


def in_picture(text: str, length: int = NAME_LENGTH) -> str:
    """Text as matplotlib shows it letter by letter: one line of at most `length` characters, no mathematics in it."""
    return plain(text, length).replace("$", r"\$")


def _with_points(titled: Mapping[str, list[Sequence[Curve]]]) -> dict[str, list[Sequence[Curve]]]:
    found = {title: curves for title, curves in titled.items() if any(map(any, curves))}
    if not found:
        raise DataError("no learning curves to draw; the runs have no rows in metrics.jsonl")
    return found


def _legend(figure: Figure, lines: Sequence[Line2D], names: Sequence[str]) -> None:
    columns = max(1, min(len(names), 100 // (max(map(len, names)) + 6)))
    figure.legend(lines, names, loc="outside lower center", ncols=columns, frameon=False, fontsize=9)


def _panel(axes: Axes, curves_of: Sequence[Sequence[Curve]], title: str) -> None:
    from matplotlib.ticker import MaxNLocator

    for position, curves in enumerate(curves_of):
        epochs, mean, spread = _summary(curves)
        colour, style = _style(position)
        marker = "o" if len(epochs) <= _FEW_POINTS else ""
        axes.plot(epochs, mean, color=colour, linestyle=style, linewidth=1.6, marker=marker, markersize=3)
        low, high = map(operator.sub, mean, spread), map(operator.add, mean, spread)
        axes.fill_between(epochs, list(low), list(high), color=colour, alpha=0.16, linewidth=0)
    axes.set_title(title, fontsize=10, loc="left")
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(True, color="0.9", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _summary(curves: Sequence[Curve]) -> tuple[list[int], list[float], list[float]]:
    common = sorted(set[int]().union(*curves).intersection(*curves))
    values = [[curve[epoch] for curve in curves] for epoch in common]
    return [epoch + 1 for epoch in common], list(map(statistics.fmean, values)), list(map(_spread, values))


def _spread(seeds: Sequence[float]) -> float:
    return statistics.stdev(seeds) if len(seeds) > 1 else 0.0


def _style(position: int) -> tuple[str, str]:
    rounds, colour = divmod(position, len(_COLOURS))
    return _COLOURS[colour], _STYLES[rounds % len(_STYLES)]


def _legend_name(name: str) -> str:
    shown = in_picture(name) or "(no name)"
    return f" {shown}" if shown.startswith("_") else shown  # matplotlib hides labels with a leading underscore
