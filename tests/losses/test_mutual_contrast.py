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
from coterie.losses.mutual_contrast import Columns, MutualContrast, batch_columns, mutual_contrast, scores_of

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "mcl.json").read_text())
CASES = {case["name"]: case for case in GOLDEN["cases"] if "embeddings" in case["inputs"]}
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}
TERMS = ("vcl", "icl", "soft_vcl", "soft_icl")
WEIGHTS = {"vcl": 0.1, "icl": 0.1, "soft_vcl": 1.0, "soft_icl": 1.0}


def assert_close(given: Tensor, expected: object, dtype: torch.dtype = torch.float64) -> None:
    target = torch.as_tensor(expected, dtype=torch.float64)
    bound = TOLERANCE[dtype] * max(1.0, float(target.abs().max()))
    assert float((given.detach().double() - target).abs().max()) <= bound


def in_batch(
    embeddings: Tensor, labels: Tensor, *, tau: float = 0.1, self_pair: bool = False, soft_self: bool = True
) -> MutualContrast:
    within = batch_columns(labels, self_pair=False, soft_self=soft_self)
    across = batch_columns(labels, self_pair=self_pair, soft_self=soft_self)
    return mutual_contrast(scores_of(embeddings, embeddings, temperature=tau), within=within, across=across)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", CASES)
def test_golden_losses_and_gradients(name: str, dtype: torch.dtype) -> None:
    case = CASES[name]
    embeddings = torch.tensor(case["inputs"]["embeddings"], dtype=dtype, requires_grad=True)
    losses = in_batch(embeddings, torch.tensor(case["inputs"]["labels"]))
    values = {term: getattr(losses, term) for term in TERMS}
    values["weighted_total"] = sum(WEIGHTS[term] * values[term] for term in TERMS)
    for term, value in values.items():
        (grad,) = torch.autograd.grad(value, embeddings, retain_graph=True)
        assert_close(value, case["expected"][term]["loss"], dtype)
        assert_close(grad, case["expected"][term]["grad"]["embeddings"], dtype)


def wave(k: int, rows: int, columns: int) -> Tensor:
    n = torch.arange(1, rows * columns + 1, dtype=torch.float64)
    return torch.sin(n * (0.37 * n + 0.7 * k)).view(rows, columns)


def test_values_of_the_flags_known_from_elsewhere() -> None:
    embeddings = torch.stack([F.normalize(wave(m, 8, 8), dim=1) for m in range(2)])
    labels = torch.arange(8) // 2
    published = in_batch(embeddings, labels)
    found = [float(getattr(published, term)) for term in ("vcl", "soft_vcl", "icl", "soft_icl")]
    assert found == pytest.approx([22.090182, 6.167038, 16.459440, 17.871403], rel=1e-6)
    without = in_batch(embeddings, labels, soft_self=False)
    assert [float(without.soft_vcl), float(without.soft_icl)] == pytest.approx([15.529413, 21.523348], rel=1e-6)
    assert float(in_batch(embeddings, labels, self_pair=True).icl) == pytest.approx(11.089230, rel=1e-6)


def slow_hard(scores: list[list[Tensor]], labels: list[int], *, self_pair: bool) -> Tensor:
    rows = []
    for i, row in enumerate(scores):
        allowed = [j for j in range(len(row)) if self_pair or j != i]
        positives = [j for j in allowed if labels[j] == labels[i]]
        if positives:
            norm = torch.stack([row[j] for j in allowed]).exp().sum().log()
            rows.append(-torch.stack([row[j] - norm for j in positives]).sum() / len(positives))
    return torch.stack(rows).sum() / len(rows)


def slow_kl(own: list[list[Tensor]], target: list[list[Tensor]], *, temperature: float, keep_self: bool) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for i, (row, goal) in enumerate(zip(own, target, strict=True)):
        columns = [j for j in range(len(row)) if keep_self or j != i]
        q = torch.softmax(torch.stack([row[j] for j in columns]) / temperature, dim=0)
        p = torch.softmax(torch.stack([goal[j] for j in columns]).detach() / temperature, dim=0)
        total = total + (p * (p.log() - q.log())).sum()
    return temperature**2 * total / len(own)


def slow_losses(embeddings: Tensor, labels: list[int], *, self_pair: bool, soft_self: bool) -> dict[str, Tensor]:
    peers, size = embeddings.shape[:2]

    def block(a: int, b: int) -> list[list[Tensor]]:
        return [[(embeddings[a, i] * embeddings[b, j]).sum() / 0.1 for j in range(size)] for i in range(size)]

    blocks = {(a, b): block(a, b) for a in range(peers) for b in range(peers)}
    pairs = [pair for pair in blocks if pair[0] != pair[1]]
    soft = {"temperature": 3.0, "keep_self": soft_self}
    return {
        "vcl": sum(slow_hard(blocks[a, a], labels, self_pair=False) for a in range(peers)),
        "icl": sum(slow_hard(blocks[pair], labels, self_pair=self_pair) for pair in pairs),
        "soft_vcl": sum(slow_kl(blocks[a, a], blocks[b, b], **soft) for a, b in pairs),
        "soft_icl": sum(slow_kl(blocks[a, b], blocks[b, a], **soft) for a, b in pairs),
    }


