"""Tiny-ImageNet in its authors' layout (Stanford CS231N, 2015): 64 x 64 photographs of 200 classes of ImageNet."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from coterie.config.schema import DataConfig
from coterie.core.errors import DataError
from coterie.data.base import DATA, Normalisation, Source, Split
from coterie.data.files import check_image_file, choose_framing, image_files, open_files, visible
from coterie.data.images import Framing

_FOLDER = "tiny-imagenet-200"
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
    known = {line.strip() for line in _lines(root / "wnids.txt")}
    found = [path for path in visible(root / "train") if path.is_dir()] if (root / "train").is_dir() else []
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
    known = {line.strip() for line in _lines(folder.parent / "wnids.txt")}
    files: _Listing = []
    for number, line in enumerate(_lines(path), start=1):
        name, *rest = line.split("\t")
        if not rest or rest[0] not in known or Path(name).name != name:
            raise DataError(f"{str(path)!r} line {number} does not name an image and its class; {_REMEDY}")
        if rest[0] in labels:
            check_image_file(folder / "images" / name)
            files.append((folder / "images" / name, rest[0]))
    if not files:
        raise DataError(f"{str(path)!r} names no image of the training classes; {_REMEDY}")
    return files


def _class_names(root: Path, labels: Mapping[str, int]) -> tuple[str, ...]:
    """The first word of each class with its WordNet id, since words alone are not unique; ids where there are none."""
    path = root / "words.txt"
    rows = (line.partition("\t") for line in (_lines(path) if path.is_file() else ()))
    words = {name: text.partition(",")[0].strip() for name, _, text in rows}
    return tuple(f"{words[name]} ({name})" if words.get(name) else name for name in labels)


def _split(root: Path, files: _Listing, labels: Mapping[str, int], framing: Framing, config: DataConfig) -> Split:
    names = [str(path.relative_to(root)) for path, _ in files]
    return open_files(root, names, [labels[name] for _, name in files], framing, config)


def _lines(path: Path) -> list[str]:
    try:
        return [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not text"
        raise DataError(f"{str(path)!r} cannot be read ({reason}); {_REMEDY}") from error
