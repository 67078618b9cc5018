"""The restricted unpickler: reads what archives hold, runs nothing."""

from __future__ import annotations

import os
import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coterie.core.errors import DataError
from coterie.data.archive import _STAND_INS, read_archive


def python2_pickle(images: np.ndarray[Any, Any], labels: list[int]) -> bytes:
    """What Python 2 wrote: protocol 2, words as byte strings, the array through `numpy.core.multiarray`."""

    def word(text: bytes) -> bytes:
        return b"T" + struct.pack("<i", len(text)) + text

    def number(value: int) -> bytes:
        return b"J" + struct.pack("<i", value)

    array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n" + number(0) + b"\x85" + word(b"b") + b"\x87R"
    dtype = b"cnumpy\ndtype\n" + word(b"u1") + number(0) + number(1) + b"\x87R"
    dtype += b"(" + number(3) + word(b"|") + b"NNN" + number(-1) + number(-1) + number(0) + b"tb"
    shape = number(images.shape[0]) + number(images.shape[1]) + b"\x86"
    state = b"(" + number(1) + shape + dtype + b"\x89" + word(images.tobytes()) + b"tb"
    listed = b"](" + b"".join(number(label) for label in labels) + b"e"
    return b"\x80\x02}(" + word(b"data") + array + state + word(b"labels") + listed + b"u."


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


IMAGES = np.random.default_rng(0).integers(0, 256, (3, 12), dtype=np.uint8)


def test_python_2_archives(tmp_path: Path) -> None:
    content = read_archive(write(tmp_path / "old", python2_pickle(IMAGES, [4, 5, 6])))
    assert set(content) == {"data", "labels"}
    np.testing.assert_array_equal(content["data"], IMAGES)
    assert content["labels"] == [4, 5, 6]


@pytest.mark.parametrize("protocol", [2, 3, 4])
@pytest.mark.parametrize("dtype", ["uint8", "int64", "float32"])
def test_python_3_archives(tmp_path: Path, protocol: int, dtype: str) -> None:
    table = {"data": IMAGES.astype(dtype), b"names": ["a", b"\xff"], "more": {"nested": (1, 2.5, None, True)}}
    content = read_archive(write(tmp_path / "new", pickle.dumps(table, protocol=protocol)))
    assert set(content) == {"data", "names", "more"}
    np.testing.assert_array_equal(content["data"], table["data"])
    assert content["data"].dtype == dtype
    assert content["names"][1] == b"\xff"
    assert content["more"] == table["more"]


def test_reading_leaves_numpy_alone(tmp_path: Path) -> None:
    path = write(tmp_path / "swapped", pickle.dumps({"data": IMAGES.astype(">i4")}))
    np.testing.assert_array_equal(read_archive(path)["data"], IMAGES)
    assert np.dtype("i4").byteorder == "="
    assert np.array([1], "i4").tobytes() == b"\x01\0\0\0"


class _Call:
    """Pickles to a call of any function."""

    def __init__(self, *call: Any) -> None:
        self.call = call

    def __reduce__(self) -> Any:
        return self.call[0], self.call[1:]


@pytest.mark.case(76, 84)
@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_nothing_is_run(tmp_path: Path, protocol: int) -> None:
    marker = tmp_path / "marker"
    evil = pickle.dumps({"data": _Call(os.system, f"touch {marker}")}, protocol=protocol)
    with pytest.raises(DataError, match="has no use for"):
        read_archive(write(tmp_path / "evil", evil))
    assert not marker.exists()
    pickle.loads(evil)
    assert marker.exists()  # the attack itself works


@pytest.mark.case(84)
@pytest.mark.parametrize(
    "evil",
    [
        b"cos\nsystem\n(S'true'\ntR.",
        b"(S'true'\nios\nsystem\n.",
        b"cbuiltins\neval\n.",
        b"cnumpy\nload\n.",
        b"cnumpy\nndarray.__class__\n.",
        b"\x80\x04\x8c\x05numpy\x8c\x07dtype.x\x93.",
        b"cnumpy\nndarray\n(K\x05tR.",
        b"cnumpy\ndtype\n(S'O'\ntR.",
        b"cnumpy\ndtype\n}S'_call'\nI1\nsb.",
        b"\x80\x02cnumpy\ndtype\nN}U\x05_callK\x01s\x86b.",
    ],
)
def test_tricks_are_refused_in_one_line(tmp_path: Path, evil: bytes) -> None:
    before = dict(_STAND_INS), [stand_in._call for stand_in in _STAND_INS.values()]
    with pytest.raises(DataError) as caught:
        read_archive(write(tmp_path / "evil", evil))
    assert "\n" not in str(caught.value)
    assert "evil" in str(caught.value)
    assert before == (_STAND_INS, [stand_in._call for stand_in in _STAND_INS.values()])


def test_a_huge_array_is_not_made(tmp_path: Path) -> None:
    head = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(L999999999999999L\ntS'b'\ntR"
    content = b"}(S'data'\n" + head + b"u."
    assert read_archive(write(tmp_path / "huge", content))["data"].shape == (0,)


def test_not_a_table(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds a list and no table"):
        read_archive(write(tmp_path / "list", pickle.dumps([1])))


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"'.*gone' cannot be read"):
        read_archive(tmp_path / "gone")


# CPython's unpickler notes on standard error that it drops a half-read bytearray; nothing is wrong with the answer
@pytest.mark.case(75)
@pytest.mark.filterwarnings("ignore:Exception ignored in:pytest.PytestUnraisableExceptionWarning")
@settings(deadline=None)
@given(st.integers(0, 400), st.integers(0, 255))
def test_damage_gives_an_error_or_a_table(tmp_path_factory: pytest.TempPathFactory, place: int, byte: int) -> None:
    good = bytearray(python2_pickle(IMAGES, [1, 2, 3]))
    good[place % len(good)] = byte
    path = write(tmp_path_factory.getbasetemp() / "damaged", bytes(good))
    try:
        assert isinstance(read_archive(path), dict)
    except DataError as error:
        assert "\n" not in str(error)
    path.write_bytes(bytes(good[: place % len(good)]))
    with pytest.raises(DataError):
        read_archive(path)
