"""One value of a recipe file or of the command line, turned into the type that a field declares."""

from __future__ import annotations

import math
import tomllib
import types
from collections.abc import Callable
from typing import Any, Literal, Union, get_args, get_origin

from coterie.core.errors import suggestion


class Unfit(Exception):
    """A value does not fit its field; the message says what was expected."""


def convert(value: object, kind: Any) -> object:  # noqa: ANN401 (a type annotation is an object of many classes)
    """Convert a TOML value to a declared type.

    Args:
        value: what `tomllib` gave, or a tuple of such.
        kind: the annotation: `int`, `float`, `bool`, `str`, a `Literal`, `X | None` or `tuple[X, ...]`.

    Returns:
        The value in that type.

    Raises:
        Unfit: it cannot be understood as one, without guessing.

    Example:
        >>> convert(3, float), convert(["a", "b"], tuple[str, ...])
        (3.0, ('a', 'b'))
    """
    origin = get_origin(kind)
    if origin is Literal:
        return _choice(value, get_args(kind))
    if origin is tuple:
        return _items(value, get_args(kind)[0])
    if origin in (types.UnionType, Union):
        return convert(value, next(arg for arg in get_args(kind) if arg is not type(None)))
    return _SCALARS[kind](value)


def parse_text(text: str, kind: Any) -> object:  # noqa: ANN401
    """Read a value that was typed on the command line, then `convert` it.

    Text for a string or a choice is taken as it stands; commas separate the items of a tuple; anything else is read as
    TOML reads it.

    Args:
        text: what stood behind the equals sign.
        kind: the annotation of the field.

    Raises:
        Unfit: the text cannot be understood as that type.
    """
    if get_origin(kind) is tuple and not text.startswith("["):
        inner = get_args(kind)[0]
        return tuple(parse_text(item, inner) for item in filter(None, map(str.strip, text.split(","))))
    if kind is str or get_origin(kind) is Literal:
        return convert(text, kind)
    return convert(_toml_value(text), kind)


def _toml_value(text: str) -> object:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _items(value: object, kind: Any) -> tuple[object, ...]:  # noqa: ANN401
    items = value if isinstance(value, list | tuple) else [value]
    return tuple(convert(item, kind) for item in items)


def _choice(value: object, choices: tuple[object, ...]) -> object:
    if value not in choices:
        raise Unfit(f"is {value!r}; {suggestion(str(value), map(str, choices))}")
    return value


def _whole(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise Unfit(f"is {value!r}; give a whole number")
    return value


def _real(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise Unfit(f"is {value!r}; give a finite number")
    return float(value)


def _truth(value: object) -> bool:
    if not isinstance(value, bool):
        raise Unfit(f"is {value!r}; give true or false")
    return value


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise Unfit(f"is {value!r}; give text in quotes")
    return value


_SCALARS: dict[object, Callable[[object], object]] = {int: _whole, float: _real, bool: _truth, str: _text}
