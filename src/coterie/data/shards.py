"""Image files packed into a few large Arrow files, which Hugging Face's `datasets` writes and reads."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from coterie.config.schema import DataConfig
from coterie.core.errors import DataError, MissingExtra, one_line
from coterie.data.base import DATA, IMAGENET, Source, Split
from coterie.data.checks import check_rows
from coterie.data.files import choose_framing
from coterie.data.fingerprint import digest
from coterie.data.framed import FramedSplit, loaded_if_small
from coterie.data.images import Framing, read_square


class Table(Protocol):
    """What is used of a `datasets.Dataset`."""

    @property
    def features(self) -> Mapping[str, Any]:
        """The kind of each column."""

    @property
    def cache_files(self) -> Sequence[Mapping[str, str]]:
        """Its Arrow files, each by `filename`."""

    def __getitem__(self, row: int) -> Mapping[str, Any]:
        """A row, column by column."""


@dataclass(frozen=True, slots=True)
class ShardSplit(FramedSplit):
    """Rows of a packed split, decoded on demand; the Arrow files are mapped into memory, not read.

    Attributes:
        table: a `datasets.Dataset` of one column `image`, whose rows are encoded images.
        rows: `[N]` int64, the rows to use, in this order.
        labels: `[N]` int64 on the CPU.
        framing: how an image becomes a square.
    """

    table: Table
    rows: Tensor
    labels: Tensor
    framing: Framing

    def fetch(self, row: int, key: int | None) -> Tensor:
        """Decode an image to `[3, S, S]` uint8; see `coterie.data.images.read_square`."""
        file, name = _encoded(self.table, int(self.rows[row]))
        return read_square(file, self.framing, key, name=name)

    def select(self, rows: Tensor) -> ShardSplit:
        """The split of these rows `[n]` int64, in this order; no image is read."""
        rows = check_rows(rows, len(self.rows))
        return ShardSplit(self.table, self.rows[rows], self.labels[rows], self.framing)

    def fingerprint(self) -> str:
        """SHA-256 of names and sizes of the Arrow files, of which rows are used, and of labels; no image is read."""
        files = [Path(file["filename"]) for file in self.table.cache_files]
        return digest("shards", *(f"{file.name}/{file.stat().st_size}" for file in files), self.rows, self.labels)


@DATA.register("shards")
def shards(config: DataConfig, seed: int) -> Source:
    """Open images packed by `datasets`: the folder of a `DatasetDict` with `train`, and `test` or `validation`.

    Each split has a column of encoded images and one of class labels; others are left alone. Rows are taken class by
    class, as files of a folder are, so a run learns from them to the bit what it learns from the folder.

    Args:
        config: `root`, `image_size`, `augment`, `memory_mb` and `workers` are used as for `folder`.
        seed: not used; the split is given.

    Returns:
        The data set.

    Raises:
        ConfigError: a random cut is asked for without an image size.
        DataError: a file is missing or damaged, a column is missing, or an image is not in the files.
        MissingExtra: datasets is not installed.
    """
    root = Path(config.root)
    parts = _load(root)
    train, labels, classes = _columns(parts, "train", root)
    framing = choose_framing(config, *_encoded(train, 0))

    def open_test() -> Split:
        table, numbers, names = _columns(parts, "test" if "test" in parts else "validation", root)
        if names != classes:
            raise DataError(f"the test classes of {str(root)!r} are not those of 'train'; pack both parts together")
        return loaded_if_small(_by_class(table, numbers, framing), config)

    return Source(
        name="shards",
        train=loaded_if_small(_by_class(train, labels, framing), config),
        test=open_test,
        classes=classes,
        normalisation=IMAGENET,
    )


def _by_class(table: Table, labels: Tensor, framing: Framing) -> ShardSplit:
    labels, rows = labels.sort(stable=True)
    return ShardSplit(table, rows, labels, framing)


def _load(root: Path) -> Mapping[str, Any]:
    """Map the packed splits by name. Nothing in them is run: Arrow holds values, and features are named by a list."""
    try:
        import datasets
    except ImportError:
        raise MissingExtra("datasets", "shards") from None
    if not root.is_dir():
        raise DataError(f"{str(root)!r} is missing; data.root must be a folder that datasets' save_to_disk has written")
    try:
        found = datasets.load_from_disk(os.fspath(root), keep_in_memory=False)
    except Exception as error:  # damaged files raise errors of json, of Arrow, and of datasets itself
        raise DataError(
            f"{str(root)!r} cannot be read as packed images ({one_line(error)}); pack them again"
        ) from error
    if not isinstance(found, datasets.DatasetDict) or not {"train"} < set(found) & {"train", "test", "validation"}:
        raise DataError(f"{str(root)!r} does not hold 'train' and 'test' or 'validation'; pack a DatasetDict of them")
    return dict(found)


def _columns(parts: Mapping[str, Any], part: str, root: Path) -> tuple[Table, Tensor, tuple[str, ...]]:
    """The encoded images of a split, its labels `[N]` int64, -1 where there is none, and the names of its classes."""
    from datasets import ClassLabel, Image

    table, where = parts[part].with_format(None), f"{str(root / part)!r}"
    if not len(table):
        raise DataError(f"{where} is empty; pack at least one image")
    image, label = (_only_column(table, kind, where) for kind in (Image, ClassLabel))
    labels = torch.from_numpy(table.data.column(label).fill_null(-1).to_numpy().copy())
    images = table.select_columns([image]).cast_column(image, Image(decode=False)).rename_columns({image: "image"})
    return images, labels.to(torch.int64), tuple(table.features[label].names)


def _only_column(table: Table, kind: type, where: str) -> str:
    found = [str(name) for name, feature in table.features.items() if isinstance(feature, kind)]
    if len(found) != 1:
        raise DataError(
            f"{where} has {len(found)} columns of {kind.__name__}, where one is needed; keep one by select_columns"
        )
    return found[0]


def _encoded(table: Table, row: int) -> tuple[BytesIO, str]:
    """The bytes of an image, and how messages call it."""
    image = table[row]["image"] or {}
    folder = Path(table.cache_files[0]["filename"]).parent
    name = f"row {row} of {str(folder)!r}" + (f" ({image['path']!r})" if image.get("path") else "")
    if not image.get("bytes"):
        raise DataError(f"{name} has no image in it, only a reference or nothing; pack the files by save_to_disk")
    return BytesIO(image["bytes"]), name
