"""Mean cosine similarity of embeddings inside classes and between classes, in closed form.

With unit embeddings the sum over all pairs of a set is a product of sums, so no matrix of N x N similarities is built:
memory is that of the class sums, `[K, D]`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from coterie.core.errors import DataError, ShapeError
from coterie.metrics.calibration import exact


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassSimilarity:
    """Mean cosines over ordered pairs of different images of one network.

    Attributes:
        intra: over pairs of one class; not a number when no class has two images.
        inter: over pairs of different classes; not a number when there is one class only.
        per_class: `[K]` float, over the pairs of each class; not a number for a class with fewer than two images.
    """

    intra: float
    inter: float
    per_class: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class CrossSimilarity:
    """Mean cosines over ordered pairs of images, the first seen by one network and the second by another.

    Attributes:
        intra: over pairs of different images of one class.
        intra_with_same: over pairs of one class, an image with itself included.
        same: over each image with itself.
        inter: over pairs of different classes.
    """

    intra: float
    intra_with_same: float
    same: float
    inter: float


def class_similarity(embeddings: Tensor, labels: Tensor) -> ClassSimilarity:
    """Measure how close images of one class, and of different classes, lie in one network.

    With class sums `s_c` of unit embeddings, class sizes `n_c` and the total `s`:
    `intra = (sum |s_c|^2 - N) / sum n_c (n_c - 1)` and `inter = (|s|^2 - sum |s_c|^2) / (N^2 - sum n_c^2)`.

    Args:
        embeddings: `[N, D]`, of any length but zero; no gradient is kept.
        labels: `[N]` int64, from 0.

    Returns:
        The mean over all pairs inside and between classes, and the mean of each class.

    Raises:
        ShapeError: embeddings and labels do not fit together.

    Example:
        >>> close = class_similarity(torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 0, 1]))
        >>> close.intra, close.inter
        (1.0, 0.0)
    """
    tally = SimilarityTally()
    tally.add(embeddings, labels, num_classes=int(labels.max()) + 1 if len(labels) else 0)
    return tally.read()


class SimilarityTally:
    """Class sums of one network over many batches, kept on the device; `read` alone waits for it.

    Example:
        >>> tally = SimilarityTally()
        >>> tally.add(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 1]), num_classes=2)
        >>> tally.add(torch.tensor([[2.0, 0.0]]), torch.tensor([0]), num_classes=2)
        >>> tally.read().intra
        1.0
    """

    def __init__(self) -> None:
        self._sums: tuple[Tensor, ...] | None = None  # by class: of embeddings, of images, of squared lengths

    def add(self, embeddings: Tensor, labels: Tensor, *, num_classes: int) -> None:
        """Count a batch, without waiting for the device.

        Args:
            embeddings: `[B, D]`, of any length but zero; no gradient is kept.
            labels: `[B]` int64 in `[0, K)`.
            num_classes: K, the same for all batches.

        Raises:
            ShapeError: embeddings and labels do not fit together.
        """
        unit = _unit(embeddings, labels)
        squares = unit.new_zeros(num_classes).index_add_(0, labels, unit.square().sum(dim=1))
        found = (*_class_sums(unit, labels, num_classes), squares)
        self._sums = found if self._sums is None else tuple(map(torch.add, self._sums, found))

    def read(self) -> ClassSimilarity:
        """Wait for the device and return the means over all pairs of images counted so far.

        Raises:
            DataError: nothing was counted.
        """
        if self._sums is None:
            raise DataError("no images were counted; evaluate a split with at least one image")
        sums, counts, squares = self._sums
        inside = sums.square().sum(dim=1)
        total = sums.sum(dim=0).square().sum()
        pairs = counts * (counts - 1)
        intra = (inside.sum() - squares.sum()) / pairs.sum()
        inter = (total - inside.sum()) / (counts.sum().square() - counts.square().sum())
        return ClassSimilarity(intra=float(intra), inter=float(inter), per_class=((inside - squares) / pairs).cpu())


def cross_similarity(first: Tensor, second: Tensor, labels: Tensor) -> CrossSimilarity:
    """Measure how close images lie across two networks with embeddings of one size.

    Args:
        first: `[N, D]` embeddings of one network; no gradient is kept.
        second: `[N, D]` embeddings of the other, of the same images in the same order.
        labels: `[N]` int64, from 0.

    Returns:
        Means over all pairs of one class, with and without the image itself, and of different classes.

    Raises:
        ShapeError: the embeddings have different shapes, or they and the labels do not fit together.
    """
    if first.shape != second.shape:
        raise ShapeError(
            f"embeddings {tuple(first.shape)} and {tuple(second.shape)} do not fit; project them to one size first"
        )
    a, b = _unit(first, labels), _unit(second, labels)
    (sums_a, counts), (sums_b, _) = (_class_sums(unit, labels, int(labels.max()) + 1) for unit in (a, b))
    same = (a * b).sum()
    inside = (sums_a * sums_b).sum()
    total = sums_a.sum(dim=0) @ sums_b.sum(dim=0)
    num, squares = counts.sum(), counts.square().sum()
    return CrossSimilarity(
        intra=float((inside - same) / (squares - num)),
        intra_with_same=float(inside / squares),
        same=float(same / num),
        inter=float((total - inside) / (num.square() - squares)),
    )


def _unit(embeddings: Tensor, labels: Tensor) -> Tensor:
    if embeddings.dim() != 2 or labels.shape != embeddings.shape[:1] or not len(labels):
        raise ShapeError(
            f"embeddings {tuple(embeddings.shape)} and labels {tuple(labels.shape)} do not fit;"
            " give [N, D] and [N] with at least one image"
        )
    return F.normalize(exact(embeddings.detach()), dim=1)


def _class_sums(unit: Tensor, labels: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    sums = unit.new_zeros(num_classes, unit.shape[1]).index_add_(0, labels, unit)
    counts = unit.new_zeros(num_classes).index_add_(0, labels, torch.ones_like(labels, dtype=unit.dtype))
    return sums, counts
