"""Few-shot episodes as row numbers: a function of seed and episode number, never of what was drawn before."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from coterie.core import draws
from coterie.core.errors import DataError
from coterie.core.method import Episode

_LAST = (1 << 63) - 1
_CELLS = 1 << 22  # random numbers held at a time


@dataclass(frozen=True, slots=True)
class EpisodeTable:
    """The images of every class that has enough of them, ready to draw episodes from.

    Attributes:
        episode: its sizes.
        by_class: `[N]` int64, rows of images sorted by class.
        starts: `[K']` int64, where each class that can take part begins in `by_class`.
        counts: `[K']` int64, its number of images.

    Example:
        >>> table = EpisodeTable.of(torch.arange(12) % 3, Episode(ways=2, shots=1, queries=2))
        >>> rows = table.draw(seed=0, numbers=torch.arange(5))
        >>> rows.shape, bool((rows % 3 == rows[:, :, :1] % 3).all())
        (torch.Size([5, 2, 3]), True)
    """

    episode: Episode
    by_class: Tensor
    starts: Tensor
    counts: Tensor

    @classmethod
    def of(cls, labels: Tensor, episode: Episode, what: str = "the training set") -> EpisodeTable:
        """Sort the images of a split by class.

        Args:
            labels: `[N]` int64, not negative.
            episode: ways, shots and queries.
            what: how errors call the split.

        Raises:
            DataError: fewer classes than ways have images for all shots and queries.
        """
        counts = torch.bincount(labels)
        starts = counts.cumsum(0) - counts
        usable = counts >= episode.per_class
        _check(counts, int(usable.sum()), episode, what)
        return cls(episode, torch.argsort(labels, stable=True), starts[usable], counts[usable])

    def draw(self, seed: int, numbers: Tensor) -> Tensor:
        """Draw episodes: every set of classes, and every set of images of a class, is equally likely.

        Args:
            seed: key of the draws.
            numbers: `[E]` int64, the number of each episode, below 2**31; the same number gives the same episode.

        Returns:
            `[E, ways, shots + queries]` int64 rows, none twice in an episode; shots come first.
        """
        widest = max(len(self.counts), self.episode.ways * int(self.counts.max()))
        parts = torch.split(numbers, max(1, _CELLS // widest))
        return torch.cat([self._draw(seed, part) for part in parts])

    def _draw(self, seed: int, numbers: Tensor) -> Tensor:
        classes = _keys(draws.mix(seed, "ways"), numbers, len(self.counts)).argsort(dim=1, stable=True)
        classes = classes[:, : self.episode.ways]
        cells = numbers[:, None] * len(self.counts) + classes
        keys = _keys(draws.mix(seed, "images"), cells, int(self.counts.max()))
        absent = torch.arange(keys.shape[-1]) >= self.counts[classes][:, :, None]
        picks = keys.masked_fill(absent, _LAST).argsort(dim=2, stable=True)[:, :, : self.episode.per_class]
        return self.by_class[self.starts[classes][:, :, None] + picks]


class EpisodeOrder:
    """The order of training by episodes: each batch is one, sorted by class, the shots of a class before its queries.

    Classes and images are drawn anew for each batch, so that an epoch is a number of batches and no pass over the
    images. Classes that have too few images take no part.

    Args:
        labels: `[N]` int64, the class of every image, not negative.
        episode: ways, shots, queries, and episodes in an epoch.
        seed: key of everything that is drawn.

    Raises:
        DataError: fewer classes than ways have images for all shots and queries.

    Example:
        >>> order = EpisodeOrder(torch.arange(12) % 3, Episode(ways=2, shots=1, queries=2, per_epoch=7), seed=0)
        >>> order.batches_per_epoch, order.rows(0, 6).shape
        (7, torch.Size([6]))
    """

    def __init__(self, labels: Tensor, episode: Episode, seed: int) -> None:
        self.table = EpisodeTable.of(labels, episode)
        self.seed = seed

    @property
    def batches_per_epoch(self) -> int:
        """Number of episodes in an epoch."""
        return self.table.episode.per_epoch

    def rows(self, epoch: int, position: int) -> Tensor:
        """Rows of one episode, `[ways * (shots + queries)]` int64 on the CPU; see `Order.rows`."""
        assert 0 <= position < self.batches_per_epoch
        return self.table.draw(draws.mix(self.seed, "episodes", epoch), torch.tensor([position])).flatten()


def _keys(key: int, numbers: Tensor, width: int) -> Tensor:
    """Random numbers `[..., width]` for each number `[...]`, in the order of which things are drawn."""
    return draws.bits(key, numbers[..., None] * width + torch.arange(width))


def _check(counts: Tensor, usable: int, episode: Episode, what: str) -> None:
    present = int((counts > 0).sum())
    if present < episode.ways:
        raise DataError(f"an episode has {episode.ways} ways and {what} {present} classes; ask for fewer ways")
    if usable < episode.ways:
        raise DataError(
            f"an episode takes {episode.shots} shots and {episode.queries} queries of each of {episode.ways} classes,"
            f" and {usable} of the {present} classes of {what} have {episode.per_class} images, the largest"
            f" {int(counts.max())}; ask for fewer ways, shots or queries"
        )
