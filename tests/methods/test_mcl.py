from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from coterie.core import Batch, ConfigError, Facts, PeerOutput
from coterie.methods.mcl import MutualContrastiveLearning

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "mcl.json").read_text())
CASES = {case["name"]: case for case in GOLDEN["cases"]}
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}
Config = MutualContrastiveLearning.Config
CONTRASTS = ("vcl", "icl", "soft_vcl", "soft_icl")


def assert_close(given: Tensor, expected: object, dtype: torch.dtype = torch.float64) -> None:
    target = torch.as_tensor(expected, dtype=torch.float64)
    bound = TOLERANCE[dtype] * max(1.0, float(target.abs().max()))
    assert float((given.detach().double() - target).abs().max()) <= bound


def make_method(
    config: Config, *, sizes: tuple[int, ...] = (16, 16), leader: int = -1, dtype: torch.dtype = torch.float64
) -> MutualContrastiveLearning:
    peers = len(sizes)
    facts = Facts(
        num_peers=peers,
        leader=leader % peers,
        num_classes=10,
        embedding_dims=sizes,
        labels=torch.arange(40) % 10,
        num_epochs=2,
    )
    return MutualContrastiveLearning(config, facts).to(dtype)


def batch_of(labels: Any) -> Batch:
    labels = torch.as_tensor(labels)
    zero, rows = torch.tensor(0), torch.arange(len(labels))
    return Batch(views=torch.zeros(1, len(labels), 1, 1, 1), labels=labels, indices=rows, epoch=zero, step=zero)


def outputs(embeddings: Any, logits: Any = None) -> list[PeerOutput]:
    scores = [torch.zeros(e.shape[0], 10, dtype=e.dtype) for e in embeddings] if logits is None else logits
    return [PeerOutput(logits=z, embedding=e) for z, e in zip(scores, embeddings, strict=True)]


def terms_of(method: MutualContrastiveLearning, peers: list[PeerOutput], labels: Any) -> dict[str, Any]:
    return {term.name: term for term in method.losses(peers, batch_of(labels))}


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", ["mcl_M2_pairs", "mcl_M3_pairs", "mcl_M3_unequal_classes"])
def test_golden_contrast_with_the_default_weights(name: str, dtype: torch.dtype) -> None:
    case = CASES[name]
    embeddings = [torch.tensor(e, dtype=dtype, requires_grad=True) for e in case["inputs"]["embeddings"]]
    method = make_method(Config(), sizes=(16,) * len(embeddings), dtype=dtype)
    method.heads = nn.ModuleList(nn.Identity() for _ in embeddings)
    terms = terms_of(method, outputs(embeddings), case["inputs"]["labels"])
    for term in CONTRASTS:
        assert_close(terms[term].value, case["expected"][term]["loss"], dtype)
    total = sum(terms[term].weight * terms[term].value for term in CONTRASTS)
    total.backward()
    assert_close(total, case["expected"]["weighted_total"]["loss"], dtype)
    grads = torch.stack([e.grad for e in embeddings if e.grad is not None])
    assert_close(grads, case["expected"]["weighted_total"]["grad"]["embeddings"], dtype)


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_golden_heads(dtype: torch.dtype) -> None:
    case = CASES["mcl_with_two_layer_heads_M2"]
    inputs, expected = case["inputs"], case["expected"]
    method = make_method(Config(embedding_dim=8), sizes=(12, 9), dtype=dtype)
    for head, weights in zip(method.heads, inputs["heads"], strict=True):
        for parameter, values in zip(head.parameters(), weights, strict=True):
            parameter.data = torch.tensor(values, dtype=dtype)
    features = [torch.tensor(f, dtype=dtype, requires_grad=True) for f in inputs["features"]]
    terms = terms_of(method, outputs(features), inputs["labels"])
    total = sum(terms[term].weight * terms[term].value for term in CONTRASTS)
    total.backward()
    assert_close(total, expected["loss"], dtype)
    for term in CONTRASTS:
        assert_close(terms[term].value, expected[term], dtype)
    for feature, grad in zip(features, expected["grad"]["features"], strict=True):
        assert feature.grad is not None
        assert_close(feature.grad, grad, dtype)
    for head, grads in zip(method.heads, expected["grad"]["heads"], strict=True):
        for parameter, grad in zip(head.parameters(), grads, strict=True):
            assert parameter.grad is not None
            assert_close(parameter.grad, grad, dtype)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("peers", [2, 3])
