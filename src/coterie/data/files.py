"""Images that stay on disk until they are needed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from coterie.core.errors import DataError
from coterie.data.arrays import ArraySplit
from coterie.data.checks import check_rows
from coterie.data.fingerprint import digest
from coterie.data.images import Framing, read_square


@dataclass(frozen=True, slots=True)
class FileSplit:
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

    @property
    def channels(self) -> int:
        """Always 3: every file is converted to RGB."""
        return 3

    @property
    def image_size(self) -> int:
        """Side in pixels after decoding."""
        return self.framing.size

    @property
    def varies(self) -> bool:
        """Whether a part is cut at random while decoding."""
        return self.framing.kind == "resized_crop"

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

    @property
    def decoded_bytes(self) -> int:
        """Memory that all images take as one tensor."""
        return len(self.names) * 3 * self.image_size**2

    def load(self) -> ArraySplit:
        """Decode all files as evaluation sees them; raises `DataError` naming the first one that fails."""
        images = torch.empty(len(self.names), 3, self.image_size, self.image_size, dtype=torch.uint8)
        for row in range(len(self.names)):
            images[row] = self.fetch(row, None)
        return ArraySplit(images, self.labels)

    def _bytes(self, name: str) -> int:
        try:
            return (self.root / name).stat().st_size
        except OSError as error:
            raise DataError(f"{str(self.root / name)!r} cannot be read ({error.strerror}); restore it") from error
