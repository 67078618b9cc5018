from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from coterie.cohort import Cohort
from coterie.core import ConfigError
from coterie.methods.mcl_moco import MutualMomentumContrast
from coterie.testing import Scene, make_scene

Config = MutualMomentumContrast.Config
CONTRASTS = ("vcl", "icl", "soft_vcl", "soft_icl")


def scene_of(config: Config, *, shared: int = 0) -> tuple[Scene, MutualMomentumContrast]:
    scene = make_scene("mcl_moco", config, shared=shared)
    assert isinstance(scene.method, MutualMomentumContrast)
    return scene, scene.method


def slow_terms(queries: Tensor, keys: Tensor, queue: Tensor, *, tau: float, temperature: float) -> dict[str, Tensor]:
    peers, size = queries.shape[:2]
    pairs = [(a, b) for a in range(peers) for b in range(peers) if a != b]

    def row(a: int, b: int, i: int) -> Tensor:
        return torch.cat([queries[a, i] @ keys[b, i][:, None], queries[a, i] @ queue[b].t()]) / tau

    def hard(a: int, b: int) -> Tensor:
        zero = torch.tensor(0)
        return torch.stack([F.cross_entropy(row(a, b, i), zero) for i in range(size)]).mean()

    def kl(own: tuple[int, int], target: tuple[int, int]) -> Tensor:
        rows = []
        for i in range(size):
            q, p = row(*own, i).div(temperature).softmax(0), row(*target, i).detach().div(temperature).softmax(0)
            rows.append((p * (p / q).log()).sum())
        return temperature**2 * torch.stack(rows).mean()

    return {
        "vcl": torch.stack([hard(a, a) for a in range(peers)]).sum(),
        "icl": torch.stack([hard(a, b) for a, b in pairs]).sum(),
        "soft_vcl": torch.stack([kl((a, a), (b, b)) for a, b in pairs]).sum(),
        "soft_icl": torch.stack([kl((a, b), (b, a)) for a, b in pairs]).sum(),
    }


@pytest.mark.parametrize("shared", [0, 1])
def test_steps_in_the_published_order(shared: int) -> None:
    """Query forward, key update, key forward, loss, enqueue: written out beside the method, for three steps."""
    torch.manual_seed(0)
    config = Config(momentum=0.6, queue_length=11, embedding_dim=5, contrast_temperature=0.2)
    scene, method = scene_of(config, shared=shared)
    scene.cohort.double()
    method.double()
    views = scene.batch.views.double()
    slow_cohort, slow_heads = deepcopy(scene.cohort), deepcopy(method.heads)
    key_cohort, key_heads = deepcopy(slow_cohort), deepcopy(slow_heads)
    queue = list(method.queue.rows.unbind(1))
    parameters = [*slow_cohort.parameters(), *slow_heads.parameters()]
    fast, slow = scene.optimizer(), torch.optim.SGD(parameters, lr=0.05, momentum=0.9)
    for step in range(3):
        scene.batch.views.copy_(views + step)
        batch = views + step
        queries = torch.stack([h(p.embedding) for h, p in zip(slow_heads, slow_cohort(batch[:1]), strict=True)])
        with torch.no_grad():
            followers = [*key_cohort.parameters(), *key_heads.parameters()]
            for key, query in zip(followers, parameters, strict=True):
                key.copy_(0.6 * key + 0.4 * query)
            keys = torch.stack([h(p.embedding) for h, p in zip(key_heads, key_cohort(batch[1:]), strict=True)])
        expected = slow_terms(queries, keys, torch.stack(queue, dim=1), tau=0.2, temperature=3.0)
        total = torch.stack(list(expected.values())).sum()
        slow.zero_grad()
        total.backward()
        slow.step()
        queue = [*queue, *keys.unbind(1)][-11:]
        double = Scene(method=method, cohort=scene.cohort, batch=scene.batch.with_views(batch))
        found = {term.name: term.value for term in double.terms()} if step == 0 else {}
        for name, value in found.items():
            assert name == "task" or torch.allclose(value, expected[name], rtol=1e-10)
        (taken,) = double.train(1, fast)
        assert torch.allclose(taken, total.detach(), rtol=1e-9)
    order = (torch.arange(11) + int(method.queue.oldest)) % 11
    assert torch.allclose(method.queue.rows[:, order], torch.stack(queue, dim=1), rtol=1e-9)
    assert method.copies is not None
    for own, expected_weight in zip(scene.cohort.parameters(), slow_cohort.parameters(), strict=True):
        if expected_weight.grad is not None and expected_weight.grad.any():
            assert torch.allclose(own, expected_weight, rtol=1e-8, atol=1e-12)


