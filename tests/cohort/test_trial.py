"""Trial steps: golden meta-gradients, unrolled differentiation, and everything put back."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from coterie.cohort.trial import Trial, undone

GOLDEN = Path(__file__).parents[1] / "golden" / "l_mcl_meta.json"
CASES = {case["name"]: case for case in json.loads(GOLDEN.read_text())["cases"] if case["name"].startswith("meta_")}


def doubles(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize("name", sorted(CASES))
@pytest.mark.parametrize("released", [False, True])
def test_golden_meta_gradient(name: str, released: bool) -> None:
    case, given = CASES[name], CASES[name]["hyperparameters"]
    a, b, lmbd = (doubles(case["inputs"][key]).requires_grad_() for key in ("a", "b", "lambda"))

    def inner() -> Tensor:
        return a.square().mean() + (lmbd * b.square()).sum() + 0.5 * a.sum() * b.sum()

    def outer() -> Tensor:
        return (a * b.sum(dim=1)).mean()

    trial = Trial([a, b], lr=given["lr"], momentum=given["momentum"], weight_decay=given["weight_decay"])
    for k, objective in enumerate([inner, inner, outer]):
        trial.step(objective)
        for tensor, key in ((a, "a"), (b, "b")):
            expected = doubles(case["expected"]["values_after_each_step"][key][k])
            assert torch.allclose(tensor, expected, rtol=0, atol=1e-10)
    assert outer().item() == pytest.approx(case["expected"]["outer_value"], rel=1e-10)
    (slope,) = trial.hypergradient(outer, [lmbd], released=released)
    key = "meta_gradient_lambda" if released else "meta_gradient_lambda_exact"
    assert torch.allclose(slope, doubles(case["expected"][key]), rtol=0, atol=1e-10)
    assert torch.equal(a, doubles(case["inputs"]["a"])) and torch.equal(b, doubles(case["inputs"]["b"]))


def unrolled(
    inner: Callable[[list[Tensor], Tensor], Tensor], values: list[Tensor], outer: Tensor, steps: int
) -> list[Tensor]:
    """Momentum SGD with every step kept in the graph."""
    buffers = [torch.zeros_like(value) for value in values]
    for _ in range(steps):
        slopes = torch.autograd.grad(inner(values, outer), values, create_graph=True)
        buffers = [0.7 * buf + slope + 0.02 * val for buf, slope, val in zip(buffers, slopes, values, strict=True)]
        values = [value - 0.1 * buf for value, buf in zip(values, buffers, strict=True)]
    return values


def test_hypergradient_is_that_of_the_unrolled_graph() -> None:
    draw = torch.Generator().manual_seed(1)
    x, y = (torch.randn(6, 3, generator=draw, dtype=torch.float64) for _ in range(2))
    values = [torch.randn(shape, generator=draw, dtype=torch.float64).requires_grad_() for shape in ((3, 4), (4, 3))]
    scale = torch.rand(6, generator=draw, dtype=torch.float64).requires_grad_()

    def inner(weights: list[Tensor], scale: Tensor) -> Tensor:
        return (scale[:, None] * ((x @ weights[0]).tanh() @ weights[1] - y).square()).sum() / 6

    def outer(weights: list[Tensor]) -> Tensor:
        return ((x @ weights[0]).tanh() @ weights[1] - y.roll(1, 0)).square().sum() + scale.square().sum()

    (expected,) = torch.autograd.grad(outer(unrolled(inner, values, scale, 4)), scale)
    trial = Trial(values, lr=0.1, momentum=0.7, weight_decay=0.02)
    for _ in range(4):
        trial.step(lambda: inner(values, scale))
    (ours,) = trial.hypergradient(lambda: outer(values), [scale])
    assert torch.allclose(ours, expected, rtol=1e-10)


def test_parameters_that_no_objective_reaches_only_decay() -> None:
    used, unused, steering = (torch.ones(2, dtype=torch.float64, requires_grad=True) for _ in range(3))
    trial = Trial([used, unused], lr=0.1, weight_decay=0.5)
    trial.step(lambda: (steering * used).sum())
    assert torch.allclose(unused, torch.full((2,), 0.95, dtype=torch.float64))
    (slope,) = trial.hypergradient(lambda: (used + 3 * unused).sum(), [steering])
    assert torch.allclose(slope, torch.full((2,), -0.1, dtype=torch.float64))


def test_outer_parameters_that_steer_nothing_get_zero() -> None:
    used, idle = (torch.ones(2, requires_grad=True) for _ in range(2))
    trial = Trial([used], lr=0.1)
    trial.step(lambda: used.sum())
    assert torch.equal(trial.hypergradient(lambda: used.square().sum(), [idle])[0], torch.zeros(2))


def test_undone_puts_everything_back_even_after_an_error() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    kept = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    with pytest.raises(RuntimeError, match="stop"), undone([net]):
        net(torch.randn(5, 3)).sum().backward()
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.add_(1)
        assert not torch.equal(net[1].running_mean, kept["1.running_mean"])
        raise RuntimeError("stop")
    assert all(torch.equal(tensor, kept[name]) for name, tensor in net.state_dict().items())
