"""Golden cases of losses with a frozen teacher, and the closed-form inputs of the values that papers' code gave."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from golden_logits import assert_close, leaf


def read(values: Any, name: str, dtype: torch.dtype) -> Any:
    """An input of a case as a leaf; labels as whole numbers, the maps of several layers as a list of leaves."""
    if name == "labels":
        return torch.tensor(values)
    return [leaf(part, dtype) for part in values] if name.endswith("_maps") else leaf(values, dtype)


def check_golden(case: dict[str, Any], loss: Callable[..., Tensor], dtype: torch.dtype) -> None:
    """Compare loss and gradients; leaves that the case names no gradient for must not get any."""
    inputs = {name: read(values, name, dtype) for name, values in case["inputs"].items()}
    value = loss(**inputs)
    assert value.dtype == dtype
    assert_close(value, case["expected"]["loss"], dtype)
    value.backward()
    for name, given in inputs.items():
        parts = given if isinstance(given, list) else [given]
        if name in case["gradients_taken_for"]:
            expected = case["expected"]["grad"][name]
            for part, goal in zip(parts, expected if isinstance(given, list) else [expected], strict=True):
                assert_close(part.grad, goal, dtype)
        else:
            assert [part.grad for part in parts] == [None] * len(parts)


def wave(k: int, *shape: int) -> Tensor:
    """`sin(n (0.37 n + 0.7 k))` for n from 1, row by row, in float64."""
    n = torch.arange(1, math.prod(shape) + 1, dtype=torch.float64)
    return torch.sin(n * (0.37 * n + 0.7 * k)).view(shape)


def random(*shape: int, seed: int = 0) -> Tensor:
    """Normal numbers in float64."""
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
