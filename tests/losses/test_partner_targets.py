"""The mean of trusted partners and the pull towards it, against loops over images and classes."""

from __future__ import annotations

import math

import pytest
import torch

from coterie.losses.logits import soft_cross_entropy
from coterie.losses.partner_targets import trusted_cross_entropy, trusted_entropy, trusted_mean

LOGITS = [torch.randn(5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(n)) for n in range(3)]
TRUST = [
    torch.tensor(row, dtype=torch.float64) for row in ([1, 0.5, 0, 0.25, 0], [0.5, 1, 0, 0.75, 1], [0, 0.5, 0, 1, 0])
]
OWN = torch.randn(5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(9))


def chances(scores: list[float]) -> list[float]:
    weights = [math.exp(score) for score in scores]
    return [weight / sum(weights) for weight in weights]


def slow() -> tuple[float, float]:
    """(1/B) sum_b a_b H(q_b, p_b) and the same with H(q_b), image by image."""
    pull = entropy = 0.0
    for image in range(5):
        shares = [float(trust[image]) for trust in TRUST]
        if not sum(shares):
            continue
        said = [chances(logits[image].tolist()) for logits in LOGITS]
        own = chances(OWN[image].tolist())
        for k in range(4):
            q = sum(share * row[k] for share, row in zip(shares, said, strict=True)) / sum(shares)
            pull -= max(shares) * q * math.log(own[k]) / 5
            entropy -= max(shares) * q * math.log(q) / 5
    return pull, entropy


def test_pull_and_entropy_against_a_loop() -> None:
    target, trust = trusted_mean(LOGITS, TRUST)
    pull, entropy = slow()
    assert float(trusted_cross_entropy(OWN, target, trust)) == pytest.approx(pull, rel=1e-12)
    assert float(trusted_entropy(target, trust)) == pytest.approx(entropy, rel=1e-12)


def test_full_trust_is_the_mean_of_all_partners() -> None:
    target, trust = trusted_mean(LOGITS, [torch.ones(5)] * 3)
    mean = torch.stack([logits.softmax(dim=1) for logits in LOGITS]).mean(dim=0)
    assert torch.allclose(target, mean) and bool((trust == 1).all())
    expected = soft_cross_entropy(OWN, mean)
    assert float(trusted_cross_entropy(OWN, target, trust)) == pytest.approx(float(expected), rel=1e-12)


def test_nobody_trusted_gives_no_loss_and_no_gradient() -> None:
    own = OWN.clone().requires_grad_()
    target, trust = trusted_mean(LOGITS, [torch.zeros(5)] * 3)
    loss = trusted_cross_entropy(own, target, trust)
    loss.backward()
    assert float(loss.detach()) == 0 and not own.grad.any()


def test_partners_get_no_gradient_and_half_precision_is_raised() -> None:
    said = LOGITS[0].to(torch.bfloat16).requires_grad_()
    target, trust = trusted_mean([said], [torch.ones(5)])
    loss = trusted_cross_entropy(OWN.to(torch.bfloat16).requires_grad_(), target, trust)
    loss.backward()
    assert said.grad is None and loss.dtype == torch.float32
