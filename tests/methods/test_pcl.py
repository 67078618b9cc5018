from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from coterie.core import ConfigError
from coterie.losses.logits import kl_logits
from coterie.methods.pcl import PeerCollaboration
from coterie.testing import make_scene
from golden_logits import make_facts, slow_cross_entropy, slow_kl

Config = PeerCollaboration.Config


def moved_scene(**knobs: Any) -> Any:
    """A scene in float64 whose peers are no longer their averages."""
    scene = make_scene("pcl", Config(**knobs))
    scene.cohort.double()
    scene.method.double()
    with torch.no_grad():
        for parameter in scene.cohort.parameters():
            parameter.add_(torch.randn_like(parameter) / 5)
    return scene, scene.cohort(scene.batch.views.double()), scene.batch.with_views(scene.batch.views.double())


def test_loss_equals_loops() -> None:
    scene, peers, batch = moved_scene(temperature=2.0, weight=0.8, ramp_epochs=10)
    batch.epoch.fill_(6)
    method, logits = scene.method, [peer.logits for peer in peers]
    weight, bias = method.classifier.weight.detach(), method.classifier.bias.detach()
    features = [torch.cat([peer.embedding.detach()[b] for peer in peers]) for b in range(batch.size)]
    together = torch.stack([weight @ row + bias for row in features])
    averaged = [peer.logits for peer in method.averages(batch.views)]
    expected = sum(slow_cross_entropy(z, batch.labels) for z in [*logits, together])
    ramp = 0.8 * float(torch.tensor(-5 * (1 - 6 / 10) ** 2, dtype=torch.float64).exp())
    expected += ramp * sum(slow_kl(z, together, 2.0) for z in logits)
    for m, own in enumerate(logits):
        expected += ramp * sum(slow_kl(own, other, 2.0) for j, other in enumerate(averaged) if j != m) / 2
    total = method.losses(peers, batch).total()
    assert float(total.detach()) == pytest.approx(expected, rel=1e-10)
    assert torch.allclose(method.ensemble(peers).detach(), together, rtol=1e-12)


def test_teachers_are_constants() -> None:
    scene, peers, batch = moved_scene()
    terms = {term.name: term.value for term in scene.method.losses(peers, batch)}
    weight, embeddings = scene.method.classifier.weight, [peer.embedding for peer in peers]
    grads = torch.autograd.grad(terms["ensemble"], [weight, *embeddings], retain_graph=True)
    assert all(bool((grad != 0).any()) for grad in grads)
    assert torch.autograd.grad(terms["from_ensemble"], weight, retain_graph=True, allow_unused=True) == (None,)
    assert not any(tensor.requires_grad for tensor in scene.method.averages.state().values())


def test_each_peer_learns_from_its_own_terms_only() -> None:
    scene, peers, batch = moved_scene(ramp_epochs=0)
    logits, together = [peer.logits for peer in peers], scene.method.ensemble(peers).detach()
    averaged = [peer.logits for peer in scene.method.averages(batch.views)]
    gradients = torch.autograd.grad(scene.method.losses(peers, batch).total(), logits, retain_graph=True)
    for m, (own, gradient) in enumerate(zip(logits, gradients, strict=True)):
        alone = F.cross_entropy(own, batch.labels) + kl_logits(own, together, temperature=3.0)
        alone = alone + sum(kl_logits(own, z, temperature=3.0) for j, z in enumerate(averaged) if j != m) / 2
        assert torch.allclose(torch.autograd.grad(alone, own, retain_graph=True)[0], gradient, rtol=1e-10, atol=1e-13)


def test_averages_follow_the_warmed_up_momentum() -> None:
    scene = make_scene("pcl", Config(momentum=0.6))
    optimizer, expected = scene.optimizer(), dict[str, torch.Tensor]()
    for k in range(4):
        scene.train(1, optimizer)
        share = min(k / (k + 1), 0.6)
        for name, tensor in scene.cohort.state_dict().items():
            new = tensor.double()
            expected[name] = share * expected[name] + (1 - share) * new if k else new
    for name, tensor in scene.method.averages.state().items():
        if tensor.is_floating_point():
            assert torch.allclose(tensor.double(), expected[name], atol=1e-6), name


def test_knobs_and_description() -> None:
    method = PeerCollaboration(Config(), make_facts(2, embedding_dims=(5, 8)))
    assert method.requirements().views == "per_peer" and method.requirements().outer_every == 1
    assert PeerCollaboration(Config(views="shared"), make_facts(2)).requirements().views == 1
    assert method.describe() == {
        "ensemble": "linear classifier on 13 features of 2 peers",
        "averages": "of every peer, momentum 0.999",
    }
    for knobs in ({"momentum": 1.0}, {"temperature": 0.0}):
        with pytest.raises(ConfigError, match=f"method.{next(iter(knobs))}"):
            Config(**knobs)
