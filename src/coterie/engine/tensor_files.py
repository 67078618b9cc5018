"""safetensors files, written and hashed in one pass: nothing is copied that lies in host memory, nothing read again.

What is written are the bytes that the safetensors library writes, tensors in the order of its files. Its own writer
gives no hash, does not sync, and leaves files that only their owner may read.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from itertools import accumulate, chain, pairwise
from pathlib import Path

import torch
from torch import Tensor

from coterie.core.errors import CheckpointError
from coterie.core.files import write_new

_PIECE = 4 << 20  # bytes written at once; hashing and writing so many release Python's lock

_NAMES = {
    torch.bool: "BOOL",
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.float8_e5m2: "F8_E5M2",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.int16: "I16",
    torch.uint16: "U16",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int32: "I32",
    torch.uint32: "U32",
    torch.float32: "F32",
    torch.complex64: "C64",
    torch.float64: "F64",
    torch.int64: "I64",
    torch.uint64: "U64",
}
_RANK = {dtype: rank for rank, dtype in enumerate(_NAMES)}


def in_file_order(tensors: Mapping[str, Tensor]) -> list[tuple[str, Tensor]]:
    """Order tensors as a file has them: wide numbers first, so that all are aligned without gaps.

    Raises:
        CheckpointError: one cannot be stored.

    Example:
        >>> [name for name, _ in in_file_order({"a": torch.ones(1), "flag": torch.ones(1) > 0, "b": torch.ones(2)})]
        ['a', 'b', 'flag']
    """
    for name, tensor in tensors.items():
        if tensor.dtype not in _RANK or tensor.layout is not torch.strided:
            kind = f"{tensor.layout} of {tensor.dtype}".replace("torch.", "")
            raise CheckpointError(f"a checkpoint cannot hold {name!r}, {kind}; store dense tensors only")
    return sorted(tensors.items(), key=lambda item: (-_RANK[item[1].dtype], item[0]))


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> tuple[int, str]:
    """Write a new file under the umask; it is not on disk before it is synced.

    Args:
        path: must not exist.
        tensors: on any device; those of another one are brought to the host one by one.

    Returns:
        Size in bytes and SHA-256 of the file.

    Raises:
        CheckpointError: a tensor cannot be stored.
        OSError: as the system reports it, disk full included.
    """
    ordered, state, size = in_file_order(tensors), hashlib.sha256(), 0

    def noted(piece: memoryview) -> memoryview:
        nonlocal size
        state.update(piece)
        size += len(piece)
        return piece

    write_new(path, map(noted, chain([memoryview(_header(ordered))], _pieces(ordered))))
    return size, state.hexdigest()


def _header(ordered: Iterable[tuple[str, Tensor]]) -> bytes:
    ordered = list(ordered)
    ends = pairwise(accumulate((tensor.nbytes for _, tensor in ordered), initial=0))
    entries = {
        name: {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": list(offsets)}
        for (name, tensor), offsets in zip(ordered, ends, strict=True)
    }
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _pieces(ordered: Iterable[tuple[str, Tensor]]) -> Iterator[memoryview]:
    """The bytes of all tensors in order, in pieces of a few MiB."""
    for run in _joined(_bytes_of(tensor) for _, tensor in ordered if tensor.numel()):
        content = run.numpy().data
        for start in range(0, len(content), _PIECE):
            yield content[start : start + _PIECE]


def _joined(parts: Iterable[Tensor]) -> Iterator[Tensor]:
    """Join neighbours in memory, so that a thousand small tensors that lie in one buffer are written at once."""
    rest = iter(parts)
    run = next(rest, None)
    if run is None:
        return
    for part in rest:
        if _follows(run, part):
            run = torch.as_strided(run, (run.numel() + part.numel(),), (1,))
        else:
            yield run
            run = part
    yield run


def _follows(run: Tensor, part: Tensor) -> bool:
    same = run.untyped_storage().data_ptr() == part.untyped_storage().data_ptr()
    return same and run.data_ptr() + run.numel() == part.data_ptr()


def _bytes_of(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
