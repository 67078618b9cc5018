"""Splits by class: which classes are trained on, and which are kept for validation and test and never seen before."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import torch

from coterie.config.schema import DataConfig
from coterie.core.errors import DataError
from coterie.data.arrays import ArraySplit
from coterie.data.base import Normalisation, Source, Split
from coterie.data.files import read_lines

PARTS = ("train", "val", "test")
"""What files and folders of splits are called."""

_SHAPE = 'give {"train": [CLASS, ...], "val": [...], "test": [...]}'


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassSplit:
    """Names of classes by what they are for; within a part a class has the label of its position.

    Attributes:
        train: classes to train on.
        val: classes to validate on; may be empty.
        test: classes for the test.
        where: the file or folder that says so, for messages.

    Raises:
        DataError: train or test is empty, or a class is named twice.

    Example:
        >>> split = ClassSplit(train=("a", "b"), val=("c",), test=("d", "e"), where="split.json")
        >>> split.trained_on(DataConfig(validation=0.0)).train
        ('a', 'b', 'c')
    """

    train: tuple[str, ...]
    val: tuple[str, ...] = ()
    test: tuple[str, ...]
    where: str

    def __post_init__(self) -> None:
        self._check_named_once()
        for part in ("train", "test"):
            if not getattr(self, part):
                raise DataError(f"{self.where!r} names no classes for {part}; add some")

    def _check_named_once(self) -> None:
        known: dict[str, str] = {}
        for part in PARTS:
            for name in getattr(self, part):
                if name in known:
                    where = f"in {known[name]} and in {part}" if known[name] != part else f"twice in {part}"
                    raise DataError(f"class {name!r} is {where} of {self.where!r}; leave it in one place")
                known[name] = part

    @property
    def classes(self) -> tuple[str, ...]:
        """All classes: of train, val and test, in this order."""
        return self.train + self.val + self.test

    def check_known(self, known: Collection[str], what: str) -> None:
        """Check that every class exists.

        Args:
            known: names of the classes there are.
            what: where they are, such as `CIFAR-100`.

        Raises:
            DataError: a class is not known; the message names the first one.
        """
        for name in self.classes:
            if name not in known:
                raise DataError(f"{self.where!r} names the class {name!r} and {what} has none; correct or remove it")

    def trained_on(self, config: DataConfig) -> ClassSplit:
        """With `data.validation = 0` nothing is held out: the classes of validation are then trained on as well."""
        return self if config.validation else replace(self, train=self.train + self.val, val=())


def read_split(path: Path) -> ClassSplit:
    """Read a split of one file.

    Args:
        path: `.json` with `{"train": [...], "val": [...], "test": [...]}`, or text with a line `PART CLASS` for each
            class; names may hold blanks, and `/` where classes are folders in folders.

    Raises:
        DataError: the file cannot be read or is written otherwise, or the split is wrong as `ClassSplit` says.
    """
    parts = _parts_of_json(path) if path.suffix == ".json" else _parts_of_lines(path)
    return ClassSplit(**parts, where=str(path))


def read_lists(folder: Path) -> ClassSplit:
    """Read a split of one list per part: `train.json`, or `train.txt` with a class on each line, and so on.

    An entry of a JSON list is a name, or a list of names from the whole to the part, which are joined by `/`.

    Args:
        folder: holds the lists.

    Raises:
        DataError: a list cannot be read, or the split is wrong as `ClassSplit` says.
    """
    return ClassSplit(**{part: _list(folder, part) for part in PARTS}, where=str(folder))


def find_lists(root: Path, *candidates: str) -> Path:
    """Find the folder of a split's lists: in a data set's folder or beside it.

    Args:
        root: the data set's folder.
        candidates: names of the folder, relative to `root` or to the folder that holds `root`.

    Raises:
        DataError: there is none.
    """
    for base, name in product((root, root.parent), candidates):
        if (base / name).is_dir():
            return base / name
    raise DataError(
        f"{str(root / candidates[0])!r} is missing; put the split's lists of classes there: train, val and test"
    )


def open_classes(
    name: str,
    split: ClassSplit,
    open_part: Callable[[Sequence[str]], Split],
    normalisation: Normalisation,
    *,
    images_of: Callable[[str], int],
) -> Source:
    """Make a data set of a split by class.

    Args:
        name: of the data set.
        split: after `trained_on`.
        open_part: opens the images of some classes, labelled by position.
        normalisation: applied after augmentation.
        images_of: counts the images of a class without opening them.

    Raises:
        DataError: images cannot be read.
    """
    return Source(
        name=name,
        train=open_part(split.train),
        test=lambda: open_part(split.test),
        classes=split.train,
        normalisation=normalisation,
        validation=open_part(split.val) if split.val else None,
        unseen=True,
        test_labels=torch.arange(len(split.test)).repeat_interleave(torch.tensor([*map(images_of, split.test)])),
    )


def rows_of_classes(images: ArraySplit, names: Sequence[str], classes: Sequence[str]) -> ArraySplit:
    """Copy the images of some classes, class by class, labelled by position.

    Args:
        images: of all classes.
        names: class names by label.
        classes: those wanted; all are in `names`.

    Example:
        >>> images = ArraySplit(torch.arange(4, dtype=torch.uint8).view(4, 1, 1, 1), torch.tensor([0, 1, 2, 1]))
        >>> chosen = rows_of_classes(images, "abc", "cb")
        >>> chosen.labels.tolist(), chosen.images.flatten().tolist()
        ([0, 1, 1], [2, 1, 3])
    """
    label_of = torch.full((len(names),), len(classes))
    label_of[[names.index(name) for name in classes]] = torch.arange(len(classes))
    labels = label_of[images.labels]
    order = torch.argsort(labels, stable=True)[: int((labels < len(classes)).sum())]
    return ArraySplit(images.images[order], labels[order])


def _parts_of_json(path: Path) -> dict[str, tuple[str, ...]]:
    content = _json(path, _SHAPE)
    if not isinstance(content, dict) or set(content) - set(PARTS):
        raise DataError(f"{str(path)!r} is not a split of classes; {_SHAPE}")
    return {part: _names(path, content.get(part, []), _SHAPE) for part in PARTS}


def _parts_of_lines(path: Path) -> dict[str, tuple[str, ...]]:
    found: Mapping[str, list[str]] = {part: [] for part in PARTS}
    for number, line in enumerate(read_lines(path, "restore it"), start=1):
        part, name = _part_and_class(line, f"{str(path)!r} line {number}")
        found[part].append(name)
    return {part: tuple(names) for part, names in found.items()}


def _part_and_class(line: str, where: str) -> tuple[str, str]:
    part, _, name = line.strip().partition(" ")
    if part not in PARTS or not name:
        raise DataError(f"{where} is {line!r}; write train, val or test, a blank and a class")
    return part, name.strip()


def _list(folder: Path, part: str) -> tuple[str, ...]:
    path = folder / f"{part}.json"
    if path.is_file():
        shape = "give a list of class names"
        return _names(path, _json(path, shape), shape)
    return tuple(line.strip() for line in read_lines(folder / f"{part}.txt", "restore the list of classes"))


def _json(path: Path, shape: str) -> object:
    try:
        return json.loads("\n".join(read_lines(path, "restore it")))
    except (json.JSONDecodeError, RecursionError) as error:
        raise DataError(f"{str(path)!r} is not JSON; {shape}") from error


def _names(path: Path, content: object, shape: str) -> tuple[str, ...]:
    if not isinstance(content, list):
        raise DataError(f"{str(path)!r} has {content!r} where a list of classes should be; {shape}")
    return tuple(_name(path, entry, shape) for entry in content)


def _name(path: Path, entry: object, shape: str) -> str:
    words = entry if isinstance(entry, list) else [entry]
    if not words or not all(isinstance(word, str) and word for word in words):
        raise DataError(f"{str(path)!r} has {entry!r} where the name of a class should be; {shape}")
    return "/".join(map(str, words))
