"""Batches: the same whatever the number of workers, the starting point and the way images are stored."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import Dataset

from coterie.config.schema import DataConfig
from coterie.core.errors import DataError
from coterie.core.types import Batch
from coterie.data import (
    DATA,
    ArrayLoader,
    ArraySplit,
    DatasetSplit,
    FileSplit,
    Loader,
    Normalisation,
    ShuffledOrder,
    Split,
    StreamLoader,
    ViewPlan,
    evaluation_batches,
    make_loader,
)
from coterie.data.images import Framing
from coterie.data.views import ViewMaker

NORMALISATION = Normalisation(mean=(0.1, 0.5, 0.9), std=(0.2, 0.3, 0.4))
PLAN = ViewPlan(normalisation=NORMALISATION, seed=3, views=2, padding=2, flip=True)


class Noisy(Dataset[Any]):
    """Ten images that are nothing but draws from torch's global generator; fails, dies or not in row `bad`."""

    targets = (0, 1) * 5

    def __init__(self, bad: int = -1, die: bool = False) -> None:
        self.bad = bad
        self.die = die

    def __len__(self) -> int:
        return 10

    def __getitem__(self, row: int) -> tuple[Tensor, int]:
        if row == self.bad and self.die:
            os.kill(os.getpid(), signal.SIGKILL)
        if row == self.bad:
            raise OSError("disk\non fire")
        return torch.rand(3, 4, 4), row % 2


def files(root: Path, framing: Framing) -> FileSplit:
    split = DATA["folder"](DataConfig(root=str(root), image_size=12, memory_mb=0), 0).train
    assert isinstance(split, FileSplit)
    return FileSplit(split.root, split.names, split.labels, framing)


OPENED: list[Loader] = []


def loader_of(split: Split, workers: int = 0, plan: ViewPlan = PLAN) -> Loader:
    loader = make_loader(split, order=ShuffledOrder(len(split.labels), 3, seed=1), plan=plan, workers=workers)
    OPENED.append(loader)
    return loader


@pytest.fixture(autouse=True)
def _close_loaders() -> Iterator[None]:
    yield  # workers that a garbage collector ends keep a test waiting for seconds, and be it another one
    while OPENED:
        OPENED.pop().close()


def assert_same(found: list[Batch], expected: list[Batch]) -> None:
    assert len(found) == len(expected) > 0
    for one, other in zip(found, expected, strict=True):
        for name in ("views", "labels", "indices", "epoch", "step"):
            assert torch.equal(getattr(one, name), getattr(other, name)), name


def test_batches_of_an_array(small_split: ArraySplit) -> None:
    order = ShuffledOrder(48, 20, seed=1)
    loader = make_loader(small_split, order=order, plan=PLAN)
    assert isinstance(loader, ArrayLoader)
    assert loader.batches_per_epoch == 2
    for position, batch in enumerate(loader.batches(epoch=5)):
        rows = order.rows(5, position)
        assert torch.equal(batch.indices, rows)
        assert torch.equal(batch.labels, small_split.labels[rows])
        assert (batch.epoch.item(), batch.step.item()) == (5, 10 + position)
        assert batch.epoch.shape == batch.step.shape == ()
        maker = ViewMaker(PLAN, torch.device("cpu"))
        assert torch.equal(batch.views, maker.streamed(small_split.images[rows][None], rows, epoch=5))


def test_an_epoch_may_start_at_any_batch(small_split: ArraySplit) -> None:
    loader = make_loader(small_split, order=ShuffledOrder(48, 10, seed=1), plan=PLAN)
    whole = list(loader.batches(2))
    assert_same(list(loader.batches(2, start=3)), whole[3:])
    assert list(loader.batches(2, start=4)) == []


@pytest.mark.case(27)
@pytest.mark.parametrize("kind", ["centre", "resized_crop", "dataset"])
def test_workers_and_starts_change_nothing(image_folder: Path, kind: Any) -> None:
    split = DatasetSplit(Noisy()) if kind == "dataset" else files(image_folder, Framing(12, kind))
    here = loader_of(split)
    assert isinstance(here, StreamLoader)
    expected = {epoch: list(here.batches(epoch)) for epoch in (0, 1)}
    assert not torch.equal(expected[0][0].views[0], expected[0][0].views[1])
    assert_same(list(here.batches(1, start=2)), expected[1][2:])
    for workers in (1, 2):
        loader = loader_of(split, workers)
        assert_same(list(loader.batches(1, start=1)), expected[1][1:])
        for epoch in (0, 1):
            assert_same(list(loader.batches(epoch)), expected[epoch])


def test_an_epoch_left_early_does_not_leak_into_the_next(image_folder: Path) -> None:
    split = files(image_folder, Framing(12, "resized_crop"))
    loader = loader_of(split, workers=2)
    next(iter(loader.batches(0)))
    assert_same(list(loader.batches(1)), list(loader_of(split).batches(1)))


