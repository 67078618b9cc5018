"""Whether what a run would be scored on makes sense, found before its first step: new classes, or those it learns."""

from __future__ import annotations

from collections.abc import Iterable

from coterie.cohort.episodic import EpisodeMethod
from coterie.config import FewshotConfig, Recipe
from coterie.core.errors import ConfigError
from coterie.core.method import Method
from coterie.data import Opened
from coterie.evaluation.fewshot import check_episodes


def check_unseen(data: Opened) -> None:
    """Refuse data whose test classes are those of training.

    Raises:
        ConfigError: they are.
    """
    if not data.unseen:
        raise ConfigError(
            f"the test classes of {data.name} are those of training; score the run with coterie evaluate,"
            " or train on data with classes of their own to test on, such as omniglot"
        )


def check_same_images(own: tuple[str, str], other: tuple[str, str]) -> None:
    """Refuse to compare runs that are tested on other images.

    Args:
        own: name and fingerprint of the test images of a run.
        other: those of another run.

    Raises:
        ConfigError: they differ.
    """
    if own != other:
        raise ConfigError(f"the runs are tested on other images ({own[0]} and {other[0]}); give runs of one data set")


def check_scores(recipe: Recipe, method: Method, data: Opened, columns: Iterable[FewshotConfig]) -> None:
    """Check that validation and test classes are enough for the episodes of all scores, and that scores mean something.

    The test split is not opened: what is known of its labels is enough.

    Args:
        recipe: its `fewshot` scores validation and test.
        method: what is trained.
        data: opened.
        columns: what new classes will be scored by besides; none for a run that is only trained.

    Raises:
        ConfigError: the classifiers would be scored and none is trained, or episodes are asked for and no class is new.
        DataError: too few classes, or images of them.
    """
    columns = tuple(columns)
    if columns:
        check_unseen(data)
    if data.unseen:
        _check_episodes(data, recipe.fewshot, columns)
    elif isinstance(method, EpisodeMethod):
        raise ConfigError(
            f"{recipe.method} alone trains no classifier and the test classes of {data.name} are those of training;"
            f' put it behind a method that does, name = ["independent", "{recipe.method}"], or give data with classes'
            " of their own to test on"
        )


def _check_episodes(data: Opened, config: FewshotConfig, columns: tuple[FewshotConfig, ...]) -> None:
    if data.validation is not None:
        check_episodes(data.validation.labels, config, "the validation set")
    if data.test_labels is not None:
        for column in (config, *columns):
            check_episodes(data.test_labels, column, "the test set")
