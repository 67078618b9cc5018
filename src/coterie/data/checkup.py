"""A look at all images of a data set before a run does it: what cannot be read, is there twice, or leaks into training.

A run stops at the first thing it cannot use. This finds everything at once, and what no run would notice: copies, also
in another class or in the test set.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from coterie.config.schema import DataConfig
from coterie.core.errors import DataError
from coterie.core.names import printable
from coterie.data.base import DATA, Source, Split
from coterie.data.checks import check_labels
from coterie.data.files import folders_in, visible
from coterie.data.findings import TRAIN, DataCheck, Item, find_faults
from coterie.data.images import SUFFIXES
from coterie.data.prints import ImagePrint, Place, place_of, print_files, print_split

_PARTS = (TRAIN, "val", "test")
_FOLDERS = ("folder", "folder_classes")


@dataclass(slots=True)
class _Listing:
    """What names alone tell of a folder."""

    places: list[Place] = field(default_factory=list)
    classes: dict[str, list[str]] = field(default_factory=dict)
    strangers: list[Path] = field(default_factory=list)


def check_folder(root: Path, workers: int = 0) -> DataCheck:
    """Check a folder of images; every file is decoded once.

    Args:
        root: holds `train` and `val` or `test`, each with a folder per class, or else a folder per class, whose name
            may be a path as in `birds/owl`.
        workers: processes that decode when there are thousands of files; 0 decodes in this one.

    Returns:
        What it holds and what is wrong with it.

    Raises:
        DataError: there is no such folder, or no class in it.
    """
    if not root.is_dir():
        raise DataError(f"{str(root)!r} is not a folder; give one that holds 'train', or a folder of images per class")
    parts = [part for part in _PARTS if (root / part).is_dir()]
    listing = _list_parts(root, parts) if TRAIN in parts else _list_classes(root)
    if not any(listing.classes.values()):
        raise DataError(f"{str(root)!r} has no classes; give a folder that holds a folder of images for each class")
    prints = print_files(listing.places, workers)
    strangers = [Item((printable(str(path.relative_to(root))),)) for path in listing.strangers]
    return find_faults(prints, {"not images": strangers, **_of_classes(listing.classes, prints)})


def check_data(config: DataConfig, seed: int) -> DataCheck:
    """Check a data set of a recipe: training images before a validation split is held out, and validation and test.

    Args:
        config: which data; folders of images are checked by `check_folder`, other files are not kept in memory.
        seed: of data sets that have no split of their own.

    Returns:
        What it holds and what is wrong with it.

    Raises:
        ConfigError: the name is unknown, or a number does not suit the data set.
        DataError: the data set cannot be opened.
    """
    if config.name in _FOLDERS:
        return check_folder(Path(config.root), config.workers)
    source = DATA[config.name](replace(config, memory_mb=0), seed)
    return check_source(source, config.workers)


def check_source(source: Source, workers: int = 0) -> DataCheck:
    """Check a data set that is open, such as `from_dataset` makes; its test split is opened.

    Args:
        source: the data set.
        workers: as of `check_folder`.

    Raises:
        DataError: a label is not a class, or an image that has no file cannot be made.
    """
    prints: list[ImagePrint] = []
    classes: dict[str, list[str]] = {}
    for part, split in _splits(source):
        names = _class_names(source, part, split)
        check_labels(split.labels, len(names), f"the {part} set")
        classes[part] = list(map(printable, names))
        prints += print_split(split, part, names, workers)
    return find_faults(prints, _of_classes(classes, prints))


def _splits(source: Source) -> Iterator[tuple[str, Split]]:
    yield TRAIN, source.train
    if source.validation is not None:
        yield "val", source.validation
    yield "test", source.test()


def _class_names(source: Source, part: str, split: Split) -> Sequence[str]:
    """Names of a part's classes; new classes have numbers."""
    if part == TRAIN or not source.unseen:
        return source.classes
    return [f"{part} class {label}" for label in range(int(split.labels.max()) + 1)]


def _list_parts(root: Path, parts: Iterable[str]) -> _Listing:
    """List `PART/CLASS/FILE`; a folder in the folder of a class is a stranger, as it is to a run."""
    listing = _Listing()
    for part in parts:
        listing.strangers += (path for path in visible(root / part) if _is_loose(path))
        folders = folders_in(root / part)
        listing.classes[part] = [printable(folder.name) for folder in folders]
        for folder in folders:
            _list_class(listing, root, folder, part, folder.name)
    return listing


def _list_classes(root: Path) -> _Listing:
    """List `CLASS/FILE`, where a class is a folder, at any depth, that holds files or nothing."""
    listing = _Listing(classes={"": []}, strangers=[path for path in visible(root) if _is_loose(path)])
    waiting = folders_in(root)
    while waiting:
        folder = waiting.pop(0)
        inner = folders_in(folder)
        waiting += inner
        name = str(folder.relative_to(root))
        if any(path not in inner for path in visible(folder)) or not inner:
            listing.classes[""].append(printable(name))
            _list_class(listing, root, folder, "", name, skip=inner)
    return listing


def _list_class(listing: _Listing, root: Path, folder: Path, part: str, label: str, skip: Sequence[Path] = ()) -> None:
    for path in visible(folder):
        if path.suffix.lower() in SUFFIXES and not path.is_dir():
            listing.places.append(place_of(root, path, part, printable(label)))
        elif path not in skip:
            listing.strangers.append(path)


def _is_loose(path: Path) -> bool:
    """Whether an image lies where folders of classes are."""
    return path.is_file() and path.suffix.lower() in SUFFIXES


def _of_classes(classes: Mapping[str, Sequence[str]], prints: Iterable[ImagePrint]) -> dict[str, list[Item]]:
    """Find classes without images, with one to train on, and those that training does not know.

    A split by class, whose validation and test share no class with training, has none that it should know.
    """
    counts = Counter((image.place.part, image.place.label) for image in prints)
    every = [(part, name) for part, names in classes.items() for name in names]
    return {
        "empty classes": _named(place for place in every if not counts[place]),
        "lone classes": _named(place for place in every if place[0] == next(iter(classes)) and counts[place] == 1),
        "unknown classes": _named(_unknown(*classes.items())),
    }


def _unknown(learnt: tuple[str, Sequence[str]], *others: tuple[str, Sequence[str]]) -> Iterator[tuple[str, str]]:
    known = set(learnt[1])
    if any(known.intersection(names) for _, names in others):
        yield from ((part, name) for part, names in others for name in names if name not in known)


def _named(places: Iterable[tuple[str, str]]) -> list[Item]:
    return [Item(("/".join(filter(None, place)),)) for place in places]
