"""From a configuration to checked splits: the data set is found, limited, and its validation split held out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from coterie.config.schema import DataConfig
from coterie.core import draws
from coterie.core.errors import ConfigError, DataError
from coterie.data.base import DATA, Normalisation, Source, Split
from coterie.data.checks import check_batch_size, check_counts, check_labels
from coterie.data.files import FileSplit
from coterie.data.split import hold_out, limit_rows


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """The data of a run, ready to be loaded.

    Attributes:
        name: registered name of the data set.
        train: images to train on.
        validation: images held out of the training set for every choice; None when nothing is held out.
        test: opens and checks the test split; called once, at the end of a run.
        classes: class names by label.
        normalisation: applied after augmentation.
    """

    name: str
    train: Split
    validation: Split | None
    test: Callable[[], Split]
    classes: tuple[str, ...]
    normalisation: Normalisation

    @property
    def num_classes(self) -> int:
        """K, the number of classes."""
        return len(self.classes)


def open_data(config: DataConfig, seed: int, source: Source | None = None) -> Opened:
    """Open the data of a run; whatever is wrong with them is said here, before the first step.

    Args:
        config: which data, how many, and how much of them to hold out.
        seed: key of the limit, of the validation split and of data sets that have no split of their own.
        source: an opened data set that takes the place of `config.name`, such as `from_dataset` makes.

    Returns:
        Splits with labels in `[0, K)`, two classes or more, and enough images for a batch.

    Raises:
        ConfigError: the name is unknown, or a number is out of range or does not suit the data set.
        DataError: files, images or labels cannot be used.
    """
    _check_config(config)
    source = source or DATA[config.name](config, seed)
    _check_source(source, config)
    train, validation = source.train, None
    if config.limit:
        train = train.select(limit_rows(train.labels, config.limit, seed))
    if config.validation:
        rows, held = hold_out(train.labels, config.validation, draws.mix(seed, "split"))
        train, validation = train.select(rows), train.select(held)
    check_batch_size(len(train.labels), config.batch_size)
    return Opened(
        name=source.name,
        train=train,
        validation=validation,
        test=lambda: _checked_test(source),
        classes=source.classes,
        normalisation=source.normalisation,
    )


def _check_config(config: DataConfig) -> None:
    least = {"batch_size": 1, "limit": 0, "image_size": 0, "padding": 0, "views": 1, "workers": 0, "memory_mb": 0}
    for name, low in least.items():
        if getattr(config, name) < low:
            raise ConfigError(f"data.{name}={getattr(config, name)} is too small; give at least {low}")


def _check_source(source: Source, config: DataConfig) -> None:
    check_labels(source.train.labels, len(source.classes), "the training set")
    check_counts(source.train.labels, source.classes)
    channels = {len(source.normalisation.mean), len(source.normalisation.std), source.train.channels}
    if len(channels) > 1:
        raise ConfigError(f"images have {source.train.channels} channels and the normalisation has other; give as many")
    if config.augment == "resized_crop" and not isinstance(source.train, FileSplit):
        raise ConfigError(
            f"data.augment='resized_crop' cuts image files and {source.name} has none; use 'crop', or a folder"
        )


def _checked_test(source: Source) -> Split:
    test, train = source.test(), source.train
    check_labels(test.labels, len(source.classes), "the test set")
    if (test.channels, test.image_size) != (train.channels, train.image_size):
        raise DataError(
            f"test images are {test.channels} x {test.image_size} x {test.image_size} and training images"
            f" {train.channels} x {train.image_size} x {train.image_size}; bring them to one size"
        )
    return test
