from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from coterie.core import ShapeError
from coterie.losses.feature_maps import pool_to_smaller
from coterie.losses.responses import (
    ab_layer_loss,
    ab_loss,
    overhaul_loss,
    overhaul_margin,
    overhaul_target,
    partial_l2,
    vid_loss,
    vid_mean,
    vid_raw_scale,
)
from golden_logits import TOLERANCE, assert_close, cases
from golden_teachers import check_golden, random, read, wave

CASES = cases("feature_maps")


def vid(student_map: Tensor, teacher_map: Tensor, w1: Tensor, w2: Tensor, w3: Tensor, raw_scale: Tensor) -> Tensor:
    student_map, teacher_map = pool_to_smaller(student_map, teacher_map)
    return vid_loss(vid_mean(student_map, [w1, w2, w3]), teacher_map, raw_scale, eps=1e-5)


LOSSES: dict[str, Callable[..., Tensor]] = {
    "ab_three_layers": lambda student_maps, teacher_maps: ab_loss(student_maps, teacher_maps),
    "vid_same_size": vid,
    "vid_student_larger": vid,
}


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", LOSSES)
def test_golden(name: str, dtype: torch.dtype) -> None:
    check_golden(CASES[name], LOSSES[name], dtype)


def test_ab_golden_layer_by_layer() -> None:
    case = CASES["ab_three_layers"]
    student, teacher = (read(case["inputs"][name], name, torch.float64) for name in ("student_maps", "teacher_maps"))
    layers = torch.stack([ab_layer_loss(s, t) for s, t in zip(student, teacher, strict=True)])
    weights = torch.tensor(case["hyperparameters"]["layer_weights"], dtype=torch.float64)
    assert_close(layers * weights * case["hyperparameters"]["scale"], case["expected"]["loss_per_layer"])


def test_ab_mean_golden() -> None:
    case = CASES["ab_mean_one_layer"]
    layer = case["hyperparameters"]["layer_used"]
    maps = [torch.tensor(case["inputs"][f"{who}_maps"][layer], dtype=torch.float64) for who in ("student", "teacher")]
    assert_close(ab_layer_loss(*maps, reduction="mean"), case["expected"]["loss"])


def test_vid_starts_at_the_golden_raw_scale() -> None:
    assert vid_raw_scale(5.0) == pytest.approx(CASES["vid_same_size"]["expected_initial_raw_scale"], abs=1e-12)


@pytest.mark.parametrize(("student", "teacher", "expected"), [(0, 2, 0.02340881), (1, 3, 0.05776231)])
def test_ab_values_of_published_code(student: int, teacher: int, expected: float) -> None:
    weight = 2.0 ** (student - 1)
    given = ab_layer_loss(wave(student, 2, 3, 2, 2), wave(teacher, 2, 3, 2, 2))
    assert 0.003 * weight * float(given) == pytest.approx(expected, rel=1e-6)


def slow_boundary(s: float, t: float, margin: float) -> float:
    if t <= 0:
        return (s + margin) ** 2 if s > -margin else 0.0
    return (s - margin) ** 2 if s <= margin else 0.0


def slow_partial(s: float, t: float) -> float:
    return 0.0 if s <= t <= 0 else (s - t) ** 2


def slow_sum(student: Tensor, teacher: Tensor, entry: Callable[..., float], *options: float) -> float:
    pairs = zip(student.flatten().tolist(), teacher.flatten().tolist(), strict=True)
    return sum(entry(s, t, *options) for s, t in pairs)


def layers(seed: int) -> list[Tensor]:
    return [2 * random(3, 2, 4, 5, seed=seed), random(3, 4, 2, 1, seed=seed + 1), random(3, 1, 1, 1, seed=seed + 2)]


@pytest.mark.parametrize("margin", [0.0, 0.7])
def test_ab_equals_loops(margin: float) -> None:
    student, teacher = layers(1), layers(5)
    teacher[0][0, 0, 0] = 0.0
    student[0][0, 0, 0, :2] = torch.tensor([margin, -margin])
    sums = [slow_sum(s, t, slow_boundary, margin) for s, t in zip(student, teacher, strict=True)]
    for s, t, total in zip(student, teacher, sums, strict=True):
        assert float(ab_layer_loss(s, t, margin=margin)) == pytest.approx(total / 3, rel=1e-12)
        mean = ab_layer_loss(s, t, margin=margin, reduction="mean")
        assert float(mean) == pytest.approx(total / s.numel(), rel=1e-12)
    expected = 0.5 * (sums[0] / 4 + sums[1] / 2 + sums[2]) / 3
    assert float(ab_loss(student, teacher, margin=margin, scale=0.5)) == pytest.approx(expected, rel=1e-12)


