"""From a split to batches: all images on the device when they fit, streamed through workers when they do not."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor

from coterie.core.errors import DataError
from coterie.core.types import Batch
from coterie.core.world import world
from coterie.data.arrays import ArraySplit
from coterie.data.base import Fetchable, Normalisation, Split
from coterie.data.order import Order
from coterie.data.stream import StreamLoader, numbered_batch, stream_once
from coterie.data.transfer import moved
from coterie.data.views import ViewMaker, ViewPlan


class Loader(Protocol):
    """Training batches, by epoch; the same epoch and position always give the same batch."""

    @property
    def batches_per_epoch(self) -> int:
        """Number of batches P in an epoch."""

    def batches(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Yield the batches of an epoch.

        Args:
            epoch: counted from 0.
            start: position of the first batch wanted, in `[0, P]`; a resumed run passes over what it has seen.

        Returns:
            Batches on the device; `step` is `epoch * P + position`. Where several processes train together, labels and
            rows are those of the whole batch and the views those of this rank's share.

        Raises:
            DataError: an image cannot be read; the message names its file or row.
        """

    def close(self) -> None:
        """End what the loader has started; it cannot be used afterwards."""


class ArrayLoader:
    """Batches of a split that lives on the device as one padded tensor; nothing waits for the device.

    Args:
        split: the images.
        order: which rows come in which batch.
        plan: what is done to the images.
        device: where images are kept and batches are made.
    """

    def __init__(self, split: ArraySplit, *, order: Order, plan: ViewPlan, device: torch.device) -> None:
        self.order = order
        self._maker = ViewMaker(plan, device)
        self._padded = self._maker.pad(split.images.to(device))
        self._labels = split.labels.to(device)
        self._device = device

    @property
    def batches_per_epoch(self) -> int:
        """Number of batches in an epoch."""
        return self.order.batches_per_epoch

    def batches(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Yield the batches of an epoch, from position `start` on; see `Loader.batches`."""
        positions = range(start, self.batches_per_epoch)
        if not positions:
            return
        rows_of = torch.stack([self.order.rows(epoch, position) for position in positions]).to(self._device)
        for position, rows in zip(positions, rows_of, strict=True):
            own = world().share(rows)
            slots = own.expand(self._maker.plan.views, -1)
            views = self._maker.training(self._padded, slots, own, epoch)
            yield numbered_batch(views, self._labels[rows], rows, epoch, epoch * self.batches_per_epoch + position)

    def close(self) -> None:
        """Nothing to end."""


def make_loader(
    split: Split, *, order: Order, plan: ViewPlan, device: torch.device | str = "cpu", workers: int = 0
) -> Loader:
    """Choose the loader for a split.

    Args:
        split: the training images.
        order: which rows come in which batch.
        plan: what is done to the images.
        device: where batches are wanted.
        workers: processes that fetch images; not used when all images are in memory.

    Returns:
        An `ArrayLoader` or a `StreamLoader`.

    Raises:
        DataError: the split is of a kind that can be neither kept nor fetched.
    """
    device = torch.device(device)
    if isinstance(split, ArraySplit):
        return ArrayLoader(split, order=order, plan=plan, device=device)
    return StreamLoader(as_fetchable(split), order=order, plan=plan, device=device, workers=workers)


def evaluation_batches(
    split: Split,
    *,
    batch_size: int,
    normalisation: Normalisation,
    device: torch.device | str = "cpu",
    workers: int = 0,
    channels_last: bool = False,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield every image exactly once, in order, unaugmented and normalised; the last batch may be smaller.

    Args:
        split: the images.
        batch_size: images per batch B.
        normalisation: of uint8 images; floating point images are finished and stay as they are.
        device: where batches are wanted.
        workers: processes that fetch images; not used when all images are in memory.
        channels_last: lay images out with their channels last.

    Yields:
        Images `[B, C, H, W]` float32 and labels `[B]` int64.

    Raises:
        DataError: an image cannot be read; the message names its file or row.
    """
    device = torch.device(device)
    plan = ViewPlan(normalisation=normalisation, channels_last=channels_last)
    maker = ViewMaker(plan, device)
    if isinstance(split, ArraySplit):
        batches = moved(_slices(split, batch_size), device)
    else:
        batches = stream_once(as_fetchable(split), plan, batch_size=batch_size, device=device, workers=workers)
    for images, labels in batches:
        yield maker.evaluation(images), labels


def _slices(split: ArraySplit, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    for start in range(0, len(split.labels), batch_size):
        part = slice(start, start + batch_size)
        yield split.images[part], split.labels[part]


def as_fetchable(split: Split) -> Fetchable:
    """Take a split for one that fetches image by image, or raise `DataError` when it does not."""
    if not (hasattr(split, "fetch") and hasattr(split, "varies")):
        raise DataError(f"{type(split).__name__} is neither an ArraySplit nor has `fetch` and `varies`; add them")
    return split  # type: ignore[return-value]
