from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from coterie.core import ShapeError
from coterie.losses.logits import kl_logits, mean_logits, summed_cross_entropy

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "kd.json").read_text())
CASES = {case["name"]: case for case in GOLDEN["cases"]}
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}


def close(given: Tensor, expected: object, dtype: torch.dtype) -> bool:
    target = torch.as_tensor(expected, dtype=torch.float64)
    return float((given.double() - target).abs().max()) <= TOLERANCE[dtype] * max(1.0, float(target.abs().max()))


def leaf(values: object, dtype: torch.dtype) -> Tensor:
    return torch.tensor(values, dtype=dtype, requires_grad=True)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", [name for name in CASES if name.startswith("kd_kl_")])
def test_kl_golden(name: str, dtype: torch.dtype) -> None:
    case = CASES[name]
    student, teacher = (leaf(case["inputs"][key], dtype) for key in ("student_logits", "teacher_logits"))
    temperature = case["hyperparameters"]["temperature"]
    loss = kl_logits(student, teacher, temperature=temperature)
    loss.backward()
    assert close(loss.detach(), case["expected"]["loss"], dtype)
    assert close(student.grad, case["expected"]["grad"]["student_logits"], dtype)
    assert teacher.grad is None
    kl_logits(student, teacher, temperature=temperature, detach=False).backward()
    if "teacher_logits" in case["expected"]["grad"]:
        assert close(teacher.grad, case["expected"]["grad"]["teacher_logits"], dtype)


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_cross_entropy_golden(dtype: torch.dtype) -> None:
    case = CASES["cross_entropy"]
    logits = leaf(case["inputs"]["student_logits"], dtype)
    loss = summed_cross_entropy([logits, logits.detach()], torch.tensor(case["inputs"]["labels"]))
    loss.backward()
    assert close(loss.detach() / 2, case["expected"]["loss"], dtype)
    assert close(logits.grad, case["expected"]["grad"]["student_logits"], dtype)


def test_kl_equals_a_loop_over_samples_and_classes() -> None:
    torch.manual_seed(3)
    student, teacher = torch.randn(2, 5, 7, dtype=torch.float64) * 4
    expected = 0.0
    for s, t in zip(student, teacher, strict=True):
        p, q = (t / 2.5).exp() / (t / 2.5).exp().sum(), (s / 2.5).exp() / (s / 2.5).exp().sum()
        expected += sum(float(p[k]) * float(torch.log(p[k] / q[k])) for k in range(7)) / 5
    assert float(kl_logits(student, teacher, temperature=2.5)) == pytest.approx(2.5**2 * expected, rel=1e-12)


def test_half_precision_is_raised_to_float32() -> None:
    logits = torch.randn(4, 3, dtype=torch.bfloat16)
    assert kl_logits(logits, -logits).dtype == torch.float32
    assert mean_logits([logits, logits]).dtype == torch.float32
    labels = torch.tensor([0, 1, 2, 0])
    assert torch.equal(summed_cross_entropy([logits], labels), F.cross_entropy(logits.float(), labels))


def test_mean_logits_averages_and_passes_gradient() -> None:
    logits = [torch.randn(2, 3, requires_grad=True) for _ in range(3)]
    mean_logits(logits).sum().backward()
    assert torch.allclose(mean_logits(logits), (logits[0] + logits[1] + logits[2]) / 3)
    assert all(torch.allclose(scores.grad, torch.full((2, 3), 1 / 3)) for scores in logits)


@pytest.mark.parametrize("shapes", [((2, 3), (2, 4)), ((3,), (3,)), ((2, 3, 1), (2, 3, 1))])
def test_kl_refuses_shapes(shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    with pytest.raises(ShapeError, match=r"must both be \[B, K\]"):
        kl_logits(torch.zeros(shapes[0]), torch.zeros(shapes[1]))


@pytest.mark.parametrize("logits", [[], [torch.zeros(2, 3), torch.zeros(2, 4)]])
def test_mean_refuses_shapes(logits: list[Tensor]) -> None:
    with pytest.raises(ShapeError, match="all of one shape"):
        mean_logits(logits)
