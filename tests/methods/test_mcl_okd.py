from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from coterie.core import METHODS, Batch, ConfigError, Facts, PeerOutput
from coterie.losses.candidates import Candidates
from coterie.methods.mcl_okd import MultiViewContrast

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "mcl_okd.json").read_text())
CASES = {case["name"]: case for case in GOLDEN["cases"]}
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}
Config = MultiViewContrast.Config


def assert_close(given: Tensor, expected: object, dtype: torch.dtype = torch.float64) -> None:
    target = torch.as_tensor(expected, dtype=torch.float64)
    bound = TOLERANCE[dtype] * max(1.0, float(target.abs().max()))
    assert float((given.detach().double() - target).abs().max()) <= bound


def make_method(
    config: Config, *, peers: int = 3, rows: int = 40, sizes: tuple[int, ...] = (), leader: int = -1
) -> MultiViewContrast:
    facts = Facts(
        num_peers=peers,
        leader=leader % peers,
        num_classes=10,
        embedding_dims=sizes or (16,) * peers,
        labels=torch.arange(rows) % 10,
        num_epochs=2,
        seed=5,
    )
    return MultiViewContrast(config, facts)


def make_batch(indices: Tensor, labels: Tensor | None = None, step: int = 0) -> Batch:
    return Batch(
        views=torch.zeros(1, indices.shape[0], 1, 1, 1),
        labels=indices % 10 if labels is None else labels,
        indices=indices,
        epoch=torch.tensor(0),
        step=torch.tensor(step),
    )


def outputs(embeddings: Any, logits: Any = None) -> list[PeerOutput]:
    scores = [torch.zeros(e.shape[0], 10, dtype=e.dtype) for e in embeddings] if logits is None else logits
    return [PeerOutput(logits=z, embedding=e) for z, e in zip(scores, embeddings, strict=True)]


def use_rows(method: MultiViewContrast, candidates: Candidates) -> None:
    method.candidates = lambda batch: candidates  # type: ignore[method-assign]


def golden_method(case: dict[str, Any], dtype: torch.dtype) -> MultiViewContrast:
    peers, (dim, size) = case["hyperparameters"]["networks"], (16, 12)
    method = make_method(Config(embedding_dim=dim, num_negatives=15), peers=peers, sizes=(size,) * peers).to(dtype)
    method.bank.load_state({"rows": torch.tensor(case["inputs"]["banks"], dtype=dtype)})
    return method


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_golden_heads(dtype: torch.dtype) -> None:
    case = CASES["mcl_okd_with_linear_heads_M3"]
    inputs, expected = case["inputs"], case["expected"]
    method = golden_method(case, dtype)
    for head, weight, bias in zip(method.heads, inputs["weights"], inputs["biases"], strict=True):
        head.linear.weight.data = torch.tensor(weight, dtype=dtype)
        head.linear.bias.data = torch.tensor(bias, dtype=dtype)
    index, own = torch.tensor(inputs["contrast_index"][0]), torch.tensor(inputs["sample_index"][0])
    use_rows(method, Candidates(positives=index[:, 0], negatives=index[:, 1:]))
    features = [torch.tensor(f, dtype=dtype, requires_grad=True) for f in inputs["features"]]
    terms = {term.name: term for term in method.losses(outputs(features), make_batch(own))}
    terms["contrast"].value.backward()
    assert_close(terms["contrast"].value, expected["loss"], dtype)
    assert terms["contrast"].weight == 0.025
    assert_close(torch.stack([f.grad for f in features]), expected["grad"]["features"], dtype)
    assert_close(torch.stack([h.linear.weight.grad for h in method.heads]), expected["grad"]["weights"], dtype)
    assert_close(torch.stack([h.linear.bias.grad for h in method.heads]), expected["grad"]["biases"], dtype)
    method.after_step(outputs(features), make_batch(own))
    assert_close(method.bank.rows[:, own], expected["bank_rows_after"], dtype)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", [name for name in CASES if "_core_" in name])
