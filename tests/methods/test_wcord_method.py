"""WCoRD through its method: golden transport, the dual as loops, what learns, and which modules there are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from banked_links import Given, batch_of, facts_of, peers_of, sizes
from coterie.core import METHODS, Batch, ConfigError, Facts, PeerOutput
from coterie.core.combined import CombinedConfig, make_method
from coterie.methods.wcord import Transport
from coterie.methods.wcord import WassersteinContrast as Wcord
from coterie.testing import CHECKS
from golden_logits import TOLERANCE, assert_close, cases

GOLDEN = cases("wcord")
PLANS = [name for name in GOLDEN if name.startswith("sinkhorn") and not name.endswith("0.05")]  # that takes 10,000
CONVERGED = {0.1: 400, 0.5: 100}
GRADIENTS = {"envelope": "grad_plan_held_constant", "unrolled": "grad_through_the_iterations"}


def make_wcord(facts: Facts | None = None, **knobs: Any) -> Wcord:
    torch.manual_seed(3)
    return Wcord(Wcord.Config(**knobs), facts or facts_of())


def link_of(method: Wcord, place: int = 0) -> Transport:
    link = method.links[place]
    assert isinstance(link, Transport)
    return link


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("gradient", GRADIENTS)
@pytest.mark.parametrize("name", PLANS)
def test_golden_transport(name: str, gradient: Any, dtype: torch.dtype) -> None:
    case = GOLDEN[name]
    knobs, expected = case["hyperparameters"], case["expected"]
    iterations = knobs["iterations"] if isinstance(knobs["iterations"], int) else CONVERGED[knobs["eps"]]
    method = make_wcord(global_weight=0, eps=knobs["eps"], iterations=iterations, gradient=gradient).to(dtype)
    heads = Given(), Given()
    link_of(method).heads = nn.ModuleList(heads)
    given = []
    for head, side in zip(heads, ("student", "teacher"), strict=True):
        head.says = nn.Parameter(torch.tensor(case["inputs"][side], dtype=dtype))
        given.append(torch.zeros_like(head.says))
    peers, batch = peers_of(given[0]), batch_of(torch.arange(len(given[0])), given[1])
    terms = {term.name: term for term in method.losses(peers, batch)}
    terms["wcord.local"].value.backward()
    assert list(terms) == ["task", "wcord.local"] and terms["wcord.local"].weight == 0.05
    assert_close(terms["wcord.local"].value, expected["transport_cost"], dtype)
    for head, side in zip(heads, ("student", "teacher"), strict=True):
        assert_close(head.says.grad, expected[GRADIENTS[gradient]][side], dtype)


def scene(method: Wcord, *, seed: int = 1, size: int = 6) -> tuple[list[PeerOutput], Batch]:
    """Peers with equal embeddings, and one of each teacher; two images are of one class."""
    own = torch.Generator().manual_seed(seed)
    embedding = torch.randn(size, 12, generator=own)
    others = [torch.randn(size, 14, generator=own) for _ in method.facts.teachers]
    indices = torch.tensor([3, 13, 5, 27, 18, 31])[:size]
    batch = batch_of(indices, *others, step=seed)
    return peers_of(*(embedding.clone().requires_grad_() for _ in range(method.facts.num_peers))), batch


def values_of(method: Wcord, *, seed: int = 1) -> dict[str, Tensor]:
    peers, batch = scene(method, seed=seed)
    values = {term.name: term.value.detach() for term in method.added_losses(peers, batch)}
    method.after_step(peers, batch)
    return values


def test_terms_and_modules_are_those_that_have_a_weight() -> None:
    both = make_wcord()
    assert {term.name: term.weight for term in both.losses(*scene(both))} == {
        "task": 1.0,
        "wcord.global": 0.8,
        "wcord.local": 0.05,
    }
    assert list(values_of(make_wcord(local_weight=0))) == ["wcord.global"]
    local = make_wcord(global_weight=0, weight=2.0)
    assert [(term.name, term.weight) for term in local.added_losses(*scene(local))] == [("wcord.local", 0.1)]
    assert local.memories == {} and not any("critic" in name for name, _ in local.named_parameters())
    in_batch = make_wcord(negatives="batch")
    assert in_batch.memories == {} and any("critic" in name for name, _ in in_batch.named_parameters())
    penalty = make_wcord(critic="penalty", penalty_weight=5.0)
    weights = {term.name: term.weight for term in penalty.added_losses(*scene(penalty))}
    assert weights == {"wcord.global": 0.8, "wcord.penalty": 4.0, "wcord.local": 0.05}
    assert list(values_of(make_wcord(critic="penalty", penalty_weight=0.0)))[1] == "wcord.penalty"


def test_each_part_alone_is_the_part_of_both() -> None:
    both, alone = make_wcord(), make_wcord(local_weight=0)
    assert torch.equal(values_of(alone)["wcord.global"], values_of(both)["wcord.global"])
    local = make_wcord(global_weight=0)
    assert torch.equal(values_of(local)["wcord.local"], values_of(both)["wcord.local"])


@pytest.mark.parametrize("unlabelled", [False, True])
@pytest.mark.parametrize("neg_weight", ["mean", "count"])
@pytest.mark.parametrize("negatives", ["bank_shared", "bank_per_sample", "batch"])
def test_the_global_term_equals_loops(negatives: Any, neg_weight: Any, unlabelled: bool) -> None:
    knobs = {"negatives": negatives, "neg_weight": neg_weight, "unlabelled": unlabelled}
    method = make_wcord(**knobs, embedding_dim=8, num_negatives=11).double()
    link, (peers, batch) = link_of(method), scene(method)
    peers = peers_of(peers[0].embedding.double())
    batch = batch_of(batch.indices, batch.teachers[0].embedding.double(), step=1)
    value = method.added_losses(peers, batch)
    own, other = link.heads[0](peers[0].embedding), link.heads[1](batch.teachers[0].embedding)
    critic = link.critic
    assert critic is not None
    classes = batch.indices if unlabelled else batch.labels
    every = torch.arange(40) if unlabelled else method.facts.labels
    against, towards = [], []
    for i in range(6):
        if negatives == "batch":
            students, teachers = own, other
            rows = [j for j in range(6) if j != i and (unlabelled or classes[j] != classes[i])]
        else:
            assert link.bank is not None and link.draws is not None
            students, teachers = link.bank.rows
            if negatives == "bank_shared":
                drawn = link.draws.shared(classes, batch.step)[0].tolist()
                rows = [j for j in drawn if every[j] != classes[i]]
            else:
                rows = link.draws.per_sample(classes, batch.indices, batch.step)[i].tolist()
                assert all(every[j] != classes[i] for j in rows)
        against.append(torch.stack([critic(other[i], students[j]) for j in rows]).mean())
        towards.append(torch.stack([critic(teachers[j], own[i]) for j in rows]).mean())
    count = 5 if negatives == "batch" else link_negatives(link)
    factor = count if neg_weight == "count" else 1
    matched = critic(other, own).mean()
    expected = factor * (torch.stack(against).mean() + torch.stack(towards).mean()) - 2 * matched
    assert_close(next(iter(value)).value, expected.item())


def link_negatives(link: Transport) -> int:
    assert link.draws is not None
    return link.draws.num_negatives


def test_gradient_goes_to_student_heads_and_critic_only() -> None:
    for knobs in ({}, {"critic": "penalty"}, {"negatives": "batch", "local_weight": 0}):
        method = make_wcord(facts_of(2), **knobs)
        peers, batch = scene(method)
        other = batch.teachers[0].embedding.requires_grad_()
        method.added_losses(peers, batch).total().backward()
        assert peers[0].embedding.grad is None and other.grad is None
        assert peers[1].embedding.grad is not None and peers[1].embedding.grad.abs().sum() > 0
        for name, parameter in method.named_parameters():
            assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_a_penalty_alone_reaches_the_critic_only_and_depends_on_the_step_only() -> None:
    method = make_wcord(critic="penalty")
    peers, batch = scene(method)
    penalty = {term.name: term.value for term in method.added_losses(peers, batch)}["wcord.penalty"]
    torch.manual_seed(99)
    again = {term.name: term.value for term in method.added_losses(peers, batch)}["wcord.penalty"]
    later = replace(batch, step=batch.step + 1)
    other = {term.name: term.value for term in method.added_losses(peers, later)}["wcord.penalty"]
    assert torch.equal(penalty, again) and not torch.equal(penalty, other)
    penalty.backward()
    grads = {name.split(".")[2]: parameter.grad for name, parameter in method.named_parameters()}
    reached = {name for name, grad in grads.items() if grad is not None and grad.any()}
    assert reached == {"critic"} and not peers[0].embedding.grad.any()


def test_the_critic_raises_the_difference_and_stays_flat() -> None:
    method = make_wcord(local_weight=0)
    critic = link_of(method).critic
    assert critic is not None
    optimizer = torch.optim.SGD(critic.parameters(), lr=0.5)
    first = last = torch.tensor(0.0)
    for step in range(30):
        peers, batch = scene(method)
        loss = next(iter(method.added_losses(peers, batch))).value
        first, last = (loss.detach() if step == 0 else first), loss.detach()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert last < first
    x, y = torch.randn(2, 10000, 256).double()
    critic.double()
    rises = (critic(*x.chunk(2, dim=-1)) - critic(*y.chunk(2, dim=-1))).abs()
    assert bool((rises <= (x - y).norm(dim=-1)).all())


def test_a_leader_in_a_cohort_learns_as_a_peer_alone() -> None:
    alone, cohort, everyone = make_wcord(), make_wcord(facts_of(3)), make_wcord(facts_of(3), students="all")
    for link in everyone.links:
        link.load_state_dict(alone.links[0].state_dict())
    for seed in (1, 2):
        values = values_of(alone, seed=seed)
        assert values_of(cohort, seed=seed) == values
        for name, value in values_of(everyone, seed=seed).items():
            assert torch.allclose(value, 3 * values[name])


def test_without_labels_no_class_is_looked_at() -> None:
    for negatives in ("bank_shared", "bank_per_sample", "batch"):
        method = make_wcord(unlabelled=True, negatives=negatives, task=0.0)
        peers, batch = scene(method)
        peers = [replace(peers[0], logits=torch.randn(6, 10))]
        labels = batch.labels, 0 * batch.labels
        values = [method.losses(peers, replace(batch, labels=own)).total() for own in labels]
        assert torch.equal(*values)


def test_banks_follow_the_embeddings_and_a_limited_set_lowers_the_negatives() -> None:
    method = make_wcord(facts_of(limited=True), num_negatives=1024, bank_momentum=0.0)
    link, (peers, batch) = link_of(method), scene(method)
    assert link.bank is not None and link_negatives(link) == 36
    used = torch.stack([link.heads[0](peers[0].embedding), link.heads[1](batch.teachers[0].embedding)]).detach()
    method.added_losses(peers, batch)
    method.after_step(peers, batch)
    assert torch.allclose(link.bank.rows[:, batch.indices], used, atol=1e-6)


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: make_wcord(num_negatives=37), "from 1 to 36"),
        (lambda: make_wcord(facts_of(teachers=0)), "learns from a teacher"),
        (lambda: Wcord.Config(global_weight=0, local_weight=0), "not 0 to both"),
        (lambda: Wcord.Config(local_weight=-1.0), "local_weight=-1.0"),
        (lambda: Wcord.Config(penalty_weight=-1.0), "penalty_weight=-1.0"),
        (lambda: Wcord.Config(eps=0.0), "eps=0.0"),
        (lambda: Wcord.Config(iterations=0), "iterations=0"),
    ],
)
def test_bad_input_is_one_line(build: Callable[[], object], words: str) -> None:
    with pytest.raises(ConfigError, match=words) as error:
        build()
    assert "\n" not in str(error.value)


KNOBS: dict[str, dict[str, Any]] = {
    "local alone, unrolled": {"global_weight": 0.0, "gradient": "unrolled", "iterations": 5},
    "global alone in the batch": {"local_weight": 0.0, "negatives": "batch", "neg_weight": "count"},
    "penalty, per sample": {"negatives": "bank_per_sample", "critic": "penalty", "num_negatives": 7, "students": "all"},
    "unlabelled": {"unlabelled": True, "students": "all", "embedding_dim": 5},
}


@pytest.mark.slow
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("case", KNOBS)
def test_every_variant_keeps_the_contract(case: str, check: Any) -> None:
    check("wcord", Wcord.Config(**KNOBS[case]))


def test_with_kd_and_in_words() -> None:
    facts = replace(facts_of(2, teachers=0), frozen=(0,), peers=(sizes(14), sizes(12)), embedding_dims=(14, 12))
    parts = tuple((name, METHODS[name].Config()) for name in ("wcord", "kd"))
    method = make_method("wcord+kd", CombinedConfig(parts=parts), facts)
    own, other = torch.randn(6, 12), torch.randn(6, 14)
    terms = [term.name for term in method.losses(peers_of(other, own), batch_of(torch.arange(6)))]
    assert terms == ["task", "wcord.global", "wcord.local", "kd"]
    assert sorted(method.memories) == ["wcord/bank-1-0", "wcord/negatives-1-0"]
    assert make_wcord(num_negatives=9).describe()["link 0 <- 1"] == (
        "heads 12 -> 128 <- 14, banks 2 x 40 x 128 (0.0 MiB), 9 negatives per anchor;"
        " spectral critic of pairs (bank_shared); transport in 50 iterations, eps 0.05"
    )
    local = make_wcord(global_weight=0).describe()["link 0 <- 1"]
    assert local == "heads 12 -> 128 <- 14; transport in 50 iterations, eps 0.05"
