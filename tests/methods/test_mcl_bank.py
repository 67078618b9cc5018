from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from coterie.core import Batch, ConfigError, Facts, PeerOutput
from coterie.losses.candidates import Candidates
from coterie.methods.mcl_bank import MutualContrastOverBanks

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "mcl_bank.json").read_text())
CASES = {case["name"]: case for case in GOLDEN["cases"]}
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}
Config = MutualContrastOverBanks.Config
CONTRASTS = ("vcl", "icl", "soft_vcl", "soft_icl")


def assert_close(given: Tensor, expected: object, dtype: torch.dtype = torch.float64) -> None:
    target = torch.as_tensor(expected, dtype=torch.float64)
    bound = TOLERANCE[dtype] * max(1.0, float(target.abs().max()))
    assert float((given.detach().double() - target).abs().max()) <= bound


def make_method(
    config: Config, *, peers: int = 2, rows: int = 40, dtype: torch.dtype = torch.float64
) -> MutualContrastOverBanks:
    facts = Facts(
        num_peers=peers,
        leader=peers - 1,
        num_classes=10,
        embedding_dims=(16,) * peers,
        labels=torch.arange(rows) % 10,
        num_epochs=2,
        seed=5,
    )
    return MutualContrastOverBanks(config, facts).to(dtype)


def batch_of(indices: Tensor, step: int = 0) -> Batch:
    views = torch.zeros(1, indices.shape[0], 1, 1, 1)
    return Batch(views=views, labels=indices % 10, indices=indices, epoch=torch.tensor(0), step=torch.tensor(step))


def outputs(embeddings: Any, logits: Any = None) -> list[PeerOutput]:
    scores = [torch.zeros(e.shape[0], 10, dtype=e.dtype) for e in embeddings] if logits is None else logits
    return [PeerOutput(logits=z, embedding=e) for z, e in zip(scores, embeddings, strict=True)]


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("per_sample", ["gemm", "gather"])
@pytest.mark.parametrize("name", CASES)
def test_golden_calls_through_the_method(name: str, per_sample: Any, dtype: torch.dtype) -> None:
    case = CASES[name]
    knobs, inputs = case["hyperparameters"], case["inputs"]
    config = Config(embedding_dim=16, pos_k=knobs["pos_k"], neg_k=knobs["neg_k"])
    method = make_method(config, peers=knobs["networks"], dtype=dtype)
    method.heads = nn.ModuleList(nn.Identity() for _ in method.heads)
    method.bank.load_state({"rows": torch.tensor(inputs["banks"], dtype=dtype)})
    for k, call in enumerate(case["expected"]["calls"]):
        positives, negatives = (torch.tensor(inputs[key][k]) for key in ("positive_index", "negative_index"))
        rows = Candidates(positives=positives[:, 0], negatives=negatives, per_sample=per_sample)
        method.candidates = lambda batch, drawn=(positives, rows): drawn  # type: ignore[method-assign,misc]
        given = [torch.tensor(e, dtype=dtype, requires_grad=True) for e in inputs["embeddings"][k]]
        batch = batch_of(positives[:, 0], step=k)
        terms = {term.name: term for term in method.losses(outputs(given), batch)}
        for term in CONTRASTS:
            assert_close(terms[term].value, call[term], dtype)
            if f"{term}_grad" in call:
                grads = torch.autograd.grad(terms[term].value, given, retain_graph=True)
                assert_close(torch.stack(grads), call[f"{term}_grad"]["embeddings"], dtype)
        if "weighted_total" in call:
            total = sum(terms[term].weight * terms[term].value for term in CONTRASTS)
            assert isinstance(total, Tensor)
            assert_close(total, call["weighted_total"], dtype)
            assert_close(
                torch.stack(torch.autograd.grad(total, given)), call["weighted_total_grad"]["embeddings"], dtype
            )
        method.after_step(outputs(given), batch)
        assert_close(method.bank.rows[:, batch.indices], call["bank_rows_after"], dtype)


def slow_losses(method: MutualContrastOverBanks, e: Tensor, positives: Tensor, rows: Candidates) -> dict[str, Tensor]:
    """The four losses of shared, masked negatives, loop by loop, each negative counted S / n times."""
    assert rows.same_class is not None
    banks, tau, size = method.bank.rows, method.config.contrast_temperature, e.shape[1]
    peers = range(e.shape[0])

    def row(b: int, a: int, i: int, with_own: bool) -> tuple[Tensor, Tensor, int]:
        own = positives[i].tolist()[0 if with_own else 1 :]
        kept = [int(r) for r, same in zip(rows.negatives, rows.same_class[i], strict=True) if not same]
        count = len(rows.negatives) / len(kept)
        scores = torch.stack([e[b, i] @ banks[a, r] / tau for r in [*own, *kept]])
        weights = torch.tensor([1.0] * len(own) + [count] * len(kept), dtype=torch.float64)
        return scores, weights, len(own)

    def hard(b: int, a: int, with_own: bool) -> Tensor:
        total = torch.zeros((), dtype=torch.float64)
        for i in range(size):
            scores, weights, first = row(b, a, i, with_own)
            total = total - (scores[:first] - (weights * scores.exp()).sum().log()).mean()
        return total / size

    def kl(own: tuple[int, int], target: tuple[int, int], with_own: bool) -> Tensor:
        total = torch.zeros((), dtype=torch.float64)
        for i in range(size):
            (x, weights, _), (y, _, _) = row(*own, i, with_own), row(*target, i, with_own)
            q, p = (weights * (z / 3).exp() / (weights * (z / 3).exp()).sum() for z in (x, y.detach()))
            total = total + (p * (p / q).log()).sum()
        return 9 * total / size

    pairs = [(a, b) for a in peers for b in peers if a != b]
    return {
        "vcl": sum((hard(a, a, False) for a in peers), torch.zeros(())),
        "icl": sum((hard(a, b, method.config.icl_self_pair) for a, b in pairs), torch.zeros(())),
        "soft_vcl": sum((kl((a, a), (b, b), False) for a, b in pairs), torch.zeros(())),
        "soft_icl": sum((kl((a, b), (b, a), True) for a, b in pairs), torch.zeros(())),
    }


