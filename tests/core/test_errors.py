from __future__ import annotations

import pytest

from coterie.core import (
    CheckpointError,
    ConfigError,
    CoterieError,
    DataError,
    MissingExtra,
    NumericError,
    ShapeError,
    UnknownName,
)
from coterie.core.errors import suggestion
from coterie.engine import Preempted


@pytest.mark.parametrize(
    ("kind", "code"),
    [(ConfigError, 2), (DataError, 2), (ShapeError, 2), (CheckpointError, 4), (NumericError, 5), (Preempted, 75)],
)
def test_exit_codes(kind: type[CoterieError], code: int) -> None:
    assert issubclass(kind, CoterieError)
    assert kind("x").exit_code == code


def test_a_missing_extra_says_how_to_install_it() -> None:
    error = MissingExtra("onnx", "onnx")
    assert str(error) == "onnx is not installed; run: pip install 'coterie[onnx]'"
    assert error.exit_code == 2


def test_an_unknown_name_is_a_wrong_recipe() -> None:
    assert isinstance(UnknownName("method", "x", []), ConfigError)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("mcl_odk", "did you mean 'mcl_okd'?"),
        ("MCL_OKD", "did you mean 'mcl_okd'?"),
        ("dmll", "did you mean 'dml'?"),
        ("zzz", "known: dml, independent, mcl_okd"),
        ("", "known: dml, independent, mcl_okd"),
    ],
)
def test_suggestions(given: str, expected: str) -> None:
    assert suggestion(given, ["mcl_okd", "dml", "independent"]) == expected
