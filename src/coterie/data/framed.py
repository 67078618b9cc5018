"""What splits of encoded images have in common: decoded on demand, or once into memory where all of them fit."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from coterie.config.schema import DataConfig
from coterie.data.arrays import ArraySplit
from coterie.data.base import Normalisation, Split
from coterie.data.images import Framing
from coterie.data.stream import stream_once
from coterie.data.views import ViewPlan

_MANY = 2000  # images from which on worker processes decode sooner than they start
_BATCH = 250  # images that a worker decodes at a time


class FramedSplit(ABC):
    """A split whose images are decoded on demand and brought to a square.

    Attributes:
        labels: `[N]` int64 on the CPU.
        framing: how an image becomes a square.
    """

    __slots__ = ()

    labels: Tensor
    framing: Framing

    @property
    def channels(self) -> int:
        """Always 3: every image is converted to RGB."""
        return 3

    @property
    def image_size(self) -> int:
        """Side in pixels after decoding."""
        return self.framing.size

    @property
    def varies(self) -> bool:
        """Whether a part is cut at random while decoding."""
        return self.framing.kind == "resized_crop"

    @property
    def decoded_bytes(self) -> int:
        """Memory that all images take as one tensor."""
        return len(self.labels) * 3 * self.image_size**2

    @abstractmethod
    def fetch(self, row: int, key: int | None) -> Tensor:
        """Decode an image to `[3, S, S]` uint8; see `coterie.data.base.Fetchable`."""

    @abstractmethod
    def select(self, rows: Tensor) -> FramedSplit:
        """The split of these rows `[n]` int64, in this order; no image is read."""

    @abstractmethod
    def fingerprint(self) -> str:
        """A digest of what is known of the images without reading them, and of the labels."""

    def load(self, workers: int = 0) -> ArraySplit:
        """Decode all images as evaluation sees them.

        Args:
            workers: processes that share the work when there are thousands of images; 0 decodes in this one.

        Raises:
            DataError: an image cannot be decoded; the message names the first one.
        """
        images = torch.empty(len(self.labels), 3, self.image_size, self.image_size, dtype=torch.uint8)
        plan = ViewPlan(normalisation=Normalisation(mean=(0.0,) * 3, std=(1.0,) * 3))
        workers = workers if len(self.labels) >= _MANY else 0
        done = 0
        for part, _ in stream_once(self, plan, batch_size=_BATCH, device=torch.device("cpu"), workers=workers):
            images[done : done + len(part)] = part
            done += len(part)
        return ArraySplit(images, self.labels)


def loaded_if_small(split: FramedSplit, config: DataConfig) -> Split:
    """Decode a split into memory when it fits into `data.memory_mb` and is not cut at random; else leave it encoded.

    Args:
        split: the images.
        config: its `memory_mb` and `workers` are used.

    Raises:
        DataError: an image that is decoded now cannot be; the message names it.
    """
    fits = split.decoded_bytes <= config.memory_mb << 20
    return split.load(config.workers) if fits and not split.varies else split
