"""One few-shot episode on one picture: what is learnt from, what is asked, and what the network answers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from coterie.reports.plots import in_picture, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

RIGHT, WRONG = "#0072B2", "#D55E00"  # Okabe and Ito's, as in plots; signs repeat them
_SHOTS, _QUERIES = 5, 6  # shown of a class, at most
_ROWS = 10  # classes in a column
_CELL, _LINE, _GAP, _TOP = 1.0, 0.36, 0.3, 0.5  # image, line below it, free space, and what is above, in images
_INCHES = 0.62
_SIGNS = "✓ right, ✗ wrong with the number of the class it was taken for"


@dataclass(frozen=True, slots=True, kw_only=True)
class EpisodePicture:
    """An episode and the answers to it.

    Attributes:
        title: what episode it is.
        network: whose answers they are.
        support: `[W, S, C, H, W]` in `[0, 1]`, images to learn from, class by class.
        queries: `[W, Q, C, H, W]` in `[0, 1]`, images to classify.
        answers: `[W, Q]` int64, the class of the episode, counted from 0, that each query is taken for.
    """

    title: str
    network: str
    support: Tensor
    queries: Tensor
    answers: Tensor

    @property
    def right(self) -> Tensor:
        """`[W, Q]` bool, which answers are right."""
        return self.answers == torch.arange(len(self.answers))[:, None]

    @property
    def caption(self) -> str:
        """How many answers are right, in words, and what of the episode is drawn."""
        (ways, shots), queries, right = self.support.shape[:2], self.queries.shape[1], self.right
        sizes = f"{ways} ways, {shots} {'shot' if shots == 1 else 'shots'}"
        drawn = f"{min(shots, _SHOTS)} of {shots} in the support, {min(queries, _QUERIES)} of {queries} queries"
        return f"{sizes}: {int(right.sum())} of {right.numel()} queries right\ndrawn of each class: {drawn}\n{_SIGNS}"


def episode_page(episode: EpisodePicture, path: Path) -> None:
    """Draw an episode: a row for each class with its support and, behind a line, its queries.

    Each query is framed and signed: right, or wrong with the number of the class it is taken for. Of many images of a
    class the first are shown; what the others were taken for is counted in the caption.

    Args:
        episode: with answers.
        path: the PNG to write; its folder is made when missing.

    Raises:
        CheckpointError: the file cannot be written.
    """
    from matplotlib.figure import Figure  # half a second, and only needed here

    ways = len(episode.answers)
    shots, queries = min(_SHOTS, episode.support.shape[1]), min(_QUERIES, episode.queries.shape[1])
    columns = -(-ways // _ROWS)
    rows = -(-ways // columns)
    across = _CELL * (shots + queries) + 0.9 + 2 * _GAP
    width, height = columns * across, _TOP + rows * (_CELL + _LINE)
    figure = Figure(figsize=(max(5.4, _INCHES * width + 0.3), _INCHES * height + 1.0), dpi=130, layout="constrained")
    axes = figure.subplots()
    axes.set(xlim=(0, width), ylim=(height, 0), aspect="equal")
    axes.axis("off")
    for column in range(columns):
        _heads(axes, column * across, shots, queries)
    for way in range(ways):
        column, row = divmod(way, rows)
        _way(axes, episode, way, column * across, _TOP + row * (_CELL + _LINE))
    lines = (in_picture(episode.title), in_picture(episode.network), episode.caption)
    figure.suptitle("\n".join(lines), fontsize=9, x=0.01, ha="left")
    save_figure(figure, path)


def _heads(axes: Axes, left: float, shots: int, queries: int) -> None:
    for start, name in ((0.9, "support"), (0.9 + shots * _CELL + _GAP, "queries")):
        axes.text(left + start, _TOP - 0.15, name, fontsize=9, color="0.35")


def _way(axes: Axes, episode: EpisodePicture, way: int, left: float, top: float) -> None:
    shots = min(_SHOTS, episode.support.shape[1])
    axes.text(left + 0.7, top + _CELL / 2, str(way + 1), fontsize=10, ha="right", va="center", weight="bold")
    for shot in range(shots):
        _image(axes, episode.support[way, shot], left + 0.9 + shot * _CELL, top, "0.75")
    start = left + 0.9 + shots * _CELL + _GAP
    for query, answer in enumerate(episode.answers[way, :_QUERIES].tolist()):
        place = start + query * _CELL
        colour, sign = (RIGHT, "✓") if answer == way else (WRONG, f"✗ {answer + 1}")
        _image(axes, episode.queries[way, query], place, top, colour)
        axes.text(place + _CELL / 2, top + _CELL + 0.13, sign, fontsize=8, color=colour, ha="center", va="center")


def _image(axes: Axes, image: Tensor, left: float, top: float, colour: str) -> None:
    from matplotlib.patches import Rectangle

    side = 0.88 * _CELL
    pixels = shown(image)
    axes.imshow(pixels, extent=(left, left + side, top + side, top), cmap="gray", vmin=0, vmax=1, zorder=1)
    axes.add_patch(Rectangle((left, top), side, side, fill=False, edgecolor=colour, linewidth=1.6, zorder=2))


def shown(image: Tensor) -> np.ndarray:
    """What matplotlib takes for an image: `[H, W, 3]`, or `[H, W]` where `[C, H, W]` has not three channels."""
    return (image.permute(1, 2, 0) if len(image) == 3 else image.mean(dim=0)).numpy()
