from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from coterie.core import ConfigError
from coterie.losses.logits import kl_logits, mean_logits
from coterie.methods.okddip import DiversePeers, aggregate
from golden_logits import (
    TOLERANCE,
    assert_close,
    cases,
    leaf,
    make_batch,
    make_facts,
    outputs,
    random_logits,
    slow_cross_entropy,
    slow_kl,
)

CASES = {name: case for name, case in cases("okddip").items() if name.startswith("okddip")}
LABELS = [1, 1, 2, 9, 0, 4]


def make_method(peers: int = 4, *, dim: int = 16, leader: int = -1, **knobs: Any) -> DiversePeers:
    return DiversePeers(DiversePeers.Config(**knobs), make_facts(peers, dim=dim, leader=leader))


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", CASES)
def test_golden(name: str, dtype: torch.dtype) -> None:
    inputs, expected, knobs = (CASES[name][key] for key in ("inputs", "expected", "hyperparameters"))
    peers = knobs["networks"]
    method = make_method(peers, target_offset=1e-7 if "original" in name else 0.0).to(dtype)
    with torch.no_grad():
        method.attention.query.weight.copy_(torch.tensor(inputs["query_weight"], dtype=dtype))
        method.attention.key.weight.copy_(torch.tensor(inputs["key_weight"], dtype=dtype))
    features = [leaf(f, dtype) for f in inputs["features"]]
    weights = [leaf(w, dtype) for w in inputs["classifier_weights"]]
    biases = [torch.tensor(b, dtype=dtype) for b in inputs["classifier_biases"]]
    logits = [f @ w.t() + b for f, w, b in zip(features, weights, biases, strict=True)]
    terms = method.losses(outputs(logits, features), make_batch(inputs["labels"], epoch=knobs["epoch"]))
    attention = method.attention(features[:-1])
    assert_close(attention, expected["attention"], dtype)
    assert_close(torch.stack(aggregate(attention, logits[:-1])), expected["aggregated_targets"], dtype)
    assert_close(
        method.ensemble(outputs(logits, features)), torch.tensor(expected["peer_logits"]).mean(0), torch.float32
    )
    parts = {term.name: term for term in terms}
    assert_close(parts["group"].value, expected["loss_group_kl"], dtype)
    assert_close(torch.as_tensor(parts["group"].weight), expected["ramp_weight"], dtype)
    assert_close(terms.total(), expected["loss"], dtype)
    terms.total().backward()
    gradients = {
        "features": torch.stack([f.grad for f in features]),
        "classifier_weights": torch.stack([w.grad for w in weights]),
        "query_weight": method.attention.query.weight.grad,
        "key_weight": method.attention.key.weight.grad,
    }
    assert gradients.keys() == expected["grad"].keys()
    for key, gradient in gradients.items():
        assert_close(gradient, expected["grad"][key], dtype)


def slow_targets(method: DiversePeers, embeddings: list[Tensor], logits: list[Tensor]) -> list[Tensor]:
    query, key = method.attention.query.weight.detach(), method.attention.key.weight.detach()
    targets = []
    for own in embeddings:
        rows = []
        for b in range(len(own)):
            energy = [float((query @ own[b]) @ (key @ other[b])) for other in embeddings]
            shares = torch.tensor(energy, dtype=torch.float64).softmax(0)
            rows.append(sum(share * z.detach()[b] for share, z in zip(shares, logits, strict=True)))
        targets.append(torch.stack(rows))
    return targets


@pytest.mark.parametrize("leader", [0, 2, 3])
@pytest.mark.parametrize("detach", ["none", "values"])
def test_loss_equals_loops(detach: str, leader: int) -> None:
    torch.manual_seed(2)
    method = make_method(leader=leader, dim=9, temperature=2.0, ramp_epochs=0, weight=0.4, detach=detach).double()
    logits, embeddings = random_logits(4), [torch.randn(6, 9, dtype=torch.float64) for _ in range(4)]
    own = [m for m in range(4) if m != leader]
    targets = slow_targets(method, [embeddings[m] for m in own], [logits[m] for m in own])
    expected = sum(slow_cross_entropy(z, LABELS) for z in logits)
    expected += 0.4 * sum(slow_kl(logits[m], target, 2.0) for m, target in zip(own, targets, strict=True))
    expected += 0.4 * slow_kl(logits[leader], sum(logits[m].detach() for m in own) / 3, 2.0)
    terms = method.losses(outputs(logits, embeddings), make_batch(LABELS))
    assert float(terms.total().detach()) == pytest.approx(expected, rel=1e-10)


