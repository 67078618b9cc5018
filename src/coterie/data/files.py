"""Image files of a split: found and checked, left on disk until they are needed, or decoded once into memory."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import IO

import torch
from torch import Tensor

from coterie.config.schema import DataConfig
from coterie.core.errors import ConfigError, DataError
from coterie.data.base import Split
from coterie.data.checks import check_rows
from coterie.data.fingerprint import digest
from coterie.data.framed import FramedSplit, loaded_if_small
from coterie.data.images import SUFFIXES, Framing, read_size, read_square


@dataclass(frozen=True, slots=True)
class FileSplit(FramedSplit):
    """Image files with labels, decoded on demand.

    Attributes:
        root: folder that the names are relative to.
        names: N file names.
        labels: `[N]` int64 on the CPU.
        framing: how a file becomes a square.
    """

    root: Path
    names: Sequence[str]
    labels: Tensor
    framing: Framing

    def fetch(self, row: int, key: int | None) -> Tensor:
        """Decode a file to `[3, S, S]` uint8; see `coterie.data.images.read_square`."""
        return read_square(self.root / self.names[row], self.framing, key)

    def select(self, rows: Tensor) -> FileSplit:
        """The split of these rows `[n]` int64, in this order; no file is read."""
        rows = check_rows(rows, len(self.names))
        return FileSplit(self.root, [self.names[row] for row in rows.tolist()], self.labels[rows], self.framing)

    def fingerprint(self) -> str:
        """SHA-256 of names, sizes on disk and labels; no file is read."""
        return digest("files", *(f"{name}/{self._bytes(name)}" for name in self.names), self.labels)

    def _bytes(self, name: str) -> int:
        try:
            return (self.root / name).stat().st_size
        except OSError as error:
            raise DataError(f"{str(self.root / name)!r} cannot be read ({error.strerror}); restore it") from error


def open_files(root: Path, names: Sequence[str], labels: Sequence[int], framing: Framing, config: DataConfig) -> Split:
    """Make a split of files: in memory when they fit into `data.memory_mb` and are not cut at random, else on disk.

    Args:
        root: folder that the names are relative to.
        names: N file names.
        labels: N numbers of classes.
        framing: how a file becomes a square.
        config: its `memory_mb` and `workers` are used.

    Raises:
        DataError: a file that is decoded now cannot be; the message names it.
    """
    return loaded_if_small(FileSplit(root, names, torch.tensor(labels, dtype=torch.int64), framing), config)


def open_by_class(
    root: Path, files: Mapping[str, Sequence[Path]], labels: Mapping[str, int], framing: Framing, config: DataConfig
) -> Split:
    """Make a split of the files of several classes, class by class, as `open_files` does.

    Args:
        root: folder that holds all files.
        files: the files of each class.
        labels: its number.
        framing: how a file becomes a square.
        config: its `memory_mb` and `workers` are used.

    Raises:
        DataError: a file that is decoded now cannot be; the message names it.
    """
    names = names_below(root, chain.from_iterable(files.values()))
    return open_files(root, names, [labels[name] for name, found in files.items() for _ in found], framing, config)


def choose_framing(config: DataConfig, first: Path | IO[bytes], name: str = "") -> Framing:
    """Say how files become squares: by `data.augment` and `data.image_size`, or by the size of the first file.

    Args:
        config: its `augment` and `image_size` are used.
        first: where the first file is, or its bytes.
        name: how messages call it; by default where it is.

    Raises:
        ConfigError: a random cut is asked for without an image size.
        DataError: without an image size the first file is not square or cannot be read.
    """
    if config.augment == "resized_crop":
        if not config.image_size:
            raise ConfigError("data.augment='resized_crop' needs a size to scale to; set data.image_size")
        return Framing(config.image_size, "resized_crop")
    if config.image_size:
        return Framing(config.image_size, "centre")
    return _own_framing(first, name or repr(str(first)))


def _own_framing(first: Path | IO[bytes], name: str) -> Framing:
    width, height = read_size(first, name)
    if width != height:
        raise DataError(f"{name} has {width} x {height} pixels and is not square; set data.image_size")
    return Framing(width, "exact")


def read_lines(path: Path, remedy: str) -> list[str]:
    """The lines of a text file that are not blank; raises `DataError` with this remedy when it cannot be read."""
    try:
        return [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not text"
        raise DataError(f"{str(path)!r} cannot be read ({reason}); {remedy}") from error


def visible(folder: Path) -> list[Path]:
    """What a folder holds, by name, without what begins with a dot."""
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def folders_in(folder: Path) -> list[Path]:
    """The visible folders in a folder, by name; none where it is missing."""
    return [path for path in visible(folder) if path.is_dir()] if folder.is_dir() else []


def names_below(root: Path, paths: Iterable[Path]) -> list[str]:
    """Names of files relative to a folder that holds them all."""
    return [str(path.relative_to(root)) for path in paths]


def files_of_class(folder: Path) -> list[Path]:
    """The images of a class's folder, by name.

    Raises:
        DataError: there is none, or something else, as `check_image_file` says.
    """
    paths = image_files(folder)
    if not paths:
        raise DataError(f"class folder {str(folder)!r} is empty; add images or remove it")
    return paths


def image_files(folder: Path) -> list[Path]:
    """The files of a folder that holds images and nothing else, by name; raises `DataError` as `check_image_file`."""
    paths = visible(folder)
    for path in paths:
        check_image_file(path)
    return paths


def check_image_file(path: Path) -> None:
    """Check by name and size that a file can be an image; it is not read.

    Raises:
        DataError: it is missing, empty, or not named as an image.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise DataError(f"{str(path)!r} is not an image file; remove it, or convert it to PNG or JPEG")
    if not path.is_file() or not path.stat().st_size:
        raise DataError(f"{str(path)!r} is missing or empty; restore or remove it")