def test_overhaul_equals_loops() -> None:
    student, teacher = layers(11), layers(15)
    margins = [-random(maps.shape[1], seed=20 + i).abs() for i, maps in enumerate(teacher)]
    targets = [overhaul_target(maps, margin) for maps, margin in zip(teacher, margins, strict=True)]
    for maps, margin, target in zip(teacher, margins, targets, strict=True):
        for c, least in enumerate(margin.tolist()):
            raised = [max(value, least) for value in maps[:, c].flatten().tolist()]
            assert target[:, c].flatten().tolist() == raised
    sums = [slow_sum(s, t, slow_partial) for s, t in zip(student, targets, strict=True)]
    assert float(partial_l2(student[0], targets[0])) == pytest.approx(sums[0] / 3, rel=1e-12)
    expected = (sums[0] / 4 + sums[1] / 2 + sums[2]) / 3 / 1000
    assert float(overhaul_loss(student, targets)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("weight", "bias"), [(1.0, 0.0), (-0.7, 0.4), (2.0, -3.0), (0.5, 1.5)])
def test_overhaul_margin_is_the_mean_of_negative_responses(weight: float, bias: float) -> None:
    x = torch.linspace(bias - 12 * abs(weight), 0.0, 200_001, dtype=torch.float64)
    density = torch.exp(-((x - bias) / weight).square() / 2)
    expected = float(torch.trapezoid(x * density, x) / torch.trapezoid(density, x))
    given = overhaul_margin(*(torch.tensor([value], dtype=torch.float64) for value in (weight, bias)))
    assert float(given) == pytest.approx(expected, rel=1e-6)


def test_overhaul_margin_of_channels_at_the_ends() -> None:
    weight = torch.tensor([0.1, 2.0, 0.0, 0.0, 0.0], requires_grad=True)
    bias = torch.tensor([1.0, -1000.0, -4.0, 0.0, 4.0], requires_grad=True)
    margin = overhaul_margin(weight, bias)
    assert margin.tolist() == pytest.approx([-0.3, -1000.0, -4.0, 0.0, 0.0], abs=1e-6)
    assert not margin.requires_grad


def test_vid_equals_loops() -> None:
    student, teacher, raw = random(2, 3, 2, 2, seed=30), random(2, 4, 2, 2, seed=31), 30 * random(4, seed=32)
    weights = [random(5, 3, seed=33), random(4, 5, seed=34)]
    mean = vid_mean(student, weights)
    total = 0.0
    for b in range(2):
        for place in range(4):
            column = student[b].flatten(1)[:, place]
            predicted = weights[1] @ (weights[0] @ column).clamp(min=0)
            assert torch.allclose(mean[b].flatten(1)[:, place], predicted)
            for c in range(4):
                variance = math.log1p(math.exp(float(raw[c]))) + 1e-5
                error = float(predicted[c] - teacher[b, c].flatten()[place])
                total += (error**2 / variance + math.log(variance)) / 2
    assert float(vid_loss(mean, teacher, raw)) == pytest.approx(total / 32, rel=1e-10)


@pytest.mark.parametrize("variance", [0.01, 1.0, 7.0])
def test_vid_raw_scale_gives_the_variance(variance: float) -> None:
    raw = torch.tensor([vid_raw_scale(variance)], dtype=torch.float64)
    maps = torch.zeros(1, 1, 1, 1, dtype=torch.float64)
    assert math.exp(2 * float(vid_loss(maps, maps, raw))) == pytest.approx(variance, rel=1e-10)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda maps: vid_loss(maps, maps, torch.zeros(5)), r"\(2, 3, 4, 4\) and raw_scale \(5,\).*one scale for each"),
        (lambda maps: overhaul_target(maps, torch.zeros(5)), r"\(2, 3, 4, 4\) and margins \(5,\).*give the margins"),
        (lambda _: overhaul_margin(torch.zeros(3), torch.zeros(4)), r"weight \(3,\) and bias \(4,\).*one batch norm"),
        (lambda maps: ab_loss([maps], [maps, maps]), "do not pair up"),
        (lambda maps: overhaul_loss([], []), "do not pair up; give 1 or more each"),
    ],
)
def test_refusals(call: Callable[[Tensor], Any], message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        call(torch.zeros(2, 3, 4, 4))