def test_peers_see_the_first_view_and_copies_the_second() -> None:
    scene, method = scene_of(Config())
    assert method.copies is not None
    views = scene.batch.views
    other = views.clone()
    other[1] += 1
    alone = [peer.embedding for peer in Cohort.forward(scene.cohort, views[:1])]
    assert all(torch.equal(a.embedding, b) for a, b in zip(scene.cohort(views), alone, strict=True))
    assert all(torch.equal(a.embedding, b) for a, b in zip(scene.cohort(other), alone, strict=True))
    method.losses(scene.cohort(views), scene.batch)
    first = method._keys
    method.losses(scene.cohort(other), scene.batch.with_views(other))
    assert first is not None and method._keys is not None and not torch.allclose(first, method._keys)


def test_labels_do_not_matter_unless_the_task_is_weighted() -> None:
    totals = {}
    for weight in (0.0, 0.5):
        scene, _ = scene_of(Config(task=weight))
        other, _ = scene_of(Config(task=weight))
        other.batch.labels.copy_(other.batch.labels.flip(0))
        totals[weight] = [s.terms().total().detach() for s in (scene, other)]
    assert torch.equal(*totals[0.0]) and not torch.equal(*totals[0.5])


def test_no_gradient_reaches_copies_or_queue_and_classifiers_get_zeros() -> None:
    scene, method = scene_of(Config())
    assert method.copies is not None
    scene.terms().total().backward()
    assert not any(tensor.requires_grad for memory in method.memories.values() for tensor in memory.state().values())
    for net in scene.cohort.nets:
        assert not net.head.weight.grad.any() and net.stem[0].weight.grad.any()
    trained = {id(parameter) for parameter in method.parameters()}
    assert not trained & {id(tensor) for tensor in method.copies._cohort.parameters()}


def test_queries_of_one_peer_are_not_taught_by_those_of_another() -> None:
    torch.manual_seed(1)
    _, method = scene_of(Config(queue_length=9, embedding_dim=4))
    keys = F.normalize(torch.randn(3, 6, 4), dim=-1)
    own, rest = (F.normalize(torch.randn(n, 6, 4), dim=-1) for n in (1, 2))
    grads = []
    for others in (rest, rest.flip(1)):
        query = own.clone().requires_grad_()
        contrast = method.contrast(torch.cat([query, others]), keys)
        grads.append(torch.autograd.grad(contrast.vcl + contrast.icl, query)[0])
    assert torch.equal(*grads)


@pytest.mark.parametrize(("given", "length"), [(None, 24), (7, 7)])
def test_length_of_the_queue(given: int | None, length: int) -> None:
    _, method = scene_of(Config(queue_length=given))
    assert method.queue.rows.shape == (3, length, 128)


def test_two_layer_heads() -> None:
    _, method = scene_of(Config(head="two_layer", embedding_dim=6))
    assert [tuple(p.shape) for p in method.heads[0].parameters()] == [(6, 6), (6,), (6, 6), (6,)]


@pytest.mark.parametrize(
    ("knobs", "words"),
    [
        ({"momentum": 1.5}, "method.momentum=1.5"),
        ({"queue_length": 0}, "method.queue_length=0"),
        ({"contrast_temperature": -0.1}, "method.contrast_temperature=-0.1"),
    ],
)
def test_bad_knobs_are_one_line(knobs: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Config(**knobs)
