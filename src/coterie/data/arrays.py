"""Images that fit into memory, as one tensor."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from coterie.core.errors import DataError
from coterie.data.checks import check_rows
from coterie.data.fingerprint import digest


@dataclass(frozen=True, slots=True)
class ArraySplit:
    """All images of a split as one tensor.

    Attributes:
        images: `[N, C, H, H]` uint8 on the CPU.
        labels: `[N]` int64 on the CPU.

    Raises:
        DataError: the tensors are empty, do not fit together, or are of another type.

    Example:
        >>> split = ArraySplit(torch.zeros(4, 3, 8, 8, dtype=torch.uint8), torch.tensor([0, 1, 0, 1]))
        >>> split.channels, split.image_size, len(split.select(torch.tensor([3])).labels)
        (3, 8, 1)
    """

    images: Tensor
    labels: Tensor

    def __post_init__(self) -> None:
        shape = tuple(self.images.shape)
        if self.images.dtype != torch.uint8 or len(shape) != 4 or shape[2] != shape[3]:
            raise DataError(f"images are {self.images.dtype} {list(shape)}; give uint8 of shape [N, C, H, H]")
        if self.labels.dtype != torch.int64 or self.labels.shape != shape[:1]:
            raise DataError(
                f"labels are {self.labels.dtype} {list(self.labels.shape)}; give {shape[0]} of int64, one per image"
            )
        if not shape[0]:
            raise DataError("the data set is empty; give at least one image")

    @property
    def channels(self) -> int:
        """C of the images."""
        return self.images.shape[1]

    @property
    def image_size(self) -> int:
        """Side H in pixels."""
        return self.images.shape[2]

    def select(self, rows: Tensor) -> ArraySplit:
        """Copy these rows `[n]` int64, in this order."""
        rows = check_rows(rows, self.labels.shape[0])
        return ArraySplit(self.images[rows], self.labels[rows])

    def fingerprint(self) -> str:
        """SHA-256 of every pixel and label."""
        return digest("arrays", self.images, self.labels)
