"""Random numbers as a function of what they are for, not of how many were drawn before.

A draw is a hash of a key (whole numbers that name its purpose: seed, epoch, step, ...) and of a tensor of counters
(sample numbers, columns, ...). The same key and counters give the same number on every device, in every process, for
every number of workers and after every restart, so no generator state has to be kept, saved or shared.

The mixing function is splitmix64's finaliser (Steele, Lea and Flood, OOPSLA 2014), in wrapping 64-bit arithmetic.
"""

from __future__ import annotations

import zlib

import torch
from torch import Tensor

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
_MUL1 = 0xBF58476D1CE4E5B9
_MUL2 = 0x94D049BB133111EB


def mix(*key: int | str) -> int:
    """Hash whole numbers and words to one whole number below 2**63, usable as a seed or a key.

    Args:
        key: the parts, in order; words name purposes, such as `"order"` or `"negatives"`.

    Returns:
        A number in `[0, 2**63)` that depends on every part and on their order.

    Example:
        >>> mix(1, "order", 2) == mix(1, "order", 2), mix(1, 2) == mix(2, 1)
        (True, False)
    """
    state = 0
    for part in key:
        number = zlib.crc32(part.encode()) | 1 << 40 if isinstance(part, str) else part
        state = _scramble((state + _GOLDEN + _scramble(number & _MASK)) & _MASK)
    return state >> 1


def bits(key: int | Tensor, counters: Tensor) -> Tensor:
    """Hash each counter under a key to 63 random bits.

    Args:
        key: a number from `mix`, or an int64 tensor that broadcasts against the counters (a step number on the device,
            say, so that a captured step can be replayed with another one).
        counters: int64 tensor of any shape.

    Returns:
        int64 tensor of the broadcast shape, uniform over `[0, 2**63)`.
    """
    state = counters + 1
    state = _scramble_tensor(state * _signed(_GOLDEN) + key)
    return _scramble_tensor(state + _signed(_GOLDEN)) & ((1 << 63) - 1)


def uniform(key: int | Tensor, counters: Tensor) -> Tensor:
    """Draw a float32 in `[0, 1)` for each counter; see `bits` for the arguments."""
    return (bits(key, counters) >> 39).to(torch.float32) * 2.0**-24


def integers(key: int | Tensor, counters: Tensor, below: int) -> Tensor:
    """Draw an int64 in `[0, below)` for each counter; see `bits` for the arguments.

    Taking the remainder of 63 bits favours small numbers by less than `below / 2**63`.
    """
    return bits(key, counters) % below


def permutation(key: int, count: int) -> Tensor:
    """Shuffle `0 .. count-1` under a key.

    Args:
        key: a number from `mix`.
        count: how many numbers to shuffle.

    Returns:
        int64 tensor `[count]` on the CPU.
    """
    return torch.argsort(bits(key, torch.arange(count)), stable=True)


def _scramble(value: int) -> int:
    value = (value ^ value >> 30) * _MUL1 & _MASK
    value = (value ^ value >> 27) * _MUL2 & _MASK
    return value ^ value >> 31


def _scramble_tensor(value: Tensor) -> Tensor:
    value = (value ^ _shift(value, 30)) * _signed(_MUL1)
    value = (value ^ _shift(value, 27)) * _signed(_MUL2)
    return value ^ _shift(value, 31)


def _shift(value: Tensor, places: int) -> Tensor:
    return (value >> places) & ((1 << (64 - places)) - 1)  # `>>` keeps the sign: mask it away


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value
