"""The dual of WCoRD against loops over pairs, and what no loop shows: sizes, restarts, bounds."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from coterie.core import ShapeError
from coterie.losses.candidates import Candidates
from coterie.losses.critic import LipschitzCritic
from coterie.losses.wasserstein import Dual, bank_dual, batch_dual
from golden_logits import assert_close, leaf

SIZE, ROWS, DIM = 5, 20, 4


def unit(*shape: int) -> Tensor:
    return F.normalize(torch.randn(*shape, dtype=torch.float64), dim=-1)


@pytest.fixture(name="critic")
def make_critic() -> LipschitzCritic:
    torch.manual_seed(3)
    return LipschitzCritic(DIM).double()


def mean_over(values: list[list[Tensor]]) -> Tensor:
    """Mean over anchors that have a negative of the mean over their negatives."""
    return torch.stack([torch.stack(own).mean() for own in values if own]).mean()


def slow_dual(critic: LipschitzCritic, student: Tensor, teacher: Tensor, banks: Any, kept: Any, factor: int) -> Tensor:
    """Minus E_joint g + factor E_product g in both directions; `kept[i]` are the rows anchor i is mismatched with."""
    matched = torch.stack([critic(t, s) for s, t in zip(student, teacher, strict=True)]).mean()
    against = mean_over([[critic(teacher[i], banks[0][j]) for j in kept[i]] for i in range(len(teacher))])
    towards = mean_over([[critic(banks[1][j], student[i]) for j in kept[i]] for i in range(len(teacher))])
    return -(matched - factor * against) - (matched - factor * towards)


def rows_of(candidates: Candidates) -> list[list[int]]:
    negatives = candidates.negatives.expand(SIZE, -1).tolist()
    if candidates.same_class is None:
        return negatives
    marks = candidates.same_class.tolist()
    return [[j for j, same in zip(*own, strict=True) if not same] for own in zip(negatives, marks, strict=True)]


def draw(kind: str) -> Candidates:
    shared = Candidates(positives=torch.arange(SIZE), negatives=torch.randint(ROWS, (11,)))
    if kind == "shared":
        return shared
    if kind == "per_sample":
        return replace(shared, negatives=torch.randint(ROWS, (SIZE, 6)))
    mask = torch.rand(SIZE, 11) < 0.3
    return replace(shared, same_class=mask.index_fill(0, torch.tensor([2]), kind == "one_without"))


def assert_same(critic: LipschitzCritic, leaves: tuple[Tensor, ...], fast: Dual, slow: Tensor) -> None:
    parameters = (*leaves, *critic.parameters())
    assert_close(fast.loss, slow.item())
    expected = torch.autograd.grad(0.3 * slow, parameters)
    for given, target in zip(torch.autograd.grad(0.3 * fast.loss, parameters), expected, strict=True):
        assert_close(given, target.tolist())


@pytest.mark.parametrize("neg_weight", ["mean", "count"])
@pytest.mark.parametrize("kind", ["shared", "masked", "one_without", "per_sample"])
def test_banks_match_the_loop(critic: LipschitzCritic, kind: str, neg_weight: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr("coterie.losses.wasserstein._CHUNK_VALUES", 3 * SIZE * DIM)  # a few rows at a time
    student, teacher, banks = leaf(unit(SIZE, DIM)), leaf(unit(SIZE, DIM)), unit(2, ROWS, DIM)
    candidates = draw(kind)
    factor = candidates.num_negatives if neg_weight == "count" else 1
    fast = bank_dual(critic, student, teacher, banks, candidates, neg_weight=neg_weight)
    slow = slow_dual(critic, student, teacher, banks, rows_of(candidates), factor)
    assert_same(critic, (student, teacher), fast, slow)
    assert fast.loss.item() == pytest.approx(2 * (factor * fast.mismatched - fast.matched).item())


@pytest.mark.parametrize("neg_weight", ["mean", "count"])
@pytest.mark.parametrize("labels", [None, [0, 1, 0, 2, 1], [0, 0, 0, 0, 1]])
def test_batch_matches_the_loop(critic: LipschitzCritic, labels: list[int] | None, neg_weight: Any) -> None:
    student, teacher = leaf(unit(SIZE, DIM)), leaf(unit(SIZE, DIM))
    classes = list(range(SIZE)) if labels is None else labels
    kept = [[j for j in range(SIZE) if classes[j] != classes[i]] for i in range(SIZE)]
    mask = None if labels is None else torch.tensor(labels)[:, None] == torch.tensor(labels)
    fast = batch_dual(critic, student, teacher, same_class=mask, neg_weight=neg_weight)
    factor = SIZE - 1 if neg_weight == "count" else 1
    slow = slow_dual(critic, student, teacher, (student, teacher), kept, factor)
    assert_same(critic, (student, teacher), fast, slow)


def test_without_any_negative_only_matched_pairs_count(critic: LipschitzCritic) -> None:
    student, teacher, banks = leaf(unit(SIZE, DIM)), leaf(unit(SIZE, DIM)), unit(2, ROWS, DIM)
    rows = replace(draw("shared"), same_class=torch.ones(SIZE, 11, dtype=torch.bool))
    everyone = torch.ones(SIZE, SIZE, dtype=torch.bool)
    slow = -2 * critic(teacher, student).mean()
    assert_same(critic, (student, teacher), bank_dual(critic, student, teacher, banks, rows), slow)
    slow = -2 * critic(teacher, student).mean()
    assert_same(critic, (student, teacher), batch_dual(critic, student, teacher, same_class=everyone), slow)


def test_slopes_are_those_of_finite_differences(critic: LipschitzCritic) -> None:
    banks, candidates = unit(2, ROWS, DIM), draw("masked")
    inputs = (leaf(unit(SIZE, DIM)), leaf(unit(SIZE, DIM)))
    assert torch.autograd.gradcheck(lambda s, t: bank_dual(critic, s, t, banks, candidates).loss, inputs)
    assert torch.autograd.gradcheck(lambda s, t: batch_dual(critic, s, t).loss, inputs)


def test_the_same_negatives_shared_or_per_sample(critic: LipschitzCritic) -> None:
    student, teacher, banks, shared = unit(SIZE, DIM), unit(SIZE, DIM), unit(2, ROWS, DIM), draw("shared")
    spread = replace(shared, negatives=shared.negatives.expand(SIZE, -1).contiguous())
    losses = [bank_dual(critic, student, teacher, banks, rows).loss.item() for rows in (shared, spread)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-14)


def test_banks_are_constants(critic: LipschitzCritic) -> None:
    banks = leaf(unit(2, ROWS, DIM))
    for kind in ("shared", "per_sample"):
        bank_dual(critic, leaf(unit(SIZE, DIM)), leaf(unit(SIZE, DIM)), banks, draw(kind)).loss.backward()
    assert banks.grad is None


def test_a_frozen_side_gets_no_gradient(critic: LipschitzCritic) -> None:
    student, teacher = leaf(unit(SIZE, DIM)), unit(SIZE, DIM)
    batch_dual(critic, student, teacher).loss.backward()
    assert teacher.grad is None and student.grad is not None and student.grad.abs().sum() > 0


@pytest.mark.slow
def test_learning_parts_matched_from_mismatched_pairs_within_the_true_distance(critic: LipschitzCritic) -> None:
    teacher = unit(64, DIM)
    optimizer = torch.optim.Adam(critic.parameters(), lr=0.05)
    for _ in range(100):
        dual = batch_dual(critic, teacher, teacher)
        optimizer.zero_grad()
        dual.loss.backward()
        optimizer.step()
    gain = (dual.matched - dual.mismatched).item()
    farthest = (teacher[:, None] - teacher).norm(dim=-1).mean().item()  # moving the student half of each pair
    assert 0.05 < gain <= farthest


def test_counting_negatives_stays_bounded(critic: LipschitzCritic) -> None:
    student, teacher, banks, rows = unit(SIZE, DIM), unit(SIZE, DIM), unit(2, ROWS, DIM), draw("shared")
    optimizer = torch.optim.SGD(critic.parameters(), lr=1.0)
    for _ in range(50):
        loss = bank_dual(critic, student, teacher, banks, rows, neg_weight="count").loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert abs(loss.item()) <= 2 * (11 + 1) * 2**0.5


def test_half_precision_and_autocast_are_computed_in_the_critics_dtype() -> None:
    critic = LipschitzCritic(DIM)
    student, banks = leaf(unit(SIZE, DIM), torch.bfloat16), unit(2, ROWS, DIM).bfloat16()
    for kind in ("masked", "per_sample"):
        rows = draw(kind)
        plain = bank_dual(critic, student.float(), student.float(), banks.float(), rows).loss
        with torch.autocast("cpu", torch.bfloat16):
            loss = bank_dual(critic, student, student, banks, rows).loss
            assert batch_dual(critic, student, student).loss.dtype == torch.float32
        assert loss.dtype == torch.float32 and loss.item() == plain.item()
        loss.backward()


@pytest.mark.parametrize("per_sample", [False, True])
def test_nothing_of_size_b_s_d_is_held(critic: LipschitzCritic, per_sample: bool, monkeypatch: Any) -> None:
    monkeypatch.setattr("coterie.losses.wasserstein._CHUNK_VALUES", 800)
    critic, size, count, dim = LipschitzCritic(8), 10, 60, 8
    banks = F.normalize(torch.randn(2, 200, dim), dim=-1)
    shape = (size, count) if per_sample else (count,)
    rows = Candidates(positives=torch.arange(size), negatives=torch.randint(200, shape))
    sizes: list[int] = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = func(*args, **(kwargs or {}))
            if isinstance(out, Tensor):
                sizes.append(out.untyped_storage().nbytes() // out.element_size())
            return out

    with Watch():
        bank_dual(critic, banks[0, :size].clone().requires_grad_(), banks[1, :size], banks, rows).loss.backward()
    assert max(sizes) == banks.numel() and sorted(set(sizes))[-2] <= 800


def test_shapes_are_checked(critic: LipschitzCritic) -> None:
    rows, banks, batch = draw("shared"), unit(2, ROWS, DIM), unit(SIZE, DIM)
    with pytest.raises(ShapeError, match="same batch"):
        bank_dual(critic, batch, batch[:3], banks, rows)
    with pytest.raises(ShapeError, match="critic of size 4"):
        bank_dual(critic, batch, batch, unit(2, ROWS, 3), rows)
    with pytest.raises(ShapeError, match="candidates for 5 anchors"):
        bank_dual(critic, batch[:3], batch[:3], banks, rows)
    with pytest.raises(ShapeError, match="same-class mask"):
        batch_dual(critic, batch, batch, same_class=torch.zeros(5, 4, dtype=torch.bool))
