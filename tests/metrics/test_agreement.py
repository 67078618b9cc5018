"""Diversity of peers against loops over pairs and against the formulas."""

import itertools

import pytest
import torch
import torch.nn.functional as F

from coterie.core import ShapeError
from coterie.metrics import diversity


def outputs(seed: int = 0) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    torch.manual_seed(seed)
    return [torch.randn(9, 4) for _ in range(3)], [torch.randn(9, d) for d in (5, 6, 7)]


def test_matrices_equal_loops_over_pairs() -> None:
    logits, embeddings = outputs()
    found = diversity(logits, embeddings)
    for i, j in itertools.product(range(3), repeat=2):
        p, q = logits[i].double().softmax(1), logits[j].double().softmax(1)
        assert float(found.agreement[i, j]) == pytest.approx(
            float((p.argmax(1) == q.argmax(1)).double().mean()), abs=1e-12
        )
        assert float(found.divergence[i, j]) == pytest.approx(float((p * (p / q).log()).sum(1).mean()), abs=1e-12)
        x, y = (e.double() - e.double().mean(0) for e in (embeddings[i], embeddings[j]))
        cka = (x.T @ y).norm() ** 2 / ((x.T @ x).norm() * (y.T @ y).norm())
        assert float(found.similarity[i, j]) == pytest.approx(float(cka), abs=1e-12)
    for peer, rows in enumerate(embeddings):
        unit = F.normalize(rows.double(), dim=1)
        assert float(found.spread[peer]) == pytest.approx(float(1 - unit.mean(0).norm() ** 2), abs=1e-12)


def test_alarms_name_peers_that_became_one_and_collapsed_embeddings() -> None:
    logits, embeddings = outputs()
    assert diversity(logits, embeddings).alarms() == []
    same = [logits[0], logits[1], logits[0] + 1e-4]
    flat = [embeddings[0], torch.ones(9, 6) + 1e-3 * embeddings[1], embeddings[2]]
    assert diversity(same, flat).alarms() == ["peers 0 and 2 have become one", "the embedding of peer 1 has collapsed"]


def test_outputs_that_do_not_belong_together_are_refused() -> None:
    logits, embeddings = outputs()
    with pytest.raises(ShapeError, match="3 logits and 2 embeddings"):
        diversity(logits, embeddings[:2])
