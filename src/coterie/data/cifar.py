"""CIFAR-10 and CIFAR-100 from their authors' Python archives (Krizhevsky, 2009): 32 x 32 photographs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch

from coterie.config.schema import DataConfig
from coterie.core.errors import DataError
from coterie.data.archive import read_archive
from coterie.data.arrays import ArraySplit
from coterie.data.base import DATA, Normalisation, Source
from coterie.data.checks import check_image_size

_SIDE = 32
_PIXELS = 3 * _SIDE * _SIDE


@dataclass(frozen=True, slots=True)
class _Layout:
    """Where an archive keeps what."""

    name: str
    folder: str
    train: tuple[str, ...]
    test: str
    labels: str
    meta: str
    names: str
    num_classes: int
    normalisation: Normalisation


_CIFAR10 = _Layout(
    name="cifar10",
    folder="cifar-10-batches-py",
    train=tuple(f"data_batch_{part}" for part in range(1, 6)),
    test="test_batch",
    labels="labels",
    meta="batches.meta",
    names="label_names",
    num_classes=10,
    normalisation=Normalisation(mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616)),
)
_CIFAR100 = _Layout(
    name="cifar100",
    folder="cifar-100-python",
    train=("train",),
    test="test",
    labels="fine_labels",
    meta="meta",
    names="fine_label_names",
    num_classes=100,
    normalisation=Normalisation(mean=(0.5071, 0.4865, 0.4409), std=(0.2673, 0.2564, 0.2762)),
)
_COARSE = replace(_CIFAR100, name="cifar100_coarse", labels="coarse_labels", names="coarse_label_names", num_classes=20)


@DATA.register("cifar10")
def cifar10(config: DataConfig, seed: int) -> Source:
    """Open CIFAR-10: 50,000 training and 10,000 test images of 10 classes.

    Args:
        config: `root` holds the archive's files, or its folder `cifar-10-batches-py`.
        seed: not used; the split is official.

    Returns:
        The data set.

    Raises:
        ConfigError: another image size is asked for.
        DataError: a file is missing or damaged.
    """
    return _open(_CIFAR10, config)


@DATA.register("cifar100")
def cifar100(config: DataConfig, seed: int) -> Source:
    """Open CIFAR-100 with its fine labels: 50,000 training and 10,000 test images of 100 classes.

    Args:
        config: `root` holds the archive's files, or its folder `cifar-100-python`.
        seed: not used; the split is official.

    Returns:
        The data set.

    Raises:
        ConfigError: another image size is asked for.
        DataError: a file is missing or damaged.
    """
    return _open(_CIFAR100, config)


@DATA.register("cifar100_coarse")
def cifar100_coarse(config: DataConfig, seed: int) -> Source:
    """Open CIFAR-100 with its coarse labels: the images of `cifar100`, five of its classes in each of 20 superclasses.

    Args:
        config: `root` holds the archive's files, or its folder `cifar-100-python`.
        seed: not used; the split is official.

    Returns:
        The data set.

    Raises:
        ConfigError: another image size is asked for.
        DataError: a file is missing or damaged.
    """
    return _open(_COARSE, config)


def _open(layout: _Layout, config: DataConfig) -> Source:
    check_image_size(config.image_size, layout.name, _SIDE)
    folder = _folder(layout, Path(config.root))
    return Source(
        name=layout.name,
        train=_split(layout, [folder / name for name in layout.train]),
        test=lambda: _split(layout, [folder / layout.test]),
        classes=_class_names(layout, folder),
        normalisation=layout.normalisation,
    )


def _folder(layout: _Layout, root: Path) -> Path:
    for folder in (root / layout.folder, root):
        if (folder / layout.train[0]).is_file():
            return folder
    raise DataError(
        f"{str(root / layout.folder / layout.train[0])!r} is missing; unpack {layout.name}'s Python archive"
        " and give its folder as data.root"
    )


def _split(layout: _Layout, paths: Sequence[Path]) -> ArraySplit:
    images, labels = zip(*(_part(layout, path) for path in paths), strict=True)
    pixels = np.concatenate(images).reshape(-1, 3, _SIDE, _SIDE)
    return ArraySplit(torch.from_numpy(pixels), torch.tensor([*chain(*labels)], dtype=torch.int64))


def _part(layout: _Layout, path: Path) -> tuple[np.ndarray[Any, Any], list[int]]:
    images, labels = _fields(layout, path)
    name = repr(str(path))
    if images.dtype != np.uint8 or images.shape != (len(labels), _PIXELS):
        raise DataError(
            f"{name} has {images.dtype} images of shape {list(images.shape)} and {len(labels)} labels;"
            f" expected uint8 [{len(labels)}, {_PIXELS}], fetch it again"
        )
    _check_labels(labels, layout.num_classes, name)
    return images, labels


def _fields(layout: _Layout, path: Path) -> tuple[np.ndarray[Any, Any], list[Any]]:
    content = read_archive(path)
    images, labels = content.get("data"), content.get(layout.labels)
    if not isinstance(images, np.ndarray) or not isinstance(labels, list):
        raise DataError(
            f"{str(path)!r} lacks 'data' or {layout.labels!r}; it is no part of {layout.name}, fetch it again"
        )
    return images, labels


def _check_labels(labels: list[Any], num_classes: int, name: str) -> None:
    for row, label in enumerate(labels):
        if not isinstance(label, int) or not 0 <= label < num_classes:
            raise DataError(f"label {label!r} of row {row} in {name} is not in 0..{num_classes - 1}; fetch it again")


def _class_names(layout: _Layout, folder: Path) -> tuple[str, ...]:
    path = folder / layout.meta
    if not path.is_file():
        return tuple(map(str, range(layout.num_classes)))
    names = read_archive(path).get(layout.names)
    if not isinstance(names, list) or len(names) != layout.num_classes:
        raise DataError(f"{str(path)!r} does not name {layout.num_classes} classes; fetch it again or remove it")
    return tuple(map(_text, names))


def _text(name: object) -> str:
    return name.decode("latin1") if isinstance(name, bytes) else str(name)
