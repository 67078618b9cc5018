from __future__ import annotations

import pytest
import torch
from torch import Tensor

from coterie.core import ShapeError
from coterie.losses.simplex import simplex_weights
from golden_logits import cases

LINEAR = {name: case for name, case in cases("kdcl").items() if "linear" in name}


def combined_loss(logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """Cross-entropy `[B]` of the combination, with gradient to weights `[M, B]` or `[M, 1]`."""
    mixed = (weights[..., None] * logits).sum(dim=0)
    return torch.nn.functional.cross_entropy(mixed, labels, reduction="none")


def gap(logits: Tensor, labels: Tensor, weights: Tensor) -> float:
    """How far a loss can at most be above the smallest one: the duality gap of a convex problem on the simplex."""
    weights = weights.clone().requires_grad_()
    losses = combined_loss(logits, labels, weights)
    (losses.mean() if weights.shape[1] == 1 else losses.sum()).backward()
    slope = weights.grad
    assert slope is not None
    return float(((weights.detach() * slope).sum(dim=0) - slope.amin(dim=0)).max())


def random_problem(peers: int, scale: float, *, seed: int) -> tuple[Tensor, Tensor]:
    own = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(peers, 40, 20, dtype=torch.float64, generator=own)
    labels = torch.randint(20, (40,), generator=own)
    likely = torch.nn.functional.one_hot(labels, 20) * 1.5 * scale
    return logits + likely, labels


@pytest.mark.parametrize("name", LINEAR)
def test_golden(name: str) -> None:
    case = LINEAR[name]
    logits = torch.tensor(case["inputs"]["logits"], dtype=torch.float64)
    labels = torch.tensor(case["inputs"]["labels"])
    per = "sample" if "per_sample" in name else "batch"
    weights = simplex_weights(logits, labels, per=per)
    expected = torch.tensor(case["expected"]["weights"], dtype=torch.float64)
    expected = expected.t() if per == "sample" else expected[:, None]
    losses = combined_loss(logits, labels, weights)
    losses = losses if per == "sample" else losses.mean()
    best = torch.tensor(case["expected"]["cross_entropy_of_the_combination"], dtype=torch.float64)
    assert float((weights - expected).abs().max()) <= 1e-7
    assert float((losses - best).abs().max()) <= 1e-10


@pytest.mark.parametrize("per", ["sample", "batch"])
@pytest.mark.parametrize("scale", [0.01, 1.0, 5.0, 12.0])
@pytest.mark.parametrize("peers", [2, 3, 5])
def test_duality_gap_is_closed(peers: int, scale: float, per: str) -> None:
    logits, labels = random_problem(peers, scale, seed=peers)
    weights = simplex_weights(logits, labels, per=per)
    assert weights.shape == (peers, 40 if per == "sample" else 1)
    assert float(weights.min()) >= 0 and torch.allclose(weights.sum(dim=0), torch.ones(()).double(), atol=1e-14)
    assert gap(logits, labels, weights) <= 1e-10


@pytest.mark.parametrize("scale", [50.0, 1e3, 1e6])
def test_extreme_logits_are_no_worse_than_the_best_peer(scale: float) -> None:
    logits, labels = random_problem(3, scale, seed=1)
    weights = simplex_weights(logits, labels)
    assert bool(weights.isfinite().all())
    alone = torch.stack([torch.nn.functional.cross_entropy(z, labels, reduction="none") for z in logits])
    assert bool((combined_loss(logits, labels, weights) <= alone.amin(dim=0) * (1 + 1e-12) + 1e-11).all())


def test_equal_peers_share_alike() -> None:
    logits = torch.randn(1, 4, 6).expand(3, -1, -1)
    assert torch.allclose(simplex_weights(logits, torch.tensor([0, 1, 2, 3])), torch.full((3, 4), 1 / 3))


def test_float32_and_autocast_give_the_same_weights() -> None:
    logits, labels = random_problem(3, 2.0, seed=5)
    exact = simplex_weights(logits, labels)
    with torch.autocast("cpu", torch.bfloat16):
        weights = simplex_weights(logits.float(), labels)
    assert weights.dtype == torch.float32 and not weights.requires_grad
    assert float((weights - exact).abs().max()) < 1e-5


def test_shapes_are_checked() -> None:
    with pytest.raises(ShapeError, match=r"give \[M, B, K\] and \[B\]"):
        simplex_weights(torch.zeros(2, 3, 4), torch.zeros(2, dtype=torch.int64))
