"""Embeddings of some classes in a plane, one panel per network, in the same colours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from coterie.reports.episode_page import shown
from coterie.reports.plots import in_picture, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import SubFigure

_MARKERS = ("o", "s")  # with ten colours
_COLOURS = "tab10"
_CLASSES = 20
_TITLE = 120  # characters


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """What one network makes of the images.

    Attributes:
        title: above the panel, such as the name of the run.
        note: below the title, such as a figure.
        points: `[N, 2]`, the images in a plane.
    """

    title: str
    note: str
    points: Tensor


def embedding_map(panels: Sequence[Panel], labels: Tensor, examples: Tensor, path: Path, *, title: str) -> None:
    """Draw the same images as two or more networks see them, side by side, and one example of each class below.

    Args:
        panels: one for each network.
        labels: `[N]` int64, the class of each point, in `0 .. K-1`; K is at most 20.
        examples: `[K, C, H, W]` in `[0, 1]`, an image of each class.
        path: the PNG to write; its folder is made when missing.
        title: above everything.

    Raises:
        CheckpointError: the file cannot be written.
    """
    from matplotlib.figure import Figure  # half a second, and only needed here

    figure = Figure(figsize=(5.4 * len(panels), 6.8), dpi=130, layout="constrained")
    grid = figure.add_gridspec(2, 1, height_ratios=(6.1, 0.7))
    upper, lower = figure.add_subfigure(grid[0]), figure.add_subfigure(grid[1])
    for axes, panel in zip(upper.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        _panel(axes, panel, labels)
    upper.suptitle(in_picture(title, _TITLE), fontsize=9, x=0.01, ha="left")
    _examples(lower, examples)
    save_figure(figure, path)


def _panel(axes: Axes, panel: Panel, labels: Tensor) -> None:
    for label in range(int(labels.max()) + 1):
        points = panel.points[labels == label].numpy()
        colour, marker = _style(label)
        axes.scatter(points[:, 0], points[:, 1], s=20, color=colour, marker=marker, alpha=0.75, linewidths=0)
    for label in range(int(labels.max()) + 1):
        _number(axes, panel.points[labels == label].median(dim=0).values, label)
    axes.set_title(f"{in_picture(panel.title, _TITLE // 2)}\n{panel.note}", fontsize=9, loc="left")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_aspect("equal", adjustable="datalim")
    axes.spines[:].set_color("0.8")


def _number(axes: Axes, place: Tensor, label: int) -> None:
    from matplotlib.patheffects import withStroke

    halo = [withStroke(linewidth=2.5, foreground="white")]
    x, y = place.tolist()
    axes.text(x, y, str(label + 1), fontsize=8, weight="bold", ha="center", va="center", path_effects=halo)


def _examples(figure: SubFigure, examples: Tensor) -> None:
    cells = figure.subplots(1, _CLASSES)
    for label, axes in enumerate(cells):
        axes.axis("off")
        if label < len(examples):
            axes.imshow(shown(examples[label]), cmap="gray", vmin=0, vmax=1)
            colour, marker = _style(label)
            axes.scatter(0.16, 1.22, s=20, color=colour, marker=marker, transform=axes.transAxes, clip_on=False)
            axes.text(0.36, 1.2, str(label + 1), fontsize=8, va="center", transform=axes.transAxes)


def _style(label: int) -> tuple[tuple[float, float, float, float], str]:
    from matplotlib import colormaps

    rounds, colour = divmod(label, 10)
    return colormaps[_COLOURS](colour), _MARKERS[rounds % len(_MARKERS)]
