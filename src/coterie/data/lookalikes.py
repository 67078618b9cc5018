"""Pairs of images that look alike, among hundreds of thousands, without comparing all with all."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np

NEAR = 6
"""Bits of 128 in which two looks may differ; see `coterie.data.prints.look_of`."""

_WINDOW = 256
_BAND = 2  # bytes; 8 bands of 16 bits, of which 6 differing bits leave two equal
_LEAST = 8  # bits that are set, or are not, in a look that says something

_Bits: TypeAlias = "np.ndarray[Any, np.dtype[np.uint8]]"
_Rows: TypeAlias = "np.ndarray[Any, np.dtype[np.int64]]"

_ONES = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).sum(1).astype(np.uint8)


def find_lookalikes(looks: Sequence[bytes], near: int = NEAR) -> list[tuple[int, int, int]]:
    """Find pairs of looks that differ in few bits.

    Looks that differ in at most 6 bits agree in one of eight bands of 16 bits at least. So they are sorted once for
    each band, band first, and each is compared with the next 256 that agree in it: N x 8 x 256 comparisons at most. Of
    more than 256 images that agree in a band, such as blank ones, a pair may be missed. Looks with hardly a bit set, or
    with hardly one that is not, are of images without structure and are left out.

    Args:
        looks: N hashes of 16 bytes.
        near: bits in which a pair may differ, at most 7.

    Returns:
        Pairs `(i, j, bits)` with `i < j`, the most alike first.

    Example:
        >>> find_lookalikes([b"0123456789abcdef", b"xyzxyzxyzxyzxyz!", b"0123456789abcdeg"])
        [(0, 2, 1)]
    """
    if len(looks) < 2:
        return []
    bits = np.frombuffer(b"".join(looks), dtype=np.uint8).reshape(len(looks), -1)
    telling = _telling(bits)
    found: dict[tuple[int, int], int] = {}
    for start in range(0, bits.shape[1], _BAND):
        for first, second, distance in _pairs_of_band(bits, telling, start, near):
            pairs = np.stack([np.minimum(first, second), np.maximum(first, second)], axis=1)
            found.update(zip(map(tuple, pairs.tolist()), distance.tolist(), strict=True))
    return sorted(((i, j, bits) for (i, j), bits in found.items()), key=lambda pair: (pair[2], pair[:2]))


def _telling(bits: _Bits) -> _Rows:
    """Rows of looks that are neither nearly empty nor nearly full."""
    count = _ONES[bits].sum(1, dtype=np.int64)
    return np.nonzero((count >= _LEAST) & (count <= 8 * bits.shape[1] - _LEAST))[0]


def _pairs_of_band(bits: _Bits, rows: _Rows, start: int, near: int) -> Iterator[tuple[_Rows, _Rows, _Rows]]:
    """Near pairs of these rows that agree in the band from byte `start` on: first rows, second rows, distances."""
    turned = np.roll(bits[rows], -start, axis=1)
    order = rows[np.lexsort(turned.T[::-1])]
    band = bits[order, start : start + _BAND].astype(np.int64) @ np.array([256, 1])
    for step in range(1, min(_WINDOW, len(order) - 1) + 1):
        same = np.nonzero(band[step:] == band[:-step])[0]
        if not len(same):
            return
        first, second = order[same], order[same + step]
        distance = _ONES[bits[first] ^ bits[second]].sum(1, dtype=np.int64)
        close = distance <= near
        yield first[close], second[close], distance[close]
