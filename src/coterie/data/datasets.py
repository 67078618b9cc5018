"""A user's own map-style `Dataset` as a split, its random transforms made to depend on seed, epoch, sample and view."""

from __future__ import annotations

import operator
import random
from collections.abc import Iterator, Sequence, Sized
from contextlib import contextmanager
from typing import Any, TypeGuard

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, Subset

from coterie.core import draws
from coterie.core.errors import CoterieError, DataError
from coterie.data.base import Normalisation, Source, Split
from coterie.data.checks import check_rows
from coterie.data.fingerprint import digest
from coterie.data.images import image_tensor, to_rgb

_PROBES = 8


class DatasetSplit:
    """Items `(image, label)` of a map-style `Dataset`, fetched on demand.

    Images may be PIL images, uint8 or floating point tensors `[C, H, W]`, or numpy arrays `[H, W, C]`, all of one
    square size. uint8 and PIL images are cropped, flipped and normalised like any other; floating point images are
    taken as finished by the data set's own transforms and left alone.

    Labels are read from `.targets` or `.labels`, through `Subset`s too; otherwise every item is fetched once.

    Args:
        dataset: the data set.
        labels: `[N]` int64, when already known.
        rows: `[N]` int64, the items to use, in this order; None for all.

    Raises:
        DataError: the data set is empty or not map-style, or an item is not an image and a whole number.
    """

    varies = True

    def __init__(self, dataset: Dataset[Any], labels: Tensor | None = None, rows: Tensor | None = None) -> None:
        self.dataset = dataset
        self._rows = torch.arange(_length(dataset)) if rows is None else rows
        if not len(self._rows):
            raise DataError("the data set is empty; give at least one image")
        self._labels = _labels(dataset)[self._rows] if labels is None else labels
        self._shape = self._probe()

    @property
    def labels(self) -> Tensor:
        """`[N]` int64 on the CPU."""
        return self._labels

    @property
    def channels(self) -> int:
        """C of the first image."""
        return self._shape[0]

    @property
    def image_size(self) -> int:
        """Side in pixels of the first image."""
        return self._shape[1]

    def fetch(self, row: int, key: int | None) -> Tensor:
        """Fetch an image with the global generators of torch, numpy and Python seeded by `key`.

        Args:
            row: which image.
            key: what random transforms depend on; None for a key that depends on the row alone.

        Returns:
            `[C, H, W]` uint8 or float32.

        Raises:
            DataError: the item cannot be made, or differs in size or label from what was found before.
        """
        image, label = self._item(row, draws.mix("evaluation", row) if key is None else key)
        self._check_as_before(row, image, label)
        return image

    def _check_as_before(self, row: int, image: Tensor, label: int) -> None:
        if tuple(image.shape) != self._shape:
            raise DataError(
                f"row {row} of the data set is {list(image.shape)} where row 0 is {list(self._shape)};"
                " bring all images to one size in the data set's transform"
            )
        if label != self._labels[row]:
            raise DataError(
                f"row {row} of the data set has label {label} where {int(self._labels[row])} was announced;"
                " let `.targets` hold what the items return"
            )

    def select(self, rows: Tensor) -> DatasetSplit:
        """The split of these rows `[n]` int64, in this order."""
        rows = check_rows(rows, len(self._rows))
        return DatasetSplit(self.dataset, self._labels[rows], self._rows[rows])

    def fingerprint(self) -> str:
        """SHA-256 of all labels, of which items are used, and of eight images spread over the split."""
        probes = torch.linspace(0, len(self._rows) - 1, min(_PROBES, len(self._rows))).long()
        images = [self.fetch(row, None) for row in probes.tolist()]
        return digest("dataset", self._rows, self._labels, *images)

    def _probe(self) -> tuple[int, int, int]:
        image, _ = self._item(0, 0)
        channels, height, width = image.shape
        if height != width:
            raise DataError(f"images are {height} x {width} pixels; make them square in the data set's transform")
        return channels, height, width

    def _item(self, row: int, key: int) -> tuple[Tensor, int]:
        try:
            with _naming(row):
                with _seeded(key):
                    item = self.dataset[int(self._rows[row])]
                image, label = _pair(item)
                return _as_tensor(image), _whole(label)
        except CoterieError:
            raise
        except Exception as error:  # the data set is not ours: whatever it raises is about this row
            reason = " ".join(str(error).split())
            raise DataError(
                f"row {row} of the data set failed with {type(error).__name__} ({reason}); mend it or leave it out"
            ) from error


