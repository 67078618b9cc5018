"""Blobs: what one job says to others, as an immutable safetensors file whose name holds its hash.

JOB-STEP-KIND-SHA256.safetensors. A blob comes from a stranger: its header is read and compared with what is expected,
tensor by tensor, before anything else of it is read, and its hash before anything of it is believed. Nothing in it can
name code: a network is a name that the own recipe knows.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from coterie.core.errors import CoterieError

FORMAT = 1
"""Version of the blobs; raised when an older reader could not read what is written."""

HEADER_LIMIT = 4 << 20
"""Bytes that a header has at most: room for some ten thousand tensors."""

JOB = re.compile(r"[a-z0-9_-]{1,64}")
"""What the name of a job must match: it is a part of file names."""

_NAME = re.compile(r"([a-z0-9_-]{1,64})-(\d{8,15})-(weights|predictions)-([0-9a-f]{64})\.safetensors")
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_WORDS = {dtype: word for word, dtype in _DTYPES.items()}

Layout = Mapping[str, tuple[str, tuple[int, ...]]]
"""Names of tensors with their types, in the words of safetensors, and shapes."""


class Refused(CoterieError):
    """A blob is not what it must be; training goes on without it.

    Args:
        reason: one word for counters: `hash`, `shape`, `torn`, `network`, ...
        message: what was found and what was expected.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class BlobName:
    """What the name of a blob says."""

    job: str
    step: int
    kind: str
    sha256: str

    def __str__(self) -> str:
        return f"{self.job}-{self.step:08d}-{self.kind}-{self.sha256}.safetensors"

    @property
    def brief(self) -> str:
        """Enough of the name for a message."""
        return f"{self.job}-{self.step:08d}-{self.kind}-{self.sha256[:12]}"


def parse_name(name: str) -> BlobName | None:
    """Read the name of a blob; None for any other file.

    Example:
        >>> parse_name(f"my-job-00000012-weights-{'0' * 64}.safetensors").step, parse_name("../x.safetensors")
        (12, None)
    """
    found = _NAME.fullmatch(name)
    return BlobName(found[1], int(found[2]), found[3], found[4]) if found else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """What a blob must hold to be read at all.

    Attributes:
        kind: `weights` or `predictions`.
        layouts: names, types and shapes of tensors, by name of the network.
        facts: plain words that must agree, such as a digest of the classes, by name.
    """

    kind: str
    layouts: Mapping[str, Layout]
    facts: Mapping[str, str]

    @property
    def most(self) -> int:
        """Bytes of the largest blob that can be right."""
        return 8 + HEADER_LIMIT + max(map(size_of, self.layouts.values()))


def layout_of(tensors: Mapping[str, Tensor]) -> Layout:
    """Names, types and shapes of tensors.

    Raises:
        Refused: a type cannot be exchanged.
    """
    odd = [name for name, tensor in tensors.items() if tensor.dtype not in _WORDS]
    if odd:
        raise Refused("shape", f"{odd[0]!r} is {tensors[odd[0]].dtype}, which cannot be exchanged; use another network")
    return {name: (_WORDS[tensor.dtype], tuple(tensor.shape)) for name, tensor in tensors.items()}


def size_of(layout: Layout) -> int:
    """Bytes of all tensors of a layout."""
    return sum(_DTYPES[word].itemsize * math.prod(shape) for word, shape in layout.values())


def encode(tensors: Mapping[str, Tensor], *, job: str, step: int, kind: str, facts: Mapping[str, str]) -> bytes:
    """Make the content of a blob.

    Args:
        tensors: on the CPU, contiguous, none sharing memory with another.
        job: who speaks.
        step: its count of batches.
        kind: `weights` or `predictions`.
        facts: plain words that the reader compares, `net` among them.
    """
    words = {**facts, "format": str(FORMAT), "job": job, "step": str(step), "kind": kind}
    content: bytes = safetensors.torch.save(dict(tensors), metadata=words)
    return content


def name_for(content: bytes, *, job: str, step: int, kind: str) -> BlobName:
    """The only name that content may have."""
    return BlobName(job, step, kind, hashlib.sha256(content).hexdigest())


