"""Batches whose images are decoded while training goes on, in worker processes."""

from __future__ import annotations

import atexit
import signal
import weakref
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from coterie.core import draws
from coterie.core.errors import CoterieError, DataError
from coterie.core.types import Batch
from coterie.core.world import world
from coterie.data.base import Fetchable
from coterie.data.order import Order
from coterie.data.transfer import moved
from coterie.data.views import ViewMaker, ViewPlan

T = TypeVar("T")

_EVALUATION = -1
_TIMEOUT = 300.0  # seconds that one batch may take
_PATIENCE = 60  # seconds that a worker lives on after it was told to stop

_Request = tuple[int, tuple[int, ...]]  # epoch or _EVALUATION, rows


class StreamLoader:
    """Batches of a split that is fetched image by image.

    Worker processes only fetch; views are made on the device. What they return depends on seed, epoch, row and view
    alone, so the number of workers changes the speed and nothing else.

    Args:
        split: what to fetch from.
        order: which rows come in which batch.
        plan: what is done to the images.
        device: where batches are wanted.
        workers: number of processes; 0 fetches in this one.
    """

    def __init__(
        self, split: Fetchable, *, order: Order, plan: ViewPlan, device: torch.device, workers: int = 0
    ) -> None:
        self.order = order
        self._maker = ViewMaker(plan, device)
        self._device = device
        self._labels = split.labels.to(device)
        self._requests = _Requests(order)
        self._reader: DataLoader[Any] | None = _reader(_Fetcher(split, plan), self._requests, device, workers)
        self._at_exit = atexit.register(partial(_close, weakref.ref(self)))  # before processes are waited for

    @property
    def batches_per_epoch(self) -> int:
        """Number of batches in an epoch."""
        return self.order.batches_per_epoch

    def batches(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Yield the batches of an epoch, from position `start` on; see `coterie.data.loaders.Loader`."""
        assert self._reader is not None, "the loader is closed"
        self._requests.epoch, self._requests.start = epoch, start
        for position, (images, own) in enumerate(moved(_drain(self._reader), self._device), start):
            views = self._maker.streamed(images, own, epoch)
            rows = own if world().alone else self.order.rows(epoch, position).to(self._device)
            yield numbered_batch(views, self._labels[rows], rows, epoch, epoch * self.batches_per_epoch + position)

    def close(self) -> None:
        """End the worker processes; the loader cannot be used afterwards."""
        self._reader = None
        atexit.unregister(self._at_exit)


def _close(loader: weakref.ref[StreamLoader]) -> None:
    alive = loader()
    if alive is not None:
        alive.close()


def stream_once(
    split: Fetchable, plan: ViewPlan, *, batch_size: int, device: torch.device, workers: int = 0
) -> Iterator[tuple[Tensor, Tensor]]:
    """Fetch every image once, in order, as evaluation sees it.

    Args:
        split: what to fetch from.
        plan: only its seed and layout are used.
        batch_size: images per batch B; the last batch may be smaller.
        device: where batches are wanted.
        workers: number of processes; 0 fetches in this one.

    Yields:
        Images `[B, C, H, W]` as they were fetched, and labels `[B]` int64.
    """
    every = range(len(split.labels))
    requests: list[_Request] = [
        (_EVALUATION, tuple(every[start : start + batch_size])) for start in every[::batch_size]
    ]
    fetched = _drain(_reader(_Fetcher(split, plan), requests, device, workers))
    yield from moved(((images[0], split.labels[rows]) for images, rows in fetched), device)


def fetch_all(dataset: Dataset[Any], requests: Iterable[Any], workers: int = 0) -> Iterator[Any]:
    """Ask a data set for each request, in order.

    Args:
        dataset: answers `dataset[request]`; it travels to the workers.
        requests: whatever it understands.
        workers: number of processes; 0 asks in this one.

    Raises:
        DataError: a worker process died or hung.
    """
    yield from _drain(_reader(dataset, requests, torch.device("cpu"), workers))


def numbered_batch(views: Tensor, labels: Tensor, rows: Tensor, epoch: int, step: int) -> Batch:
    """Put a batch together, its epoch and step filled in on the device without waiting for it."""
    return Batch(
        views=views,
        labels=labels,
        indices=rows,
        epoch=torch.full((), epoch, dtype=torch.int64, device=views.device),
        step=torch.full((), step, dtype=torch.int64, device=views.device),
    )


class _Requests:
    """The requests of one epoch from a position on; a data loader iterates over it anew for each epoch."""

    def __init__(self, order: Order) -> None:
        self.order = order
        self.epoch = 0
        self.start = 0

    def __iter__(self) -> Iterator[_Request]:
        for position in range(self.start, self.order.batches_per_epoch):
            yield self.epoch, tuple(world().share(self.order.rows(self.epoch, position)).tolist())


@dataclass(frozen=True, slots=True)
class _Failure:
    """An error on its way out of a worker, where an exception would arrive with a traceback for a message."""

    message: str


class _Fetcher(Dataset[Any]):
    """Answers a request with images `[v, B, C, H, W]` and rows `[B]`; runs in workers."""

    def __init__(self, split: Fetchable, plan: ViewPlan) -> None:
        self.split = split
        self.seed = plan.seed
        self.views = plan.views if split.varies else 1

    def __getitem__(self, request: _Request) -> tuple[Tensor, Tensor] | _Failure:
        epoch, rows = request
        try:
            return self._views(epoch, rows), torch.tensor(rows)
        except CoterieError as error:
            if get_worker_info() is None:
                raise
            return _Failure(str(error))

    def _views(self, epoch: int, rows: Iterable[int]) -> Tensor:
        views = range(1 if epoch == _EVALUATION else self.views)
        return torch.stack([self._view(epoch, rows, view) for view in views])

    def _view(self, epoch: int, rows: Iterable[int], view: int) -> Tensor:
        if epoch == _EVALUATION:
            return _stack([self.split.fetch(row, None) for row in rows])
        return _stack([self.split.fetch(row, draws.mix(self.seed, "fetch", epoch, row, view)) for row in rows])


def _stack(images: list[Tensor]) -> Tensor:
    if len({image.dtype for image in images}) > 1:
        raise DataError("the data set mixes uint8 and floating point images; let its transform return one of them")
    return torch.stack(images)


def _reader(fetcher: Dataset[Any], requests: Iterable[Any], device: torch.device, workers: int) -> DataLoader[Any]:
    return DataLoader(
        fetcher,
        batch_size=None,  # a request is a whole batch
        sampler=requests,
        num_workers=workers,
        collate_fn=_unchanged,
        pin_memory=device.type == "cuda",
        timeout=_TIMEOUT if workers else 0,
        worker_init_fn=_outlive_signals,
        persistent_workers=workers > 0,
        generator=torch.Generator(),  # the loader draws a seed: not from the run's generator
    )


def _drain(reader: DataLoader[Any]) -> Iterator[Any]:
    answers = iter(reader)
    while True:
        try:
            answer = next(answers)
        except StopIteration:
            return
        except RuntimeError as error:
            reason = " ".join(str(error).split())
            raise DataError(f"a worker process died or hung ({reason}); lower data.workers or set it to 0") from error
        if isinstance(answer, _Failure):
            raise DataError(answer.message)
        yield answer


def _unchanged(answer: T) -> T:
    return answer


def _outlive_signals(worker: int) -> None:
    """Leave it to the training process to finish its step when the whole group is told to stop.

    A worker ends when its loader is closed. One that was told to stop and is still there after a minute, because the
    loader was never closed, ends by itself, and so it does when it is told a second time, as a process that exits does.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: _end_soon())


def _end_soon() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.alarm(_PATIENCE)
