"""Batches with several images of each class, every image once an epoch: a function of seed, epoch and position."""

from __future__ import annotations

import torch
from torch import Tensor

from coterie.core import draws
from coterie.core.errors import ConfigError, DataError
from coterie.data.checks import check_batch_size


class ClassAwareOrder:
    """Batches of B images made of B / m groups, each of m images of one class.

    In every epoch the images of each class are shuffled and cut into groups of m. A batch takes its B / m groups from
    as many different classes as there are, so that it holds m images of each of B / m classes. Where sizes do not
    allow that, the rule is:

    - A class with more groups than there are batches (few classes, or one large class) is spread as evenly as can be:
      with G groups and P batches, every batch holds G / P of them, rounded down or up.
    - What a class leaves over, fewer than m images and others in each epoch, is joined with what other classes leave
      to mixed groups, which are spread over the batches in the same way.
    - The B - 1 images or fewer that fill no last batch are dropped: whole groups drawn anew in each epoch, and up to
      m - 1 single images of the mixed groups.

    Which classes meet in a batch is drawn by systematic sampling with probabilities in proportion to the groups each
    class has left, so that no class runs out early and the last batches are like the first.

    Args:
        labels: `[N]` int64, the class of every image, not negative.
        batch_size: images per batch B, a multiple of m.
        samples_per_class: m, images per group.
        seed: key of everything that is drawn.

    Raises:
        ConfigError: a size is not positive, or B is not a multiple of m.
        DataError: there are fewer images than a batch needs, or no class has m of them.

    Example:
        >>> labels = torch.arange(16) % 4
        >>> order = ClassAwareOrder(labels, 4, 2, seed=0)
        >>> order.batches_per_epoch, sorted(labels[order.rows(0, 0)].bincount(minlength=4).tolist())
        (4, [0, 0, 2, 2])
    """

    def __init__(self, labels: Tensor, batch_size: int, samples_per_class: int, seed: int) -> None:
        _check(labels, batch_size, samples_per_class)
        self.labels = labels
        self.batch_size = batch_size
        self.samples_per_class = samples_per_class
        self.seed = seed
        self._last: tuple[int, Tensor] | None = None

    @property
    def batches_per_epoch(self) -> int:
        """Number of full batches P in an epoch: as many as plain shuffling gives."""
        return len(self.labels) // self.batch_size

    def rows(self, epoch: int, position: int) -> Tensor:
        """Rows of one batch, `[B]` int64 on the CPU, group by group; see `Order.rows`."""
        assert 0 <= position < self.batches_per_epoch
        if self._last is None or self._last[0] != epoch:
            self._last = epoch, self._epoch(draws.mix(self.seed, "class-aware", epoch))
        return self._last[1][position]

    def _epoch(self, key: int) -> Tensor:
        """All batches of an epoch, `[P, B]`."""
        groups, kinds = _groups(self.labels, self.samples_per_class, key)
        batches, per_batch = self.batches_per_epoch, self.batch_size // self.samples_per_class
        kept = draws.permutation(draws.mix(key, "dropped"), len(groups))[: batches * per_batch]
        by_kind = kept[torch.argsort(kinds[kept], stable=True)]
        dealt = _deal(torch.bincount(kinds[kept]), batches, per_batch, key).flatten()
        table = torch.empty_like(groups[: len(kept)])
        table[torch.argsort(dealt, stable=True)] = groups[by_kind]
        return table.view(batches, self.batch_size)


def _groups(labels: Tensor, size: int, key: int) -> tuple[Tensor, Tensor]:
    """Cut the shuffled images of every class into groups.

    Args:
        labels: `[N]` int64.
        size: images per group m.
        key: of the shuffle.

    Returns:
        Rows `[G, m]` and the kind of each group `[G]`: its class, or one more than the largest class for mixed ones.
    """
    shuffled = draws.permutation(draws.mix(key, "images"), len(labels))
    by_class = shuffled[torch.argsort(labels[shuffled], stable=True)]
    counts = torch.bincount(labels)
    own = labels[by_class]
    rank = torch.arange(len(labels)) - (counts.cumsum(0) - counts)[own]
    whole = rank < (counts // size * size)[own]
    left = by_class[~whole]
    left = left[torch.argsort(draws.bits(draws.mix(key, "left"), labels[left]), stable=True)]  # a class stays together
    mixed = left[: len(left) // size * size].view(-1, size)
    alike = by_class[whole].view(-1, size)
    kinds = torch.cat([labels[alike[:, 0]], torch.full((len(mixed),), len(counts))])
    return torch.cat([alike, mixed]), kinds


def _deal(counts: Tensor, batches: int, per_batch: int, key: int) -> Tensor:
    """Say which kinds of groups each batch takes: different ones, as far as the counts allow.

    With t batches to go and c groups of a kind left, a batch takes c / t of them, rounded down or up: kinds are laid
    on a line in random order, each as long as its count, and every t-th place after a random start is taken.

    Args:
        counts: `[K]` groups of each kind, together `batches * per_batch`.
        batches: P.
        per_batch: groups in a batch.
        key: of the draws.

    Returns:
        `[P, per_batch]` int64 kinds.
    """
    counts = counts.clone()
    cells = torch.arange(batches)[:, None] * len(counts) + torch.arange(len(counts))
    lines = torch.argsort(draws.bits(draws.mix(key, "line"), cells), dim=1, stable=True)
    to_go = torch.arange(batches, 0, -1)
    starts = draws.bits(draws.mix(key, "start"), to_go) % to_go
    places = starts[:, None] + to_go[:, None] * torch.arange(per_batch)
    dealt = torch.empty_like(places)
    for line, place, taken in zip(lines, places, dealt, strict=True):
        ends = counts[line].cumsum(0)
        taken.copy_(line[torch.searchsorted(ends, place, right=True)])
        counts -= torch.bincount(taken, minlength=len(counts))
    return dealt


def _check(labels: Tensor, batch_size: int, samples_per_class: int) -> None:
    check_batch_size(len(labels), batch_size)
    if samples_per_class < 1:
        raise ConfigError(f"{samples_per_class} images of each class in a batch is not positive; give at least 1")
    if batch_size % samples_per_class:
        below = batch_size // samples_per_class * samples_per_class
        raise ConfigError(
            f"data.batch_size={batch_size} cannot be made of groups of {samples_per_class} images of a class;"
            f" give a multiple, such as {max(below, samples_per_class)}"
        )
    largest = int(torch.bincount(labels).max())
    if largest < samples_per_class:
        raise DataError(
            f"batches need {samples_per_class} images of a class and no class has more than {largest};"
            " lower method.samples_per_class or add images"
        )
