"""A data set whose validation and test classes are new: tiny images of striped patterns, each class its own."""

from __future__ import annotations

import torch

from coterie.config import DataConfig
from coterie.data import DATA, ArraySplit, Normalisation, Source

PER_CLASS, SIDE = 8, 16


def patterns(first: int, classes: int) -> ArraySplit:
    """Images `[N, 1, 16, 16]`: a wave of the class's own direction and length, shifted and with noise."""
    generator = torch.Generator().manual_seed(first)
    labels = torch.arange(classes).repeat_interleave(PER_CLASS)
    angles = 2.4 * (first + labels.double())
    lengths = 0.5 + (first + labels.double()) % 7 / 8
    y, x = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
    along = angles.cos()[:, None, None] * x + angles.sin()[:, None, None] * y
    shift = 2 * torch.rand(len(labels), 1, 1, generator=generator)
    waves = (along * lengths[:, None, None] + shift).sin()
    noise = 1.2 * torch.randn(waves.shape, generator=generator)
    images = (127 + 80 * (waves + noise)).clamp(0, 255).to(torch.uint8)
    return ArraySplit(images[:, None], labels)


def toy_classes(config: DataConfig, seed: int) -> Source:
    """Twelve classes to train on, six to validate on and seven to test on, eight images of each."""
    return Source(
        name="toy_classes",
        train=patterns(0, 12),
        test=lambda: patterns(30, 7),
        classes=tuple(f"pattern {k}" for k in range(12)),
        normalisation=Normalisation(mean=(0.5,), std=(0.25,)),
        validation=patterns(20, 6) if config.validation else None,
        unseen=True,
        test_labels=torch.arange(7).repeat_interleave(PER_CLASS),
    )


if "toy_classes" not in DATA:
    DATA.add("toy_classes", toy_classes)
