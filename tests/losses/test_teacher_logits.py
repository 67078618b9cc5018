from __future__ import annotations

import math

import pytest
import torch

from coterie.core import ShapeError
from coterie.losses.logits import kl_logits
from coterie.losses.teacher_logits import dist_loss, dkd_loss, dkd_parts, standardised_kl
from golden_logits import TOLERANCE, assert_close, cases, slow_kl
from golden_teachers import check_golden, random, read

CASES = cases("kd")


def softened(row: list[float], temperature: float) -> list[float]:
    powers = [math.exp(value / temperature) for value in row]
    return [value / sum(powers) for value in powers]


def slow_divergence(target: list[float], own: list[float]) -> float:
    return sum(p * math.log(p / q) for p, q in zip(target, own, strict=True))


def slow_correlation(first: list[float], second: list[float]) -> float:
    a, b = ([v - sum(row) / len(row) for v in row] for row in (first, second))
    product = sum(x * y for x, y in zip(a, b, strict=True))
    return product / (math.sqrt(sum(x * x for x in a)) * math.sqrt(sum(y * y for y in b)) + 1e-8)


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_dkd_golden(dtype: torch.dtype) -> None:
    case = CASES["dkd_a1_b8_T4"]
    check_golden(
        case,
        lambda student_logits, teacher_logits, labels: dkd_loss(
            student_logits, teacher_logits, labels, **case["hyperparameters"]
        ),
        dtype,
    )


def test_dkd_parts_golden() -> None:
    case = CASES["dkd_parts_T4"]
    inputs = {name: read(values, name, torch.float64) for name, values in case["inputs"].items()}
    target, others = dkd_parts(*inputs.values(), temperature=4.0)
    assert_close(target, case["expected"]["target_class_part"])
    assert_close(others, case["expected"]["non_target_class_part"])


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("tau", [1, 4])
def test_dist_golden(tau: int, dtype: torch.dtype) -> None:
    check_golden(
        CASES[f"dist_tau{tau}"],
        lambda student_logits, teacher_logits: dist_loss(student_logits, teacher_logits, temperature=tau),
        dtype,
    )


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_standardised_golden(dtype: torch.dtype) -> None:
    check_golden(
        CASES["logit_standardisation_T2_no_T2"],
        lambda student_logits, teacher_logits: standardised_kl(
            student_logits, teacher_logits, temperature=2.0, times_squared_temperature=False
        ),
        dtype,
    )


@pytest.mark.parametrize("classes", [2, 3, 7])
def test_dkd_equals_loops(classes: int) -> None:
    student, teacher, labels = random(5, classes, seed=1), random(5, classes, seed=2), torch.arange(5) % classes
    first, second = 0.0, 0.0
    for s, t, y in zip(student.tolist(), teacher.tolist(), labels.tolist(), strict=True):
        p, q = softened(t, 3.0), softened(s, 3.0)
        first += slow_divergence([p[y], 1 - p[y]], [q[y], 1 - q[y]])
        rest = [k for k in range(classes) if k != y]
        second += slow_divergence([p[k] / (1 - p[y]) for k in rest], [q[k] / (1 - q[y]) for k in rest])
    target, others = dkd_parts(student, teacher, labels, temperature=3.0)
    assert float(target) == pytest.approx(9 * first / 5, rel=1e-10)
    assert float(others) == pytest.approx(9 * second / 5, rel=1e-10, abs=1e-14)
    total = dkd_loss(student, teacher, labels, alpha=0.3, beta=2.0, temperature=3.0)
    assert float(total) == pytest.approx(0.3 * float(target) + 2 * float(others))


def test_dkd_parts_weighted_by_the_teachers_doubt_are_plain_kd() -> None:
    student, teacher, label = 3 * random(1, 6, seed=3), 3 * random(1, 6, seed=4), torch.tensor([2])
    target, others = dkd_parts(student, teacher, label, temperature=2.0)
    doubt = 1 - (teacher / 2).softmax(dim=1)[0, 2]
    assert float(target + doubt * others) == pytest.approx(
        float(kl_logits(student, teacher, temperature=2.0)), rel=1e-12
    )


def test_dkd_stays_finite_for_very_large_logits() -> None:
    student = torch.tensor([[3000.0, -3000.0, 0.0], [-3000.0, 0.0, 3000.0]], requires_grad=True)
    loss = dkd_loss(student, student.detach().flip(1), torch.tensor([0, 0]), temperature=1.0)
    loss.backward()
    assert torch.isfinite(loss.detach())
    assert student.grad is not None and torch.isfinite(student.grad).all()


@pytest.mark.parametrize("shape", [(5, 3), (2, 8)])
def test_dist_equals_loops(shape: tuple[int, int]) -> None:
    student, teacher = 2 * random(*shape, seed=5), 2 * random(*shape, seed=6)
    own, goal = ([softened(row, 2.5) for row in logits.tolist()] for logits in (student, teacher))
    rows = [slow_correlation(a, b) for a, b in zip(own, goal, strict=True)]
    columns = [slow_correlation([row[k] for row in own], [row[k] for row in goal]) for k in range(shape[1])]
    inter, intra = 1 - sum(rows) / len(rows), 1 - sum(columns) / len(columns)
    loss = dist_loss(student, teacher, inter=0.5, intra=3.0, temperature=2.5)
    assert float(loss) == pytest.approx(2.5**2 * (0.5 * inter + 3.0 * intra), rel=1e-10)


def test_standardised_equals_loops() -> None:
    student, teacher = 3 * random(4, 6, seed=7) + 2, random(4, 6, seed=8)

    def scored(row: list[float]) -> list[float]:
        mean = sum(row) / len(row)
        spread = math.sqrt(sum((v - mean) ** 2 for v in row) / (len(row) - 1))
        return [(v - mean) / (spread + 1e-7) for v in row]

    own, goal = (torch.tensor([scored(r) for r in z.tolist()], dtype=torch.float64) for z in (student, teacher))
    expected = slow_kl(own, goal, 3.0)
    assert float(standardised_kl(student, teacher, temperature=3.0)) == pytest.approx(expected, rel=1e-10)
    plain = standardised_kl(student, teacher, temperature=3.0, times_squared_temperature=False)
    assert float(plain) == pytest.approx(expected / 9, rel=1e-10)


@pytest.mark.parametrize(("classes", "labels"), [(1, [0, 0]), (3, [0, 1, 2])])
def test_dkd_refuses(classes: int, labels: list[int]) -> None:
    with pytest.raises(ShapeError, match=rf"logits \(2, {classes}\) and labels \({len(labels)},\).*; give each image"):
        dkd_parts(torch.zeros(2, classes), torch.zeros(2, classes), torch.tensor(labels))


def test_standardised_refuses_one_class() -> None:
    with pytest.raises(ShapeError, match=r"\(2, 1\).*two or more classes"):
        standardised_kl(torch.zeros(2, 1), torch.zeros(2, 1))
