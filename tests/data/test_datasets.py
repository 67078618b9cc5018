"""A user's own `Dataset`: kinds of items, labels, and random transforms that follow seed, epoch, sample and view."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, Subset, TensorDataset

from coterie.core.errors import DataError
from coterie.data import DatasetSplit, Normalisation, from_dataset

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3), dtype=np.uint8)


class Items(Dataset[Any]):
    """Six items, made by a function of the row."""

    def __init__(self, make: Any, count: int = 6) -> None:
        self.make = make
        self.count = count
        self.calls = 0

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, row: int) -> Any:
        self.calls += 1
        return self.make(row)


class Told(Items):
    """Items whose labels are announced."""

    def __init__(self, make: Any, targets: Any) -> None:
        super().__init__(make)
        self.targets = targets


def as_float(row: int) -> Tensor:
    return torch.from_numpy(PIXELS[row]).permute(2, 0, 1).float() / 255


@pytest.mark.parametrize(
    "convert",
    [
        lambda row: Image.fromarray(PIXELS[row]),
        lambda row: PIXELS[row],
        lambda row: torch.from_numpy(PIXELS[row]).permute(2, 0, 1),
        as_float,
        lambda row: PIXELS[row].astype(np.float64) / 255,
    ],
)
def test_kinds_of_images(convert: Any) -> None:
    split = DatasetSplit(Items(lambda row: (convert(row), row % 2)))
    image = split.fetch(4, None)
    expected = torch.from_numpy(PIXELS[4]).permute(2, 0, 1)
    assert image.dtype in (torch.uint8, torch.float32)
    image = image if image.dtype == torch.uint8 else image * 255
    torch.testing.assert_close(image.float(), expected.float())
    assert (split.channels, split.image_size) == (3, 8)


def test_grey_images_keep_one_channel() -> None:
    grey = Items(lambda row: (Image.fromarray(PIXELS[row]).convert("L"), row % 2))
    assert DatasetSplit(grey).channels == 1
    assert DatasetSplit(Items(lambda row: (PIXELS[row, :, :, 0], row % 2))).fetch(0, None).shape == (1, 8, 8)


@pytest.mark.parametrize(
    "targets", [[1, 0, 1, 0, 1, 0], np.array([1, 0, 1, 0, 1, 0]), torch.tensor([1, 0, 1, 0, 1, 0])]
)
def test_announced_labels_are_not_fetched(targets: Any) -> None:
    data = Told(lambda row: (PIXELS[row], (row + 1) % 2), targets)
    assert DatasetSplit(data).labels.tolist() == [1, 0, 1, 0, 1, 0]
    assert data.calls == 1  # the probe of the first image


def test_labels_through_a_subset() -> None:
    data = Told(lambda row: (PIXELS[row], row % 3), [0, 1, 2, 0, 1, 2])
    assert DatasetSplit(Subset(Subset(data, [5, 4, 2, 1]), [3, 0])).labels.tolist() == [1, 2]


def test_labels_found_by_one_pass() -> None:
    data = TensorDataset(torch.from_numpy(PIXELS).permute(0, 3, 1, 2), torch.tensor([3, 2, 1, 0, 1, 2]))
    assert DatasetSplit(data).labels.tolist() == [3, 2, 1, 0, 1, 2]


def test_stored_labels_do_not_count_when_items_transform_them() -> None:
    data = Told(lambda row: (PIXELS[row], 1 - row % 2), [0, 1, 0, 1, 0, 1])
    data.target_transform = lambda label: 1 - label
    assert DatasetSplit(data).labels.tolist() == [1, 0, 1, 0, 1, 0]


def noisy(row: int) -> tuple[Tensor, int]:
    shift = torch.rand(()) + np.random.rand() + random.random()
    return torch.full((1, 8, 8), float(shift)), row % 2


def test_random_transforms_follow_the_key_and_leave_generators_alone() -> None:
    split = DatasetSplit(Items(noisy))
    torch.manual_seed(0)
    np.random.seed(0)
    random.seed(0)
    before = torch.rand(()), np.random.rand(), random.random()
    torch.manual_seed(0)
    np.random.seed(0)
    random.seed(0)
    first = split.fetch(0, 5)
    assert (torch.rand(()), np.random.rand(), random.random()) == before
    assert torch.equal(first, split.fetch(0, 5))
    assert not torch.equal(first, split.fetch(0, 6))
    assert not torch.equal(split.fetch(0, None), split.fetch(1, None))


class Endless(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter(())


def fail(row: int) -> Any:
    raise KeyError("no such\nthing") if row == 2 else ValueError("other")


@pytest.mark.case(52, 56)
@pytest.mark.parametrize(
    ("data", "message"),
    [
        (Endless(), "Endless has no random access; give a map-style Dataset"),
        (Items(noisy, count=0), "the data set is empty"),
        (Items(lambda row: {"image": 1}), r"row 0 of the data set is a dict; return a pair \(image, label\)"),
        (Items(lambda row: (PIXELS[row], 0.5)), r"row 0 of the data set has the label 0\.5"),
        (Items(lambda row: (PIXELS[row], None)), "row 0 of the data set has the label None"),
        (Items(lambda row: ("image.png", 0)), "row 0 of the data set has a str for an image"),
        (Items(lambda row: (torch.zeros(1, 3, 8, 8), 0)), r"has an image of torch\.float32 \[1, 3, 8, 8\]"),
        (Items(lambda row: (torch.zeros(3, 8, 8, dtype=torch.int64), 0)), r"has an image of torch\.int64"),
        (Items(lambda row: (torch.full((3, 8, 8), torch.nan), 0)), "row 0 of the data set has an image with NaN"),
        (Items(lambda row: (torch.zeros(3, 8, 9), 0)), "images are 8 x 9 pixels; make them square"),
        (Told(noisy, [0, 1, 0]), "has 6 items and 3 labels"),
        (Told(noisy, [0, 1, 0, 1, 0.5, 1]), r"row 4 of the data set has the label 0\.5"),
        (Told(fail, [0] * 6), r"row 0 of the data set failed with ValueError \(other\)"),
    ],
)
def test_what_is_wrong_is_named(data: Dataset[Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        DatasetSplit(data)


def test_later_items_are_checked_as_they_come() -> None:
    sizes = DatasetSplit(Items(lambda row: (torch.zeros(3, 8 + row, 8 + row), 0)))
    with pytest.raises(DataError, match=r"row 3 of the data set is \[3, 11, 11\] where row 0 is \[3, 8, 8\]"):
        sizes.fetch(3, None)
    labels = DatasetSplit(Told(lambda row: (PIXELS[row], row), [0] * 6))
    with pytest.raises(DataError, match="row 2 of the data set has label 2 where 0 was announced"):
        labels.fetch(2, None)
    broken = DatasetSplit(Told(lambda row: fail(row) if row else (PIXELS[row], 0), [0] * 6))
    with pytest.raises(DataError, match=r"row 2 of the data set failed with KeyError \('no such\\nthing'\)") as caught:
        broken.fetch(2, None)
    assert isinstance(caught.value.__cause__, KeyError)


def refuse(row: int) -> Any:
    if row == 3:
        raise DataError("needs its archive; unpack it first")
    return PIXELS[row], row % 2


def test_an_error_of_ours_raised_inside_the_data_set_names_the_row() -> None:
    message = "^row 3 of the data set needs its archive; unpack it first$"
    told = DatasetSplit(Told(refuse, [0, 1, 0, 1, 0, 1]))
    assert told.fetch(2, None).shape == (3, 8, 8)
    with pytest.raises(DataError, match=message) as caught:
        told.fetch(3, None)
    assert isinstance(caught.value.__cause__, DataError)
    with pytest.raises(DataError, match="row 0 of the data set needs its archive"):
        told.select(torch.tensor([3, 1]))
    with pytest.raises(DataError, match=message):
        DatasetSplit(Items(refuse))  # met while the labels are looked for


def test_selected_rows_keep_image_and_label() -> None:
    split = DatasetSplit(Items(lambda row: (PIXELS[row], row)))
    chosen = split.select(torch.tensor([5, 1])).select(torch.tensor([1, 0]))
    assert chosen.labels.tolist() == [1, 5]
    assert torch.equal(chosen.fetch(1, None), split.fetch(5, None))
    with pytest.raises(DataError, match="row -1 is not one of 6 images"):
        split.select(torch.tensor([0, -1]))


def test_source_of_two_datasets() -> None:
    train, test = Items(lambda row: (PIXELS[row], row % 3)), Items(lambda row: (PIXELS[row], row % 3))
    source = from_dataset(train, test)
    assert source.classes == ("0", "1", "2")
    assert source.normalisation == Normalisation(mean=(0.5,) * 3, std=(0.5,) * 3)
    assert source.test().labels.tolist() == [0, 1, 2, 0, 1, 2]
    train.classes = ["a", "b", "c"]  # type: ignore[attr-defined]
    assert from_dataset(train).classes == ("a", "b", "c")
    with pytest.raises(DataError, match="no test set was given"):
        from_dataset(train).test()


def test_fingerprints_of_datasets() -> None:
    def fingerprint(pixels: np.ndarray[Any, Any], labels: list[int]) -> str:
        return DatasetSplit(Items(lambda row: (pixels[row], labels[row]))).fingerprint()

    labels = [0, 1, 0, 1, 0, 1]
    assert fingerprint(PIXELS, labels) == fingerprint(PIXELS, labels)
    assert fingerprint(PIXELS, labels) != fingerprint(PIXELS, [0, 1, 0, 1, 0, 0])
    assert fingerprint(PIXELS, labels) != fingerprint(255 - PIXELS, labels)
