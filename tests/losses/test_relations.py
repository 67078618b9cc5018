from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from coterie.losses.relations import cc_loss, cc_neighbour_loss, pkt_loss, rkd_angle, rkd_distance, sp_loss
from golden_logits import TOLERANCE, cases, leaf
from golden_teachers import check_golden, random, wave

CASES = cases("relations")
LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "rkd_distance": rkd_distance,
    "rkd_angle": rkd_angle,
    "rkd_25_50": lambda s, t: 25 * rkd_distance(s, t) + 50 * rkd_angle(s, t),
    "cc_gaussian_unit_norm": lambda s, t: cc_loss(s, t, gamma=0.4, order=2),
    "cc_gaussian_no_norm": lambda s, t: cc_loss(s, t, form="raw", gamma=0.4, order=2),
    "correlation_repdistiller": cc_neighbour_loss,
    "pkt": lambda s, t: pkt_loss(s, t, eps=1e-7),
}
SHAPES = [(2, 3, 4), (5, 6, 2), (7, 1, 9)]  # B, D, E


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", CASES)
def test_golden(name: str, dtype: torch.dtype) -> None:
    check_golden(CASES[name], lambda student, teacher: LOSSES[name](student, teacher), dtype)


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_sp_golden(dtype: torch.dtype) -> None:
    check_golden(cases("feature_maps")["sp"], lambda student_map, teacher_map: sp_loss(student_map, teacher_map), dtype)


@pytest.mark.parametrize(
    ("loss", "student", "teacher", "expected"),
    [
        (rkd_distance, wave(0, 5, 6), wave(1, 5, 7), 0.01679760),
        (rkd_angle, wave(0, 5, 6), wave(1, 5, 7), 0.02005307),
        (cc_neighbour_loss, wave(0, 5, 6), wave(1, 5, 6), 2.39239260),
        (sp_loss, wave(0, 4, 3, 2, 2), wave(1, 4, 5, 2, 2), 0.06979824),
    ],
)
def test_values_of_published_code(loss: Any, student: Tensor, teacher: Tensor, expected: float) -> None:
    assert float(loss(student, teacher)) == pytest.approx(expected, rel=1e-6)


def huber(gap: float) -> float:
    return gap * gap / 2 if abs(gap) < 1 else abs(gap) - 0.5


def inner(first: list[float], second: list[float]) -> float:
    return sum(x * y for x, y in zip(first, second, strict=True))


def slow_distances(rows: list[list[float]]) -> list[list[float]]:
    table = [[math.dist(a, b) for b in rows] for a in rows]
    positive = [d for row in table for d in row if d > 0]
    return [[d / (sum(positive) / len(positive)) for d in row] for row in table]


def slow_cosine(vertex: list[float], first: list[float], second: list[float]) -> float:
    a, b = ([x - v for x, v in zip(end, vertex, strict=True)] for end in (first, second))
    return inner(a, b) / max(math.hypot(*a), 1e-12) / max(math.hypot(*b), 1e-12)


@pytest.mark.parametrize("shape", SHAPES)
def test_rkd_equals_loops(shape: tuple[int, int, int]) -> None:
    size, dim, other = shape
    student, teacher = 3 * random(size, dim, seed=1), random(size, other, seed=2)
    s, t = student.tolist(), teacher.tolist()
    pairs, ids = (slow_distances(s), slow_distances(t)), range(size)
    distance = sum(huber(pairs[0][i][j] - pairs[1][i][j]) for i in ids for j in ids) / size**2
    triples = [(i, j, k) for i in ids for j in ids for k in ids]
    angle = sum(huber(slow_cosine(s[i], s[j], s[k]) - slow_cosine(t[i], t[j], t[k])) for i, j, k in triples) / size**3
    assert float(rkd_distance(student, teacher)) == pytest.approx(distance, rel=1e-10)
    assert float(rkd_angle(student, teacher)) == pytest.approx(angle, rel=1e-10)


@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_rkd_in_float32_keeps_pairs_apart_that_are_close(offset: float) -> None:
    student, teacher = random(6, 8, seed=3), random(6, 8, seed=4)
    student[1] = student[0] + 0.01 * student[2]
    student = (student + offset).float()
    exact = [float(loss(student.double(), teacher)) for loss in (rkd_distance, rkd_angle)]
    rough = [float(loss(student, teacher.float())) for loss in (rkd_distance, rkd_angle)]
    assert rough == pytest.approx(exact, rel=1e-5)


@pytest.mark.parametrize("gap", [0.0, 1e-10])
def test_rkd_angle_ignores_images_that_rounding_cannot_tell_apart(gap: float) -> None:
    teacher, ids = random(16, 4, seed=6), range(16)
    student = random(16, 40, seed=5) + 30
    student[8:] = student[:8]
    s, t = student.tolist(), teacher.tolist()
    triples = [(i, j, k) for i in ids for j in ids for k in ids]
    angle = sum(huber(slow_cosine(s[i], s[j], s[k]) - slow_cosine(t[i], t[j], t[k])) for i, j, k in triples) / 16**3
    student[8:] += gap * random(8, 40, seed=7)
    assert float(rkd_angle(student, teacher)) == pytest.approx(angle, rel=1e-7)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("form", ["unit", "raw"])
