"""CRD through its method: golden calls, what learns and what does not, and what is kept."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import coterie.methods.crd as module
from banked_links import Given, batch_of, facts_of, peers_of, sizes
from coterie.core import METHODS, Batch, ConfigError, Facts, PeerOutput
from coterie.core.combined import CombinedConfig, make_method
from coterie.losses.candidates import Candidates
from coterie.methods.crd import ContrastiveRepresentationDistillation as Crd
from coterie.methods.crd import NoiseContrast
from coterie.testing import CHECKS
from golden_logits import TOLERANCE, assert_close, cases, leaf

GOLDEN = cases("crd")
SIDES = ("student", "teacher")


def make_crd(facts: Facts | None = None, **knobs: Any) -> Crd:
    torch.manual_seed(3)
    return Crd(Crd.Config(**knobs), facts or facts_of())


def link_of(method: Crd, place: int = 0) -> NoiseContrast:
    link = method.links[place]
    assert isinstance(link, NoiseContrast)
    return link


def golden_crd(inputs: dict[str, Any], dtype: torch.dtype) -> Crd:
    method = make_crd(embedding_dim=16, num_negatives=15).to(dtype)
    rows = torch.tensor([inputs["student_bank"], inputs["teacher_bank"]], dtype=dtype)
    method.memories["bank-0-1"].load_state({"rows": rows})
    return method


def use_rows(monkeypatch: pytest.MonkeyPatch, index: list[list[int]]) -> None:
    given = torch.tensor(index)
    rows = Candidates(positives=given[:, 0], negatives=given[:, 1:])
    monkeypatch.setattr(module, "draw_candidates", lambda *_, **__: rows)


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_golden_heads(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    case = GOLDEN["crd_with_linear_heads_two_calls"]
    inputs, method = case["inputs"], golden_crd(case["inputs"], dtype)
    link = link_of(method)
    for side, head in zip(SIDES, link.heads, strict=True):
        head.linear.weight.data = torch.tensor(inputs[f"{side}_weight"], dtype=dtype)
        head.linear.bias.data = torch.tensor(inputs[f"{side}_bias"], dtype=dtype)
    for k, call in enumerate(case["expected"]["calls"]):
        method.zero_grad()
        use_rows(monkeypatch, inputs["contrast_index"][k])
        own, other = (leaf(inputs[f"{side}_features"][k], dtype) for side in SIDES)
        batch, peers = batch_of(torch.tensor(inputs["sample_index"][k]), other, step=k), peers_of(own)
        term = {term.name: term for term in method.losses(peers, batch)}["crd"]
        term.value.backward()
        assert term.weight == 0.8
        assert_close(term.value, call["loss"], dtype)
        assert_close(own.grad, call["grad"]["student_features"], dtype)
        assert other.grad is None
        method.after_step(peers, batch)
        moved = link.bank.rows[:, batch.indices]
        for side, head, rows in zip(SIDES, link.heads, moved, strict=True):
            assert_close(head.linear.weight.grad, call["grad"][f"{side}_weight"], dtype)
            assert_close(head.linear.bias.grad, call["grad"][f"{side}_bias"], dtype)
            assert_close(rows, call[f"{side}_bank_rows_after"], dtype)


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_golden_calls_keep_the_first_constant(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    case = GOLDEN["crd_core_three_calls"]
    inputs, method = case["inputs"], golden_crd(case["inputs"], dtype)
    link = link_of(method)
    link.heads = nn.ModuleList([Given(), Given()])
    for k, call in enumerate(case["expected"]["calls"]):
        use_rows(monkeypatch, inputs["contrast_index"][k])
        for side, head in zip(SIDES, link.heads, strict=True):
            head.says = nn.Parameter(torch.tensor(inputs[side][k], dtype=dtype))
        peers = peers_of(torch.zeros(8, 16, dtype=dtype))
        batch = batch_of(torch.tensor(inputs["sample_index"][k]), torch.zeros(8, 16, dtype=dtype))
        total = method.added_losses(peers, batch).total() / 0.8
        total.backward()
        assert_close(total, call["loss"], dtype)
        method.after_step(peers, batch)
        constants = method.state_dict()["links.0.log_means"].flatten().exp() * 40
        assert_close(constants, [call[f"Z_{side}_anchor"] for side in SIDES], dtype)
        for side, head, rows in zip(SIDES, link.heads, link.bank.rows, strict=True):
            assert_close(head.says.grad, call["grad"][side], dtype)
            assert_close(rows[batch.indices], call[f"{side}_bank_rows_after"], dtype)
    for side, rows in zip(SIDES, link.bank.rows, strict=True):
        assert_close(rows.sum(), case["expected"][f"{side}_bank_sum_end"], dtype)


def scene(method: Crd, *, seed: int = 1, size: int = 6) -> tuple[list[PeerOutput], Batch]:
    """Peers with equal embeddings, and one of each teacher."""
    own = torch.Generator().manual_seed(seed)
    embedding = torch.randn(size, 12, generator=own)
    others = [torch.randn(size, 14, generator=own) for _ in method.facts.teachers]
    batch = batch_of(torch.randperm(40, generator=own)[:size], *others, step=seed)
    return peers_of(*(embedding.clone().requires_grad_() for _ in range(method.facts.num_peers))), batch


def value_of(method: Crd, *, seed: int = 1) -> Tensor:
    peers, batch = scene(method, seed=seed)
    value = next(iter(method.added_losses(peers, batch))).value
    method.after_step(peers, batch)
    return value.detach()


def test_a_leader_in_a_cohort_learns_as_a_peer_alone() -> None:
    alone, cohort, everyone = make_crd(), make_crd(facts_of(3)), make_crd(facts_of(3), students="all")
    assert cohort.pairs == ((2, 3),) and everyone.pairs == ((0, 3), (1, 3), (2, 3))
    for link in everyone.links:
        link.load_state_dict(alone.links[0].state_dict())
    for seed in (1, 2):
        value = value_of(alone, seed=seed)
        assert torch.equal(value_of(cohort, seed=seed), value)
        assert torch.allclose(value_of(everyone, seed=seed), 3 * value)


def test_several_teachers_are_averaged_and_have_banks_of_their_own() -> None:
    method = make_crd(facts_of(teachers=2))
    assert sorted(method.memories) == ["bank-0-1", "bank-0-2", "negatives-0-1", "negatives-0-2"]
    peers, batch = scene(method)
    values = [link(peers[0], teacher, batch) for link, teacher in zip(method.links, batch.teachers, strict=True)]
    assert torch.allclose(method.added_losses(peers, batch).total() / 0.8, torch.stack(values).mean())


def test_gradient_goes_to_the_student_and_both_heads_only() -> None:
    method = make_crd(facts_of(2))
    peers, batch = scene(method)
    other = batch.teachers[0].embedding.requires_grad_()
    method.added_losses(peers, batch).total().backward()
    assert peers[0].embedding.grad is None and other.grad is None
    assert peers[1].embedding.grad is not None and peers[1].embedding.grad.abs().sum() > 0
    names = {name for name, parameter in method.named_parameters() if parameter.grad is not None}
    assert names == {f"links.0.heads.{k}.linear.{part}" for k in (0, 1) for part in ("weight", "bias")}


def test_frozen_constants_differ_from_those_of_each_batch() -> None:
    frozen, batchwise = make_crd(), make_crd(z="batch")
    assert torch.equal(value_of(frozen), value_of(batchwise))
    kept = link_of(frozen).log_means
    assert kept is not None and kept.isfinite().all()
    first = kept.clone()
    assert not torch.equal(value_of(frozen, seed=2), value_of(batchwise, seed=2))
    assert torch.equal(frozen.state_dict()["links.0.log_means"], first)
    assert not any("log_means" in name for name in batchwise.state_dict())


def test_losses_alone_change_no_state() -> None:
    method = make_crd()
    rows = link_of(method).bank.rows.clone()
    peers, batch = scene(method)
    first, again = (method.losses(peers, batch).total() for _ in range(2))
    assert torch.equal(first, again) and torch.equal(link_of(method).bank.rows, rows)
    assert method.state_dict()["links.0.log_means"].isnan().all()


@pytest.mark.parametrize("negatives", ["shared", "per_sample"])
def test_without_labels_no_class_is_looked_at(negatives: str, monkeypatch: pytest.MonkeyPatch) -> None:
    draw, seen = module.draw_candidates, []
    monkeypatch.setattr(module, "draw_candidates", lambda *a, **k: seen.append(draw(*a, **k)) or seen[-1])
    method = make_crd(unlabelled=True, negatives=negatives, num_negatives=39, task=0.0)
    peers, batch = scene(method)
    peers = [replace(peers[0], logits=torch.randn(6, 10))]
    values = [
        method.losses(peers, replace(batch, labels=labels)).total() for labels in (batch.labels, 0 * batch.labels)
    ]
    assert torch.equal(*values)
    drawn, own = seen[0], batch.indices[:, None]
    if negatives == "shared":
        assert torch.equal(drawn.same_class, drawn.negatives == own)
    else:
        assert not (drawn.negatives == own).any() and drawn.negatives.unique().numel() > 35


def test_a_limited_training_set_lowers_the_number_of_negatives() -> None:
    method = make_crd(facts_of(limited=True), num_negatives=16384)
    assert link_of(method).draws.num_negatives == 36
    assert link_of(make_crd()).draws.num_negatives == 36
    assert link_of(make_crd(unlabelled=True)).draws.num_negatives == 39


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: make_crd(num_negatives=37), "from 1 to 36"),
        (lambda: make_crd(facts_of(teachers=0)), "learns from a teacher"),
        (lambda: Crd.Config(contrast_temperature=0.0), "method.contrast_temperature=0.0"),
        (lambda: Crd.Config(bank_momentum=1.0), "method.bank_momentum=1.0"),
        (lambda: Crd.Config(embedding_dim=0), "method.embedding_dim=0"),
        (lambda: Crd.Config(weight=-1.0), "weight=-1.0"),
        (lambda: Crd.Config(unlabelled=True, positives="relax"), "positives=relax"),
    ],
)
def test_bad_input_is_one_line(build: Callable[[], object], words: str) -> None:
    with pytest.raises(ConfigError, match=words) as error:
        build()
    assert "\n" not in str(error.value)


KNOBS: dict[str, dict[str, Any]] = {
    "as published": {"negatives": "per_sample", "positives": "relax", "num_negatives": 7},
    "anchor": {"z": "anchor", "embedding_dim": 5, "students": "all"},
    "unlabelled": {"unlabelled": True, "z": "batch", "task": 0.0, "students": "all"},
}


@pytest.mark.slow
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("case", KNOBS)
def test_every_variant_keeps_the_contract(case: str, check: Any) -> None:
    task = {"task": 1.0} if check.__name__ == "check_layouts" else {}  # without labels no gradient for classifiers
    check("crd", Crd.Config(**KNOBS[case] | task))


def test_with_kd_behind_another_method_and_in_words() -> None:
    facts = replace(facts_of(2, teachers=0), frozen=(0,), peers=(sizes(14), sizes(12)), embedding_dims=(14, 12))
    parts = tuple((name, METHODS[name].Config()) for name in ("crd", "kd"))
    method = make_method("crd+kd", CombinedConfig(parts=parts), facts)
    own, other = torch.randn(6, 12), torch.randn(6, 14)
    terms = [term.name for term in method.losses(peers_of(other, own), batch_of(torch.arange(6)))]
    assert terms == ["task", "crd", "kd"] and sorted(method.memories) == ["crd/bank-1-0", "crd/negatives-1-0"]
    text = make_crd(num_negatives=9).describe()["link 0 <- 1"]
    assert text == "heads 12 -> 128 <- 14, banks 2 x 40 x 128 (0.0 MiB), 9 negatives per anchor, shared; Z frozen"
