"""Rows of other classes, drawn on the device as a function of (seed, step) and, per sample, of the image."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from coterie.core import draws
from coterie.core.errors import ConfigError


class Negatives:
    """Draws rows of the training set for contrastive losses, with replacement.

    Its tables follow from the labels, so nothing of it is saved; it is a `Memory` in order to move with its method.

    Args:
        labels: `[N]` int64 on the CPU, the label of every training image.
        num_negatives: S; None takes `most`, or the smallest number of other-class images when that is smaller.
        seed: key of the draws.
        most: S when none is given and the data allow it.
        lower: take all other-class images when there are fewer than S, instead of refusing.

    Attributes:
        num_negatives: S.

    Raises:
        ConfigError: fewer than two classes, or an S that is not between 1 and the number of other-class images.

    Example:
        >>> draw = Negatives(torch.tensor([0, 0, 1, 2]), num_negatives=2)
        >>> draw.per_sample(torch.tensor([1]), torch.tensor([2]), torch.tensor(0)).shape
        torch.Size([1, 2])
    """

    def __init__(
        self,
        labels: Tensor,
        num_negatives: int | None = None,
        *,
        seed: int = 0,
        most: int = 16384,
        lower: bool = False,
    ) -> None:
        counts = torch.bincount(labels)
        pool = labels.shape[0] - int(counts.max()) if labels.numel() else 0
        if pool < 1:
            raise ConfigError(
                f"contrast needs images of at least two classes and the training set has {int((counts > 0).sum())};"
                " choose data with more classes"
            )
        self.num_negatives = min(most, pool) if num_negatives is None else num_negatives
        if lower:
            self.num_negatives = min(self.num_negatives, pool)
        if not 1 <= self.num_negatives <= pool:
            raise ConfigError(
                f"num_negatives={num_negatives}, but the largest class leaves {pool} images of other classes;"
                f" give a number from 1 to {pool}"
            )
        self._seed = seed
        self._labels = labels
        self._counts = counts
        self._starts = counts.cumsum(0) - counts
        self._by_class = torch.argsort(labels, stable=True)

    def shared(self, labels: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
        """Draw one set of rows for a whole batch, uniform over all N.

        Args:
            labels: `[B]` int64, classes of the anchors.
            step: `[]` int64.

        Returns:
            Rows `[S]` int64, and where they have an anchor's class, `[B, S]` bool.
        """
        counters = step * self.num_negatives + torch.arange(self.num_negatives, device=step.device)
        rows = draws.integers(draws.mix(self._seed, "negatives"), counters, self._labels.shape[0])
        return rows, labels[:, None] == self._labels.index_select(0, rows)

    def per_sample(self, labels: Tensor, indices: Tensor, step: Tensor) -> Tensor:
        """Draw rows for each anchor, uniform over the images of other classes.

        Args:
            labels: `[B]` int64, classes of the anchors.
            indices: `[B]` int64, rows of the anchors.
            step: `[]` int64.

        Returns:
            `[B, S]` int64, none of the anchor's class.
        """
        keys = draws.bits(draws.mix(self._seed, "negatives"), step * self._labels.shape[0] + indices)
        start, count = (table.index_select(0, labels)[:, None] for table in (self._starts, self._counts))
        columns = torch.arange(self.num_negatives, device=indices.device)
        place = draws.bits(keys[:, None], columns) % (self._labels.shape[0] - count)
        place += torch.where(place >= start, count, 0)
        return self._by_class[place]

    def same_class(self, labels: Tensor, indices: Tensor, step: Tensor) -> Tensor:
        """Draw for each anchor a row of its class, possibly its own.

        Args:
            labels: `[B]` int64, classes of the anchors.
            indices: `[B]` int64, rows of the anchors.
            step: `[]` int64.

        Returns:
            `[B]` int64.
        """
        place = draws.bits(draws.mix(self._seed, "positives"), step * self._labels.shape[0] + indices)
        place = place % self._counts.index_select(0, labels) + self._starts.index_select(0, labels)
        return self._by_class[place]

    def state(self) -> dict[str, Tensor]:
        """Empty: every draw follows from the labels, the seed and the step."""
        return {}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Nothing to take over."""

    def move(self, change: Callable[[Tensor], Tensor]) -> None:
        """Apply a move to another device to the tables."""
        for name in ("_labels", "_counts", "_starts", "_by_class"):
            setattr(self, name, change(getattr(self, name)))
