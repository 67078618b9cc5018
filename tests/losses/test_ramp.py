from __future__ import annotations

import math

import torch

from coterie.losses.ramp import ramp_up
from golden_logits import assert_close, cases


def test_golden() -> None:
    case = cases("okddip")["ramp_up_length_80"]
    weights = [ramp_up(torch.tensor(epoch), 80, dtype=torch.float64) for epoch in case["inputs"]["epochs"]]
    assert_close(torch.stack(weights), case["expected"]["weights"])


def test_other_lengths() -> None:
    assert float(ramp_up(torch.tensor(3), 12, dtype=torch.float64)) == math.exp(-5 * 0.75**2)
    assert float(ramp_up(torch.tensor(0), 0)) == 1.0
    assert ramp_up(torch.tensor(5), 7).dtype == torch.float32