@pytest.mark.parametrize("labels", [[0, 1, 0, 1, 1], [3, 1, 3, 0, 3], [2, 2, 2, 2, 2]])
@pytest.mark.parametrize(("self_pair", "soft_self"), [(False, True), (True, True), (False, False), (True, False)])
def test_losses_and_gradients_of_slow_loops(labels: list[int], self_pair: bool, soft_self: bool) -> None:
    torch.manual_seed(3)
    embeddings = F.normalize(torch.randn(3, 5, 4, dtype=torch.float64), dim=-1).requires_grad_()
    fast = in_batch(embeddings, torch.tensor(labels), self_pair=self_pair, soft_self=soft_self)
    for term, expected in slow_losses(embeddings, labels, self_pair=self_pair, soft_self=soft_self).items():
        value = getattr(fast, term)
        found, wanted = (torch.autograd.grad(loss, embeddings, retain_graph=True)[0] for loss in (value, expected))
        assert_close(value, expected.detach())
        assert_close(found, wanted)


@pytest.mark.case(60)
def test_lone_labels_are_left_out_of_the_mean() -> None:
    torch.manual_seed(0)
    embeddings = F.normalize(torch.randn(2, 5, 4, dtype=torch.float64), dim=-1).requires_grad_()
    lone = in_batch(embeddings, torch.arange(5))
    assert float(lone.vcl.detach()) == 0 == float(lone.icl.detach())
    total = lone.vcl + lone.icl + lone.soft_vcl + lone.soft_icl
    total.backward()
    assert embeddings.grad is not None and bool(embeddings.grad.isfinite().all()) and float(lone.soft_icl.detach()) > 0


@pytest.mark.case(60)
@pytest.mark.parametrize("soft_self", [True, False])
@pytest.mark.parametrize("self_pair", [True, False])
def test_a_batch_of_one_image_is_finite(self_pair: bool, soft_self: bool) -> None:
    embeddings = F.normalize(torch.ones(2, 1, 4), dim=-1).requires_grad_()
    losses = in_batch(embeddings, torch.tensor([7]), self_pair=self_pair, soft_self=soft_self)
    total = torch.stack([getattr(losses, term) for term in TERMS]).sum()
    total.backward()
    assert embeddings.grad is not None
    assert float(total.detach()) == 0 and not embeddings.grad.any()


@pytest.mark.case(61)
def test_large_scores_do_not_overflow() -> None:
    orthogonal = F.normalize(torch.eye(4).expand(2, 4, 4), dim=-1)
    losses = in_batch(orthogonal, torch.tensor([0, 0, 1, 1]), tau=1e-3)
    assert bool(losses.vcl.isfinite()) and float(losses.soft_vcl) == 0
    assert float(losses.vcl) == pytest.approx(2 * math.log(3))  # three others, all orthogonal to the anchor
    losses = in_batch(torch.eye(4)[[0, 0, 1, 1]].expand(2, 4, 4), torch.tensor([0, 1, 0, 1]), tau=1e-3)
    assert float(losses.vcl) == pytest.approx(2 * 1000)  # the same image under another label: a score of 1000


def test_weights_count_a_candidate_several_times() -> None:
    torch.manual_seed(1)
    few = torch.randn(2, 2, 3, 4, dtype=torch.float64)
    many = torch.cat([few, few[..., -1:]], dim=-1)
    weights = torch.tensor([[0.0, 0.0, 0.0, math.log(2)]], dtype=torch.float64)
    positives = torch.tensor([[True, False], [False, True], [True, True]])
    weighted = Columns(positives=positives, hard=weights, soft=weights)
    assert_close(*(mutual(few, weighted).vcl, mutual(many, Columns(positives=positives)).vcl))
    softened = [mutual(scores, columns) for scores, columns in ((few, weighted), (many, Columns(positives=positives)))]
    assert_close(softened[0].soft_icl, softened[1].soft_icl)
    assert_close(softened[0].soft_vcl, softened[1].soft_vcl)


def mutual(scores: Tensor, columns: Columns) -> MutualContrast:
    return mutual_contrast(scores, within=columns, across=columns)


def test_half_precision_is_raised_inside_autocast() -> None:
    torch.manual_seed(2)
    embeddings = F.normalize(torch.randn(2, 4, 8), dim=-1)
    labels = torch.tensor([0, 0, 1, 1])
    plain = in_batch(embeddings, labels)
    with torch.autocast("cpu", torch.bfloat16):
        cast = in_batch(embeddings, labels)
    assert torch.equal(plain.soft_icl, cast.soft_icl) and cast.icl.dtype == torch.float32


@pytest.mark.parametrize("shape", [(2, 3, 4, 4), (4, 4), (1, 1, 4, 4)])
def test_scores_that_are_not_blocks_of_pairs(shape: Any) -> None:
    columns = Columns(positives=torch.ones(4, 1, dtype=torch.bool))
    with pytest.raises(ShapeError, match=r"\[M, M, B, C\]"):
        mutual_contrast(torch.zeros(shape), within=columns, across=columns)
