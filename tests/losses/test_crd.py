"""CRD is the contrast of MCL-OKD with two peers and a frozen Z: its golden calls, its heads and its variants."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from coterie.losses.candidates import Candidates
from coterie.losses.contrast import Contrast, nce_embeddings
from coterie.memory.bank import MemoryBank
from coterie.nets.heads import LinearHead
from golden_logits import assert_close, cases, leaf

GOLDEN = cases("crd")
PAIRS = ((0, 1), (1, 0))  # student anchor on the teacher's bank, teacher anchor on the student's
SIDES = ("student", "teacher")
ALGORITHMS = ("gemm", "gather")
DTYPES = (torch.float64, torch.float32)


class Crd:
    """Two banks and the frozen constants, from one call to the next."""

    def __init__(self, inputs: dict[str, Any], dtype: torch.dtype, algorithm: Any, tau: float) -> None:
        self.bank = MemoryBank(2, 40, 16)
        self.bank.rows = torch.tensor([inputs["student_bank"], inputs["teacher_bank"]], dtype=dtype)
        self.log_means = torch.full((2, 1), torch.nan, dtype=dtype)
        self.algorithm, self.tau = algorithm, tau

    def call(self, embeddings: Sequence[Tensor], contrast_index: list[list[int]]) -> Contrast:
        index = torch.tensor(contrast_index)
        rows = Candidates(positives=index[:, 0], negatives=index[:, 1:], per_sample=self.algorithm)
        result = nce_embeddings(embeddings, self.bank.rows, rows, pairs=PAIRS, temperature=self.tau, z=self.log_means)
        self.log_means = result.log_means
        return result

    def update(self, indices: list[int], embeddings: Sequence[Tensor]) -> list[Tensor]:
        """Move the rows; return those of the student's and of the teacher's bank."""
        where = torch.tensor(indices)
        self.bank.update(where, torch.stack(list(embeddings)).detach())
        return list(self.bank.rows[:, where])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_golden_calls(algorithm: str, dtype: torch.dtype) -> None:
    case = GOLDEN["crd_core_three_calls"]
    inputs, expected = case["inputs"], case["expected"]
    crd = Crd(inputs, dtype, algorithm, case["hyperparameters"]["temperature"])
    for k, call in enumerate(expected["calls"]):
        embeddings = [leaf(inputs[side][k], dtype) for side in SIDES]
        result = crd.call(embeddings, inputs["contrast_index"][k])
        result.loss.backward()
        assert_close(result.loss, call["loss"], dtype)
        assert_close(result.terms, [call[f"loss_{side}_anchor"] for side in SIDES], dtype)
        assert_close(result.log_means.flatten().exp() * 40, [call[f"Z_{side}_anchor"] for side in SIDES], dtype)
        rows = crd.update(inputs["sample_index"][k], embeddings)
        for side, own, moved in zip(SIDES, embeddings, rows, strict=True):
            assert_close(own.grad, call["grad"][side], dtype)
            assert_close(moved, call[f"{side}_bank_rows_after"], dtype)
    for side, rows in zip(SIDES, crd.bank.rows, strict=True):
        assert_close(rows.sum(), expected[f"{side}_bank_sum_end"], dtype)
    assert_close(crd.bank.rows[0].norm(dim=1).sum(), expected["student_bank_row_norm_sum_end"], dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_golden_calls_with_linear_heads(algorithm: str, dtype: torch.dtype) -> None:
    case = GOLDEN["crd_with_linear_heads_two_calls"]
    inputs = case["inputs"]
    crd = Crd(inputs, dtype, algorithm, case["hyperparameters"]["temperature"])
    heads = [LinearHead(size, 16).to(dtype) for size in (12, 14)]
    with torch.no_grad():
        for side, head in zip(SIDES, heads, strict=True):
            head.linear.weight.copy_(torch.tensor(inputs[f"{side}_weight"], dtype=dtype))
            head.linear.bias.copy_(torch.tensor(inputs[f"{side}_bias"], dtype=dtype))
    for k, call in enumerate(case["expected"]["calls"]):
        features = leaf(inputs["student_features"][k], dtype)
        frozen = torch.tensor(inputs["teacher_features"][k], dtype=dtype)
        for head in heads:
            head.zero_grad()
        embeddings = [heads[0](features), heads[1](frozen)]
        result = crd.call(embeddings, inputs["contrast_index"][k])
        result.loss.backward()
        assert_close(result.loss, call["loss"], dtype)
        assert_close(features.grad, call["grad"]["student_features"], dtype)
        rows = crd.update(inputs["sample_index"][k], embeddings)
        for side, head, moved in zip(SIDES, heads, rows, strict=True):
            assert_close(head.linear.weight.grad, call["grad"][f"{side}_weight"], dtype)
            assert_close(head.linear.bias.grad, call["grad"][f"{side}_bias"], dtype)
            assert_close(moved, call[f"{side}_bank_rows_after"], dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_golden_criterion_alone(dtype: torch.dtype) -> None:
    """The criterion is given probabilities: an embedding whose product with row j of a bank is log(P_j Z) says them.

    Each image's probabilities become rows of one bank: the anchor is the image's own axis, and every row carries its
    logarithm on that axis. With Z = 1 the mean score is 1 / n.
    """
    case = GOLDEN["crd_nce_criterion_alone"]
    given = torch.tensor(case["inputs"]["probabilities"], dtype=dtype)
    size, columns = given.shape
    bank = (torch.eye(size, dtype=dtype)[:, None] * given.log()[..., None]).flatten(0, 1)
    anchors = torch.eye(size, dtype=dtype).requires_grad_()
    index = torch.arange(size * columns).view(size, columns)
    rows = Candidates(positives=index[:, 0], negatives=index[:, 1:])
    frozen = -torch.full((1, 1), case["hyperparameters"]["n_data"], dtype=dtype).log()
    result = nce_embeddings(
        torch.stack([anchors, anchors.detach()]),
        torch.stack([bank, bank]),
        rows,
        pairs=[(0, 1)],
        temperature=1.0,
        z=frozen,
        num_train=case["hyperparameters"]["n_data"],
    )
    result.loss.backward()
    assert_close(result.loss, case["expected"]["loss"], dtype)
    slopes = torch.tensor(case["expected"]["grad"]["probabilities"], dtype=dtype)
    along = (slopes * given * given.log()).sum(dim=1)  # by the chain rule, for a longer anchor
    assert_close(anchors.grad.diagonal(), along.tolist(), dtype)


def wave(k: int, *shape: int) -> Tensor:
    n = torch.arange(1, torch.Size(shape).numel() + 1, dtype=torch.float64)
    return torch.sin(n * (0.37 * n + 0.7 * k)).view(shape)


def test_published_numbers_of_another_scene() -> None:
    embeddings = torch.stack([F.normalize(wave(m, 4, 8), dim=1) for m in range(2)])
    banks = torch.stack([F.normalize(wave(10 + m, 40, 8), dim=1) for m in range(2)])
    negatives = torch.tensor([[4 + (5 * r + 7 * s) % 36 for s in range(6)] for r in range(4)])
    rows = Candidates(positives=torch.arange(4), negatives=negatives)
    result = nce_embeddings(embeddings, banks, rows, pairs=PAIRS, temperature=0.07)
    losses, z = sorted(result.terms.tolist()), sorted((result.log_means.flatten().exp() * 40).tolist())
    assert losses == pytest.approx([0.732144, 10.515142], abs=2e-6)
    assert z == pytest.approx([260925.06, 5501168.37], rel=1e-6)


def test_teacher_features_and_banks_get_no_gradient() -> None:
    torch.manual_seed(1)
    head, features = LinearHead(6, 16), torch.randn(4, 6)
    banks = F.normalize(torch.randn(2, 40, 16), dim=-1).requires_grad_()
    student = leaf(F.normalize(torch.randn(4, 16), dim=1), torch.float32)
    rows = Candidates(positives=torch.arange(4), negatives=torch.randint(40, (9,)))
    nce_embeddings([student, head(features)], banks, rows, pairs=PAIRS, temperature=0.07).loss.backward()
    assert banks.grad is None and student.grad is not None
    assert head.linear.weight.grad is not None and head.linear.weight.grad.abs().sum() > 0
