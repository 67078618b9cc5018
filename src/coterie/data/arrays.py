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
        _check_images(self.images)
        _check_labels(self.labels, len(self.images))
        if not len(self.images):
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


def _check_images(images: Tensor) -> None:
    shape = tuple(images.shape)
    if images.dtype != torch.uint8 or len(shape) != 4 or shape[2] != shape[3]:
        raise DataError(f"images are {images.dtype} {list(shape)}; give uint8 of shape [N, C, H, H]")


def _check_labels(labels: Tensor, count: int) -> None:
    if labels.dtype != torch.int64 or labels.shape != (count,):
        raise DataError(f"labels are {labels.dtype} {list(labels.shape)}; give {count} of int64, one per image")
