from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from coterie.core import Batch, ConfigError, Facts, PeerOutput
from coterie.losses.logits import kl_logits
from coterie.methods.dml import DeepMutualLearning
from coterie.methods.independent import Independent

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "dml.json").read_text())
CASES = {case["name"]: case for case in GOLDEN["cases"]}
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}
Config = DeepMutualLearning.Config


def assert_close(given: Tensor, expected: object, dtype: torch.dtype = torch.float64) -> None:
    target = torch.as_tensor(expected, dtype=torch.float64)
    bound = TOLERANCE[dtype] * max(1.0, float(target.abs().max()))
    assert float((given.detach().double() - target).abs().max()) <= bound


def make_facts(peers: int) -> Facts:
    labels = torch.arange(20) % 10
    return Facts(
        num_peers=peers, leader=peers - 1, num_classes=10, embedding_dims=(5,) * peers, labels=labels, num_epochs=1
    )


def make_method(peers: int, **knobs: Any) -> DeepMutualLearning:
    return DeepMutualLearning(Config(**knobs), make_facts(peers))


def make_batch(labels: list[int]) -> Batch:
    zero, rows = torch.tensor(0), torch.arange(len(labels))
    views = torch.zeros(1, len(labels), 1, 1, 1)
    return Batch(views=views, labels=torch.tensor(labels), indices=rows, epoch=zero, step=zero)


def outputs(logits: list[Tensor]) -> list[PeerOutput]:
    return [PeerOutput(logits=z, embedding=torch.zeros(z.shape[0], 5)) for z in logits]


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", [name for name in CASES if name.startswith(("dml_paper", "dml_T3"))])
def test_golden(name: str, dtype: torch.dtype) -> None:
    case = CASES[name]
    temperature = case["hyperparameters"]["kl_temperature"]
    method = make_method(len(case["inputs"]["logits"]), temperature=None if temperature == 1 else temperature)
    logits = [torch.tensor(z, dtype=dtype, requires_grad=True) for z in case["inputs"]["logits"]]
    terms = method.losses(outputs(logits), make_batch(case["inputs"]["labels"]))
    terms.total().backward()
    assert_close(terms.total(), case["expected"]["loss"], dtype)
    assert_close(torch.stack([z.grad for z in logits]), case["expected"]["grad"]["logits"], dtype)
    values = {term.name: term.weight * term.value for term in terms}
    if "loss_kl" in case["expected"]:
        assert_close(values["task"], case["expected"]["loss_cross_entropy"], dtype)
        assert_close(values["mutual"], case["expected"]["loss_kl"], dtype)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("target", ["pairwise", "ensemble"])
def test_golden_of_the_okddip_repository(target: str, dtype: torch.dtype) -> None:
    name = "pairwise" if target == "pairwise" else "ensemble_first"
    case = CASES[f"dml_okddip_{name}_not_detached_M3"]
    method = make_method(3, temperature=3.0, target=target, detach=False, target_offset=1e-7)
    logits = [torch.tensor(z, dtype=dtype, requires_grad=True) for z in case["inputs"]["logits"]]
    total = method.losses(outputs(logits), make_batch(case["inputs"]["labels"])).total()
    total.backward()
    assert_close(total, case["expected"]["loss"], dtype)
    assert_close(torch.stack([z.grad for z in logits]), case["expected"]["grad"]["logits"], dtype)


def test_golden_trajectory_of_synchronous_steps() -> None:
    case = CASES["dml_trajectory_synchronous"]
    weights = [torch.tensor(w, dtype=torch.float64, requires_grad=True) for w in case["inputs"]["weights"]]
    images = torch.tensor(case["inputs"]["x"], dtype=torch.float64)
    optimizer = torch.optim.SGD(weights, lr=case["hyperparameters"]["lr"])
    method = make_method(2)
    for expected in case["expected"]["weights_after_each_step"]:
        optimizer.zero_grad()
        logits = [images @ w.t() for w in weights]
        method.losses(outputs(logits), make_batch(case["inputs"]["labels"])).total().backward()
        optimizer.step()
        assert_close(torch.stack(weights), expected)


def test_each_peer_is_pulled_by_the_mean_of_the_others() -> None:
    torch.manual_seed(7)
    logits = [torch.randn(6, 10, dtype=torch.float64) for _ in range(4)]
    batch = make_batch([0, 1, 2, 3, 4, 5])
    pulls = [
        sum(float(kl_logits(own, other, temperature=2.0)) for other in logits if other is not own) for own in logits
    ]
    for average, divisor in ((True, 3), (False, 1)):
        method = make_method(4, preset="mcl-okd", average=average, weight=0.7)
        mutual = next(term for term in method.losses(outputs(logits), batch) if term.name == "mutual")
        assert float(mutual.weight * mutual.value) == pytest.approx(0.7 * sum(pulls) / divisor, rel=1e-12)


@pytest.mark.parametrize(
    ("knobs", "temperature"),
    [({}, 1.0), ({"preset": "mcl-okd"}, 2.0), ({"preset": "mcl-okd", "temperature": 5.0}, 5.0)],
)
def test_temperature_is_the_presets_unless_given(knobs: dict[str, Any], temperature: float) -> None:
    method = make_method(3, **knobs)
    assert method.temperature == temperature
    assert make_method(3, target="ensemble").describe() == {"mutual": "3 KL terms at temperature 1"}
    assert method.describe() == {"mutual": f"6 KL terms at temperature {temperature:g}"}


def test_bad_input_is_refused() -> None:
    with pytest.raises(ConfigError, match="at least 2 peers"):
        make_method(1)
    with pytest.raises(ConfigError, match="above 0"):
        Config(temperature=0.0)


def test_independent_peers_learn_from_labels_only() -> None:
    torch.manual_seed(3)
    logits = [torch.randn(4, 10, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    labels = [3, 1, 4, 1]
    terms = Independent(Independent.Config(), make_facts(3)).losses(outputs(logits), make_batch(labels))
    terms.total().backward()
    rows = torch.arange(4)
    expected = sum(float((torch.logsumexp(z, 1) - z[rows, labels]).mean().detach()) for z in logits)
    assert float(terms.total().detach()) == pytest.approx(expected, rel=1e-12) and [term.name for term in terms] == [
        "task"
    ]
    for z in logits:
        onehot = torch.zeros(4, 10, dtype=torch.float64).index_put_(
            (rows, torch.tensor(labels)), torch.tensor(1.0).double()
        )
        assert_close(z.grad, (z.detach().softmax(1) - onehot) / 4)
