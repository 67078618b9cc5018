"""From a configuration to checked splits: the data set is found, limited, and its validation split held out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from coterie.config.schema import DataConfig
from coterie.core import draws
from coterie.core.errors import ConfigError, DataError
from coterie.data.base import DATA, Normalisation, Source, Split
from coterie.data.checks import check_batch_size, check_counts, check_labels, check_own_labels
from coterie.data.framed import FramedSplit
from coterie.data.split import hold_out, limit_rows


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """The data of a run, ready to be loaded.

    Attributes:
        name: registered name of the data set.
        train: images to train on.
        validation: images held out of the training set for every choice, or the data set's own validation split;
            None when nothing is held out.
        test: opens and checks the test split; called once, at the end of a run.
        classes: class names by label, of the training images.
        normalisation: applied after augmentation.
        unseen: whether validation and test hold classes that training does not know; each numbers its own from 0.
        test_labels: `[N]` int64, labels of the test split, where they are known without opening it.
        whole: all training images of the data set, before a limit and a validation split; those of a run are `train`.
        rows: `[N]` int64, for each image of `train` its row in `whole`.
    """

    name: str
    train: Split
    validation: Split | None
    test: Callable[[], Split]
    classes: tuple[str, ...]
    normalisation: Normalisation
    unseen: bool = False
    test_labels: Tensor | None = None
    whole: Split | None = None
    rows: Tensor | None = None

    @property
    def num_classes(self) -> int:
        """K, the number of classes to train on."""
        return len(self.classes)


def open_data(config: DataConfig, seed: int, source: Source | None = None) -> Opened:
    """Open the data of a run; whatever is wrong with them is said here, before the first step.

    Args:
        config: which data, how many, and how much of them to hold out.
        seed: key of the limit, of the validation split and of data sets that have no split of their own.
        source: an opened data set that takes the place of `config.name`, such as `from_dataset` makes.

    Returns:
        Splits with labels in `[0, K)`, two classes or more, and enough images for a batch; validation and test splits
        of unseen classes have labels in ranges of their own, each class with images.

    Raises:
        ConfigError: the name is unknown, or a number is out of range or does not suit the data set.
        DataError: files, images or labels cannot be used.
    """
    _check_config(config)
    source = source or DATA[config.name](config, seed)
    _check_source(source, config)
    train, validation, rows = _divided(source, config, seed)
    check_batch_size(len(train.labels), config.batch_size)
    return Opened(
        name=source.name,
        train=train,
        validation=validation,
        test=lambda: _checked_test(source),
        classes=source.classes,
        normalisation=source.normalisation,
        unseen=source.unseen,
        test_labels=source.test_labels,
        whole=source.train,
        rows=rows,
    )


def _check_config(config: DataConfig) -> None:
    least = {"batch_size": 1, "limit": 0, "image_size": 0, "padding": 0, "views": 1, "workers": 0, "memory_mb": 0}
    for name, low in least.items():
        if getattr(config, name) < low:
            raise ConfigError(f"data.{name}={getattr(config, name)} is too small; give at least {low}")


def _divided(source: Source, config: DataConfig, seed: int) -> tuple[Split, Split | None, Tensor]:
    """The training images, as many as asked for, those held out, and the rows of the former in the data set."""
    train, validation = source.train, source.validation if config.validation else None
    kept = torch.arange(len(train.labels))
    if config.limit:
        kept = limit_rows(train.labels, config.limit, seed)
        train = train.select(kept)
    if config.validation and validation is None:
        rows, held = hold_out(train.labels, config.validation, draws.mix(seed, "split"))
        return train.select(rows), train.select(held), kept[rows]
    return train, validation, kept


def _check_source(source: Source, config: DataConfig) -> None:
    check_labels(source.train.labels, len(source.classes), "the training set")
    check_counts(source.train.labels, source.classes)
    channels = {len(source.normalisation.mean), len(source.normalisation.std), source.train.channels}
    if len(channels) > 1:
        raise ConfigError(f"images have {source.train.channels} channels and the normalisation has other; give as many")
    if config.augment == "resized_crop" and not isinstance(source.train, FramedSplit):
        raise ConfigError(
            f"data.augment='resized_crop' cuts image files and {source.name} has none; use 'crop', or a folder"
        )
    _check_validation(source, config)


def _check_validation(source: Source, config: DataConfig) -> None:
    if not 0 <= config.validation < 1:
        raise ConfigError(f"data.validation={config.validation} is not a share; give a number from 0 to below 1")
    if source.validation is not None:
        _check_held_out(source, source.validation, "validation")
    elif source.unseen and config.validation:
        raise ConfigError(f"{source.name} has no classes to validate on; set data.validation=0")


def _checked_test(source: Source) -> Split:
    test = source.test()
    _check_held_out(source, test, "test")
    return test


def _check_held_out(source: Source, split: Split, what: str) -> None:
    train = source.train
    if source.unseen:
        check_own_labels(split.labels, f"the {what} set")
    else:
        check_labels(split.labels, len(source.classes), f"the {what} set")
    if (split.channels, split.image_size) != (train.channels, train.image_size):
        raise DataError(
            f"{what} images are {split.channels} x {split.image_size} x {split.image_size} and training images"
            f" {train.channels} x {train.image_size} x {train.image_size}; bring them to one size"
        )
