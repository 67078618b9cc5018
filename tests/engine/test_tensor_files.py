"""Our safetensors files are those of the library, and their hash is that of what is on disk."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor

from coterie.core import CheckpointError
from coterie.engine import tensor_files
from coterie.engine.tensor_files import in_file_order, write_tensors
from faults import run_child, with_file_limit

DTYPES = [dtype for dtype in tensor_files._NAMES if dtype is not torch.bool]


def examples() -> dict[str, Tensor]:
    numbers = torch.arange(24)
    return {
        **{str(dtype): numbers.to(dtype).view(2, 3, 4) for dtype in DTYPES},
        "flag": numbers > 7,
        "scalar": torch.tensor(3.0),
        "empty": torch.zeros(0, 4, dtype=torch.float64),
        "turned": torch.arange(12.0).view(3, 4).t(),
        "last": torch.arange(96.0).view(2, 3, 4, 4).contiguous(memory_format=torch.channels_last),
        "shared": numbers,
        "shared too": numbers[3:],
        'odd "ü" \\ name': torch.ones(1),
    }


def test_files_are_those_of_the_library(tmp_path: Path) -> None:
    tensors = examples()
    size, sha256 = write_tensors(tmp_path / "ours", tensors)
    content = (tmp_path / "ours").read_bytes()
    assert (size, sha256) == (len(content), hashlib.sha256(content).hexdigest())
    library = {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()}
    assert content == safetensors.torch.save(library)
    read = safetensors.torch.load_file(tmp_path / "ours")
    assert read.keys() == tensors.keys()
    assert all(
        torch.equal(read[name].view(torch.uint8), library[name].view(torch.uint8)) for name in read if name != "scalar"
    )


def test_no_tensors_are_a_file_too(tmp_path: Path) -> None:
    write_tensors(tmp_path / "none", {})
    assert safetensors.torch.load_file(tmp_path / "none") == {}


def test_large_tensors_go_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensor_files, "_PIECE", 1000)
    tensors = {"a": torch.randn(777), "b": torch.randn(55, 3)}
    write_tensors(tmp_path / "file", tensors)
    assert (tmp_path / "file").read_bytes() == safetensors.torch.save(tensors)


def test_neighbours_are_written_at_once() -> None:
    buffer = torch.arange(100, dtype=torch.uint8)
    parts = {
        "a": buffer[:16].view(torch.float32),
        "b": buffer[16:48].view(torch.float32),
        "c": buffer[60:64].view(torch.int16),
    }
    pieces = list(tensor_files._pieces(in_file_order(parts)))
    assert [len(piece) for piece in pieces] == [48, 4]
    assert b"".join(pieces) == bytes([*range(48), *range(60, 64)])


@pytest.mark.parametrize("tensor", [torch.eye(3).to_sparse(), torch.zeros(2, dtype=torch.complex128)])
def test_what_cannot_be_stored_is_named(tmp_path: Path, tensor: Tensor) -> None:
    with pytest.raises(CheckpointError, match=r"cannot hold 'w', .*; store dense tensors only"):
        write_tensors(tmp_path / "file", {"w": tensor})
    assert not (tmp_path / "file").exists()


@pytest.mark.case(7)
def test_a_full_disk_is_an_error_of_the_system(tmp_path: Path) -> None:
    ended = run_child(with_file_limit(1000, lambda: write_tensors(tmp_path / "file", {"w": torch.zeros(1000)})))
    assert (ended.kind, "File too large" in ended.error) == ("OSError", True)
