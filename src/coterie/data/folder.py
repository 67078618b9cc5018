"""Folders of image files: `ROOT/train/CLASS/*.png|jpg|...`, and `ROOT/test/CLASS` or `ROOT/val/CLASS` for the test."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from coterie.config.schema import DataConfig
from coterie.core.errors import DataError
from coterie.data.base import DATA, IMAGENET, Source
from coterie.data.files import choose_framing, files_of_class, folders_in, open_by_class
from coterie.data.images import SUFFIXES


@DATA.register("folder")
def folder(config: DataConfig, seed: int) -> Source:
    """Open a folder of images; classes are the folders in `train`, in the order of their names.

    With `augment = resized_crop` images are decoded as they are needed. Otherwise each is brought to a square once,
    and all of them are kept in memory as one tensor if they fit into `memory_mb`.

    Args:
        config: `root`, `image_size`, `augment` and `memory_mb` are used; `image_size = 0` takes images of one size.
        seed: not used; the split is given.

    Returns:
        The data set.

    Raises:
        ConfigError: a random cut is asked for without an image size.
        DataError: a folder or an image is missing, empty, damaged or in the wrong place; the message names it.
    """
    root = Path(config.root)
    labels = {name: label for label, name in enumerate(_class_names(root / "train"))}
    files = _list_files(root / "train", labels)
    _refuse_lone_images(files)
    test = _test_folder(root)
    _refuse_strangers(test, root / "train", labels)
    framing = choose_framing(config, next(iter(files.values()))[0])
    return Source(
        name="folder",
        train=open_by_class(root / "train", files, labels, framing, config),
        test=lambda: open_by_class(test, _list_files(test, labels), labels, framing, config),
        classes=tuple(labels),
        normalisation=IMAGENET,
    )


def _refuse_lone_images(files: Mapping[str, list[Path]]) -> None:
    for name, found in files.items():
        if len(found) == 1:
            raise DataError(f"class {name!r} has one training image ({str(found[0])!r}); add images or drop the class")


def _refuse_strangers(test: Path, train: Path, labels: Mapping[str, int]) -> None:
    for name in _class_names(test):
        if name not in labels:
            raise DataError(f"{str(test / name)!r} is not a class of {str(train)!r}; add it there or remove it")


def _test_folder(root: Path) -> Path:
    for name in ("test", "val"):
        if (root / name).is_dir():
            return root / name
    raise DataError(f"{str(root)!r} has neither 'test' nor 'val'; add one with a folder per class")


def _class_names(root: Path) -> list[str]:
    if not root.is_dir():
        raise DataError(f"{str(root)!r} is missing; data.root must hold 'train' with a folder of images per class")
    _refuse_loose_images(root)
    names = [path.name for path in folders_in(root)]
    if not names:
        raise DataError(f"{str(root)!r} has no classes; add a folder of images for each class")
    return names


def _refuse_loose_images(root: Path) -> None:
    for path in root.iterdir():
        if path.is_file() and path.suffix.lower() in SUFFIXES:
            raise DataError(f"{str(path)!r} is in no class; move it into a folder named after its class")


def _list_files(root: Path, labels: Mapping[str, int]) -> dict[str, list[Path]]:
    return {name: files_of_class(root / name) for name in labels if (root / name).is_dir()}
