from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from coterie.core import ShapeError
from coterie.losses.candidates import Candidates
from coterie.losses.contrast import Contrast, contrast_pairs, nce_embeddings
from coterie.memory.bank import MemoryBank

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "mcl_okd.json").read_text())
CORE = [case for case in GOLDEN["cases"] if "_core_" in case["name"]]
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}
EPS = 1e-7


def assert_close(given: Tensor, expected: object, dtype: torch.dtype = torch.float64) -> None:
    target = torch.as_tensor(expected, dtype=torch.float64)
    bound = TOLERANCE[dtype] * max(1.0, float(target.abs().max()))
    assert float((given.detach().double() - target).abs().max()) <= bound


def unit(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return F.normalize(torch.randn(*shape, dtype=dtype), dim=-1)


def slow_term(
    anchors: Tensor, bank: Tensor, rows: Candidates, tau: float, z: Any, eps: float, n: int
) -> tuple[Tensor, Tensor]:
    """One directed term as the paper's equations 8 to 11 say it, score by score; Z per batch, per anchor or given."""
    size, count = anchors.shape[0], rows.num_negatives
    positive, negatives, weights = [], [], []
    for i in range(size):
        own = rows.negatives if rows.negatives.dim() == 1 else rows.negatives[i]
        kept = [int(j) for s, j in enumerate(own) if rows.same_class is None or not rows.same_class[i, s]]
        positive.append(torch.exp(anchors[i] @ bank[rows.positives[i]] / tau))
        negatives.append([torch.exp(anchors[i] @ bank[j] / tau) for j in kept])
        weights.append(count / max(len(kept), 1))
    sums = [
        (p + w * sum(h, torch.zeros((), dtype=p.dtype))).detach() / (count + 1)
        for p, h, w in zip(positive, negatives, weights, strict=True)
    ]
    if z == "anchor":
        means = torch.stack(sums)
    else:
        means = (torch.stack(sums).mean() if z == "batch" else torch.tensor(z, dtype=anchors.dtype)).expand(size)
    total = torch.zeros((), dtype=anchors.dtype)
    q = count / n
    for i in range(size):
        constant = means[i] * n
        p0 = positive[i] / constant
        total = total - torch.log(p0 / (p0 + q + eps)) / size
        for h in negatives[i]:
            total = total - weights[i] * torch.log(q / (h / constant + q + eps)) / size
    return total, means


def slow(embeddings: Tensor, banks: Tensor, rows: Candidates, pairs: Any, z: Any = "batch", **options: Any) -> Tensor:
    tau, eps, n = options.get("tau", 0.1), options.get("eps", EPS), options.get("n", banks.shape[1])
    zs = z if isinstance(z, list) else [z] * len(pairs)
    return torch.stack(
        [slow_term(embeddings[a], banks[b], rows, tau, c, eps, n)[0] for (a, b), c in zip(pairs, zs, strict=True)]
    )


def assert_matches_loop(embeddings: Tensor, banks: Tensor, rows: Candidates, pairs: Any, **options: Any) -> Contrast:
    z = options.pop("z", "batch")
    leaf, other = (embeddings.clone().requires_grad_() for _ in range(2))
    slow_terms = slow(leaf, banks, rows, pairs, z.flatten().exp().tolist() if isinstance(z, Tensor) else z, **options)
    names = {"tau": "temperature", "n": "num_train", "eps": "eps"}
    result = nce_embeddings(other, banks, rows, pairs=pairs, z=z, **{names[k]: v for k, v in options.items()})
    assert_close(result.terms, slow_terms.tolist())
    assert_close(result.loss, slow_terms.sum().item())
    (slow_terms.sum() * 0.3).backward()
    (result.loss * 0.3).backward()
    assert_close(other.grad, leaf.grad)
    return result


@pytest.fixture(name="scene")
def make_scene() -> tuple[Tensor, Tensor]:
    torch.manual_seed(11)
    return unit(3, 6, 5), unit(3, 30, 5)


def shared_rows(*, masked: bool = False) -> Candidates:
    rows = Candidates(positives=torch.tensor([4, 9, 0, 17, 22, 29]), negatives=torch.randint(30, (12,)))
    return replace(rows, same_class=torch.rand(6, 12) < 0.3) if masked else rows


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("algorithm", ["gemm", "gather"])
@pytest.mark.parametrize("case", CORE, ids=lambda case: case["name"])
def test_golden_calls(case: dict[str, Any], algorithm: Any, dtype: torch.dtype) -> None:
    inputs, peers = case["inputs"], case["hyperparameters"]["networks"]
    bank = MemoryBank(peers, 40, 16)
    bank.rows = torch.tensor(inputs["banks"], dtype=dtype)
    pairs = contrast_pairs(peers)
    for k, call in enumerate(case["expected"]["calls"]):
        embeddings = torch.tensor(inputs["embeddings"][k], dtype=dtype, requires_grad=True)
        index = torch.tensor(inputs["contrast_index"][k])
        rows = Candidates(positives=index[:, 0], negatives=index[:, 1:], per_sample=algorithm)
        result = nce_embeddings(embeddings, bank.rows, rows, pairs=pairs)
        result.loss.backward()
        assert [(t["anchor_network"], t["bank_of_network"]) for t in call["terms"]] == list(pairs)
        assert_close(result.loss, call["loss"], dtype)
        assert_close(result.terms, [t["loss"] for t in call["terms"]], dtype)
        assert_close(result.log_means.flatten().exp() * 40, [t["Z"] for t in call["terms"]], dtype)
        assert_close(embeddings.grad, call["grad"]["embeddings"], dtype)
        bank.update(torch.tensor(inputs["sample_index"][k]), embeddings.detach())
        assert_close(bank.rows[:, inputs["sample_index"][k]], call["bank_rows_after"], dtype)
    assert_close(bank.rows.sum(dim=(1, 2)), case["expected"]["bank_sums_end"], dtype)


def wave(k: int, *shape: int) -> Tensor:
    n = torch.arange(1, torch.Size(shape).numel() + 1, dtype=torch.float64)
    return torch.sin(n * (0.37 * n + 0.7 * k)).view(shape)


def test_published_numbers_of_another_scene() -> None:
    embeddings = torch.stack([F.normalize(wave(m, 4, 8), dim=1) for m in range(3)]).requires_grad_()
    banks = torch.stack([F.normalize(wave(10 + m, 40, 8), dim=1) for m in range(3)])
    negatives = torch.tensor([[4 + (5 * r + 7 * s) % 36 for s in range(6)] for r in range(4)])
    rows = Candidates(positives=torch.arange(4), negatives=negatives)
    result = nce_embeddings(embeddings, banks, rows, pairs=contrast_pairs(3))
    result.loss.backward()
    expected = [0.720459, 7.181287, 11.378465, 9.639397, 1.002933, 9.955400]
    assert result.terms.tolist() == pytest.approx(expected, abs=1e-6)
    assert embeddings.grad[0, 0, :3].tolist() == pytest.approx([-1.521609, 2.953679, -0.559726], abs=1e-6)
    core = nce_embeddings(embeddings, banks, rows, pairs=contrast_pairs(3, graph="core"))
    assert core.loss.item() == pytest.approx(31.976195, abs=1e-6)
    anchor = nce_embeddings(embeddings, banks, rows, pairs=contrast_pairs(3), z="anchor", eps=0.0)
    expected = [0.701101, 5.186946, 8.826972, 8.362056, 0.707202, 7.995350]
    assert anchor.terms.tolist() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("z", ["batch", "anchor"])
@pytest.mark.parametrize("graph", ["full", "core"])
def test_shared_negatives_match_the_loop(scene: Any, graph: Any, z: Any, masked: bool) -> None:
    pairs = contrast_pairs(3, leader=1, graph=graph)
    result = assert_matches_loop(*scene, shared_rows(masked=masked), pairs, z=z, tau=0.17, n=1000)
    assert result.log_means.shape == (len(pairs), 6 if z == "anchor" else 1)


@pytest.mark.parametrize("algorithm", ["gemm", "gather", "auto"])
@pytest.mark.parametrize("z", ["batch", "anchor"])
def test_per_sample_negatives_match_the_loop(scene: Any, z: Any, algorithm: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr("coterie.losses.candidates._CHUNK_VALUES", 2 * 9 * 5)  # two samples at a time
    rows = Candidates(positives=torch.arange(6), negatives=torch.randint(30, (6, 9)), per_sample=algorithm)
    assert_matches_loop(*scene, rows, contrast_pairs(3), z=z)


@pytest.mark.parametrize("masked", [False, True])
def test_blocks_of_rows_make_no_difference(scene: Any, monkeypatch: Any, masked: bool) -> None:
    monkeypatch.setattr("coterie.losses.contrast._BLOCK_VALUES", 12 * 5)  # blocks of 5 of 12 or 6 rows
    assert_matches_loop(*scene, shared_rows(masked=masked), contrast_pairs(3))


def test_frozen_constants_match_the_loop_and_are_returned(scene: Any) -> None:
    rows, pairs = shared_rows(masked=True), contrast_pairs(3)
    frozen = torch.linspace(-1, 2, 6, dtype=torch.float64)[:, None]
    result = assert_matches_loop(*scene, rows, pairs, z=frozen)
    assert torch.equal(result.log_means, frozen)
    first = nce_embeddings(*scene, rows, pairs=pairs, z=torch.full((6, 1), torch.nan))
    batch = nce_embeddings(*scene, rows, pairs=pairs)
    assert torch.equal(first.terms, batch.terms) and torch.equal(first.log_means, batch.log_means)


def test_two_peers_are_student_and_teacher(scene: Any) -> None:
    embeddings, banks = scene[0][:2], scene[1][:2]
    assert_matches_loop(embeddings, banks, shared_rows(), contrast_pairs(2), tau=0.07)


def test_without_eps_the_number_of_images_does_not_matter(scene: Any) -> None:
    rows = shared_rows()
    few, many = (nce_embeddings(*scene, rows, pairs=contrast_pairs(3), num_train=n, eps=0.0) for n in (30, 10**9))
    assert torch.equal(few.terms, many.terms)
    with_eps = nce_embeddings(*scene, rows, pairs=contrast_pairs(3), num_train=10**9)
    assert not torch.allclose(with_eps.terms, many.terms)


@pytest.mark.case(60)
def test_fully_masked_anchor_stays_finite(scene: Any) -> None:
    rows = replace(
        shared_rows(), same_class=torch.zeros(6, 12, dtype=torch.bool).index_fill(0, torch.tensor([2]), True)
    )
    embeddings = scene[0].clone().requires_grad_()
    for z in ("batch", "anchor"):
        result = nce_embeddings(embeddings, scene[1], rows, pairs=contrast_pairs(3), z=z)
        result.loss.backward()
        assert result.terms.isfinite().all() and embeddings.grad.isfinite().all()


@pytest.mark.parametrize("temperature", [0.01, 0.05])
def test_float32_follows_float64_at_low_temperatures(scene: Any, temperature: float) -> None:
    rows = shared_rows(masked=True)
    for z in ("batch", "anchor"):
        exact = nce_embeddings(*scene, rows, pairs=contrast_pairs(3), temperature=temperature, z=z)
        single = nce_embeddings(
            scene[0].float(), scene[1].float(), rows, pairs=contrast_pairs(3), temperature=temperature, z=z
        )
        assert torch.allclose(single.terms.double(), exact.terms, rtol=1e-4, atol=1e-5)


def test_many_negatives_keep_their_digits_in_float32() -> None:
    torch.manual_seed(2)
    embeddings, banks = unit(2, 4, 16), unit(2, 3000, 16)
    rows = Candidates(positives=torch.arange(4), negatives=torch.randint(3000, (5000,)))
    exact = nce_embeddings(embeddings, banks, rows, pairs=contrast_pairs(2))
    single = nce_embeddings(embeddings.float(), banks.float(), rows, pairs=contrast_pairs(2))
    assert_close(single.terms, exact.terms, torch.float32)


def test_autocast_and_half_precision_are_computed_in_float32(scene: Any) -> None:
    half = [rows.bfloat16().requires_grad_() for rows in scene[0]]
    banks = scene[1].float()
    with torch.autocast("cpu", torch.bfloat16):
        result = nce_embeddings(half, banks, shared_rows(), pairs=contrast_pairs(3))
    assert result.loss.dtype == torch.float32
    result.loss.backward()
    assert all(row.grad is not None and row.grad.abs().sum() > 0 for row in half)


def test_shared_mode_holds_nothing_of_size_b_s_d() -> None:
    embeddings, banks = unit(2, 8, 16).requires_grad_(), unit(2, 50, 16)
    rows = Candidates(positives=torch.arange(8), negatives=torch.randint(50, (40,)))
    sizes: list[int] = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = func(*args, **(kwargs or {}))
            if isinstance(out, Tensor):
                sizes.append(out.untyped_storage().nbytes() // out.element_size())
            return out

    with Watch():
        result = nce_embeddings(embeddings, banks, rows, pairs=contrast_pairs(2))
    assert max(sizes) == banks.numel() and sorted(set(sizes))[-2] == 40 * 16
    (saved,) = result.loss.grad_fn.saved_tensors
    assert saved.shape == embeddings.shape


def test_banks_get_no_gradient_and_do_not_change(scene: Any) -> None:
    banks = scene[1].clone().requires_grad_()
    nce_embeddings(scene[0].clone().requires_grad_(), banks, shared_rows(), pairs=contrast_pairs(3)).loss.backward()
    assert banks.grad is None and torch.equal(banks.detach(), scene[1])


def test_pairs_of_the_core_graph_are_those_of_the_full_graph_with_the_leader() -> None:
    full = contrast_pairs(4)
    assert len(full) == len(set(full)) == 12
    assert contrast_pairs(4, leader=1, graph="core") == tuple(pair for pair in full if 1 in pair)


def test_shapes_are_checked(scene: Any) -> None:
    embeddings, banks = scene
    rows = shared_rows()
    with pytest.raises(ShapeError, match=r"\[M, B, D\] and \[M, N, D\]"):
        nce_embeddings(embeddings, banks[:2], rows, pairs=contrast_pairs(3))
    with pytest.raises(ShapeError, match="one row for each image"):
        nce_embeddings(embeddings[:, :4], banks, rows, pairs=contrast_pairs(3))
    for pairs in ([], [(0, 3)]):
        with pytest.raises(ShapeError, match="at least one pair"):
            nce_embeddings(embeddings, banks, rows, pairs=pairs)
    with pytest.raises(ShapeError, match="share them"):
        replace(rows, negatives=torch.zeros(5, 3, dtype=torch.int64))
    with pytest.raises(ShapeError, match="same-class mask"):
        replace(rows, same_class=torch.zeros(6, 11, dtype=torch.bool))


def gradient(embeddings: Tensor, banks: Tensor, rows: Candidates) -> tuple[Tensor, Tensor]:
    leaf = embeddings.clone().requires_grad_()
    result = nce_embeddings(leaf, banks, rows, pairs=contrast_pairs(len(banks)))
    result.loss.backward()
    assert leaf.grad is not None
    return result.terms, leaf.grad


@pytest.mark.parametrize("kind", ["shared", "gemm", "gather"])
def test_bfloat16_banks_follow_their_values_in_float64(kind: Any) -> None:
    torch.manual_seed(3)
    embeddings, banks = unit(3, 8, 32), unit(3, 400, 32).bfloat16()
    negatives = torch.randint(400, (300,) if kind == "shared" else (8, 300))
    rows = Candidates(positives=torch.arange(8), negatives=negatives)
    rows = replace(rows, same_class=torch.rand(8, 300) < 0.1) if kind == "shared" else replace(rows, per_sample=kind)
    terms, grad = gradient(embeddings.float(), banks, rows)
    exact_terms, exact_grad = gradient(embeddings, banks.double(), rows)
    assert grad.dtype == torch.float32
    assert torch.allclose(terms.double(), exact_terms, rtol=2e-3)
    assert float((grad - exact_grad).norm() / exact_grad.norm()) < 5e-3


def test_passes_over_few_anchors_make_no_difference(scene: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr("coterie.losses.contrast._SCORES_AT_ONCE", 1)
    assert_matches_loop(*scene, shared_rows(masked=True), contrast_pairs(3))


def test_shared_negatives_are_unbiased_and_little_noisier() -> None:
    torch.manual_seed(5)
    size, count, num_rows, classes = 16, 64, 600, 5
    labels = torch.arange(num_rows) % classes
    banks = F.normalize(torch.randn(classes, 16, dtype=torch.float64)[labels] + 1.5 * unit(2, num_rows, 16), dim=-1)
    own = torch.randperm(num_rows)[:size]
    inputs, projection = torch.randn(2, size, 24, dtype=torch.float64), unit(24, 16)

    def slope(rows: Candidates) -> Tensor:  # of the one projection of all anchors, of which errors do not average away
        return (inputs.transpose(1, 2) @ gradient(F.normalize(inputs @ projection, dim=-1), banks, rows)[1]).sum(dim=0)

    others = torch.stack([(labels != labels[i]).nonzero().squeeze(1) for i in own])
    draws: dict[str, list[Tensor]] = {"shared": [], "per_sample": []}
    for _ in range(240):
        rows = torch.randint(num_rows, (count,))
        same = labels[own][:, None] == labels[rows]
        draws["shared"].append(slope(Candidates(positives=own, negatives=rows, same_class=same)))
        places = torch.randint(others.shape[1], (size, count))
        draws["per_sample"].append(slope(Candidates(positives=own, negatives=others.gather(1, places))))
    found = {kind: torch.stack(parts) for kind, parts in draws.items()}
    noise = {
        kind: float((parts - parts.mean(dim=0)).square().sum(dim=(1, 2)).mean().sqrt()) for kind, parts in found.items()
    }
    between = float((found["shared"].mean(dim=0) - found["per_sample"].mean(dim=0)).norm())
    assert noise["shared"] <= 1.35 * noise["per_sample"]
    assert between <= 1.5 * (noise["shared"] ** 2 + noise["per_sample"] ** 2) ** 0.5 / 240**0.5
