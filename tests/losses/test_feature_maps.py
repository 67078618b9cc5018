from __future__ import annotations

import math
from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from coterie.core import ShapeError
from coterie.losses.feature_maps import at_loss, fitnet_loss, fsp_loss, ft_loss, nst_loss, pool_to_smaller
from golden_logits import TOLERANCE, cases, leaf
from golden_teachers import check_golden, random, wave

CASES = cases("feature_maps")
WHO = ("student", "teacher")
SIZES = [((4, 4), (2, 2)), ((7, 5), (3, 5)), ((5, 8), (6, 3)), ((9, 9), (4, 6)), ((3, 3), (3, 3))]


def regressed(student_map: Tensor, teacher_map: Tensor, regressor_weight: Tensor) -> Tensor:
    return fitnet_loss(F.conv2d(student_map, regressor_weight[:, :, None, None]), teacher_map)


def on_maps(loss: Callable[..., Tensor], **options: Any) -> Callable[..., Tensor]:
    return lambda student_map, teacher_map: loss(student_map, teacher_map, **options)


LOSSES: dict[str, Callable[..., Tensor]] = {
    "at_same_size": on_maps(at_loss),
    "at_student_larger": on_maps(at_loss),
    "at_teacher_larger": on_maps(at_loss),
    "at_p4": on_maps(at_loss, p=4),
    "nst_same_size": on_maps(nst_loss),
    "nst_student_larger": on_maps(nst_loss),
    "fitnet_mse": on_maps(fitnet_loss),
    "fitnet_1x1_regressor": regressed,
    "fsp_two_pairs": lambda student_maps, teacher_maps: fsp_loss(student_maps, teacher_maps),
    "factor_transfer_loss": on_maps(ft_loss, p=2, distance=1),
}


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", LOSSES)
def test_golden(name: str, dtype: torch.dtype) -> None:
    check_golden(CASES[name], LOSSES[name], dtype)


def test_fsp_golden_pair_by_pair() -> None:
    case = CASES["fsp_two_pairs"]
    student, teacher = ([torch.tensor(maps).double() for maps in case["inputs"][f"{who}_maps"]] for who in WHO)
    given = [float(fsp_loss(student[i : i + 2], teacher[i : i + 2])) for i in (0, 1)]
    assert given == pytest.approx(case["expected"]["loss_per_pair"], rel=1e-6)


def test_values_of_published_code() -> None:
    assert float(at_loss(wave(0, 2, 3, 4, 4), wave(1, 2, 5, 4, 4))) == pytest.approx(0.01116404, rel=1e-6)
    student = [wave(0, 2, 3, 4, 4), wave(1, 2, 4, 2, 2)]
    teacher = [wave(2, 2, 3, 4, 4), wave(3, 2, 4, 2, 2)]
    assert float(fsp_loss(student, teacher)) == pytest.approx(0.04486219, rel=1e-6)


@pytest.mark.parametrize(
    "sizes", [((4, 4), (2, 2)), ((7, 5), (3, 5)), ((5, 8), (6, 3)), ((9, 9), (4, 6)), ((3, 3), (3, 3))]
)
def test_pooling_is_adaptive_average_pooling(sizes: tuple[tuple[int, int], tuple[int, int]]) -> None:
    first, second = leaf(random(2, 3, *sizes[0], seed=1)), leaf(random(2, 4, *sizes[1], seed=2))
    smaller = tuple(min(pair) for pair in zip(*sizes, strict=True))
    for given, maps in zip(pool_to_smaller(first, second), (first, second), strict=True):
        expected = F.adaptive_avg_pool2d(maps, smaller)
        weights = random(*expected.shape, seed=3)
        (own,) = torch.autograd.grad((given * weights).sum(), maps)
        (other,) = torch.autograd.grad((expected * weights).sum(), maps)
        assert torch.allclose(given, expected, rtol=0, atol=1e-14)
        assert torch.allclose(own, other, rtol=0, atol=1e-14)