def header_end(first: bytes, size: int) -> int:
    """Where the header of a blob ends, from its first 8 bytes.

    Raises:
        Refused: there is no such header, or it is too long.
    """
    length = int.from_bytes(first[:8], "little")
    if len(first) < 8 or 8 + length > size:
        raise Refused("torn", f"has {size} bytes, which is not even its header")
    if length > HEADER_LIMIT:
        raise Refused("size", f"has a header of {length} bytes, the limit is {HEADER_LIMIT}")
    return 8 + length


def check_header(header: bytes, size: int, name: BlobName, expected: Expected) -> str:
    """Compare a header with what must be in it; nothing is allocated by what it says.

    Args:
        header: the blob up to `header_end`.
        size: bytes of the whole blob.
        name: of the blob.
        expected: what it must hold.

    Returns:
        The name of the network.

    Raises:
        Refused: it differs; the first difference is named.
    """
    entries = _entries(header)
    words = entries.pop("__metadata__", None)
    words = words if isinstance(words, dict) else {}
    _check_words(words, name, expected)
    net = str(words.get("net"))
    if net not in expected.layouts:
        raise Refused("network", f"is of network {net[:80]!r}; expected {', '.join(expected.layouts)}")
    layout = expected.layouts[net]
    for key in dict.fromkeys([*layout, *entries]):
        _check_entry(key, entries.get(key), layout.get(key))
    if len(header) + size_of(layout) != size:
        raise Refused("torn", f"has {size} bytes and must have {len(header) + size_of(layout)}")
    return net


def decode(content: bytes, name: BlobName) -> dict[str, Tensor]:
    """Read the tensors of a whole blob whose header was checked.

    Raises:
        Refused: its hash is not that of its name, it is damaged, or it holds numbers that are not finite.
    """
    found = hashlib.sha256(content).hexdigest()
    if found != name.sha256:
        raise Refused("hash", f"has SHA-256 {found[:12]}... and its name says {name.sha256[:12]}...")
    try:
        tensors: dict[str, Tensor] = safetensors.torch.load(content)
    except (SafetensorError, ValueError, KeyError, RuntimeError) as error:
        raise Refused("torn", f"is not a safetensors file ({error})") from error
    _check_finite(tensors)
    return tensors


def _check_finite(tensors: Mapping[str, Tensor]) -> None:
    for key, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise Refused("numbers", f"holds numbers in {key!r} that are not finite")


def _entries(header: bytes) -> dict[str, Any]:
    try:
        found = json.loads(header[8:])
    except (ValueError, RecursionError) as error:
        raise Refused("torn", "has a header that is not JSON") from error
    if not isinstance(found, dict):
        raise Refused("torn", "has a header that is not a JSON object")
    return found


def _check_words(words: Mapping[str, Any], name: BlobName, expected: Expected) -> None:
    version = str(words.get("format"))
    if version != str(FORMAT):
        raise Refused("format", f"is of format {version[:20]!r}, this version reads {FORMAT}")
    _check_told(words, {"job": name.job, "step": str(name.step), "kind": name.kind})
    _check_facts(words, expected.facts)


def _check_told(words: Mapping[str, Any], told: Mapping[str, str]) -> None:
    for key, word in told.items():
        if words.get(key) != word:
            raise Refused("name", f"says {key} {str(words.get(key))[:80]!r} and its name says {word!r}")


def _check_facts(words: Mapping[str, Any], facts: Mapping[str, str]) -> None:
    for key, word in facts.items():
        if words.get(key) != word:
            raise Refused(key, f"was made with other {key}: {str(words.get(key))[:12]!r}, here {word[:12]!r}")


def _check_entry(key: str, found: Any, wanted: tuple[str, tuple[int, ...]] | None) -> None:  # noqa: ANN401
    if wanted is None:
        raise Refused("shape", f"has a tensor {key[:80]!r} that the network does not have")
    if not isinstance(found, dict):
        raise Refused("shape", f"has no tensor {key!r}")
    shape = found.get("shape")
    if found.get("dtype") != wanted[0] or shape != list(wanted[1]):
        kind = f"{str(found.get('dtype'))[:12]} {str(shape)[:80]}"
        raise Refused("shape", f"has {key!r} as {kind} and the network has {wanted[0]} {list(wanted[1])}")
