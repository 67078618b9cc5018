from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from coterie.losses.joint_targets import error_products, least_error_weights, min_logit_target, naive_target
from golden_logits import assert_close, cases

CASES = cases("kdcl")


def given(name: str, prefix: str = "") -> tuple[Tensor, Tensor]:
    inputs = CASES[name]["inputs"]
    logits = torch.tensor(inputs[f"{prefix}logits"], dtype=torch.float64)
    return logits, torch.tensor(inputs[f"{prefix}labels"])


@pytest.mark.parametrize("per", ["sample", "batch"])
def test_naive_golden(per: str) -> None:
    name = f"kdcl_naive_per_{per}_T1"
    logits, labels = given(name)
    assert_close(naive_target(logits, labels, per=per), CASES[name]["expected"]["target_logits"])


def test_min_logit_golden() -> None:
    logits, labels = given("kdcl_minlogit_T1")
    target = min_logit_target(logits, labels)
    assert_close(target, CASES["kdcl_minlogit_T1"]["expected"]["target_logits"])


def test_general_golden() -> None:
    expected = CASES["kdcl_general_T1"]["expected"]
    logits, labels = given("kdcl_general_T1", "validation_")
    matrix = error_products(list(logits), labels) / 40
    assert_close(matrix, expected["error_matrix"])
    assert_close(least_error_weights(matrix, ridge=0.0), expected["weights"])


@pytest.mark.parametrize("seed", range(5))
def test_min_logit_is_at_most_as_wrong_as_any_peer(seed: int) -> None:
    torch.manual_seed(seed)
    logits, labels = 4 * torch.randn(4, 50, 7, dtype=torch.float64), torch.randint(7, (50,))
    target = min_logit_target(logits, labels)
    losses = torch.stack([F.cross_entropy(z, labels, reduction="none") for z in logits])
    assert bool((F.cross_entropy(target, labels, reduction="none") <= losses.amin(dim=0)).all())
    assert torch.equal(target.gather(1, labels[:, None]), torch.zeros(50, 1, dtype=torch.float64))


def test_targets_equal_loops_over_images() -> None:
    torch.manual_seed(4)
    logits, labels = 3 * torch.randn(3, 9, 5, dtype=torch.float64), torch.randint(5, (9,))
    for b, label in enumerate(labels.tolist()):
        rows = logits[:, b]
        best = min(rows, key=lambda row: float(-row.log_softmax(0)[label]))
        assert torch.equal(naive_target(logits, labels)[b], best)
        lowest = [min(float(row[k] - row[label]) for row in rows) for k in range(5)]
        assert min_logit_target(logits, labels)[b].tolist() == lowest


def test_general_weights_have_the_smallest_squared_error() -> None:
    torch.manual_seed(6)
    logits, labels = list(2 * torch.randn(3, 200, 4, dtype=torch.float64)), torch.randint(4, (200,))
    matrix = error_products(logits, labels) / 200
    weights = least_error_weights(matrix, ridge=0.0)
    errors = torch.stack([z.softmax(1) - F.one_hot(labels, 4) for z in logits])

    def squared(shares: Tensor) -> float:
        return float((shares[:, None, None] * errors).sum(0).square().sum(1).mean())

    assert float(weights.sum()) == pytest.approx(1, abs=1e-12)
    for shift in torch.randn(20, 3, dtype=torch.float64) / 10:
        assert squared(weights) < squared(weights + shift - shift.mean())


def test_equal_peers_need_the_ridge() -> None:
    matrix = torch.full((3, 3), 0.5, dtype=torch.float64)
    assert_close(least_error_weights(matrix), [1 / 3] * 3, torch.float32)