def slow_pool(maps: Tensor, height: int, width: int) -> Tensor:
    high, wide = maps.shape[2:]
    rows = [(h * high // height, math.ceil((h + 1) * high / height)) for h in range(height)]
    columns = [(w * wide // width, math.ceil((w + 1) * wide / width)) for w in range(width)]
    return torch.stack(
        [torch.stack([maps[:, :, a:b, c:d].mean(dim=(2, 3)) for c, d in columns], -1) for a, b in rows], -2
    )


def slow_attention(image: Tensor, p: int) -> list[float]:
    channels, height, width = image.shape
    strength = [
        sum(abs(float(image[c, h, w])) ** p for c in range(channels)) / channels
        for h, w in product(range(height), range(width))
    ]
    return [value / math.hypot(*strength) for value in strength]


@pytest.mark.parametrize("p", [1, 2, 3])
@pytest.mark.parametrize("size", [(3, 2), (2, 2), (1, 4)])
def test_attention_and_factors_equal_loops(size: tuple[int, int], p: int) -> None:
    student, teacher = random(3, 2, 3, 2, seed=4), random(3, 4, *size, seed=5)
    smaller = (min(3, size[0]), min(2, size[1]))
    own, goal = (slow_pool(maps, *smaller) for maps in (student, teacher))
    pairs = [(slow_attention(s, p), slow_attention(t, p)) for s, t in zip(own, goal, strict=True)]
    gaps = [a - b for one, two in pairs for a, b in zip(one, two, strict=True)]
    squares, sizes = sum(g * g for g in gaps) / len(gaps), sum(abs(g) for g in gaps) / len(gaps)
    assert float(at_loss(student, teacher, p=p)) == pytest.approx(squares, rel=1e-10, abs=1e-14)
    assert float(ft_loss(student, teacher, p=p)) == pytest.approx(sizes, rel=1e-10, abs=1e-14)
    assert float(ft_loss(student, teacher, p=p, distance=2)) == pytest.approx(squares, rel=1e-10, abs=1e-14)


@pytest.mark.parametrize("channels", [(2, 3), (2, 9), (7, 5)])
def test_nst_equals_loops_in_both_of_its_forms(channels: tuple[int, int]) -> None:
    student, teacher = random(2, channels[0], 3, 2, seed=6), random(2, channels[1], 3, 2, seed=7)

    def kernel(first: Tensor, second: Tensor) -> float:
        rows, others = ([c.flatten() / c.norm() for c in image] for image in (first, second))
        return sum(float(a @ b) ** 2 for a in rows for b in others) / len(rows) / len(others)

    pairs = list(zip(student, teacher, strict=True))
    expected = sum(kernel(s, s) + kernel(t, t) - 2 * kernel(s, t) for s, t in pairs) / 2
    assert float(nst_loss(student, teacher)) == pytest.approx(expected, rel=1e-10)


def test_fsp_equals_loops() -> None:
    sizes = [(3, 4, 4), (2, 3, 2), (4, 1, 2)]
    student = [random(2, *size, seed=8 + i) for i, size in enumerate(sizes)]
    teacher = [random(2, *size, seed=18 + i) for i, size in enumerate([(3, 6, 4), (2, 3, 3), (4, 2, 2)])]

    def flow(maps: list[Tensor], layer: int) -> Tensor:
        upper, lower = maps[layer], maps[layer + 1]
        height, width = (min(upper.shape[axis], lower.shape[axis]) for axis in (2, 3))
        upper, lower = slow_pool(upper, height, width), slow_pool(lower, height, width)
        out = torch.zeros(2, upper.shape[1], lower.shape[1], dtype=torch.float64)
        for b, i, j in product(*(range(n) for n in out.shape)):
            out[b, i, j] = (upper[b, i] * lower[b, j]).sum() / (height * width)
        return out

    expected = sum(float((flow(student, layer) - flow(teacher, layer)).square().mean()) for layer in (0, 1))
    assert float(fsp_loss(student, teacher)) == pytest.approx(expected, rel=1e-12)


def test_fsp_refuses_layers_that_do_not_pair_up() -> None:
    maps = [torch.zeros(2, 3, 4, 4), torch.zeros(2, 5, 2, 2)]
    with pytest.raises(
        ShapeError, match=r"\[\(2, 3, 4, 4\), \(2, 5, 2, 2\)\] and teacher \[\(2, 3, 4, 4\)\] do not pair up"
    ):
        fsp_loss(maps, maps[:1])
    with pytest.raises(ShapeError, match="give 2 or more each"):
        fsp_loss(maps[:1], maps[:1])
    with pytest.raises(ShapeError, match=r"\(2, 5, 2, 2\).*\(2, 6, 2, 2\).*equal B, C; connect the student's map"):
        fsp_loss(maps, [maps[0], torch.zeros(2, 6, 2, 2)])
