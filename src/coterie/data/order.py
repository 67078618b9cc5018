"""Which images come in which batch: a function of seed, epoch and position, never of what was drawn before."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from coterie.core import draws
from coterie.data.checks import check_batch_size


class Order(Protocol):
    """The batches of every epoch, by row number."""

    @property
    def batches_per_epoch(self) -> int:
        """Number of batches P in an epoch."""

    def rows(self, epoch: int, position: int) -> Tensor:
        """Rows of one batch.

        Args:
            epoch: counted from 0.
            position: of the batch within the epoch, in `[0, P)`.

        Returns:
            `[B]` int64 on the CPU, no row twice.
        """


class ShuffledOrder:
    """A new permutation each epoch, cut into full batches; the rest of an epoch is dropped.

    Args:
        num: number of images N.
        batch_size: images per batch B.
        seed: key of the permutations.

    Raises:
        ConfigError: the batch size is not positive.
        DataError: there are fewer images than a batch needs.

    Example:
        >>> order = ShuffledOrder(10, 4, seed=0)
        >>> order.batches_per_epoch, sorted(order.rows(0, 0).tolist()) == sorted(order.rows(1, 0).tolist())
        (2, False)
    """

    def __init__(self, num: int, batch_size: int, seed: int) -> None:
        check_batch_size(num, batch_size)
        self.num = num
        self.batch_size = batch_size
        self.seed = seed
        self._last: tuple[int, Tensor] | None = None

    @property
    def batches_per_epoch(self) -> int:
        """Number of full batches in an epoch."""
        return self.num // self.batch_size

    def rows(self, epoch: int, position: int) -> Tensor:
        """Rows of one batch, `[B]` int64 on the CPU; see `Order.rows`."""
        assert 0 <= position < self.batches_per_epoch
        if self._last is None or self._last[0] != epoch:
            self._last = epoch, draws.permutation(draws.mix(self.seed, "order", epoch), self.num)
        return self._last[1][position * self.batch_size :][: self.batch_size]
