"""Image files split by class: miniImageNet, and any folder of images with a split of its classes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path

from coterie.config.schema import DataConfig
from coterie.core.errors import DataError
from coterie.data.base import DATA, IMAGENET, Source, Split
from coterie.data.class_split import PARTS, ClassSplit, open_classes, read_split
from coterie.data.files import (
    check_image_file,
    choose_framing,
    files_of_class,
    folders_in,
    open_by_class,
    read_lines,
)
from coterie.data.images import Framing

_SIDE = 84
_MINI = ("mini-imagenet", "miniImagenet")
_HEADER = "filename,label"

Files = Mapping[str, Sequence[Path]]
"""The files of each class."""


@DATA.register("folder_classes")
def folder_classes(config: DataConfig, seed: int) -> Source:
    """Open a folder of images whose classes are divided: some to train on, others for validation and test.

    Either `data.root` holds a folder of images per class and `split.json` or `split.txt`, as `read_split` reads them
    (classes that the split does not name are left out), or it holds `train`, `val` and `test` with a folder per class.

    Args:
        config: `root`, `image_size`, `augment`, `memory_mb` and `workers` are used; `image_size = 0` takes images of
            one size; `validation = 0` adds the classes of `val` to those of `train`.
        seed: not used; the split is given.

    Returns:
        The data set.

    Raises:
        ConfigError: a random cut is asked for without an image size.
        DataError: a folder, an image or a class is missing or damaged, or a class is in two parts of the split.
    """
    root = Path(config.root)
    split, files = _given_split(root)
    split = split.trained_on(config)
    framing = choose_framing(config, files[split.train[0]][0])
    opener = part_opener(root, files, framing, config)
    return open_classes("folder_classes", split, opener, IMAGENET, images_of=lambda name: len(files[name]))


@DATA.register("mini_imagenet")
def mini_imagenet(config: DataConfig, seed: int) -> Source:
    """Open miniImageNet (Vinyals et al., NeurIPS 2016), split as by Ravi and Larochelle (ICLR 2017).

    64 classes to train on, 16 for validation and 20 for the test, 600 images each. Images are brought to 84 x 84: the
    shorter side is scaled and the middle is cut, which leaves images of 84 x 84 as they are.

    Args:
        config: `root` holds `images` with `train.csv`, `val.csv` and `test.csv` (columns filename and label), or
            `train`, `val` and `test` with a folder per class, or the folder `mini-imagenet` with either of them;
            `image_size` (0 for 84), `augment`, `memory_mb` and `workers` are used; `validation = 0` adds the classes
            of `val` to those of `train`.
        seed: not used; the split is published.

    Returns:
        The data set.

    Raises:
        DataError: a folder, an image or a list is missing or damaged, or a class is in two parts of the split.
    """
    given = Path(config.root)
    root = next((given / name for name in _MINI if (given / name).is_dir()), given)
    split, files = _csv_split(root) if (root / "train.csv").is_file() else _folder_split(root)
    split = split.trained_on(config)
    framing = choose_framing(replace(config, image_size=config.image_size or _SIDE), files[split.train[0]][0])
    opener = part_opener(root, files, framing, config)
    return open_classes("mini_imagenet", split, opener, IMAGENET, images_of=lambda name: len(files[name]))


def part_opener(root: Path, files: Files, framing: Framing, config: DataConfig) -> Callable[[Sequence[str]], Split]:
    """Make what opens the images of some classes, labelled by position.

    Args:
        root: folder that holds all files.
        files: the files of each class.
        framing: how a file becomes a square.
        config: its `memory_mb` and `workers` are used.
    """

    def open_part(classes: Sequence[str]) -> Split:
        labels = {name: label for label, name in enumerate(classes)}
        return open_by_class(root, {name: files[name] for name in classes}, labels, framing, config)

    return open_part


def _given_split(root: Path) -> tuple[ClassSplit, Files]:
    found = next(filter(Path.is_file, (root / "split.json", root / "split.txt")), None)
    if found is None:
        return _folder_split(root)
    split = read_split(found)
    split.check_known({name for name in split.classes if _is_inside(root, name)}, repr(str(root)))
    return split, {name: files_of_class(root / name) for name in split.classes}


def _is_inside(root: Path, name: str) -> bool:
    return ".." not in Path(name).parts and not Path(name).is_absolute() and (root / name).is_dir()


def _folder_split(root: Path) -> tuple[ClassSplit, Files]:
    """Find the split that the folders `train`, `val` and `test` make; there may be no `val`."""
    if not (root / "train").is_dir():
        raise DataError(f"{str(root / 'train')!r} is missing and no file splits the classes; the guide says how to")
    parts = {part: _class_names(root / part) for part in PARTS}
    split = ClassSplit(**parts, where=str(root))
    return split, {name: files_of_class(root / part / name) for part, names in parts.items() for name in names}


def _class_names(folder: Path) -> tuple[str, ...]:
    return tuple(path.name for path in folders_in(folder))


def _csv_split(root: Path) -> tuple[ClassSplit, Files]:
    lists = {part: _read_csv(root / f"{part}.csv", root / "images") for part in PARTS}
    split = ClassSplit(**{part: tuple(files) for part, files in lists.items()}, where=str(root))
    return split, dict(chain.from_iterable(files.items() for files in lists.values()))


def _read_csv(path: Path, folder: Path) -> dict[str, list[Path]]:
    header, *lines = read_lines(path, "restore it") or [""]
    if header.strip() != _HEADER:
        raise DataError(f"{str(path)!r} begins with {header[:80]!r}; expected the columns {_HEADER}")
    files: dict[str, list[Path]] = {}
    for number, line in enumerate(lines, start=2):
        name, label = _name_and_class(line, f"{str(path)!r} line {number}")
        check_image_file(folder / name)
        files.setdefault(label, []).append(folder / name)
    return files


def _name_and_class(line: str, where: str) -> tuple[str, str]:
    name, _, label = line.strip().partition(",")
    if not label or Path(name).name != name:
        raise DataError(f"{where} does not name an image and its class; correct it")
    return name, label
