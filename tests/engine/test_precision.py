from __future__ import annotations

import pytest
import torch
from torch import nn

from coterie.engine import Precision

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("name", "dtype", "scaled"),
    [("float32", torch.float32, False), ("bfloat16", torch.bfloat16, False), ("float16", torch.float16, True)],
)
def test_forward_runs_in_the_named_format_and_only_float16_is_scaled(
    name: str, dtype: torch.dtype, scaled: bool
) -> None:
    precision = Precision(name, CPU)
    layer = nn.Linear(4, 2)
    with precision.autocast():
        out = layer(torch.ones(3, 4))
    assert out.dtype == dtype
    assert layer.weight.dtype == torch.float32
    assert precision.scaler.is_enabled() == scaled
    assert bool(precision.scaler.state_dict()) == scaled


def test_outside_the_context_nothing_is_cast() -> None:
    precision = Precision("bfloat16", CPU)
    with precision.autocast():
        pass
    assert nn.Linear(4, 2)(torch.ones(3, 4)).dtype == torch.float32
