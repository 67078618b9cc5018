"""Tiny-ImageNet in its authors' layout (Stanford CS231N, 2015): 64 x 64 photographs of 200 classes of ImageNet."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from coterie.config.schema import DataConfig
from coterie.core.errors import DataError
from coterie.data.base import DATA, Normalisation, Source, Split
from coterie.data.class_files import part_opener
from coterie.data.class_split import PARTS, ClassSplit, open_classes
from coterie.data.files import (
    check_image_file,
    choose_framing,
    folders_in,
    image_files,
    names_below,
    open_files,
    read_lines,
)
from coterie.data.images import Framing

_FOLDER = "tiny-imagenet-200"
_OF_FIVE = ("train", "train", "train", "val", "test")
_REMEDY = "unpack Tiny-ImageNet again"
_NORMALISATION = Normalisation(mean=(0.4802, 0.4481, 0.3975), std=(0.2770, 0.2691, 0.2821))

_Listing = list[tuple[Path, str]]  # files with the WordNet ids of their classes


@DATA.register("tiny_imagenet")
def tiny_imagenet(config: DataConfig, seed: int) -> Source:
    """Open Tiny-ImageNet: 64 x 64 photographs of 200 classes; the official validation images are the test split.

    The authors publish no labels of their test images. Classes are the folders in `train`, in the order of their
    WordNet ids; a part of the data set, with fewer classes or images, is opened as it is, and validation images of
    classes that `train` does not have are left out.

    Args:
        config: `root` holds `train`, `val` and `wnids.txt`, or their folder `tiny-imagenet-200`; `image_size` (0 for
            the images' own), `augment`, `memory_mb` and `workers` are used.
        seed: not used; the split is official.

    Returns:
        The data set.

    Raises:
        ConfigError: a random cut is asked for without an image size.
        DataError: a file, a folder or a line of a list is missing or damaged; the message names it.
    """
    root = _root(Path(config.root))
    labels = _labels(root)
    files = [(path, name) for name in labels for path in _train_files(root / "train" / name / "images")]
    framing = choose_framing(config, files[0][0])
    return Source(
        name="tiny_imagenet",
        train=_split(root, files, labels, framing, config),
        test=lambda: _split(root, _val_files(root / "val", labels), labels, framing, config),
        classes=_class_names(root, labels),
        normalisation=_NORMALISATION,
    )


@DATA.register("tiny_imagenet_classes")
def tiny_imagenet_classes(config: DataConfig, seed: int) -> Source:
    """Open Tiny-ImageNet split by class: 120 classes to train on, 40 for validation and 40 for the test.

    There is no published split. Of every five classes in the order of their WordNet ids, as `wnids.txt` has them, the
    first three are trained on, the fourth is for validation and the fifth for the test: all parts have animals and
    things, and a part of the data set, with fewer classes, keeps each class where it is. All images are from `train`,
    500 of each class.

    Args:
        config: as for `tiny_imagenet`; `validation = 0` adds the classes of validation to those of training.
        seed: not used; the split is the same for all runs.

    Returns:
        The data set.

    Raises:
        ConfigError: a random cut is asked for without an image size.
        DataError: a file, a folder or a line of a list is missing or damaged; the message names it.
    """
    root = _root(Path(config.root))
    files = {name: _train_files(root / "train" / name / "images") for name in _labels(root)}
    split = _by_fives(root, files).trained_on(config)
    framing = choose_framing(config, files[split.train[0]][0])
    opener = part_opener(root, files, framing, config)
    source = open_classes(
        "tiny_imagenet_classes", split, opener, _NORMALISATION, images_of=lambda name: len(files[name])
    )
    return replace(source, classes=_class_names(root, split.train))


def _by_fives(root: Path, present: Collection[str]) -> ClassSplit:
    classes: dict[str, list[str]] = {part: [] for part in PARTS}
    for place, name in enumerate(sorted(_listed(root))):
        if name in present:
            classes[_OF_FIVE[place % 5]].append(name)
    return ClassSplit(**{part: tuple(names) for part, names in classes.items()}, where=str(root / "train"))


def _listed(root: Path) -> set[str]:
    """WordNet ids of all classes of the data set."""
    return {line.strip() for line in read_lines(root / "wnids.txt", _REMEDY)}


def _root(given: Path) -> Path:
    for root in (given / _FOLDER, given):
        if (root / "wnids.txt").is_file():
            return root
    raise DataError(
        f"{str(given / _FOLDER / 'wnids.txt')!r} is missing; unpack Tiny-ImageNet's archive"
        " and give its folder as data.root"
    )


def _labels(root: Path) -> dict[str, int]:
    """Number the classes that have training images, by WordNet id."""
    known, found = _listed(root), folders_in(root / "train")
    for path in found:
        if path.name not in known:
            raise DataError(f"{str(path)!r} is not a class of {str(root / 'wnids.txt')!r}; add it there or remove it")
    if not found:
        raise DataError(f"{str(root / 'train')!r} has no classes; {_REMEDY}")
    return {path.name: label for label, path in enumerate(found)}


def _train_files(folder: Path) -> list[Path]:
    paths = image_files(folder) if folder.is_dir() else []
    if not paths:
        raise DataError(f"{str(folder)!r} is missing or empty; {_REMEDY}, or remove the class")
    return paths


def _val_files(folder: Path, labels: Mapping[str, int]) -> _Listing:
    """Read which class every validation image is of; images of other classes than these are left out."""
    path = folder / "val_annotations.txt"
    known = _listed(folder.parent)
    files: _Listing = []
    for number, line in enumerate(read_lines(path, _REMEDY), start=1):
        name, label = _name_and_class(line, known, f"{str(path)!r} line {number}")
        if label in labels:
            check_image_file(folder / "images" / name)
            files.append((folder / "images" / name, label))
    if not files:
        raise DataError(f"{str(path)!r} names no image of the training classes; {_REMEDY}")
    return files


def _name_and_class(line: str, known: Collection[str], where: str) -> tuple[str, str]:
    name, _, rest = line.partition("\t")
    label = rest.partition("\t")[0]
    if label not in known or Path(name).name != name:
        raise DataError(f"{where} does not name an image and its class; {_REMEDY}")
    return name, label


def _class_names(root: Path, labels: Iterable[str]) -> tuple[str, ...]:
    """The first word of each class with its WordNet id, since words alone are not unique; ids where there are none."""
    path = root / "words.txt"
    rows = (line.partition("\t") for line in (read_lines(path, _REMEDY) if path.is_file() else ()))
    words = {name: text.partition(",")[0].strip() for name, _, text in rows}
    return tuple(f"{words[name]} ({name})" if words.get(name) else name for name in labels)


def _split(root: Path, files: _Listing, labels: Mapping[str, int], framing: Framing, config: DataConfig) -> Split:
    paths, classes = zip(*files, strict=True)
    return open_files(root, names_below(root, paths), [labels[name] for name in classes], framing, config)
