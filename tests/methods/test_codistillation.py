from __future__ import annotations

from typing import Any

import pytest
import torch

from coterie.core import METHODS, ConfigError
from coterie.losses.logits import soft_cross_entropy
from coterie.methods.codistillation import Codistillation
from coterie.testing import Scene, make_scene
from golden_logits import make_batch, make_facts, outputs, random_logits, slow_cross_entropy, slow_kl

Config = Codistillation.Config


def make_method(peers: int = 3, **knobs: Any) -> Codistillation:
    return Codistillation(Config(**knobs), make_facts(peers))


def weight_of_pull(scene: Scene) -> float:
    return float(next(term for term in scene.terms() if term.name == "pull").weight)


@pytest.mark.parametrize("divergence", ["cross_entropy", "kl"])
def test_pull_equals_loops(divergence: str) -> None:
    logits, stale = random_logits(3), [z.detach() for z in random_logits(3, seed=8)]
    expected = 0.0
    for m, own in enumerate(logits):
        others = sum(z.softmax(1) for j, z in enumerate(stale) if j != m) / 2
        if divergence == "kl":
            expected += slow_kl(own, others.log(), 1.0)
        else:
            chances = own.detach().softmax(1)
            rows = zip(chances, others, strict=True)
            expected -= sum(float(q) * float(p.log()) for row, goal in rows for p, q in zip(row, goal, strict=True)) / 6
    pull = make_method(divergence=divergence).pull(logits, stale)
    assert float(pull.detach()) == pytest.approx(expected, rel=1e-10)


def test_both_divergences_have_one_gradient_and_kl_is_0_at_the_target() -> None:
    logits, stale = random_logits(2), [z.detach() for z in random_logits(2, seed=8)]
    first, second = (
        torch.autograd.grad(make_method(2, divergence=kind).pull(logits, stale), logits)
        for kind in ("cross_entropy", "kl")
    )
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert float(make_method(2, divergence="kl").pull(stale[::-1], stale)) == pytest.approx(0, abs=1e-12)


def test_certain_copies_give_finite_losses() -> None:
    stale = [torch.tensor([[500.0, -500.0, 0.0]])] * 2
    for kind in ("cross_entropy", "kl"):
        logits = torch.zeros(1, 3, requires_grad=True)
        pull = make_method(2, divergence=kind).pull([logits, logits], stale)
        pull.backward()
        assert bool(pull.isfinite()) and bool(logits.grad.isfinite().all())


def test_targets_are_the_copies_on_the_same_views_and_no_peer_hears_of_the_live_others() -> None:
    scene = make_scene("codistillation", Config(burn_in=0))
    with torch.no_grad():
        for parameter in scene.cohort.parameters():
            parameter.add_(torch.randn_like(parameter) / 10)
    method = scene.method
    peers = scene.cohort(scene.batch.views)
    logits = [peer.logits for peer in peers]
    terms = {term.name: term.value for term in method.losses(peers, scene.batch)}
    stale = [peer.logits for peer in method.copies(scene.batch.views)]
    assert torch.equal(terms["pull"], method.pull(logits, stale))
    assert not any(torch.allclose(z, s) for z, s in zip(logits, stale, strict=True))
    assert float(terms["task"].detach()) == pytest.approx(
        sum(slow_cross_entropy(z, scene.batch.labels) for z in logits), 1e-5
    )
    for m, own in enumerate(logits):
        others = torch.stack([z.softmax(1) for j, z in enumerate(stale) if j != m]).mean(0)
        alone = torch.autograd.grad(soft_cross_entropy(own, others), own, retain_graph=True)[0]
        together = torch.autograd.grad(terms["pull"], own, retain_graph=True)[0]
        assert torch.allclose(alone, together, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(("unit", "epoch", "step"), [("epochs", 3, 0), ("steps", 0, 3)])
def test_burn_in(unit: str, epoch: int, step: int) -> None:
    scene = make_scene("codistillation", Config(burn_in=3, burn_in_unit=unit, weight=0.7))
    assert weight_of_pull(scene) == 0.0
    scene.batch.epoch.fill_(epoch - (unit == "epochs"))
    scene.batch.step.fill_(step - (unit == "steps"))
    assert weight_of_pull(scene) == 0.0
    scene.batch.epoch.fill_(epoch)
    scene.batch.step.fill_(step)
    assert weight_of_pull(scene) == pytest.approx(0.7)


def test_copies_stay_until_the_interval_is_over() -> None:
    scene = make_scene("codistillation", Config(burn_in=0, interval=2))
    assert scene.method.requirements().outer_every == 2
    optimizer, fresh = scene.optimizer(), {key: t.clone() for key, t in scene.method.memories["copies"].state().items()}
    scene.train(1, optimizer)
    assert all(torch.equal(t, fresh[key]) for key, t in scene.method.memories["copies"].state().items())
    scene.train(1, optimizer)
    live = {name: tensor for name, tensor in scene.cohort.state_dict().items()}
    assert all(torch.equal(t, live[key]) for key, t in scene.method.memories["copies"].state().items())
    scene.train(1, optimizer)
    assert any(not torch.equal(t, live[key]) for key, t in scene.method.memories["copies"].state().items())


def test_knobs() -> None:
    assert make_method().burn_in == 4 and make_method(burn_in=7).burn_in == 7
    assert make_method().describe() == {
        "stale copies": "of every peer, refreshed every 50 steps",
        "burn-in": "4 epochs",
    }
    for knobs in ({"interval": 0}, {"burn_in": -1}, {"burn_in_unit": "steps"}):
        with pytest.raises(ConfigError, match=f"method.{next(iter(knobs))}"):
            Config(**knobs)
    assert METHODS["codistillation"] is Codistillation
    with pytest.raises(AssertionError, match="attached"):
        make_method().losses(outputs(random_logits(3)), make_batch([0] * 6))
