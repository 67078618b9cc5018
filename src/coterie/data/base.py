"""Splits of images and the data sets they come from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from coterie.config.schema import DataConfig
from coterie.core.registry import Registry


class Split(Protocol):
    """Labelled images, in memory or on disk, that can be counted, selected and recognised again."""

    @property
    def labels(self) -> Tensor:
        """`[N]` int64 on the CPU."""

    @property
    def channels(self) -> int:
        """C of the images."""

    @property
    def image_size(self) -> int:
        """Side in pixels of the images a network sees."""

    def select(self, rows: Tensor) -> Split:
        """The split of these rows `[n]` int64, in this order."""

    def fingerprint(self) -> str:
        """A digest that changes when an image, a label or their order does."""


class Fetchable(Split, Protocol):
    """A split whose images are made one by one, in worker processes: files, or items of a user's data set."""

    @property
    def varies(self) -> bool:
        """Whether each view is fetched anew because fetching draws random numbers."""

    def fetch(self, row: int, key: int | None) -> Tensor:
        """Make one image.

        Args:
            row: which image.
            key: what random cuts and transforms depend on; None for the image that evaluation sees.

        Returns:
            `[C, H, W]`: uint8, or floating point when the image is finished and must be left alone.

        Raises:
            DataError: the image cannot be made; the message names its file or row.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class Normalisation:
    """Per channel mean and standard deviation of images scaled to `[0, 1]`."""

    mean: Sequence[float]
    std: Sequence[float]


IMAGENET = Normalisation(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
"""Of ImageNet's training images, and by custom of photographs whose own is not known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A data set, opened.

    Attributes:
        name: its registered name.
        train: all training images, before a validation split or a limit.
        test: opens the test split; called once, at the end of a run.
        classes: class names by label, of the training images.
        normalisation: applied after augmentation.
        validation: a validation split of the data set's own, used as it is unless `data.validation = 0`; None for a
            share of the training images.
        unseen: whether validation and test hold classes that training does not know; each numbers its own from 0.
        test_labels: `[N]` int64, what labels the test split will have, where they are known without its images; new
            classes that are too few for the episodes of the scores are then refused before training.
    """

    name: str
    train: Split
    test: Callable[[], Split]
    classes: tuple[str, ...]
    normalisation: Normalisation
    validation: Split | None = None
    unseen: bool = False
    test_labels: Tensor | None = None


class SourceBuilder(Protocol):
    """A registered data set: opens it for a configuration and a seed (for sets that must be split first)."""

    def __call__(self, config: DataConfig, seed: int) -> Source:
        """Open the data set; raise `DataError` or `ConfigError` with one line on what is wrong."""


DATA: Registry[SourceBuilder] = Registry("data set")
