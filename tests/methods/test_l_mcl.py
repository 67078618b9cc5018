"""Layer-wise mutual contrast: a whole golden step with its meta update, what it leaves alone, sizes of its networks."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from coterie.cohort import Cohort
from coterie.core import METHODS, Batch, ConfigError, Facts
from coterie.methods.l_mcl import LayerwiseMutualContrast
from coterie.nets import NETS, StagedNet
from coterie.nets.cost import count_parameters, multiply_adds
from coterie.testing import Scene, check_method, make_scene

GOLDEN = Path(__file__).parents[1] / "golden"
META = {case["name"]: case for case in json.loads((GOLDEN / "l_mcl_meta.json").read_text())["cases"]}
STEPS = [name for name in META if name.startswith("whole")]
NETWORKS = {case["name"]: case for case in json.loads((GOLDEN / "networks.json").read_text())["cases"]}
Config = LayerwiseMutualContrast.Config


def doubles(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def close(ours: Tensor, theirs: Any, tolerance: float = 1e-9) -> bool:
    expected = doubles(theirs)
    return torch.allclose(ours.detach(), expected, rtol=0, atol=tolerance * max(1.0, float(expected.abs().max())))


def facts(cohort: Cohort, labels: Tensor) -> Facts:
    return Facts(
        num_peers=len(cohort),
        leader=cohort.leader,
        num_classes=cohort.num_classes,
        embedding_dims=cohort.embedding_dims,
        labels=labels,
        num_epochs=2,
    )


def tiny(given: dict[str, Any], config: Config) -> Scene:
    """The tiny networks of the golden step: every stage sees the input itself, through a map of its own."""
    nets = [
        StagedNet(
            stem=nn.Identity(),
            stages=[nn.Identity(), nn.Identity()],
            neck=nn.Linear(7, 5, bias=False),
            head=nn.Linear(5, 6, bias=False),
        )
        for _ in range(2)
    ]
    cohort = Cohort(nets, stage_maps=True)
    labels = torch.tensor(given["labels"])
    method = METHODS["l_mcl"](config, facts(cohort, labels))
    assert isinstance(method, LayerwiseMutualContrast)
    method.attach(cohort)
    cohort.double(), method.double()
    heads = [layer for own in given["heads"] for layer in own]
    with torch.no_grad():
        for m, net in enumerate(nets):
            ends = [(method.exits[m][0].body[-1], method.exits[m][0].head), (net.neck, net.head)]
            for k, (stage, classifier) in enumerate(ends):
                stage.weight.copy_(doubles(given["stage_weights"][m][k]))
                classifier.weight.copy_(doubles(given["classifier_weights"][m][k]))
                projection = method.weights.projections[2 * m + k]
                projection.weight.copy_(doubles(given["weight_net_weights"][m][k]))
                projection.bias.copy_(doubles(given["weight_net_biases"][m][k]))
                for parameter, values in zip(method.heads[2 * m + k].parameters(), heads[2 * m + k], strict=True):
                    parameter.copy_(doubles(values))
            for parameter, key in zip(method.gates[m].parameters(), ("w1", "b1", "w2", "b2"), strict=True):
                parameter.copy_(doubles(given["aggregator"][key][m]))
    zero = torch.zeros((), dtype=torch.int64)
    batch = Batch(views=doubles(given["x"])[None], labels=labels, indices=torch.arange(8), epoch=zero, step=zero)
    return Scene(method=method, cohort=cohort, batch=batch)


def stage_weights(scene: Scene) -> Tensor:
    exits = scene.method.exits
    return torch.stack(
        [torch.stack([exits[m][0].body[-1].weight, net.neck.weight]) for m, net in enumerate(scene.cohort.nets)]
    )


@pytest.mark.parametrize("name", STEPS)
@pytest.mark.parametrize("released", [False, True])
def test_golden_training_step_with_meta_update(name: str, released: bool) -> None:
    case, expected = META[name], META[name]["expected"]
    decay = case["hyperparameters"]["weight_decay"]
    config = Config(embedding_dim=6, weight_dim=4, interval=1, released_meta_gradient=released)
    scene = tiny(case["inputs"], config)
    method = scene.method
    learnt = {id(parameter) for parameter in method.outer_parameters()}
    stepped = [p for p in (*scene.cohort.parameters(), *method.parameters()) if id(p) not in learnt]
    optimizer = torch.optim.SGD(stepped, lr=0.1, momentum=0.9, nesterov=True, weight_decay=decay)

    terms = scene.terms()
    values = {term.name: term.value for term in terms}
    for ours, theirs in (("vcl", "vcl"), ("soft_vcl", "soft_vcl"), ("icl", "icl"), ("soft_icl", "soft_icl")):
        assert close(values[ours], expected[theirs])
    assert close(values["mixed_kl"], expected["loss_logit_kd"])
    assert close(values["task"] + values["mixed"], expected["loss_cls"]) and close(terms.total(), expected["loss"])
    terms.total().backward()
    optimizer.step()
    assert close(stage_weights(scene), expected["after_normal_step"]["stage_weights"])

    before = scene.tensors()
    momentum = copy.deepcopy(optimizer.state_dict()["state"])
    method.outer_step(scene.outer(optimizer))
    after = "after_meta_step" if released else "after_meta_step_with_exact_gradient"
    projections = method.weights.projections
    ours = torch.stack([layer.weight for layer in projections]), torch.stack([layer.bias for layer in projections])
    assert close(ours[0].unflatten(0, (2, 2)), expected[after]["weight_net_weights"])
    assert close(ours[1].unflatten(0, (2, 2)), expected[after]["weight_net_biases"])
    slope = "meta_gradient" if released else "meta_gradient_exact"
    state = method.memories["weight_sgd"].state()
    first = doubles(case["inputs"]["weight_net_weights"][0][1]) * decay
    assert close(state["projections.1.weight"] - first, expected[slope]["weight_net_weights"][0][1])
    for key, tensor in scene.tensors().items():
        if "weights.projections" not in key and "weight_sgd" not in key:
            assert torch.equal(tensor, before[key]), key
    for key, buffers in optimizer.state_dict()["state"].items():
        assert torch.equal(buffers["momentum_buffer"], momentum[key]["momentum_buffer"])


@pytest.mark.slow
@pytest.mark.parametrize(
    "knobs", [{"interval": 0}, {"interval": 1}, {"interval": 1, "bank": True, "num_negatives": 12}]
)
def test_contract(knobs: dict[str, Any]) -> None:
    check_method("l_mcl", Config(**knobs))


def test_banks_hold_the_last_embeddings_and_batches_are_shuffled() -> None:
    scene = make_scene("l_mcl", Config(bank=True, num_negatives=12))
    method = scene.method
    assert method.requirements().samples_per_class == 0
    rows = method.memories["bank"].state()["rows"].clone()
    peers = scene.cohort(scene.batch.views)
    method.losses(peers, scene.batch)
    last = torch.stack([method.heads[2 * m + 1](peer.embedding) for m, peer in enumerate(peers)]).detach()
    method.after_step(peers, scene.batch)
    new = method.memories["bank"].state()["rows"]
    indices = scene.batch.indices
    expected = nn.functional.normalize(0.5 * rows[:, indices] + 0.5 * last, dim=-1)
    assert torch.allclose(new[:, indices], expected, atol=1e-6)
    others = [n for n in range(rows.shape[1]) if n not in set(indices.tolist())]
    assert torch.equal(new[:, others], rows[:, others])


def test_the_slip_of_the_published_banks_changes_vcl_only() -> None:
    values = []
    for released in (False, True):
        scene = make_scene("l_mcl", Config(bank=True, num_negatives=12, released_banks=released))
        values.append({term.name: float(term.value.detach()) for term in scene.terms()})
    assert {name for name in values[0] if values[0][name] != values[1][name]} == {"vcl", "soft_vcl"}


def test_an_update_changes_the_weight_network_and_nothing_else() -> None:
    scene = make_scene("l_mcl", Config(interval=1))
    optimizer = scene.optimizer()
    scene.train(2, optimizer)
    before, slopes = scene.tensors(), [None if p.grad is None else p.grad.clone() for p in scene.cohort.parameters()]
    scene.method.outer_step(scene.outer(optimizer))
    moved = {name for name, tensor in scene.tensors().items() if not torch.equal(tensor, before[name])}
    assert moved == {name for name in before if "weights.projections" in name or "weight_sgd" in name}
    for parameter, slope in zip(scene.cohort.parameters(), slopes, strict=True):
        assert parameter.grad is not None and slope is not None and torch.equal(parameter.grad, slope)


def test_losses_do_not_teach_the_weight_network() -> None:
    scene = make_scene("l_mcl")
    scene.terms().total().backward()
    assert all(parameter.grad is None for parameter in scene.method.outer_parameters())
    silent = [name for name, p in scene.method.named_parameters() if p.grad is None]
    assert silent and all(name.startswith("weights.") for name in silent)


def test_weights_drawn_once_stay_without_an_interval() -> None:
    assert make_scene("l_mcl", Config(interval=0)).method.requirements().outer_every == 0
    assert make_scene("l_mcl").method.requirements().outer_every == 50


def test_mixtures_teach_only_the_peers_own_logits() -> None:
    """The targets, from all exits, are constants."""
    scene = make_scene("l_mcl")
    layers = scene.method.layers(scene.cohort(scene.batch.views))
    for said in layers.logits:
        for logits in said:
            logits.retain_grad()
    scene.method.layers = lambda _: layers
    peers = scene.cohort(scene.batch.views)
    linked = [replace(peer, logits=said[-1]) for peer, said in zip(peers, layers.logits, strict=True)]
    terms = {term.name: term.value for term in scene.method.losses(linked, scene.batch)}
    terms["mixed_kl"].backward()
    for said in layers.logits:
        assert [logits.grad is not None and bool(logits.grad.any()) for logits in said] == [False, True]


class WithExits(nn.Module):
    """A cohort and its exits, run as in training, to be counted."""

    def __init__(self, names: list[str], size: int, classes: int, blocks: int) -> None:
        super().__init__()
        nets = [NETS[name](num_classes=classes, image_size=size) for name in names]
        self.cohort = Cohort(nets, stage_maps=True)
        method = METHODS["l_mcl"](Config(blocks=blocks), facts(self.cohort, torch.zeros(1, dtype=torch.int64)))
        assert isinstance(method, LayerwiseMutualContrast)
        method.attach(self.cohort)
        self.exits = method.exits

    def forward(self, views: Tensor) -> list[Tensor]:
        said = []
        for own, peer in zip(self.exits, self.cohort(views), strict=True):
            said += [end(maps)[1] for end, maps in zip(own, peer.stages[1:-1], strict=True)]
        return said


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "names"),
    [
        ("lmcl_resnet32_cifar", ["resnet32"] * 2),
        ("lmcl_resnet110_cifar", ["resnet110_bottleneck"] * 2),
        ("lmcl_wrn_16_2_cifar", ["wrn_16_2"] * 2),
        ("lmcl_ShuffleNetV2_1x_cifar", ["shufflenet_v2_1x"] * 2),
        ("lmcl_hcgnet_A1_cifar", ["hcgnet_a1"] * 2),
        ("lmcl_res32_res110_cifar", ["resnet32", "resnet110_bottleneck"]),
    ],
)
def test_networks_with_exits_have_the_size_of_the_official_ones(case: str, names: list[str]) -> None:
    expected = NETWORKS[f"layerwise2/{case}"]["expected"]
    net = WithExits(names, 32, 100, 0)
    assert count_parameters(net) == expected["parameters"]
    assert sum(buffer.numel() for buffer in net.buffers()) == expected["buffers"]
    assert multiply_adds(net, (1, 3, 32, 32), batch_dim=1) == expected["multiply_adds_per_image"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "parameters", "operations"),
    [("resnet18", 52_632_000, 5_789_188_096), ("resnet34", 72_848_320, 9_488_564_224)],
)
def test_one_block_a_stage_gives_the_exits_of_imagenet(name: str, parameters: int, operations: int) -> None:
    net = WithExits([name] * 2, 224, 1000, 1)
    assert count_parameters(net) == parameters
    assert multiply_adds(net, (1, 3, 224, 224), batch_dim=1) == operations


@pytest.mark.parametrize(
    "knobs", [{"temperature": 0.0}, {"inner_steps": 0}, {"interval": -1}, {"blocks": -1}, {"samples_per_class": 1}]
)
def test_impossible_knobs_are_refused_in_one_line(knobs: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=rf"method\.{next(iter(knobs))}=") as error:
        Config(**knobs)
    assert "\n" not in str(error.value)


def test_peers_without_stages_are_refused() -> None:
    cohort = Cohort([nn.Sequential(nn.Flatten(), nn.Linear(4, 3)) for _ in range(2)])
    method = METHODS["l_mcl"](Config(), facts(cohort, torch.zeros(1, dtype=torch.int64)))
    with pytest.raises(ConfigError, match="peer 0 is a TappedNet without two stages"):
        method.attach(cohort)
