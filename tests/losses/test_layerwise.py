"""Contrast between all layers: golden values, a loop over pairs with the two-peer loss, and banks."""

from __future__ import annotations

import json
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from coterie.core.errors import ShapeError
from coterie.losses.bank_scores import bank_columns
from coterie.losses.candidates import Candidates
from coterie.losses.layerwise import layer_bank_scores, layerwise_bank_contrast, layerwise_contrast
from coterie.losses.mutual_contrast import MutualContrast, batch_columns, mutual_contrast, scores_of

GOLDEN = Path(__file__).parents[1] / "golden"
NAMES = ("vcl", "icl", "soft_vcl", "soft_icl")


def cases(file: str) -> dict[str, dict[str, Any]]:
    return {case["name"]: case for case in json.loads((GOLDEN / file).read_text())["cases"]}


def doubles(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def matrix(vectors: Tensor, layers: list[int]) -> Tensor:
    """`[P, P, B]` from one vector for each pair of layers, ordered by pairs of peers, first and second layer."""
    starts = [sum(layers[:m]) for m in range(len(layers))]
    size = sum(layers)
    weights = [[torch.zeros_like(vectors[0])] * size for _ in range(size)]
    given = iter(vectors)
    for a, b in permutations(range(len(layers)), 2):
        for k in range(layers[a]):
            for j in range(layers[b]):
                weights[starts[a] + k][starts[b] + j] = next(given)
    return torch.stack([torch.stack(row) for row in weights])


def batch_losses(embeddings: Tensor, labels: Tensor, weights: Tensor) -> MutualContrast:
    columns = batch_columns(labels, self_pair=False, soft_self=True)
    scores = scores_of(embeddings, embeddings, temperature=0.1)
    return layerwise_contrast(scores, weights, within=columns, across=columns)


@pytest.mark.parametrize("name", ["l_mcl_M2_stages3", "l_mcl_M3_stages2"])
@pytest.mark.parametrize("loss", NAMES)
def test_golden_values_over_a_batch(name: str, loss: str) -> None:
    case = cases("l_mcl.json")[name]
    embeddings = doubles(case["inputs"]["embeddings"]).requires_grad_()
    vectors = doubles(case["inputs"]["weights"]).requires_grad_()
    layers = [embeddings.shape[1]] * embeddings.shape[0]
    value = getattr(
        batch_losses(embeddings.flatten(0, 1), torch.tensor(case["inputs"]["labels"]), matrix(vectors, layers)), loss
    )
    expected = case["expected"][loss]
    assert value.item() == pytest.approx(expected["loss"], rel=1e-10)
    gradients = torch.autograd.grad(value, (embeddings, vectors))
    for ours, theirs in zip(gradients, (expected["grad"]["embeddings"], expected["grad"]["weights"]), strict=True):
        assert torch.allclose(ours, doubles(theirs), rtol=0, atol=1e-10 * max(1.0, doubles(theirs).abs().max().item()))


@pytest.fixture
def scene() -> tuple[Tensor, Tensor, Tensor, list[int]]:
    draw = torch.Generator().manual_seed(5)
    layers = [3, 1, 2]
    embeddings = torch.nn.functional.normalize(torch.randn(6, 8, 5, generator=draw, dtype=torch.float64), dim=-1)
    labels = torch.tensor([0, 1, 0, 1, 2, 2, 2, 3])
    count = sum(a * b for a, b in permutations(layers, 2))
    return embeddings, labels, torch.rand(count, 8, generator=draw, dtype=torch.float64), layers


def test_unit_weights_give_the_two_peer_loss_of_every_pair(scene: Any) -> None:
    embeddings, labels, vectors, layers = scene
    columns = batch_columns(labels, self_pair=False, soft_self=True)
    weights = matrix(torch.ones_like(vectors), layers)
    ours = batch_losses(embeddings, labels, weights)
    for loss in NAMES:
        pairs = [
            getattr(
                mutual_contrast(
                    scores_of(embeddings[[p, q]], embeddings[[p, q]], temperature=0.1), within=columns, across=columns
                ),
                loss,
            )
            for p in range(6)
            for q in range(6)
            if weights[p, q].any()
        ]
        assert torch.isclose(getattr(ours, loss), torch.stack(pairs).sum(), rtol=1e-10)


def test_a_weight_scales_the_row_of_its_anchor(scene: Any) -> None:
    """The vector i of a pair only moves what image i adds as an anchor: the losses are linear in the weights."""
    embeddings, labels, vectors, layers = scene
    whole = batch_losses(embeddings, labels, matrix(vectors, layers))
    for loss in NAMES:
        parts = []
        for i in range(8):
            alone = torch.zeros_like(vectors)
            alone[:, i] = vectors[:, i]
            parts.append(getattr(batch_losses(embeddings, labels, matrix(alone, layers)), loss))
        assert torch.isclose(torch.stack(parts).sum(), getattr(whole, loss), rtol=1e-10)
        assert len({round(float(part), 9) for part in parts}) > 1


def test_second_derivatives_are_those_of_differences(scene: Any) -> None:
    embeddings, labels, vectors, layers = scene

    def total(points: Tensor, vectors: Tensor) -> Tensor:
        losses = batch_losses(torch.nn.functional.normalize(points, dim=-1), labels, matrix(vectors, layers))
        return losses.vcl + losses.icl  # targets of the soft losses are constants, which differences do not see

    small = embeddings[:, :4, :3].clone().requires_grad_(), vectors[:, :4].clone().requires_grad_()
    labels = labels[:4]
    assert torch.autograd.gradgradcheck(total, small, atol=1e-4)


def test_soft_losses_can_be_differentiated_twice(scene: Any) -> None:
    embeddings, labels, vectors, layers = scene
    points, vectors = embeddings.clone().requires_grad_(), vectors.clone().requires_grad_()
    losses = batch_losses(points, labels, matrix(vectors, layers))
    (slope,) = torch.autograd.grad(losses.soft_vcl + losses.soft_icl, points, create_graph=True)
    (mixed,) = torch.autograd.grad(slope.square().sum(), vectors)
    step = torch.zeros_like(vectors)
    step[4, 2] = 1e-6

    def squared(values: Tensor) -> Tensor:
        moved = batch_losses(points, labels, matrix(values, layers))
        return torch.autograd.grad(moved.soft_vcl + moved.soft_icl, points)[0].square().sum()

    difference = (squared(vectors.detach() + step) - squared(vectors.detach() - step)) / 2e-6
    assert mixed[4, 2].item() == pytest.approx(difference.item(), rel=1e-6)


def bank_losses(
    case: dict[str, Any], call: int, banks: Tensor, *, released: bool
) -> tuple[MutualContrast, list[Tensor]]:
    given = {name: values[call] for name, values in case["inputs"].items() if name != "banks"}
    embeddings, vectors = doubles(given["embeddings"]).requires_grad_(), doubles(given["weights"]).requires_grad_()
    layers = [embeddings.shape[1]] * embeddings.shape[0]
    positives = torch.tensor(given["positive_index"])
    candidates = Candidates(positives=positives[:, 0], negatives=torch.tensor(given["negative_index"]))
    scores = layer_bank_scores(
        embeddings.flatten(0, 1), banks, positives=positives, candidates=candidates, temperature=0.07
    )
    columns = bank_columns(candidates, positives.shape[1], self_pair=True, dtype=torch.float64)
    weights = matrix(vectors, layers)
    losses = layerwise_bank_contrast(scores, weights, layers=layers, columns=columns, released_banks=released)
    return losses, [embeddings, vectors]


@pytest.mark.parametrize("call", [0, 1])
def test_golden_values_over_banks(call: int) -> None:
    case = cases("l_mcl_bank.json")["l_mcl_bank_M2_stages2_two_calls"]
    banks = doubles(case["inputs"]["banks"])
    rows = [case["inputs"]["positive_index"][k] for k in range(2)]
    if call:
        own = torch.tensor(rows[0])[:, 0]
        banks[:, own] = doubles(case["expected"]["calls"][0]["bank_rows_after"])
    losses, leaves = bank_losses(case, call, banks, released=True)
    expected = case["expected"]["calls"][call]
    for loss in NAMES:
        assert getattr(losses, loss).item() == pytest.approx(expected[loss], rel=1e-9)
    factors = {"vcl": 0.1, "icl": 0.1, "soft_vcl": 1.0, "soft_icl": 1.0}
    factors |= {k: v for k, v in case["hyperparameters"].items() if k in NAMES}
    total = torch.stack([factor * getattr(losses, loss) for loss, factor in factors.items()]).sum()
    assert total.item() == pytest.approx(expected["weighted_total"], rel=1e-9)
    for ours, name in zip(torch.autograd.grad(total, leaves), ("embeddings", "weights"), strict=True):
        theirs = doubles(expected["weighted_total_grad"][name])
        assert torch.allclose(ours, theirs, rtol=0, atol=1e-9 * max(1.0, theirs.abs().max().item()))


def test_each_layer_meets_its_own_bank_unless_released(scene: Any) -> None:
    embeddings, _, vectors, layers = scene
    banks = torch.nn.functional.normalize(torch.randn(3, 12, 5, dtype=torch.float64), dim=-1)
    positives = torch.stack([torch.arange(8), torch.arange(8).flip(0)], dim=1)
    candidates = Candidates(positives=positives[:, 0], negatives=torch.tensor([8, 9, 10, 11]))
    scores = layer_bank_scores(embeddings, banks, positives=positives, candidates=candidates, temperature=0.5)
    columns = bank_columns(candidates, 2, self_pair=True, dtype=torch.float64)
    weights = matrix(vectors, layers)
    kept = layerwise_bank_contrast(scores, weights, layers=layers, columns=columns)
    owners = [0, 0, 0, 1, 2, 2]
    vcl = 0.0
    for p in range(6):
        for q in range(6):
            for layer in (p, q):
                own = scores[owners[layer], layer]
                rows = own[:, 1:].logsumexp(dim=1) - own[:, 1]
                vcl += float((weights[p, q] * rows).mean())
    assert float(kept.vcl) == pytest.approx(vcl, rel=1e-10)
    slipped = layerwise_bank_contrast(scores, weights, layers=layers, columns=columns, released_banks=True)
    assert torch.isclose(kept.icl, slipped.icl) and not torch.isclose(kept.vcl, slipped.vcl)


def test_shapes_that_do_not_fit_are_refused() -> None:
    columns = batch_columns(torch.tensor([0, 0]), self_pair=False, soft_self=True)
    with pytest.raises(ShapeError, match=r"must be \[P, P, B, B\] and \[P, P, B\]"):
        layerwise_contrast(torch.zeros(3, 3, 2, 2), torch.zeros(2, 2, 2), within=columns, across=columns)
    with pytest.raises(ShapeError, match="M numbers that add up to P"):
        layerwise_bank_contrast(
            torch.zeros(2, 4, 2, 5), torch.zeros(4, 4, 2), layers=[2, 1], columns=(columns, columns)
        )
