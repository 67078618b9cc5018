"""The data that frozen features are probed on: training images to fit and to choose on, and the test split."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from coterie.config import DataConfig
from coterie.core.errors import ConfigError
from coterie.data import Opened, Split, evaluation_batches, hold_out, limit_per_class, open_data
from coterie.nets.inputs import Sight, sight_for

_PIXELS = 1 << 18  # of a batch; larger batches are slower on a CPU


@dataclass(frozen=True, slots=True)
class Target:
    """A data set, opened for a transfer.

    Attributes:
        data: as it was opened, nothing held out.
        train: training images, to fit and to choose on.
        fit: `[n]` rows of `train` to fit on.
        held_out: `[m]` rows of `train` to choose on.
        test: the test split.
        config: how images are fetched.
        device: where networks run.
        sight: what networks see of an image.
    """

    data: Opened
    train: Split
    fit: Tensor
    held_out: Tensor
    test: Split
    config: DataConfig
    device: torch.device
    sight: Sight

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """`(C, H, W)` of what networks see."""
        channels, size = self.sight.shape(self.train.channels, self.train.image_size)
        return channels, size, size

    @classmethod
    def open(cls, config: DataConfig, *, limit: int, seed: int, device: torch.device, sees: str = "image") -> Target:
        """Open a data set.

        Args:
            config: which one; its `validation` is the share of the training images to choose on.
            limit: training images per class; 0 for all.
            seed: key of the limit, of the held-out part and of data sets that have no split of their own.
            device: where networks run.
            sees: what networks see of an image, as `net.input`.

        Raises:
            ConfigError: a number is out of range, nothing would be held out, or the test classes are not trained on.
            DataError: the data cannot be used.
        """
        data = open_data(replace(config, validation=0.0), seed)
        if data.unseen:
            raise ConfigError(
                f"the test classes of {data.name} are not those of training, and a probe knows no others; give data"
                " that are tested on the classes they train on, or score new classes with coterie fewshot"
            )
        train = data.train.select(limit_per_class(data.train.labels, limit, seed)) if limit else data.train
        fit, held_out = hold_out(train.labels, config.validation, seed)
        if not len(held_out):
            raise ConfigError(
                f"data.validation={config.validation} of {len(train.labels)} training images holds none out to choose"
                " the regularisation on; raise data.validation or --limit"
            )
        sight = sight_for(sees, data.normalisation.mean, data.normalisation.std).to(device)
        return cls(data, train, fit, held_out, data.test(), config, device, sight)

    def facts(self) -> dict[str, Any]:
        """What reports say of the data."""
        return {
            "data": self.data.name,
            "classes": self.data.num_classes,
            "image_size": self.train.image_size,
            "train_images": len(self.train.labels),
            "held_out_images": len(self.held_out),
            "test_images": len(self.test.labels),
        }

    def batches(self, split: Split) -> Iterator[tuple[Tensor, Tensor]]:
        """What networks see of the images of a split, in order and unaugmented, with their labels."""
        batches = evaluation_batches(
            split,
            batch_size=max(1, _PIXELS // split.image_size**2),
            normalisation=self.data.normalisation,
            device=self.device,
            workers=self.config.workers,
        )
        return ((self.sight(images), labels) for images, labels in batches)
