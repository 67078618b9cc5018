"""What every registered data set must do, and what is said of data that cannot be learnt from."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from coterie.config.schema import DataConfig
from coterie.core.errors import ConfigError, CoterieError, DataError, UnknownName
from coterie.data import (
    DATA,
    ArraySplit,
    Normalisation,
    ShuffledOrder,
    Source,
    ViewPlan,
    evaluation_batches,
    make_loader,
    open_data,
)

CHANGES: dict[str, dict[str, Any]] = {
    "folder": {"image_size": 12, "batch_size": 2},
    "shards": {"image_size": 12, "batch_size": 2},
    "tiny_imagenet": {"batch_size": 2},
    "tiny_imagenet_classes": {"batch_size": 2},
    "mini_imagenet": {"image_size": 12, "batch_size": 2},
    "folder_classes": {"batch_size": 2},
    "synthetic": {"samples": 40, "classes": 4, "image_size": 16, "batch_size": 8},
}


@pytest.fixture
def config(request: pytest.FixtureRequest, roots: dict[str, Path]) -> DataConfig:
    name = request.param
    root = request.getfixturevalue("packed") if name == "shards" else roots.get(name, roots[""])
    return DataConfig(name=name, root=str(root), **{"batch_size": 16, "padding": 1} | CHANGES.get(name, {}))


SHIPPED = [name for name in DATA if DATA[name].__module__.startswith("coterie.")]
every_set = pytest.mark.parametrize("config", SHIPPED, indirect=True)


@every_set
def test_splits_fit_together(config: DataConfig) -> None:
    data = open_data(config, seed=0)
    assert data.name == config.name
    assert data.validation is not None
    test = data.test()
    for split in (data.train, data.validation, test):
        assert split.labels.dtype == torch.int64
        known = data.num_classes
        if data.unseen and split is not data.train:
            known = len(set(split.labels.tolist()))
            assert known >= 2
        assert 0 <= split.labels.min() <= split.labels.max() < known
        assert (split.channels, split.image_size) == (data.train.channels, data.train.image_size)
    assert len(data.normalisation.mean) == len(data.normalisation.std) == data.train.channels
    assert len(set(data.classes)) == data.num_classes >= 2
    assert set(data.train.labels.tolist()) == set(range(data.num_classes))


@every_set
def test_opening_is_repeatable_and_fingerprints_tell_splits_apart(config: DataConfig) -> None:
    def prints(opened: Any) -> list[str]:
        return [split.fingerprint() for split in (opened.train, opened.validation, opened.test())]

    first = prints(open_data(config, seed=0))
    assert first == prints(open_data(config, seed=0))
    assert len(set(first)) == 3
    if not open_data(config, seed=0).unseen:
        assert first[0] != prints(open_data(config, seed=1))[0]  # another validation split
    whole = open_data(replace(config, validation=0.0), seed=0).train
    assert whole.select(torch.arange(len(whole.labels) - 1, -1, -1)).fingerprint() != whole.fingerprint()


@every_set
def test_training_and_validation_do_not_overlap(config: DataConfig) -> None:
    data, whole = open_data(config, seed=0), open_data(replace(config, validation=0.0), seed=0)
    assert whole.validation is None
    assert isinstance(data.train, ArraySplit)
    assert isinstance(data.validation, ArraySplit)
    assert isinstance(whole.train, ArraySplit)
    parts = torch.cat([data.train.images, data.validation.images]).flatten(1)
    assert sorted(map(tuple, parts.tolist())) == sorted(map(tuple, whole.train.images.flatten(1).tolist()))


@every_set
def test_batches_are_ready_for_a_network(config: DataConfig) -> None:
    data = open_data(config, seed=0)
    order = ShuffledOrder(len(data.train.labels), config.batch_size, seed=0)
    plan = ViewPlan.of(config, data.normalisation, seed=0, views=2)
    batch = next(iter(make_loader(data.train, order=order, plan=plan).batches(0)))
    size = data.train.image_size
    assert batch.views.shape == (2, config.batch_size, data.train.channels, size, size)
    assert batch.views.dtype == torch.float32
    assert batch.views.isfinite().all()
    assert torch.equal(batch.labels, data.train.labels[batch.indices])
    evaluated = list(evaluation_batches(data.test(), batch_size=16, normalisation=data.normalisation))
    assert torch.equal(torch.cat([labels for _, labels in evaluated]), data.test().labels)


@every_set
def test_a_limit_keeps_the_classes(config: DataConfig) -> None:
    limit = 2 * open_data(replace(config, validation=0.0), seed=0).num_classes
    data = open_data(replace(config, limit=limit, validation=0.0, batch_size=2), seed=0)
    assert torch.bincount(data.train.labels).tolist() == [2] * data.num_classes


def test_digits_are_split_500_to_1297() -> None:
    source = DATA["digits"](DataConfig(), 0)
    train, test = source.train, source.test()
    assert (len(train.labels), len(test.labels)) == (500, 1297)
    assert train.image_size == 8
    share = torch.bincount(train.labels) / (torch.bincount(train.labels) + torch.bincount(test.labels))
    assert (share - 500 / 1797).abs().max() < 0.006
    assert isinstance(train, ArraySplit)
    assert train.images.max() == 255
    assert train.fingerprint() != DATA["digits"](DataConfig(), 1).train.fingerprint()
    pixels = train.images.double() / 255
    assert abs(pixels.mean() - source.normalisation.mean[0]) < 0.01
    assert abs(pixels.std() - source.normalisation.std[0]) < 0.01


def test_synthetic_classes_can_be_told_apart() -> None:
    source = DATA["synthetic"](DataConfig(samples=400, classes=5, image_size=16), 0)
    train, test = source.train, source.test()
    assert isinstance(train, ArraySplit)
    assert isinstance(test, ArraySplit)
    means = torch.stack([train.images[train.labels == label].float().mean(dim=0) for label in range(5)]).flatten(1)
    nearest = torch.cdist(test.images.flatten(1).float(), means).argmin(dim=1)
    assert (nearest == test.labels).float().mean() > 0.95
    assert not torch.equal(train.images[:5], test.images[:5])


def test_synthetic_images_do_not_depend_on_how_many_there_are() -> None:
    few, many = (DATA["synthetic"](DataConfig(samples=n, classes=2, image_size=8), 0).train for n in (20, 1200))
    assert isinstance(few, ArraySplit)
    assert isinstance(many, ArraySplit)
    assert torch.equal(few.images, many.images[:20])


def test_synthetic_sets_need_classes() -> None:
    for changes in ({"classes": 1}, {"samples": 5, "classes": 3}):
        with pytest.raises(ConfigError, match="give at least 2 classes and twice as many samples"):
            DATA["synthetic"](DataConfig(**changes), 0)  # type: ignore[arg-type]


def source_of(labels: list[int], classes: int = 3, test_size: int = 8) -> Source:
    def images(count: int, size: int = 8) -> torch.Tensor:
        return torch.arange(count).view(-1, 1, 1, 1).expand(count, 1, size, size).to(torch.uint8)

    return Source(
        name="given",
        train=ArraySplit(images(len(labels)), torch.tensor(labels)),
        test=lambda: ArraySplit(images(2, test_size), torch.tensor([0, classes - 1 if test_size == 8 else 0])),
        classes=tuple("abcdefghij"[:classes]),
        normalisation=Normalisation(mean=(0.5,), std=(0.5,)),
    )


def test_a_given_source_takes_the_place_of_the_name() -> None:
    config = DataConfig(name="nothing", batch_size=4, validation=0.25)
    data = open_data(config, seed=0, source=source_of([0, 1, 2] * 4))
    assert (data.name, len(data.train.labels), data.num_classes) == ("given", 9, 3)
    assert data.validation is not None
    assert data.validation.labels.sort().values.tolist() == [0, 1, 2]


@pytest.mark.case(52, 54, 55)
@pytest.mark.parametrize(
    ("labels", "changes", "error", "message"),
    [
        ([0, 1, 2, 3, 0, 1], {}, DataError, r"label 3 of row 3 of the training set is not in 0\.\.2"),
        ([0, 1, -100, 1, 0], {}, DataError, "label -100 of row 2 of the training set"),
        ([0, 0, -1, 1, 1], {}, DataError, "label -1 of row 2"),
        ([0, 0, 1, 2, 2], {}, DataError, r"class 'b' has one training image \(row 2\)"),
        ([1, 1, 1, 1], {}, DataError, "has images of 1 class; give at least 2"),
        ([0, 0, 1, 1], {"batch_size": 5, "validation": 0.0}, DataError, "4 training images do not fill one batch of 5"),
        ([0, 0, 1, 1], {"batch_size": 0}, ConfigError, r"data\.batch_size=0 is too small"),
        ([0, 0, 1, 1], {"limit": -1}, ConfigError, r"data\.limit=-1"),
        ([0, 0, 1, 1], {"limit": 1}, ConfigError, r"data\.limit=1 is less than one image for each of 2 classes"),
        ([0, 0, 1, 1], {"validation": 1.0}, ConfigError, r"data\.validation=1\.0"),
        ([0, 0, 1, 1], {"padding": -1}, ConfigError, r"data\.padding=-1"),
        ([0, 0, 1, 1], {"views": 0}, ConfigError, r"data\.views=0"),
        ([0, 0, 1, 1], {"augment": "resized_crop"}, ConfigError, "cuts image files and given has none"),
    ],
)
def test_what_cannot_be_learnt_from(
    labels: list[int], changes: dict[str, Any], error: type[CoterieError], message: str
) -> None:
    with pytest.raises(error, match=message) as caught:
        open_data(DataConfig(**{"batch_size": 2} | changes), seed=0, source=source_of(labels))
    assert "\n" not in str(caught.value)


def test_test_labels_and_sizes_are_checked_when_opened() -> None:
    config, good = DataConfig(batch_size=2), source_of([0, 0, 1, 1])
    data = open_data(config, 0, source=replace(good, classes=("a", "b")))
    with pytest.raises(DataError, match="label 2 of row 1 of the test set"):
        data.test()
    with pytest.raises(DataError, match="test images are 1 x 9 x 9 and training images 1 x 8 x 8"):
        open_data(config, 0, source=source_of([0, 0, 1, 1], test_size=9)).test()


def with_own_validation(validation: list[int] | None, test: list[int], unseen: bool = True) -> Source:
    def split(labels: list[int]) -> ArraySplit:
        return ArraySplit(torch.zeros(len(labels), 1, 8, 8, dtype=torch.uint8), torch.tensor(labels))

    return replace(
        source_of([0, 0, 1, 1, 2, 2]),
        validation=None if validation is None else split(validation),
        test=lambda: split(test),
        unseen=unseen,
    )


def test_a_validation_split_of_its_own_is_taken_as_it_is() -> None:
    config = DataConfig(batch_size=2, validation=0.1)
    data = open_data(config, 0, source=with_own_validation([4, 3, 2, 1, 0], [1, 0]))
    assert data.unseen
    assert data.validation is not None
    assert (data.train.labels.tolist(), data.validation.labels.tolist()) == ([0, 0, 1, 1, 2, 2], [4, 3, 2, 1, 0])
    assert data.test().labels.tolist() == [1, 0]
    assert open_data(replace(config, limit=3), 0, source=with_own_validation([0, 1], [1, 0])).train.labels.tolist() == [
        0,
        1,
        2,
    ]
    without = open_data(replace(config, validation=0.0), 0, source=with_own_validation([0, 1], [1, 0]))
    assert without.validation is None
    assert len(without.train.labels) == 6


@pytest.mark.parametrize(
    ("validation", "test", "unseen", "message"),
    [
        ([0, 1, 3], [0, 1], True, "the validation set has no images of class 2 of its 4"),
        ([0, 0], [0, 1], True, "the validation set has no images of class 1 of its 2; give images of 2 classes"),
        ([0, 1, -1], [0, 1], True, "label -1 of row 2 of the validation set"),
        ([0, 1], [0, 2], True, "the test set has no images of class 1 of its 3"),
        ([0, 1, 3], [0, 1], False, r"label 3 of row 2 of the validation set is not in 0\.\.2"),
    ],
)
def test_own_labels_are_checked(validation: list[int], test: list[int], unseen: bool, message: str) -> None:
    with pytest.raises(DataError, match=message):
        open_data(DataConfig(batch_size=2), 0, source=with_own_validation(validation, test, unseen)).test()


def test_unseen_classes_without_validation_need_a_word() -> None:
    source = with_own_validation(None, [0, 1])
    with pytest.raises(ConfigError, match=r"given has no classes to validate on; set data\.validation=0"):
        open_data(DataConfig(batch_size=2), 0, source=source)
    assert open_data(DataConfig(batch_size=2, validation=0.0), 0, source=source).validation is None


def test_unknown_names_are_near_something() -> None:
    with pytest.raises(UnknownName, match="did you mean 'cifar100'"):
        open_data(DataConfig(name="cifar1000"), 0)


@pytest.mark.case(56)
@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (torch.zeros(2, 3, 8, 8), torch.zeros(2, dtype=torch.int64), r"images are torch\.float32 \[2, 3, 8, 8\]"),
        (torch.zeros(2, 3, 8, 9, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64), r"\[2, 3, 8, 9\]"),
        (
            torch.zeros(2, 3, 8, 8, dtype=torch.uint8),
            torch.zeros(3, dtype=torch.int64),
            r"labels are torch\.int64 \[3\]",
        ),
        (torch.zeros(2, 3, 8, 8, dtype=torch.uint8), torch.zeros(2), r"labels are torch\.float32"),
        (torch.zeros(0, 3, 8, 8, dtype=torch.uint8), torch.zeros(0, dtype=torch.int64), "the data set is empty"),
    ],
)
def test_arrays_must_fit(images: torch.Tensor, labels: torch.Tensor, message: str) -> None:
    with pytest.raises(DataError, match=message):
        ArraySplit(images, labels)


@pytest.mark.case(64)
@pytest.mark.parametrize("row", [-1, 48])
def test_rows_that_do_not_exist(small_split: ArraySplit, row: int) -> None:
    with pytest.raises(DataError, match=rf"row {row} is not one of 48 images; give rows in 0\.\.47"):
        small_split.select(torch.tensor([0, row]))


def test_array_fingerprints_see_pixels_labels_and_order(small_split: ArraySplit) -> None:
    first = small_split.fingerprint()
    pixels, labels = small_split.images.clone(), small_split.labels.clone()
    pixels[40, 1, 2, 3] ^= 1
    labels[40] = (labels[40] + 1) % 4
    assert ArraySplit(small_split.images.clone(), small_split.labels).fingerprint() == first
    assert ArraySplit(pixels, small_split.labels).fingerprint() != first
    assert ArraySplit(small_split.images, labels).fingerprint() != first
    assert small_split.select(torch.arange(47, -1, -1)).fingerprint() != first


@every_set
def test_labels_of_new_test_classes_are_known_without_the_images(config: DataConfig) -> None:
    data = open_data(config, seed=0)
    known = data.test_labels
    assert data.unseen == (known is not None)
    assert known is None or torch.equal(known, data.test().labels)
