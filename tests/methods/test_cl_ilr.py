from __future__ import annotations

from typing import Any

import pytest
import torch

from coterie.core import ConfigError
from coterie.losses.logits import mean_of_others
from coterie.methods.cl_ilr import CollaborativeHeads
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

CASES = cases("cl_ilr")


def make_method(peers: int = 3, **knobs: Any) -> CollaborativeHeads:
    return CollaborativeHeads(CollaborativeHeads.Config(**knobs), make_facts(peers))


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", CASES)
def test_golden(name: str, dtype: torch.dtype) -> None:
    case = CASES[name]
    expected, knobs = case["expected"], case["hyperparameters"]
    logits = [leaf(z, dtype) for z in case["inputs"]["logits"]]
    method = make_method(len(logits), temperature=knobs["kl_temperature"], task_share=knobs["cross_entropy_weight"])
    terms = method.losses(outputs(logits), make_batch(case["inputs"]["labels"]))
    terms.total().backward()
    values = {term.name: term.weight * term.value for term in terms}
    assert_close(torch.stack(mean_of_others(logits)), expected["targets"], dtype)
    assert_close(values["task"], expected["loss_cross_entropy"], dtype)
    assert_close(values["collective"], expected["loss_kl"], dtype)
    assert_close(terms.total(), expected["loss"], dtype)
    assert_close(torch.stack([z.grad for z in logits]), expected["grad"]["logits"], dtype)


def test_loss_equals_loops() -> None:
    logits, labels = random_logits(4), [1, 1, 2, 9, 0, 4]
    expected = 0.0
    for m, own in enumerate(logits):
        others = sum(z.detach() for j, z in enumerate(logits) if j != m) / 3
        expected += 0.3 * slow_cross_entropy(own, labels) + 0.7 * slow_kl(own, others, 2.0)
    terms = make_method(4, task_share=0.3).losses(outputs(logits), make_batch(labels))
    assert float(terms.total().detach()) == pytest.approx(expected, rel=1e-10)


def test_gradient_into_shared_stages_is_divided_by_the_branches() -> None:
    scene = make_scene("cl_ilr", shared=1)
    grads = {}
    for rescale in (True, False):
        scene.cohort.rescale = rescale
        scene.cohort.zero_grad()
        scene.terms().total().backward()
        grads[rescale] = {name: p.grad.clone() for name, p in scene.cohort.named_parameters()}
    for name, grad in grads[True].items():
        below = "stem" in name or "stages.0" in name
        assert torch.allclose(grad, grads[False][name] / (3 if below else 1), rtol=1e-4, atol=1e-7), name


def test_bad_knobs_and_description() -> None:
    with pytest.raises(ConfigError, match="from 0 to 1"):
        CollaborativeHeads.Config(task_share=1.5)
    with pytest.raises(ConfigError, match="above 0"):
        CollaborativeHeads.Config(temperature=0.0)
    assert make_method().describe() == {"shares": "0.5 labels, 0.5 mean of the others at temperature 2"}
