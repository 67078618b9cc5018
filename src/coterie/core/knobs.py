"""Ranges of the knobs of methods, and one sentence for each kind of range."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from coterie.core.errors import ConfigError

_RANGES: dict[str, tuple[Callable[[float], bool], str]] = {
    "positive": (lambda value: value > 0, "give a number above 0"),
    "not_negative": (lambda value: value >= 0, "give 0 or a number above it"),
    "share": (lambda value: 0 <= value < 1, "give a number from 0 to below 1"),
    "fraction": (lambda value: 0 <= value <= 1, "give a number from 0 to 1"),
    "count": (lambda value: value >= 1, "give a whole number of at least 1"),
    "several": (lambda value: value >= 2, "give a whole number of at least 2"),
}


def check_knobs(config: object, **ranges: Iterable[str]) -> None:
    """Check that numbers lie where they must; None passes everywhere.

    Args:
        config: the knobs of a method.
        ranges: names of knobs by range: `positive`, `not_negative`, `share` (from 0 to below 1), `fraction` (from 0 to
            1), `count` (at least 1) or `several` (at least 2).

    Raises:
        ConfigError: the first knob outside its range, with the remedy.

    Example:
        >>> from types import SimpleNamespace
        >>> check_knobs(SimpleNamespace(temperature=2.0, ridge=0.0), positive=["temperature"], not_negative=["ridge"])
    """
    for kind, names in ranges.items():
        fits, remedy = _RANGES[kind]
        for name in names:
            value = getattr(config, name)
            if value is not None and not fits(value):
                raise ConfigError(f"method.{name}={value}; {remedy}")
