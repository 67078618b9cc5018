"""What labels and row numbers must be like, said in one line when they are not."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from coterie.core.errors import ConfigError, DataError


def check_rows(rows: Tensor, count: int) -> Tensor:
    """Check that row numbers exist; a negative one would silently count from the end.

    Args:
        rows: `[n]` integers.
        count: number of rows N there are.

    Returns:
        The rows, int64 on the CPU.

    Raises:
        DataError: a row is not in `[0, N)`.
    """
    rows = rows.to("cpu", torch.int64)
    wrong = (rows < 0) | (rows >= count)
    if wrong.any():
        raise DataError(f"row {int(rows[wrong][0])} is not one of {count} images; give rows in 0..{count - 1}")
    return rows


def check_labels(labels: Tensor, num_classes: int, what: str) -> None:
    """Check that every label is a class; torch ignores -100 without a word and trains on nothing.

    Args:
        labels: `[N]` int64.
        num_classes: K.
        what: where the labels are from, such as `the training set`.

    Raises:
        DataError: a label is not in `[0, K)`.
    """
    wrong = (labels < 0) | (labels >= num_classes)
    if wrong.any():
        row = int(wrong.to(torch.uint8).argmax())
        raise DataError(
            f"label {int(labels[row])} of row {row} of {what} is not in 0..{num_classes - 1}; correct or drop this row"
        )


def check_own_labels(labels: Tensor, what: str) -> None:
    """Check the labels of a split that numbers its own classes: from 0 on, two or more, each with images.

    Args:
        labels: `[N]` int64.
        what: where the labels are from, such as `the test set`.

    Raises:
        DataError: a label is negative, fewer than two classes have images, or a class between others has none.
    """
    num_classes = max(2, int(labels.max()) + 1)
    check_labels(labels, num_classes, what)
    counts = torch.bincount(labels, minlength=num_classes)
    if not counts.all():
        raise DataError(
            f"{what} has no images of class {int(counts.argmin())} of its {num_classes}; give images of 2 classes or"
            " more, numbered from 0"
        )


def check_counts(labels: Tensor, classes: Sequence[str]) -> None:
    """Check that a training set can be learnt from: two classes or more, none of them with a single image.

    Args:
        labels: `[N]` int64 in `[0, K)`.
        classes: K names.

    Raises:
        DataError: too few classes, or too few images in one.
    """
    counts = torch.bincount(labels, minlength=len(classes))
    present = int((counts > 0).sum())
    if present < 2:
        raise DataError(f"the training set has images of {present} class; give at least 2 classes to tell apart")
    if (counts == 1).any():
        lone = int((counts == 1).to(torch.uint8).argmax())
        row = int((labels == lone).to(torch.uint8).argmax())
        raise DataError(
            f"class {classes[lone]!r} has one training image (row {row}); add images of it or drop the class"
        )


def check_image_size(given: int, name: str, side: int) -> None:
    """Refuse a size for images that have only one.

    Args:
        given: `data.image_size`; 0 for the images' own.
        name: of the data set.
        side: of its images, in pixels.

    Raises:
        ConfigError: another size is asked for.
    """
    if given not in (0, side):
        raise ConfigError(
            f"data.image_size={given} does not apply to {name}, whose images have {side} x {side} pixels; leave it out"
        )


def check_batch_size(count: int, batch_size: int) -> None:
    """Check that one batch can be filled: with the last batch dropped, fewer images would train nothing, silently.

    Args:
        count: number of training images N.
        batch_size: images per batch B.

    Raises:
        ConfigError: B is not positive.
        DataError: N is smaller than B.
    """
    if batch_size < 1:
        raise ConfigError(f"data.batch_size={batch_size} is not positive; give at least 1")
    if count < batch_size:
        raise DataError(
            f"{count} training images do not fill one batch of {batch_size}; lower data.batch_size to at most {count}"
        )
