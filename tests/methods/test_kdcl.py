from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from coterie.core import ConfigError, DataError
from coterie.losses.logits import kl_logits
from coterie.methods.kdcl import CollaborativeLearning
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

CASES = cases("kdcl")
Config = CollaborativeLearning.Config
TARGETS = ("minlogit", "naive", "linear", "general", "mean")


def make_method(peers: int = 3, **knobs: Any) -> CollaborativeLearning:
    return CollaborativeLearning(Config(**knobs), make_facts(peers))


def method_of(name: str, dtype: torch.dtype) -> CollaborativeLearning:
    case = CASES[name]
    kind = name.split("_")[1]
    per = "batch" if "per_batch" in name else "sample"
    method = make_method(target=kind, per=per, temperature=case["hyperparameters"]["temperature"], ridge=0.0).to(dtype)
    if kind == "general":
        held_out = torch.tensor(case["inputs"]["validation_logits"], dtype=dtype)
        labels = torch.tensor(case["inputs"]["validation_labels"])
        method.after_epoch((list(held_out[:, part]), labels[part]) for part in (slice(0, 15), slice(15, 40)))
    return method


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", CASES)
def test_golden(name: str, dtype: torch.dtype) -> None:
    case = CASES[name]
    expected = case["expected"]
    method = method_of(name, dtype)
    logits = [leaf(z, dtype) for z in case["inputs"]["logits"]]
    batch = make_batch(case["inputs"]["labels"])
    terms = method.losses(outputs(logits), batch)
    terms.total().backward()
    assert_close(method.target([z.detach() for z in logits], batch.labels), expected["target_logits"], dtype)
    assert_close(terms.total(), expected["loss"], dtype)
    values = {term.name: term.value for term in terms}
    assert_close(values["task"], sum(expected["cross_entropy_of_each_network"]), dtype)
    assert_close(values["joint"], sum(expected["kl_of_each_network"]), dtype)
    assert_close(torch.stack([z.grad for z in logits]), expected["grad"]["logits"], dtype)


def test_golden_error_matrix_over_several_batches() -> None:
    expected = CASES["kdcl_general_T1"]["expected"]
    method = method_of("kdcl_general_T1", torch.float64)
    assert_close(method.error_matrix, expected["error_matrix"])
    assert_close(method.mixture, expected["weights"])
    state = method.state_dict()
    assert set(state) == {"error_matrix", "mixture"} and set(make_method().state_dict()) == set()


@pytest.mark.parametrize("target", TARGETS)
def test_loss_equals_loops(target: str) -> None:
    method, logits = make_method(target=target, temperature=3.0, weight=0.6), random_logits(3)
    labels = [1, 1, 2, 9, 0, 4]
    goal = method.target([z.detach() for z in logits], torch.tensor(labels))
    expected = sum(slow_cross_entropy(z, labels) + 0.6 * slow_kl(z, goal, 3.0) for z in logits)
    total = method.losses(outputs(logits), make_batch(labels)).total()
    assert float(total.detach()) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("target", TARGETS)
def test_each_peer_learns_from_its_own_terms_only(target: str) -> None:
    method, logits, batch = make_method(target=target), random_logits(3), make_batch([1, 1, 2, 9, 0, 4])
    goal = method.target([z.detach() for z in logits], batch.labels)
    together = torch.autograd.grad(method.losses(outputs(logits), batch).total(), logits)
    for own, gradient in zip(logits, together, strict=True):
        alone = F.cross_entropy(own, batch.labels) + kl_logits(own, goal, temperature=2.0)
        assert torch.allclose(torch.autograd.grad(alone, own)[0], gradient, rtol=1e-12, atol=1e-15)


def test_general_is_the_mean_before_the_first_epoch() -> None:
    logits, labels = random_logits(3), torch.tensor([1, 1, 2, 9, 0, 4])
    general, mean = (make_method(target=name).double().target(logits, labels) for name in ("general", "mean"))
    assert torch.allclose(general, mean, atol=1e-7)


def test_general_asks_for_held_out_images_and_only_then() -> None:
    for target in TARGETS:
        assert make_method(target=target).requirements().held_out == (target == "general")
    with pytest.raises(DataError, match=r"raise data\.validation"):
        make_method(target="general").after_epoch([])
    make_method(target="naive").after_epoch([])


def test_views_are_a_knob() -> None:
    assert make_method().requirements().views == "per_peer"
    assert make_method(views="shared").requirements() == replace(CollaborativeLearning.needs, views=1)


def test_bad_knobs_and_descriptions() -> None:
    with pytest.raises(ConfigError, match="above 0"):
        Config(temperature=0.0)
    with pytest.raises(ConfigError, match="ridge"):
        Config(ridge=-1.0)
    with pytest.raises(ConfigError, match="at least 2 peers"):
        make_method(1)
    line = make_method(target="linear", per="batch", views="shared").describe()["target"]
    assert line == "linear per batch at temperature 2; each peer sees the same view"
