"""Weights of layer pairs and the mixture of exits: golden values and what they promise."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from coterie.losses.logits import summed_cross_entropy, summed_kl
from coterie.nets.layer_heads import ExitGate, LayerWeights

GOLDEN = Path(__file__).parents[1] / "golden" / "l_mcl.json"
CASES = {case["name"]: case for case in json.loads(GOLDEN.read_text())["cases"]}


def doubles(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def close(ours: Tensor, theirs: Any) -> bool:
    expected = doubles(theirs)
    return torch.allclose(ours, expected, rtol=0, atol=1e-10 * max(1.0, float(expected.abs().max())))


def test_golden_weight_network() -> None:
    case = CASES["l_mcl_weight_network"]
    given = case["inputs"]
    features = [doubles(layer) for own in given["features"] for layer in own]
    dims = [[len(layer[0]) for layer in own] for own in given["features"]]
    network = LayerWeights(dims, width=4).double()
    stages = [(m, k) for m in range(2) for k in range(2)]
    flat = [(given["projection_weights"][m][k], given["projection_biases"][m][k]) for m, k in stages]
    with torch.no_grad():
        for layer, (weight, bias) in zip(network.projections, flat, strict=True):
            layer.weight.copy_(doubles(weight))
            layer.bias.copy_(doubles(bias))
    weights = network(features)
    pairs = [(2 * o["network_a"] + o["stage_a"], 2 * o["network_b"] + o["stage_b"]) for o in case["order_of_weights"]]
    ours = torch.stack([weights[p, q] for p, q in pairs])
    assert close(ours, case["expected"]["weights"])
    (ours * doubles(given["coefficients"])).sum().backward()
    slopes = [[layer.weight.grad, layer.bias.grad] for layer in network.projections]
    for k, (m, j) in enumerate(stages):
        assert close(slopes[k][0], case["expected"]["grad"]["projection_weights"][m][j])
        assert close(slopes[k][1], case["expected"]["grad"]["projection_biases"][m][j])


def test_golden_mixture_and_its_losses() -> None:
    case = CASES["l_mcl_aggregator_and_logit_losses"]
    given, expected = case["inputs"], case["expected"]
    labels = torch.tensor(given["labels"])
    logits = doubles(given["logits"]).requires_grad_()
    mixed = []
    for m in range(2):
        features = [doubles(layer) for layer in given["features"][m]]
        gate = ExitGate(features[0].shape[1], 3).double()
        names = {
            "first.weight": "gate_w1",
            "first.bias": "gate_b1",
            "second.weight": "gate_w2",
            "second.bias": "gate_b2",
        }
        gate.load_state_dict({ours: doubles(given[theirs][m]) for ours, theirs in names.items()})
        mixed.append(gate(features, list(logits[m])))
    exits = summed_cross_entropy(list(logits.flatten(0, 1)), labels)
    task = summed_cross_entropy(mixed, labels)
    pulls = summed_kl([last for last in logits[:, -1] for _ in mixed], mixed * 2, temperature=3.0)
    assert close(torch.stack(mixed), expected["aggregated_logits"])
    assert close(exits, expected["loss_cross_entropy_exits"]) and close(pulls, expected["loss_logit_kd"])
    assert close(task, expected["loss_cross_entropy_aggregated"])
    (exits + task + pulls).backward()
    assert logits.grad is not None and close(logits.grad, expected["grad"]["logits"])


def test_weights_are_symmetric_bounded_and_none_within_a_peer() -> None:
    torch.manual_seed(3)
    dims = [[4, 4], [6], [5, 5, 5]]
    owner = [0, 0, 1, 2, 2, 2]
    weights = LayerWeights(dims)([torch.randn(7, dim) for own in dims for dim in own]).detach()
    assert weights.shape == (6, 6, 7)
    assert torch.allclose(weights, weights.transpose(0, 1))
    for p in range(6):
        for q in range(6):
            if owner[p] == owner[q]:
                assert not weights[p, q].any()
            else:
                low, high = (1 / (1 + math.exp(-side)) for side in (-1, 1))
                assert low <= float(weights[p, q].min()) <= float(weights[p, q].max()) <= high