def from_dataset(
    train: Dataset[Any],
    test: Dataset[Any] | None = None,
    *,
    classes: Sequence[str] = (),
    normalisation: Normalisation | None = None,
    name: str = "dataset",
) -> Source:
    """Wrap a user's own data sets; see `DatasetSplit` for what their items may be.

    A validation split is held out of `train` and goes through the same transforms.

    Args:
        train: items `(image, label)` to train on.
        test: items for the final evaluation.
        classes: class names by label; by default `train.classes`, or else the numbers `0 .. K-1`.
        normalisation: of uint8 images; by default mean 0.5 and deviation 0.5 of every channel.
        name: how runs call the data.

    Returns:
        A source; opening its test split raises `DataError` when there is none.

    Raises:
        DataError: the items cannot be used.
    """
    split = DatasetSplit(train)

    def open_test() -> Split:
        if test is None:
            raise DataError("no test set was given; pass one, as in from_dataset(train, test)")
        return DatasetSplit(test)

    half = (0.5,) * split.channels
    names = tuple(classes) or tuple(map(str, getattr(train, "classes", ())))
    return Source(
        name=name,
        train=split,
        test=open_test,
        classes=names or tuple(map(str, range(int(split.labels.max()) + 1))),
        normalisation=normalisation or Normalisation(mean=half, std=half),
    )


def _length(dataset: Dataset[Any]) -> int:
    if not _is_map_style(dataset):
        raise DataError(
            f"{type(dataset).__name__} has no random access; give a map-style Dataset with __len__ and __getitem__"
        )
    return len(dataset)


def _is_map_style(dataset: Dataset[Any]) -> TypeGuard[Sized]:
    has_access = hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")
    return has_access and not isinstance(dataset, IterableDataset)


def _labels(dataset: Dataset[Any]) -> Tensor:
    announced = _announced(dataset)
    if announced is None:
        announced = _labels_of_items(dataset)
    if len(announced) != _length(dataset):
        raise DataError(
            f"the data set has {_length(dataset)} items and {len(announced)} labels; give one label per item"
        )
    labels = [_checked_label(row, label) for row, label in enumerate(announced)]
    return torch.tensor(labels, dtype=torch.int64)


def _checked_label(row: int, label: object) -> int:
    with _naming(row):
        return _whole(label)


def _labels_of_items(dataset: Dataset[Any]) -> list[object]:
    return [_label_of(dataset, row) for row in range(_length(dataset))]


def _label_of(dataset: Dataset[Any], row: int) -> object:
    with _naming(row), _seeded(0):
        return _pair(dataset[row])[1]


def _announced(dataset: Dataset[Any]) -> Sequence[object] | None:
    if isinstance(dataset, Subset):
        inner = _announced(dataset.dataset)
        return None if inner is None else [inner[row] for row in dataset.indices]
    if getattr(dataset, "target_transform", None) is not None:
        return None  # the items' labels are not the stored ones
    return _stored_labels(dataset)


def _stored_labels(dataset: Dataset[Any]) -> Sequence[object] | None:
    labels = getattr(dataset, "targets", getattr(dataset, "labels", None))
    if isinstance(labels, Tensor | np.ndarray):
        return list(labels.tolist())
    return labels if isinstance(labels, Sequence) else None


def _pair(item: object) -> tuple[object, object]:
    if not isinstance(item, tuple | list) or len(item) < 2:
        raise DataError(f"is a {type(item).__name__}; return a pair (image, label)")
    return item[0], item[1]


def _whole(label: object) -> int:
    try:
        return operator.index(label)  # type: ignore[arg-type]
    except TypeError as error:
        raise DataError(f"has the label {label!r}; labels must be whole numbers") from error


def _as_tensor(image: object) -> Tensor:
    if isinstance(image, Image.Image):
        return image_tensor(image if image.mode in ("L", "RGB") else to_rgb(image))
    pixels = _with_channels(_pixels(image))
    if pixels.dim() != 3 or not (pixels.dtype == torch.uint8 or pixels.is_floating_point()):
        raise DataError(f"has an image of {pixels.dtype} {list(pixels.shape)}; give uint8 or float of [C, H, W]")
    return _finished(pixels).contiguous()


def _with_channels(pixels: Tensor) -> Tensor:
    return pixels.unsqueeze(0) if pixels.dim() == 2 else pixels


def _pixels(image: object) -> Tensor:
    if isinstance(image, np.ndarray):
        pixels = torch.from_numpy(np.ascontiguousarray(image))
        return pixels.permute(2, 0, 1) if pixels.dim() == 3 else pixels
    if not isinstance(image, Tensor):
        raise DataError(f"has a {type(image).__name__} for an image; give a PIL image, a tensor or a numpy array")
    return image


def _finished(pixels: Tensor) -> Tensor:
    if pixels.is_floating_point() and not pixels.isfinite().all():
        raise DataError("has an image with NaN or infinite pixels; mend its transform")
    return pixels.to(torch.float32) if pixels.is_floating_point() else pixels


@contextmanager
def _naming(row: int) -> Iterator[None]:
    """Let an error about an item say which one it is."""
    try:
        yield
    except DataError as error:
        raise DataError(f"row {row} of the data set {error}") from error


@contextmanager
def _seeded(key: int) -> Iterator[None]:
    before = torch.get_rng_state(), np.random.get_state(), random.getstate()
    torch.default_generator.manual_seed(key)
    np.random.seed(key % (1 << 32))
    random.seed(key)
    try:
        yield
    finally:
        torch.set_rng_state(before[0])
        np.random.set_state(before[1])
        random.setstate(before[2])
