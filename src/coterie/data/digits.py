"""Handwritten digits that ship with scikit-learn (UCI, 1998): 1,797 grey images of 8 x 8 pixels, 10 classes."""

from __future__ import annotations

import torch

from coterie.config.schema import DataConfig
from coterie.core import draws
from coterie.data.arrays import ArraySplit
from coterie.data.base import DATA, Normalisation, Source
from coterie.data.checks import check_image_size
from coterie.data.split import limit_rows

_TRAIN = 500
_SIDE = 8


@DATA.register("digits")
def digits(config: DataConfig, seed: int) -> Source:
    """Open the digits: there is no official split, so 500 images are drawn for training and 1,297 for the test.

    Args:
        config: nothing of it but `image_size`, which must be 0 or 8.
        seed: of the split, which is stratified.

    Returns:
        The data set.

    Raises:
        ConfigError: another image size is asked for.
    """
    check_image_size(config.image_size, "digits", _SIDE)
    from sklearn.datasets import load_digits  # a second to import, for this set only

    images, labels = load_digits(return_X_y=True)
    grey = (torch.from_numpy(images) * (255 / 16)).round().to(torch.uint8).view(-1, 1, _SIDE, _SIDE)
    everything = ArraySplit(grey, torch.from_numpy(labels).to(torch.int64))
    train = limit_rows(everything.labels, _TRAIN, draws.mix(seed, "digits"))
    rest = torch.ones(len(labels), dtype=torch.bool)
    rest[train] = False
    return Source(
        name="digits",
        train=everything.select(train),
        test=lambda: everything.select(torch.nonzero(rest).flatten()),
        classes=tuple(str(digit) for digit in range(10)),
        normalisation=Normalisation(mean=(0.3053,), std=(0.3760,)),
    )
