from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from coterie.core import ConfigError, ShapeError
from coterie.methods.one import NativeEnsemble
from coterie.testing import make_scene
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

CASES = cases("one")


def make_method(peers: int = 3, *, channels: int = 12, **knobs: Any) -> NativeEnsemble:
    facts = make_facts(peers, shared=1, stage_channels=((channels, 2 * channels),) * peers)
    return NativeEnsemble(NativeEnsemble.Config(**knobs), facts)


def golden_method(case: dict[str, Any], dtype: torch.dtype) -> NativeEnsemble:
    inputs, knobs = case["inputs"], case["hyperparameters"]
    original = "ramp_length" in knobs
    method = make_method(
        knobs["branches"],
        temperature=knobs["kl_temperature"],
        ramp_epochs=knobs.get("ramp_length", 0),
        target_offset=1e-7 if original else 0.0,
    ).to(dtype)
    gate = method.gate
    names = {
        "gate_weight": gate.linear.weight,
        "gate_bias": gate.linear.bias,
        "norm_weight": gate.norm.weight,
        "norm_bias": gate.norm.bias,
        "running_mean": gate.norm.running_mean,
        "running_var": gate.norm.running_var,
    }
    with torch.no_grad():
        for name, tensor in names.items():
            tensor.copy_(torch.tensor(inputs[name], dtype=dtype))
    return method


def golden_peers(case: dict[str, Any], dtype: torch.dtype) -> tuple[list[Tensor], Tensor, Any]:
    logits = [leaf(z, dtype) for z in case["inputs"]["logits"]]
    shared = leaf(case["inputs"]["gate_map"], dtype)
    return logits, shared, outputs(logits, stages=(torch.zeros(1), shared))


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", CASES)
def test_golden(name: str, dtype: torch.dtype) -> None:
    case = CASES[name]
    expected = case["expected"]
    method = golden_method(case, dtype)
    logits, shared, peers = golden_peers(case, dtype)
    batch = make_batch(case["inputs"]["labels"], epoch=case["hyperparameters"].get("epoch", 0))
    terms = method.losses(peers, batch)
    assert_close(method.gate.norm.running_mean, expected["running_mean_after"], dtype)
    assert_close(method.gate.norm.running_var, expected["running_var_after"], dtype)
    terms.total().backward()
    values = {term.name: term.weight * term.value for term in terms}
    assert_close(values["task"] + values["ensemble"], expected["loss_cross_entropy"], dtype)
    assert_close(values["distill"], expected.get("loss_kl", expected.get("loss_kl_with_ramp")), dtype)
    assert_close(terms.total(), expected["loss"], dtype)
    gradients = {
        "logits": torch.stack([z.grad for z in logits]),
        "gate_map": shared.grad,
        "gate_weight": method.gate.linear.weight.grad,
        "norm_weight": method.gate.norm.weight.grad,
        "norm_bias": method.gate.norm.bias.grad,
        "gate_bias": method.gate.linear.bias.grad,
    }
    assert gradients.keys() == expected["grad"].keys()
    for key, gradient in gradients.items():
        assert_close(gradient, expected["grad"][key], dtype)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", ["one_M3", "one_M4"])
def test_golden_gate_and_ensemble_in_both_modes(name: str, dtype: torch.dtype) -> None:
    case = CASES[name]
    for mode, expected in (("eval", case["expected"]["eval_mode"]), ("train", case["expected"])):
        method = golden_method(case, dtype).train(mode == "train")
        _, shared, peers = golden_peers(case, dtype)
        assert_close(method.gate(shared), expected["gate_weights"], dtype)
        assert_close(method.ensemble(peers), expected["ensemble_logits"], dtype)


def test_loss_equals_loops() -> None:
    torch.manual_seed(5)
    method = make_method(channels=7, temperature=2.0, weight=0.5, ramp_epochs=10).double()
    logits, labels, shared = random_logits(3), [1, 1, 2, 9, 0, 4], torch.randn(6, 7, 3, 3, dtype=torch.float64)
    pooled = torch.stack([torch.stack([channel.mean() for channel in image]) for image in shared])
    scores = torch.stack([method.gate.linear.weight @ row + method.gate.linear.bias for row in pooled]).detach()
    scores = (scores - scores.mean(0)) / (scores.var(0, unbiased=False) + 1e-5).sqrt()
    gates = scores.clamp(min=0).exp()
    gates = gates / gates.sum(1, keepdim=True)
    mixed = torch.stack([sum(gates[b, m] * logits[m][b] for m in range(3)) for b in range(6)])
    expected = sum(slow_cross_entropy(z, labels) for z in [*logits, mixed])
    ramp = torch.tensor(-5 * (1 - 4 / 10) ** 2, dtype=torch.float64).exp()
    expected += 0.5 * float(ramp) * sum(slow_kl(z, mixed, 2.0) for z in logits)
    terms = method.losses(outputs(logits, stages=(shared[:0], shared)), make_batch(labels, epoch=4))
    assert float(terms.total().detach()) == pytest.approx(expected, rel=1e-10)


def test_the_gate_reads_the_last_shared_map() -> None:
    scene = make_scene("one", shared=2)
    peers = scene.cohort(scene.batch.views)
    assert all(peer.stages[2] is peers[0].stages[2] for peer in peers)
    given: list[Tensor] = []
    scene.method.gate.register_forward_pre_hook(lambda _, inputs: given.append(inputs[0]))
    scene.method.losses(peers, scene.batch)
    assert given[0] is peers[0].stages[2]


def test_bad_input_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"share their first stages, at least 1, and got 0; set cohort\.shared=1"):
        NativeEnsemble(NativeEnsemble.Config(), make_facts(3, stage_channels=((4, 4),) * 3))
    with pytest.raises(ConfigError, match="stage_channels"):
        NativeEnsemble(NativeEnsemble.Config(), make_facts(3, shared=1))
    with pytest.raises(ConfigError, match="above 0"):
        NativeEnsemble.Config(temperature=-1.0)
    with pytest.raises(ShapeError, match=r"raise data\.batch_size"):
        make_method().gate(torch.zeros(1, 12, 2, 2))


def test_description() -> None:
    assert make_method().describe() == {"gate": "3 weights from 12 shared channels", "ramp-up": "over 80 epochs"}
    assert make_method(ramp_epochs=0).describe()["ramp-up"] == "none"