def test_golden_logit_distillation(peers: int, dtype: torch.dtype) -> None:
    case = CASES[f"mcl_objective_with_logit_distillation_M{peers}"]
    inputs, expected = case["inputs"], case["expected"]
    method = make_method(Config(), sizes=(16,) * peers, dtype=dtype)
    logits = [torch.tensor(z, dtype=dtype, requires_grad=True) for z in inputs["logits"]]
    terms = terms_of(method, outputs(torch.randn(peers, 8, 16, dtype=dtype), logits), inputs["labels"])
    total = terms["task"].value + terms["ensemble"].value * terms["ensemble"].weight
    total.backward()
    assert_close(terms["task"].value, expected["loss_cross_entropy_sum"], dtype)
    assert_close(terms["ensemble"].value, expected["loss_logit_kd"], dtype)
    given = dict(zip(("vcl", "soft_vcl", "icl", "soft_icl"), inputs["given_contrastive_losses"], strict=True))
    assert_close(total + sum(terms[term].weight * given[term] for term in given), expected["loss"], dtype)
    assert_close(method.ensemble(outputs(torch.zeros(peers, 8, 16), logits)), expected["ensemble_logits"], dtype)
    assert_close(torch.stack([z.grad for z in logits if z.grad is not None]), expected["grad"]["logits"], dtype)


@pytest.mark.parametrize(
    ("ensemble", "peers", "leader", "taught"),
    [
        ("auto", 2, 0, [0, 1]),
        ("auto", 3, 1, [1]),
        ("leader", 2, 0, [0]),
        ("all", 3, 2, [0, 1, 2]),
        ("off", 3, 2, []),
    ],
)
def test_whom_the_ensemble_teaches(ensemble: Any, peers: int, leader: int, taught: list[int]) -> None:
    torch.manual_seed(0)
    method = make_method(Config(ensemble=ensemble), sizes=(16,) * peers, leader=leader)
    logits = [torch.randn(4, 10, dtype=torch.float64, requires_grad=True) for _ in range(peers)]
    terms = terms_of(method, outputs(torch.randn(peers, 4, 16, dtype=torch.float64), logits), [0, 0, 1, 1])
    assert ("ensemble" in terms) == bool(taught)
    if taught:
        terms["ensemble"].value.backward()
    assert [m for m in range(peers) if logits[m].grad is not None] == taught


def test_soft_targets_are_constants_and_soft_columns_are_not() -> None:
    torch.manual_seed(1)
    method = make_method(Config())
    method.heads = nn.ModuleList(nn.Identity() for _ in range(2))
    embeddings = torch.nn.functional.normalize(torch.randn(2, 4, 16, dtype=torch.float64), dim=-1).requires_grad_()
    contrast = method.contrast(embeddings, torch.tensor([0, 0, 1, 1]))
    (grad,) = torch.autograd.grad(contrast.soft_vcl, embeddings, retain_graph=True)
    swapped = embeddings.detach().flip(0).requires_grad_()
    (mirrored,) = torch.autograd.grad(method.contrast(swapped, torch.tensor([0, 0, 1, 1])).soft_vcl, swapped)
    assert_close(grad, mirrored.flip(0))
    frozen = torch.stack([embeddings[0], embeddings[1].detach()])
    alone = method.contrast(frozen, torch.tensor([0, 0, 1, 1]))
    (own,) = torch.autograd.grad(alone.soft_vcl, embeddings)
    assert_close(own[0], grad[0])
    assert not own[1].any()


def test_samples_per_class_are_asked_of_the_data() -> None:
    assert make_method(Config()).requirements().samples_per_class == 2
    assert make_method(Config(samples_per_class=4)).requirements().samples_per_class == 4
    plain = make_method(Config(samples_per_class=0))
    assert plain.requirements().samples_per_class == 0 and "shuffled" in plain.describe()["contrast"]


@pytest.mark.parametrize(
    ("knobs", "words"),
    [
        ({"samples_per_class": 1}, "method.samples_per_class=1 leaves images without a partner"),
        ({"contrast_temperature": 0.0}, "method.contrast_temperature=0.0"),
        ({"temperature": -1.0}, "method.temperature=-1.0"),
        ({"embedding_dim": 0}, "method.embedding_dim=0"),
    ],
)
def test_bad_knobs_are_one_line(knobs: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        Config(**knobs)
    assert "\n" not in str(caught.value)


def test_one_peer_has_nobody_to_contrast_with() -> None:
    with pytest.raises(ConfigError, match="at least 2 peers"):
        make_method(Config(), sizes=(16,))