def gradient_of(term: str, *, detach: str) -> tuple[list[bool], bool, list[bool]]:
    """Whether a term reaches the logits of each peer, the attention, and the embedding of each peer."""
    method = make_method(detach=detach).double()
    logits, embeddings = random_logits(4), [leaf(torch.randn(6, 16)) for _ in range(4)]
    terms = method.losses(outputs(logits, embeddings), make_batch(LABELS, epoch=80))
    next(part for part in terms if part.name == term).value.backward()

    def reached(tensors: list[Tensor]) -> list[bool]:
        return [tensor.grad is not None and bool((tensor.grad != 0).any()) for tensor in tensors]

    return (
        reached(logits),
        all(reached([method.attention.query.weight, method.attention.key.weight])),
        reached(embeddings),
    )


def test_who_receives_gradient() -> None:
    everyone_but_leader = [True, True, True, False]
    assert gradient_of("group", detach="none") == (everyone_but_leader, True, everyone_but_leader)
    assert gradient_of("group", detach="values") == (everyone_but_leader, True, everyone_but_leader)
    assert gradient_of("leader", detach="none") == ([True] * 4, False, [False] * 4)
    assert gradient_of("leader", detach="values") == ([False, False, False, True], False, [False] * 4)


def test_with_detached_values_each_peer_learns_from_its_own_terms_only() -> None:
    method, logits = make_method(detach="values", ramp_epochs=0).double(), random_logits(4)
    embeddings = [torch.randn(6, 16, dtype=torch.float64) for _ in range(4)]
    own = logits[:-1]
    targets = [*slow_targets(method, embeddings[:-1], own), mean_logits(own).detach()]
    batch = make_batch(LABELS)
    together = torch.autograd.grad(method.losses(outputs(logits, embeddings), batch).total(), logits)
    for scores, target, gradient in zip(logits, targets, together, strict=True):
        alone = F.cross_entropy(scores, batch.labels) + kl_logits(scores, target, temperature=3.0)
        assert torch.allclose(torch.autograd.grad(alone, scores)[0], gradient, rtol=1e-9, atol=1e-12)


def test_ensemble_is_the_auxiliaries_unless_all_are_asked_for() -> None:
    logits = random_logits(4)
    assert torch.equal(make_method(leader=1).ensemble(outputs(logits)), mean_logits([logits[0], logits[2], logits[3]]))
    assert torch.equal(make_method(ensemble="all").ensemble(outputs(logits)), mean_logits(logits))


@pytest.mark.parametrize("leader", [0, 2])
def test_the_leader_may_have_an_embedding_of_its_own(leader: int) -> None:
    dims = tuple(12 if m == leader else 8 for m in range(3))
    method = DiversePeers(DiversePeers.Config(ramp_epochs=0), make_facts(3, leader=leader, embedding_dims=dims))
    assert method.attention.query.in_features == 8
    peers = outputs(random_logits(3), [torch.randn(6, dim) for dim in dims])
    assert method.losses(peers, make_batch(LABELS)).total().isfinite()


def test_bad_input_is_refused_and_description() -> None:
    with pytest.raises(ConfigError, match="at least 3 peers"):
        make_method(2)
    message = r"auxiliary peers with embeddings of one size and got \[4, 8\]; .* for all but peer 0, the leader$"
    with pytest.raises(ConfigError, match=message):
        DiversePeers(DiversePeers.Config(), make_facts(3, leader=0, embedding_dims=(4, 4, 8)))
    with pytest.raises(ConfigError, match="attention_dim"):
        DiversePeers.Config(attention_dim=0)
    with pytest.raises(ConfigError, match="temperature"):
        DiversePeers.Config(temperature=0)
    assert make_method().describe() == {
        "attention": "3 auxiliary peers, queries and keys of size 2",
        "ramp-up": "over 80 epochs",
    }
    assert make_method(ramp_epochs=0, attention_dim=5).describe()["attention"].endswith("size 5")
