from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from coterie.core import ShapeError
from coterie.losses.prototypes import (
    centroid_scores,
    cosine_scores,
    episode_loss,
    euclidean_scores,
    matching_scores,
    query_labels,
    split_episode,
)

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "fewshot.json"
CASES = {case["name"]: case for case in json.loads(GOLDEN.read_text())["cases"]}


def exact(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize("name", CASES)
def test_prototypical_networks_agree_with_their_authors_code(name: str) -> None:
    case, expected = CASES[name], CASES[name]["expected"]
    support, queries = (exact(case["inputs"][key]).requires_grad_() for key in ("support", "query"))
    scores = euclidean_scores(support, queries)
    torch.testing.assert_close(-scores.detach(), exact(expected["distances"]), rtol=1e-8, atol=1e-8)
    loss = episode_loss(scores)
    assert float(loss.detach()) == pytest.approx(expected["loss"], rel=1e-9)
    loss.backward()
    torch.testing.assert_close(support.grad, exact(expected["grad"]["support"]), rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(queries.grad, exact(expected["grad"]["query"]), rtol=1e-6, atol=1e-9)
    ways, count = queries.shape[:2]
    answers = scores.argmax(dim=1)
    assert answers.view(ways, count).tolist() == expected["predicted_class"]
    right = (answers == query_labels(ways, count)).double().mean()
    assert float(right) == pytest.approx(expected["accuracy"])


@pytest.mark.parametrize("name", CASES)
def test_float32_stays_near(name: str) -> None:
    case = CASES[name]
    support, queries = (exact(case["inputs"][key]).float() for key in ("support", "query"))
    assert float(episode_loss(euclidean_scores(support, queries))) == pytest.approx(case["expected"]["loss"], rel=1e-5)


def test_distances_far_from_the_origin_keep_their_digits() -> None:
    support, queries = torch.randn(3, 2, 64), torch.randn(3, 4, 64)
    torch.testing.assert_close(
        euclidean_scores(support + 1000, queries + 1000), euclidean_scores(support, queries), rtol=1e-3, atol=1e-2
    )


def draw() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    return tuple(torch.randn(4, n, 6, dtype=torch.float64, generator=generator) for n in (3, 2))


def slow_cosine(support: Tensor, query: Tensor) -> list[float]:
    return [float(F.cosine_similarity(query, own.mean(dim=0), dim=0)) for own in support]


def slow_centroid(support: Tensor, query: Tensor) -> list[float]:
    unit = query / query.norm()
    means = [torch.stack([image / image.norm() for image in own]).mean(dim=0) for own in support]
    return [-float(((unit - mean) ** 2).sum()) for mean in means]


def slow_matching(support: Tensor, query: Tensor) -> list[float]:
    """Equation 1 and 2 of the paper, one image of the support after the other."""
    weights = [[math.exp(float(F.cosine_similarity(query, x, dim=0)) / 0.5) for x in own] for own in support]
    total = sum(map(sum, weights))
    return [math.log(sum(own) / total) for own in weights]


SLOW = {
    "cosine": (cosine_scores, slow_cosine),
    "centroid": (centroid_scores, slow_centroid),
    "matching": (lambda *pair: matching_scores(*pair, temperature=0.5), slow_matching),
}


@pytest.mark.parametrize("name", SLOW)
def test_scores_are_those_of_a_slow_loop(name: str) -> None:
    fast, slow = SLOW[name]
    support, queries = draw()
    expected = [slow(support, query) for own in queries for query in own]
    torch.testing.assert_close(fast(support, queries), exact(expected))


@pytest.mark.parametrize("score", [euclidean_scores, cosine_scores, centroid_scores, matching_scores])
def test_many_episodes_at_once_are_each_on_its_own(score: Any) -> None:
    support, queries = torch.randn(5, 4, 3, 6), torch.randn(5, 4, 2, 6)
    together = score(support, queries)
    torch.testing.assert_close(together, torch.stack([score(*pair) for pair in zip(support, queries, strict=True)]))
    apart = torch.stack([episode_loss(own) for own in together]).mean()
    torch.testing.assert_close(episode_loss(together), apart)


def test_matching_scores_are_log_probabilities() -> None:
    torch.testing.assert_close(matching_scores(*draw()).exp().sum(dim=1), torch.ones(8, dtype=torch.float64))


def test_an_episode_is_cut_by_class() -> None:
    rows = torch.arange(12.0)[:, None].bfloat16()
    support, queries = split_episode(rows, ways=3, shots=1)
    assert support[..., 0].tolist() == [[0], [4], [8]]
    assert queries[..., 0].tolist() == [[1, 2, 3], [5, 6, 7], [9, 10, 11]]
    assert support.dtype == torch.float32


@pytest.mark.parametrize(("shape", "ways", "shots"), [((11, 4), 3, 1), ((12, 4), 3, 4), ((12,), 3, 1)])
def test_a_batch_that_is_no_episode_is_refused(shape: tuple[int, ...], ways: int, shots: int) -> None:
    with pytest.raises(ShapeError, match="episode"):
        split_episode(torch.zeros(shape), ways, shots)