@pytest.mark.parametrize(("kernel", "order"), [("bilinear", 2), ("gaussian", 1), ("gaussian", 4)])
def test_cc_equals_loops(shape: tuple[int, int, int], form: Any, kernel: Any, order: int) -> None:
    size, dim, other = shape
    student, teacher = random(size, dim, seed=7), random(size, other, seed=8)

    def table(rows: list[list[float]]) -> list[list[float]]:
        if form == "unit":
            rows = [[v / math.hypot(*row) for v in row] for row in rows]
        products = [[inner(a, b) for b in rows] for a in rows]
        if kernel == "bilinear":
            return products
        powers = range(order + 1)
        series = [[sum((1.4 * g) ** p / math.factorial(p) for p in powers) for g in row] for row in products]
        return [[math.exp(-1.4) * value for value in row] for row in series]

    own, goal = table(student.tolist()), table(teacher.tolist())
    total = sum((own[i][j] - goal[i][j]) ** 2 for i in range(size) for j in range(size))
    expected = (total if form == "unit" else math.sqrt(total)) / size**2
    loss = cc_loss(student, teacher, kernel=kernel, form=form, gamma=0.7, order=order)
    assert float(loss) == pytest.approx(expected, rel=1e-10)


def test_cc_series_approaches_the_gaussian() -> None:
    rows = torch.nn.functional.normalize(random(4, 3, seed=9), dim=1)
    exact = torch.exp(-0.4 * torch.cdist(rows, rows).square())
    flat = math.exp(-0.4 * 2)  # what orthogonal rows have
    target = torch.eye(4, dtype=torch.float64)
    expected = (exact - target.clamp(min=flat)).square().mean()
    assert float(cc_loss(rows, target, gamma=0.4, order=20)) == pytest.approx(float(expected), rel=1e-10)


def test_cc_neighbours_equal_loops_and_can_teach_the_teachers_head() -> None:
    student, teacher = leaf(random(5, 3, seed=10)), leaf(random(5, 3, seed=11))
    gaps = [[abs(value) for value in row] for row in (student - teacher).tolist()]
    expected = sum(inner(gaps[i], gaps[i + 1]) for i in range(4)) / 4
    loss = cc_neighbour_loss(student, teacher, detach=False)
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-12)
    loss.backward()
    assert teacher.grad is not None and student.grad is not None
    assert torch.allclose(teacher.grad, -student.grad)


@pytest.mark.parametrize("eps", [1e-7, 1e-3])
@pytest.mark.parametrize("shape", SHAPES)
def test_pkt_equals_loops(shape: tuple[int, int, int], eps: float) -> None:
    size, dim, other = shape
    student, teacher = random(size, dim, seed=12), random(size, other, seed=13)

    def table(rows: list[list[float]]) -> list[list[float]]:
        unit = [[v / (math.hypot(*row) + eps) for v in row] for row in rows]
        near = [[(inner(a, b) + 1) / 2 for b in unit] for a in unit]
        return [[value / sum(row) for value in row] for row in near]

    own, goal = table(student.tolist()), table(teacher.tolist())
    pairs = [(own[i][j] + eps, goal[i][j]) for i in range(size) for j in range(size)]
    expected = sum(t * math.log((t + eps) / s) for s, t in pairs) / size**2
    assert float(pkt_loss(student, teacher, eps=eps)) == pytest.approx(expected, rel=1e-8)


def test_pkt_of_opposite_embeddings_is_finite() -> None:
    for seed in range(40):  # in some of them rounding takes the cosine below -1
        row = random(1, 17, seed=seed).float()
        rows = torch.cat([row, -row]).requires_grad_()
        loss = pkt_loss(rows, torch.ones(2, 3))
        loss.backward()
        assert torch.isfinite(loss.detach())
        assert rows.grad is not None and torch.isfinite(rows.grad).all()


@pytest.mark.parametrize("tail", [(), (2, 2), (3,)])
def test_sp_equals_loops(tail: tuple[int, ...]) -> None:
    student, teacher = random(4, 3, *tail, seed=14), random(4, 5, seed=15)

    def table(maps: Tensor) -> list[list[float]]:
        rows = [values.flatten().tolist() for values in maps]
        gram = [[inner(a, b) for b in rows] for a in rows]
        return [[value / math.hypot(*row) for value in row] for row in gram]

    own, goal = table(student), table(teacher)
    expected = sum((own[i][j] - goal[i][j]) ** 2 for i in range(4) for j in range(4)) / 16
    assert float(sp_loss(student, teacher)) == pytest.approx(expected, rel=1e-12)