def test_golden_calls_through_the_method(name: str, dtype: torch.dtype) -> None:
    case = CASES[name]
    method = golden_method(case, dtype)
    method.heads = nn.ModuleList(nn.Identity() for _ in method.heads)
    for k, call in enumerate(case["expected"]["calls"]):
        index = torch.tensor(case["inputs"]["contrast_index"][k])
        batch = make_batch(torch.tensor(case["inputs"]["sample_index"][k]), step=k)
        use_rows(method, Candidates(positives=index[:, 0], negatives=index[:, 1:]))
        given = [torch.tensor(e, dtype=dtype, requires_grad=True) for e in case["inputs"]["embeddings"][k]]
        contrast = next(term for term in method.losses(outputs(given), batch) if term.name == "contrast")
        contrast.value.backward()
        assert_close(contrast.value, call["loss"], dtype)
        assert_close(torch.stack([e.grad for e in given]), call["grad"]["embeddings"], dtype)
        method.after_step(outputs(given), batch)
        assert_close(method.bank.rows[:, batch.indices], call["bank_rows_after"], dtype)
    assert_close(method.bank.rows.sum(dim=(1, 2)), case["expected"]["bank_sums_end"], dtype)


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_golden_logit_part(dtype: torch.dtype) -> None:
    case = CASES["mcl_okd_logit_part_of_the_objective"]
    knobs, expected = case["hyperparameters"], case["expected"]
    config = Config(alpha=knobs["alpha_kl"], beta=knobs["beta_contrast"], temperature=knobs["kl_temperature"])
    method = make_method(config, peers=4).to(dtype)
    logits = [torch.tensor(z, dtype=dtype, requires_grad=True) for z in case["inputs"]["logits"]]
    batch = make_batch(torch.arange(8), torch.tensor(case["inputs"]["labels"]))
    terms = {term.name: term for term in method.losses(outputs(torch.randn(4, 8, 16, dtype=dtype), logits), batch)}
    total = terms["task"].value + terms["leader_kl"].weight * terms["leader_kl"].value
    total.backward()
    assert_close(terms["task"].value, expected["loss_cross_entropy_sum"], dtype)
    assert_close(terms["leader_kl"].value, expected["loss_leader_kl"], dtype)
    given = terms["contrast"].weight * case["inputs"]["given_contrastive_loss"]
    assert_close(total + given, expected["loss"], dtype)
    assert_close(
        method.ensemble(outputs(torch.zeros(4, 8, 16, dtype=dtype), logits)), expected["ensemble_logits"], dtype
    )
    assert_close(torch.stack([z.grad for z in logits]), expected["grad"]["logits"], dtype)


@pytest.mark.parametrize("leader", [0, 2])
def test_leader_kl_teaches_the_leader_only(leader: int) -> None:
    torch.manual_seed(0)
    method = make_method(Config(), leader=leader)
    logits = [torch.randn(4, 10, requires_grad=True) for _ in range(3)]
    terms = {
        term.name: term for term in method.losses(outputs(torch.randn(3, 4, 16), logits), make_batch(torch.arange(4)))
    }
    terms["leader_kl"].value.backward()
    assert [m for m in range(3) if logits[m].grad is not None] == [leader]
    assert {
        peer for pair in make_method(Config(graph="core"), leader=leader).pairs for peer in pair if leader in pair
    } == {0, 1, 2}


def step(method: MultiViewContrast, number: int = 0, *, seed: int = 0) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    batch = make_batch(torch.randperm(40)[:6], step=number)
    peers = outputs(torch.randn(3, 6, 16).requires_grad_())
    terms = {term.name: term.value for term in method.losses(peers, batch)}
    method.after_step(peers, batch)
    return terms


def test_bank_takes_the_embeddings_the_loss_has_used() -> None:
    torch.manual_seed(1)
    method = make_method(Config(bank_momentum=0.0))
    batch = make_batch(torch.tensor([3, 30, 12]))
    peers = outputs(torch.randn(3, 3, 16))
    method.losses(peers, batch)
    used = torch.stack([head(peer.embedding) for head, peer in zip(method.heads, peers, strict=True)]).detach()
    before = method.bank.rows.clone()
    nn.init.zeros_(method.heads[0].linear.weight)  # an optimiser step comes in between
    method.after_step(peers, batch)
    assert torch.allclose(method.bank.rows[:, batch.indices], used, atol=1e-6)
    before[:, batch.indices] = method.bank.rows[:, batch.indices]
    assert torch.equal(method.bank.rows, before)
    method.after_step(peers, batch)
    assert torch.equal(method.bank.rows, before)


