"""Images made up on the spot: a smooth colour pattern per class, under noise; for trials without data."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from coterie.config.schema import DataConfig
from coterie.core import draws
from coterie.core.errors import ConfigError
from coterie.data.arrays import ArraySplit
from coterie.data.base import DATA, Normalisation, Source

_SIDE = 32
_GRID = 4  # a pattern is a grid of 4 x 4 random colours, interpolated
_CHUNK = 1024
_NOISE = 0.5


@DATA.register("synthetic")
def synthetic(config: DataConfig, seed: int) -> Source:
    """Make up a data set whose classes can be told apart, a quarter as many test images as training images.

    Args:
        config: `samples`, `classes` and `image_size` (32 when 0) are used.
        seed: of patterns and noise.

    Returns:
        The data set, its classes equally large.

    Raises:
        ConfigError: fewer than two classes, or fewer than two training images of each.
    """
    _check(config)
    size, key = config.image_size or _SIDE, draws.mix(seed, "synthetic")
    return Source(
        name="synthetic",
        train=_make(config.samples, config.classes, size, key, "train"),
        test=lambda: _make(max(config.classes, config.samples // 4), config.classes, size, key, "test"),
        classes=tuple(f"pattern {label}" for label in range(config.classes)),
        normalisation=Normalisation(mean=(0.5,) * 3, std=(0.25,) * 3),
    )


def _check(config: DataConfig) -> None:
    if config.classes < 2 or config.samples < 2 * config.classes:
        raise ConfigError(
            f"data.samples={config.samples} and data.classes={config.classes} make no data set;"
            " give at least 2 classes and twice as many samples as classes"
        )


def _make(samples: int, classes: int, size: int, key: int, part: str) -> ArraySplit:
    grid = draws.uniform(draws.mix(key, "patterns"), torch.arange(classes * 3 * _GRID**2))
    patterns = F.interpolate(grid.view(classes, 3, _GRID, _GRID), size, mode="bilinear", align_corners=False)
    labels = torch.arange(samples) % classes
    chunks = [torch.arange(start, min(start + _CHUNK, samples)) for start in range(0, samples, _CHUNK)]
    images = torch.cat([_noisy(patterns[labels[rows]], rows, draws.mix(key, part)) for rows in chunks])
    return ArraySplit(images, labels)


def _noisy(images: Tensor, rows: Tensor, key: int) -> Tensor:
    pixels = images[0].numel()
    noise = draws.uniform(key, rows[:, None] * pixels + torch.arange(pixels)).view_as(images)
    return ((1 - _NOISE) * images + _NOISE * noise).mul(255).round().to(torch.uint8)