def test_streamed_and_stored_folders_give_equal_batches(image_folder: Path) -> None:
    split = files(image_folder, Framing(12))
    assert_same(list(loader_of(split).batches(0)), list(loader_of(split.load()).batches(0)))


def test_each_image_of_a_dataset_depends_on_epoch_sample_and_view() -> None:
    loader = loader_of(DatasetSplit(Noisy()))
    seen = [batch.views for epoch in range(2) for batch in loader.batches(epoch)]
    images = torch.stack([image for views in seen for image in views.flatten(0, 1)])
    assert len(images.unique(dim=0)) == len(images) == 2 * 3 * 2 * 3


def test_loading_leaves_the_global_generator_alone(image_folder: Path) -> None:
    for split in (files(image_folder, Framing(12, "resized_crop")), DatasetSplit(Noisy())):
        for workers in (0, 1):
            state = torch.get_rng_state()
            list(loader_of(split, workers).batches(0))
            assert torch.equal(state, torch.get_rng_state())


@pytest.mark.case(31)
@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_file_is_named(image_folder: Path, workers: int) -> None:
    split = files(image_folder, Framing(12))
    (image_folder / "train" / "dog" / "3.png").write_bytes(b"damaged")
    with pytest.raises(DataError, match=r"dog/3\.png' cannot be read as an image") as caught:
        for epoch in range(5):
            list(loader_of(split, workers).batches(epoch))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_failing_item_is_named(workers: int) -> None:
    split = DatasetSplit(Noisy(bad=4))
    with pytest.raises(DataError, match=r"row 4 of the data set failed with OSError \(disk on fire\)"):
        for epoch in range(5):
            list(loader_of(split, workers).batches(epoch))


@pytest.mark.case(32)
def test_a_dead_worker_is_reported() -> None:
    split = DatasetSplit(Noisy(bad=4, die=True))
    with pytest.raises(DataError, match=r"a worker process died or hung .*; lower data\.workers") as caught:
        for epoch in range(5):
            list(loader_of(split, workers=1).batches(epoch))
    assert "\n" not in str(caught.value)


class Stuck(Noisy):
    """Never answers for row 4."""

    def __getitem__(self, row: int) -> tuple[torch.Tensor, int]:
        time.sleep(60 if row == 4 else 0)
        return super().__getitem__(row)


@pytest.mark.slow
@pytest.mark.case(33)
def test_a_worker_that_hangs_is_reported_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("coterie.data.stream._TIMEOUT", 1.0)
    loader = loader_of(DatasetSplit(Stuck()), workers=1)
    begun = time.monotonic()
    with pytest.raises(DataError, match=r"a worker process died or hung .*timed out.*; lower data\.workers"):
        list(loader.batches(0))
    loader.close()
    assert time.monotonic() - begun < 30


@pytest.mark.case(58)
@pytest.mark.parametrize("batch_size", [1, 7, 48, 100])
def test_evaluation_sees_every_image_once_in_order(small_split: ArraySplit, batch_size: int) -> None:
    images, labels = zip(
        *evaluation_batches(small_split, batch_size=batch_size, normalisation=NORMALISATION), strict=True
    )
    mean, std = (torch.tensor(part).view(3, 1, 1) for part in (NORMALISATION.mean, NORMALISATION.std))
    torch.testing.assert_close(torch.cat(images), (small_split.images / 255 - mean) / std, atol=2e-6, rtol=0)
    assert torch.equal(torch.cat(labels), small_split.labels)
    assert max(len(part) for part in labels) <= batch_size


@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_of_streamed_images(image_folder: Path, workers: int) -> None:
    split = files(image_folder, Framing(12, "resized_crop"))
    options: dict[str, Any] = {"batch_size": 4, "normalisation": NORMALISATION}
    streamed = list(evaluation_batches(split, workers=workers, **options))
    stored = list(evaluation_batches(split.load(), **options))
    assert [len(labels) for _, labels in streamed] == [4, 4, 2]
    for (images, labels), (expected, wanted) in zip(streamed, stored, strict=True):
        assert torch.equal(images, expected)
        assert torch.equal(labels, wanted)


def test_evaluation_of_a_dataset_repeats_itself() -> None:
    split = DatasetSplit(Noisy())
    options: dict[str, Any] = {"batch_size": 4, "normalisation": NORMALISATION, "channels_last": True}
    first, again = (list(evaluation_batches(split, **options)) for _ in range(2))
    for (images, _), (expected, _) in zip(first, again, strict=True):
        assert torch.equal(images, expected)
        assert images.is_contiguous(memory_format=torch.channels_last)


def test_a_split_of_neither_kind() -> None:
    with pytest.raises(DataError, match="str is neither an ArraySplit nor has `fetch`"):
        make_loader("images", order=ShuffledOrder(4, 2, 0), plan=PLAN)  # type: ignore[arg-type]
