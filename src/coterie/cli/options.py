"""What several verbs share: settings on the command line, plug-ins and tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

if TYPE_CHECKING:
    from coterie.config import Recipe

Settings = Annotated[str, Parameter(allow_leading_hyphen=True)]
"""`key=value`, `--key=value` or `--key value`: a knob of the recipe."""

Plugins = Annotated[tuple[Path, ...], Parameter(name="--plugin", negative=())]
"""Python files that register methods, networks or data sets; may be given several times."""


def settings_from(words: Sequence[str]) -> list[str]:
    """Turn words of the command line into `key=value` texts.

    Args:
        words: `key=value`, `--key=value`, `--key value`, or `--key` alone for true.

    Example:
        >>> settings_from(["epochs=3", "--optim.lr", "0.1", "--data.flip"])
        ['epochs=3', 'optim.lr=0.1', 'data.flip=true']
    """
    settings: list[str] = []
    waiting: str | None = None
    for word in words:
        if waiting is not None and not word.startswith("--"):
            settings.append(f"{waiting}={word}")
            waiting = None
            continue
        if waiting is not None:
            settings.append(f"{waiting}=true")
            waiting = None
        if word.startswith("--") and "=" not in word:
            waiting = word[2:]
        else:
            settings.append(word.removeprefix("--"))
    return settings if waiting is None else [*settings, f"{waiting}=true"]


def open_recipe(name: str, words: Sequence[str], plugins: Iterable[Path] = ()) -> Recipe:
    """Load plug-ins, find a recipe and apply settings to it.

    Raises:
        ConfigError: the recipe, a setting or a plug-in is wrong.
    """
    import coterie.methods  # noqa: F401 (registers them)
    from coterie.config import find_recipe, load_recipe
    from coterie.core.plugins import load_plugins

    load_plugins(plugins)
    return load_recipe(find_recipe(name), settings_from(words))