@pytest.mark.parametrize("self_pair", [True, False])
def test_shared_negatives_of_slow_loops(self_pair: bool) -> None:
    torch.manual_seed(2)
    config = Config(embedding_dim=16, pos_k=2, neg_k=12, icl_self_pair=self_pair, contrast_temperature=0.2)
    method = make_method(config, peers=3)
    embeddings = F.normalize(torch.randn(3, 5, 16, dtype=torch.float64), dim=-1).requires_grad_()
    positives, rows = method.candidates(batch_of(torch.tensor([0, 13, 7, 22, 31]), step=3))
    assert rows.same_class is not None and bool(rows.same_class.any())
    fast = method.contrast(embeddings, positives, rows)
    for term, expected in slow_losses(method, embeddings, positives, rows).items():
        value = getattr(fast, term)
        assert_close(value, expected.detach())
        found, wanted = (torch.autograd.grad(loss, embeddings, retain_graph=True)[0] for loss in (value, expected))
        assert_close(found, wanted)


def test_a_peer_is_taught_by_its_own_anchors_only() -> None:
    torch.manual_seed(3)
    method = make_method(Config(embedding_dim=16, neg_k=12))
    drawn = method.candidates(batch_of(torch.arange(5)))
    embeddings = F.normalize(torch.randn(2, 5, 16, dtype=torch.float64), dim=-1)
    grads = []
    for other in (embeddings[1], F.normalize(torch.randn(5, 16, dtype=torch.float64), dim=-1)):
        own = embeddings[0].clone().requires_grad_()
        contrast = method.contrast(torch.stack([own, other]), *drawn)
        grads.append(torch.autograd.grad(contrast.vcl + contrast.icl, own)[0])
    assert torch.equal(*grads)


@pytest.mark.parametrize("negatives", ["shared", "per_sample"])
def test_rows_are_drawn_by_class_and_step(negatives: Any) -> None:
    method = make_method(Config(negatives=negatives, pos_k=3))
    draws = [method.candidates(batch_of(torch.arange(6), step=k)) for k in range(20)]
    positives = torch.stack([rows for rows, _ in draws])
    assert positives.shape == (20, 6, 4)
    assert torch.equal(positives % 10, torch.arange(6)[:, None].expand(20, 6, 4))
    assert torch.equal(positives[:, :, 0], torch.arange(6).expand(20, 6))
    assert torch.stack([positives[:, :, k] for k in (1, 2, 3)]).unique(dim=0).shape[0] == 3
    assert len({tuple(rows.negatives.flatten().tolist()) for _, rows in draws}) == 20
    for _, rows in draws:
        same = method.facts.labels[rows.negatives] == torch.arange(6)[:, None]
        assert torch.equal(same, rows.same_class) if negatives == "shared" else not bool(same.any())


def test_bank_moves_once_towards_the_embeddings_the_loss_has_used() -> None:
    torch.manual_seed(4)
    method = make_method(Config(bank_momentum=0.0))
    batch, peers = batch_of(torch.tensor([3, 30, 12])), outputs(torch.randn(2, 3, 16, dtype=torch.float64))
    before = method.bank.rows.clone()
    method.losses(peers, batch)
    assert torch.equal(method.bank.rows, before)
    used = torch.stack([head(peer.embedding) for head, peer in zip(method.heads, peers, strict=True)]).detach()
    nn.init.zeros_(method.heads[0].second.weight)  # an optimiser step comes in between
    method.after_step(peers, batch)
    assert torch.allclose(method.bank.rows[:, batch.indices], used)
    kept = method.bank.rows.clone()
    method.after_step(peers, batch)
    assert torch.equal(method.bank.rows, kept)


@pytest.mark.parametrize(("ensemble", "taught"), [("leader", [2]), ("all", [0, 1, 2]), ("off", [])])
def test_whom_the_ensemble_teaches(ensemble: Any, taught: list[int]) -> None:
    torch.manual_seed(0)
    method = make_method(Config(ensemble=ensemble), peers=3)
    logits = [torch.randn(4, 10, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    peers = outputs(torch.randn(3, 4, 16, dtype=torch.float64), logits)
    terms = {term.name: term.value for term in method.losses(peers, batch_of(torch.arange(4)))}
    assert ("ensemble" in terms) == bool(taught)
    if taught:
        terms["ensemble"].backward()
    assert [m for m in range(3) if logits[m].grad is not None] == taught


@pytest.mark.parametrize(
    ("knobs", "words"),
    [
        ({"pos_k": 0}, "method.pos_k=0"),
        ({"temperature": 0.0}, "method.temperature=0.0"),
        ({"bank_momentum": 1.0}, "method.bank_momentum=1.0"),
    ],
)
def test_bad_knobs_are_one_line(knobs: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Config(**knobs)


def test_more_negatives_than_there_are() -> None:
    with pytest.raises(ConfigError, match="from 1 to 36"):
        make_method(Config(neg_k=37))
