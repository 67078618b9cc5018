"""Reading a pickled data archive without running anything that it asks for."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from coterie.core.errors import DataError, one_line

_NUMBERS = frozenset(["u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8", "f4", "f8"])


def read_archive(path: Path) -> dict[str, Any]:
    """Read a pickle of plain containers, numbers, words and numeric numpy arrays.

    Names of functions and classes in the file are never imported: the four that array pickles use are answered with
    stand-ins that can only make an empty array or a numeric dtype; every other one is an error.

    Args:
        path: the file, written by Python 2 or 3.

    Returns:
        The dictionary in the file, its keys decoded to `str`.

    Raises:
        DataError: the file is missing, damaged, not a dictionary, or asks for anything else.
    """
    name = repr(str(path))
    content = _load(path, name)
    if not isinstance(content, dict):
        raise DataError(f"{name} holds a {type(content).__name__} and no table; fetch it again")
    return {_word(key): value for key, value in content.items()}


def _load(path: Path, name: str) -> object:
    try:
        with path.open("rb") as file:
            return _Unpickler(file, encoding="bytes").load()
    except OSError as error:
        raise DataError(f"{name} cannot be read ({error.strerror}); unpack the data set's archive there") from error
    except Exception as error:  # a damaged pickle can fail in any way
        raise DataError(f"{name} is not a data archive ({one_line(error)}); fetch it again") from error


class _Unpickler(pickle.Unpickler):
    """Knows four names, and answers them with stand-ins."""

    def find_class(self, module: str, name: str) -> Any:  # noqa: ANN401
        """Return the stand-in for a name, or refuse it."""
        known = _STAND_INS.get((module.replace("numpy._core", "numpy.core"), name))
        if known is None:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which a data archive has no use for")
        return known


class _StandIn:
    """A function without attributes that a pickle could change."""

    __slots__ = ("_call",)
    _call: Callable[..., Any]

    def __init__(self, call: Callable[..., Any]) -> None:
        object.__setattr__(self, "_call", call)

    def __call__(self, *args: object) -> Any:  # noqa: ANN401
        """Call the function."""
        return self._call(*args)

    def __setattr__(self, name: str, value: object) -> None:
        raise pickle.UnpicklingError("it changes a function")


def _empty_array(*_: object) -> np.ndarray[Any, Any]:
    return np.ndarray((0,), np.uint8)  # its state follows: shape, dtype and bytes, checked by numpy


def _numeric_dtype(code: object, *_: object) -> np.dtype[Any]:
    if _word(code) not in _NUMBERS:
        raise pickle.UnpicklingError(f"it holds an array of {_word(code)!r}, not of numbers")
    return np.dtype(_word(code), copy=True)


def _latin(text: object, *_: object) -> bytes:
    return str(text).encode("latin1")


def _no_array(*_: object) -> None:
    raise pickle.UnpicklingError("it makes an array in an unknown way")


def _word(value: object) -> str:
    return value.decode("latin1") if isinstance(value, bytes) else str(value)


_STAND_INS = {
    ("numpy.core.multiarray", "_reconstruct"): _StandIn(_empty_array),
    ("numpy", "ndarray"): _StandIn(_no_array),
    ("numpy", "dtype"): _StandIn(_numeric_dtype),
    ("_codecs", "encode"): _StandIn(_latin),
}