def test_evaluating_losses_alone_changes_no_state() -> None:
    method = make_method(Config(z="frozen"))
    rows = method.bank.rows.clone()
    batch = make_batch(torch.arange(4))
    first, again = (method.losses(outputs(torch.ones(3, 4, 16)), batch).total() for _ in range(2))
    assert torch.equal(first, again) and torch.equal(method.bank.rows, rows) and method.log_means.isnan().all()


def test_frozen_constants_are_those_of_the_first_batch_and_are_kept() -> None:
    frozen, batchwise = make_method(Config(z="frozen")), make_method(Config(z="batch"))
    batchwise.heads.load_state_dict(frozen.heads.state_dict())
    assert torch.equal(step(frozen)["contrast"], step(batchwise)["contrast"])
    kept = frozen.log_means.clone()
    assert kept.shape == (6, 1) and kept.isfinite().all()
    assert not torch.equal(step(frozen, 1, seed=1)["contrast"], step(batchwise, 1, seed=1)["contrast"])
    assert torch.equal(frozen.log_means, kept) and torch.equal(frozen.state_dict()["log_means"], kept)
    assert "log_means" not in batchwise.state_dict()


@pytest.mark.parametrize("negatives", ["shared", "per_sample"])
def test_negatives_are_of_other_classes_and_change_with_the_step(negatives: Any) -> None:
    method = make_method(Config(negatives=negatives))
    first, second = (method.candidates(make_batch(torch.arange(6), step=k)) for k in (0, 1))
    labels = method.facts.labels
    same = labels[first.negatives] == labels[:6, None]
    assert torch.equal(same, first.same_class) if negatives == "shared" else not same.any()
    assert torch.equal(first.positives, torch.arange(6))
    assert not torch.equal(first.negatives, second.negatives)
    assert first.num_negatives == 36


def test_relaxed_positives_share_the_class() -> None:
    method = make_method(Config(positives="relax"))
    drawn = torch.stack([method.candidates(make_batch(torch.arange(6), step=k)).positives for k in range(20)])
    assert torch.equal(drawn % 10, torch.arange(6).expand(20, 6)) and drawn.unique(dim=0).shape[0] > 10


@pytest.mark.slow
def test_shared_and_per_sample_negatives_estimate_the_same_loss() -> None:
    torch.manual_seed(4)
    embeddings = F.normalize(torch.randn(3, 6, 16), dim=-1)
    means = []
    for negatives in ("shared", "per_sample"):
        method = make_method(Config(negatives=negatives, num_negatives=30, embedding_dim=16))  # type: ignore[arg-type]
        draws = [method.candidates(make_batch(torch.arange(6), step=k)) for k in range(300)]
        means.append(torch.stack([method.contrast(embeddings, rows).terms for rows in draws]).mean(dim=0))
    assert torch.allclose(*means, rtol=0.02)


def fewer_peers() -> None:
    make_method(Config(), peers=1)


def too_many_negatives() -> None:
    make_method(Config(num_negatives=37))


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (fewer_peers, "at least 2 peers"),
        (too_many_negatives, "from 1 to 36"),
        (lambda: Config(bank_momentum=1.0), "method.bank_momentum=1.0"),
        (lambda: Config(contrast_temperature=0.0), "method.contrast_temperature=0.0"),
        (lambda: Config(embedding_dim=0), "method.embedding_dim=0"),
    ],
)
def test_bad_input_is_one_line(build: Callable[[], object], words: str) -> None:
    with pytest.raises(ConfigError, match=words) as error:
        build()
    assert "\n" not in str(error.value)


def test_description_and_paper() -> None:
    lines = make_method(Config(num_negatives=12, graph="core", z="anchor")).describe()
    assert lines["memory banks"].startswith("3 x 40 x 128") and "MiB" in lines["memory banks"]
    assert lines["negatives"].startswith("12 per anchor") and lines["contrast"].startswith("4 directed pairs")
    paper = METHODS["mcl_okd"].paper
    assert paper is not None and "2006.04093" in paper.cite()
