from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from coterie.core import ShapeError
from coterie.losses.bank_scores import bank_columns, bank_scores
from coterie.losses.candidates import Candidates

PEERS, SIZE, ROWS, DIM = 3, 4, 30, 5


def example(kind: str) -> tuple[Tensor, Tensor, Tensor, Candidates]:
    torch.manual_seed(0)
    embeddings = torch.randn(PEERS, SIZE, DIM, dtype=torch.float64, requires_grad=True)
    banks = torch.randn(PEERS, ROWS, DIM, dtype=torch.float64)
    positives = torch.randint(ROWS, (SIZE, 2))
    shape = (7,) if kind == "shared" else (SIZE, 7)
    how: Any = {} if kind == "shared" else {"per_sample": kind}
    negatives = torch.randint(ROWS, shape)
    return embeddings, banks, positives, Candidates(positives=positives[:, 0], negatives=negatives, **how)


@pytest.mark.parametrize("kind", ["shared", "gemm", "gather"])
def test_scores_and_gradient_of_slow_loops(kind: str) -> None:
    embeddings, banks, positives, candidates = example(kind)
    scores = bank_scores(embeddings, banks, positives=positives, candidates=candidates, temperature=0.07)
    rows = torch.cat([positives, candidates.negatives.expand(SIZE, -1)], dim=1)
    slow = torch.stack(
        [
            torch.stack([torch.stack([bank[rows[i]] @ own[i] / 0.07 for i in range(SIZE)]) for own in embeddings])
            for bank in banks
        ]
    )
    assert scores.shape == (PEERS, PEERS, SIZE, 9)
    assert torch.allclose(scores, slow, rtol=1e-12)
    weights = torch.randn_like(scores)
    found, wanted = (torch.autograd.grad((weights * value).sum(), embeddings)[0] for value in (scores, slow))
    assert torch.allclose(found, wanted, rtol=1e-12)


def test_half_precision_is_raised() -> None:
    embeddings, banks, positives, candidates = example("shared")
    with torch.autocast("cpu", torch.bfloat16):
        scores = bank_scores(
            embeddings.bfloat16(), banks.float(), positives=positives, candidates=candidates, temperature=1.0
        )
    assert scores.dtype == torch.float32


def test_columns_of_the_two_banks() -> None:
    candidates = Candidates(positives=torch.arange(2), negatives=torch.arange(6).view(2, 3))
    within, across = bank_columns(candidates, 3, self_pair=True)
    assert within.positives.tolist() == [[False, True, True]] * 2 and bool(across.positives.all())
    assert across.hard is None and across.soft is None and within.hard is within.soft is not None
    assert within.hard.tolist() == [[-math.inf, 0, 0, 0, 0, 0]]
    _, excluded = bank_columns(candidates, 3, self_pair=False)
    assert torch.equal(excluded.positives, within.positives) and torch.equal(excluded.hard, within.hard)
    assert excluded.soft is None


def test_shared_negatives_of_the_class_are_left_out_and_made_up_for() -> None:
    same = torch.tensor([[True, False, False, False], [False, False, True, True]])
    candidates = Candidates(positives=torch.arange(2), negatives=torch.arange(4), same_class=same)
    within, across = bank_columns(candidates, 1, self_pair=True)
    third, half = math.log(4 / 3), math.log(2)
    expected = torch.tensor([[-math.inf, third, third, third], [half, half, -math.inf, -math.inf]])
    for weights in (within.hard, across.hard, across.soft):
        assert weights is not None and torch.allclose(weights[:, 1:], expected)
    assert across.hard is not None and torch.equal(across.hard[:, 0], torch.zeros(2))


def test_shapes_that_do_not_fit() -> None:
    embeddings, banks, positives, candidates = example("shared")
    with pytest.raises(ShapeError, match="a bank of its embedding's size"):
        bank_scores(embeddings, banks[:2], positives=positives, candidates=candidates, temperature=1.0)
    with pytest.raises(ShapeError, match=r"give \[B, P\]"):
        bank_scores(embeddings, banks, positives=positives[:, 0], candidates=candidates, temperature=1.0)
