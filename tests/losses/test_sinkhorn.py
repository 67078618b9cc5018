"""Sinkhorn against golden plans, another library, a plain loop, exact assignments and its own invariances."""

from __future__ import annotations

import time
from itertools import permutations
from typing import Any

import numpy as np
import ot
import pytest
import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from coterie.core import ConfigError, ShapeError
from coterie.losses.sinkhorn import cosine_cost, local_transport, sinkhorn
from golden_logits import assert_close, cases, leaf

GOLDEN = cases("wcord")
PLANS = [name for name in GOLDEN if name.startswith("sinkhorn")]
CONVERGED = {0.05: 10000, 0.1: 400, 0.5: 100}
GRADIENTS = {"envelope": "grad_plan_held_constant", "unrolled": "grad_through_the_iterations"}


def iterations_of(case: dict[str, Any]) -> int:
    given = case["hyperparameters"]["iterations"]
    return given if isinstance(given, int) else CONVERGED[case["hyperparameters"]["eps"]]


def unit(*shape: int) -> Tensor:
    return F.normalize(torch.randn(*shape, dtype=torch.float64), dim=-1)


def wave(k: int, *shape: int) -> Tensor:
    n = torch.arange(1, torch.Size(shape).numel() + 1, dtype=torch.float64)
    return torch.sin(n * (0.37 * n + 0.7 * k)).view(shape)


def slow_sinkhorn(cost: Tensor, a: Tensor, b: Tensor, eps: float, iterations: int, rho: float | None = None) -> Tensor:
    """Potentials one by one, from the update equations; rho relaxes the weights."""
    share = 1.0 if rho is None else rho / (rho + eps)
    f, g = [cost.new_zeros(())] * len(a), [cost.new_zeros(())] * len(b)
    for _ in range(iterations):
        for i in range(len(a)):
            total = sum(torch.exp((g[j] - cost[i, j]) / eps) for j in range(len(b)))
            f[i] = eps * (torch.log(a[i]) - share * torch.log(torch.as_tensor(total)))
        for j in range(len(b)):
            total = sum(torch.exp((f[i] - cost[i, j]) / eps) for i in range(len(a)))
            g[j] = eps * (torch.log(b[j]) - share * torch.log(torch.as_tensor(total)))
    return torch.stack(
        [torch.stack([torch.exp((f[i] + g[j] - cost[i, j]) / eps) for j in range(len(b))]) for i in range(len(a))]
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", PLANS)
def test_golden_plans(name: str, dtype: torch.dtype) -> None:
    case = GOLDEN[name]
    student, teacher = (torch.tensor(case["inputs"][side], dtype=dtype) for side in ("student", "teacher"))
    eps, expected = case["hyperparameters"]["eps"], case["expected"]
    cost = cosine_cost(student, teacher)
    plan = sinkhorn(cost, eps=eps, iterations=iterations_of(case))
    assert_close(cost, expected["cost_matrix"], dtype)
    assert_close(plan.mass, expected["plan"], dtype)
    assert_close((plan.mass * cost).sum(), expected["transport_cost"], dtype)
    shift = expected["potential_rows"][0] - plan.rows[0].item()  # adding to rows what is taken from columns is free
    assert_close(plan.rows + shift, expected["potential_rows"], dtype)
    assert_close(plan.columns - shift, expected["potential_columns"], dtype)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("gradient", GRADIENTS)
@pytest.mark.parametrize("name", PLANS)
def test_golden_gradients(name: str, gradient: Any, dtype: torch.dtype) -> None:
    case = GOLDEN[name]
    student, teacher = (leaf(case["inputs"][side], dtype) for side in ("student", "teacher"))
    eps = case["hyperparameters"]["eps"]
    loss = local_transport(student, teacher, eps=eps, iterations=iterations_of(case), gradient=gradient)
    loss.backward()
    assert_close(loss, case["expected"]["loss"], dtype)
    assert_close(student.grad, case["expected"][GRADIENTS[gradient]]["student"], dtype)
    assert_close(teacher.grad, case["expected"][GRADIENTS[gradient]]["teacher"], dtype)


def test_published_numbers_of_another_scene() -> None:
    student, teacher = wave(0, 6, 8), wave(1, 6, 8)
    settings = {(1.0, 50): 0.920708, (0.1, 100): 0.680351, (0.05, 50): 0.658850, (0.05, 500): 0.658831}
    for (eps, count), value in (settings | {(0.01, 2000): 0.643411}).items():
        assert local_transport(student, teacher, eps=eps, iterations=count).item() == pytest.approx(value, abs=1e-6)


@pytest.mark.parametrize("rho", [None, 0.3])
@pytest.mark.parametrize("weighted", [False, True])
def test_matches_the_loop(weighted: bool, rho: float | None) -> None:
    torch.manual_seed(1)
    cost = 1 - unit(4, 3) @ unit(5, 3).t()
    a = F.softmax(torch.randn(4, dtype=torch.float64), 0) if weighted else None
    b = F.softmax(torch.randn(5, dtype=torch.float64), 0) if weighted else None
    even = [torch.full((n,), 1 / n, dtype=torch.float64) for n in (4, 5)]
    slow = slow_sinkhorn(cost, even[0] if a is None else a, even[1] if b is None else b, 0.07, 13, rho)
    assert_close(sinkhorn(cost, eps=0.07, iterations=13, a=a, b=b, rho=rho).mass, slow.tolist())


@pytest.mark.parametrize("rho", [None, 0.3])
def test_unrolled_gradient_is_the_derivative_of_the_value(rho: float | None) -> None:
    torch.manual_seed(2)
    student, teacher = leaf(unit(3, 4)), leaf(unit(4, 4))
    weights = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)

    def value(s: Tensor, t: Tensor) -> Tensor:
        return local_transport(
            s, t, eps=0.3, iterations=12, gradient="unrolled", student_weights=weights if rho else None, rho=rho
        )

    assert torch.autograd.gradcheck(value, (student, teacher))


@pytest.mark.parametrize("shape", [(64, 64), (40, 25)])
def test_equals_another_library(shape: tuple[int, int]) -> None:
    torch.manual_seed(3)
    student, teacher = unit(shape[0], 16), unit(shape[1], 16)
    cost = cosine_cost(student, teacher)
    a, b = (F.softmax(torch.randn(n, dtype=torch.float64), 0) for n in shape)
    for rows, columns in ((None, None), (a, b)):
        given = [[] if w is None else w.numpy() for w in (rows, columns)]
        plan = ot.sinkhorn(*given, cost.numpy(), 0.2, method="sinkhorn_log", stopThr=1e-14, numItermax=3000)
        own = sinkhorn(cost, eps=0.2, iterations=1000, a=rows, b=columns)
        assert np.abs(plan - own.mass.numpy()).max() < 1e-9
        value = local_transport(
            student, teacher, eps=0.2, iterations=1000, student_weights=rows, teacher_weights=columns
        )
        assert value.item() == pytest.approx((plan * cost.numpy()).sum(), abs=1e-9)


def test_relaxed_weights_equal_another_library() -> None:
    torch.manual_seed(4)
    cost = cosine_cost(unit(9, 6), unit(7, 6))
    a, b = (F.softmax(torch.randn(n, dtype=torch.float64), 0) for n in (9, 7))
    plan = ot.unbalanced.sinkhorn_unbalanced(
        a.numpy(), b.numpy(), cost.numpy(), 0.1, 0.4, reg_type="kl", stopThr=1e-15, numItermax=5000
    )
    own = sinkhorn(cost, eps=0.1, iterations=500, a=a, b=b, rho=0.4)
    assert np.abs(plan - own.mass.numpy()).max() < 1e-9
    strict = sinkhorn(cost, eps=0.1, iterations=500, a=a, b=b)
    assert (sinkhorn(cost, eps=0.1, iterations=500, a=a, b=b, rho=1e4).mass - strict.mass).abs().max() < 1e-4


@pytest.mark.slow
def test_value_falls_to_the_exact_assignment() -> None:
    case = GOLDEN["exact_transport_no_regulariser"]
    student, teacher = (torch.tensor(case["inputs"][side], dtype=torch.float64) for side in ("student", "teacher"))
    cost = cosine_cost(student, teacher)
    best = min(sum(cost[i, j].item() for i, j in enumerate(order)) for order in permutations(range(8))) / 8
    rows, columns = linear_sum_assignment(cost.numpy())
    assert best == pytest.approx(case["expected"]["loss"], abs=1e-12)
    assert cost[rows, columns].mean().item() == pytest.approx(best, abs=1e-12)
    assert ot.emd2([], [], cost.numpy()) == pytest.approx(best, abs=1e-9)
    gaps = [
        local_transport(student, teacher, eps=eps, iterations=4000).item() - best for eps in (0.5, 0.1, 0.02, 0.002)
    ]
    assert gaps == sorted(gaps, reverse=True) and gaps[0] > 0.1 and abs(gaps[-1]) < 1e-4
    assert_close(sinkhorn(cost, eps=0.0005, iterations=9000).mass.round(decimals=3), case["expected"]["plan"])


@pytest.mark.parametrize("options", [{}, {"rho": 0.5}, {"gradient": "unrolled"}])
def test_order_of_either_batch_makes_no_difference(options: Any) -> None:
    torch.manual_seed(5)
    student, teacher = leaf(unit(7, 5)), unit(9, 5)
    there, here = torch.randperm(7), torch.randperm(9)
    first = local_transport(student, teacher, **options)
    (expected,) = torch.autograd.grad(first, student)
    second = local_transport(student[there], teacher[here], **options)
    assert second.item() == pytest.approx(first.item(), abs=1e-14)
    assert_close(torch.autograd.grad(second, student)[0], expected.tolist())


def test_envelope_is_the_gradient_of_the_entropic_value() -> None:
    torch.manual_seed(6)
    student, teacher = leaf(unit(6, 5)), unit(6, 5)
    local_transport(student, teacher, eps=0.1, iterations=2000).backward()
    cost = cosine_cost(student, teacher)
    plan = sinkhorn(cost, eps=0.1, iterations=2000).mass
    (true,) = torch.autograd.grad((plan * cost).sum() + 0.1 * (plan * (plan * 36).log()).sum(), student)
    assert_close(student.grad, true.tolist())


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_rows_of_weight_zero_do_not_exist(gradient: Any) -> None:
    torch.manual_seed(7)
    student, teacher = leaf(unit(5, 4)), unit(6, 4)
    weights = torch.tensor([0.5, 0.0, 0.25, 0.25, 0.0], dtype=torch.float64)
    kept = weights > 0
    whole = local_transport(student, teacher, gradient=gradient, student_weights=weights)
    part = local_transport(student[kept], teacher, gradient=gradient, student_weights=weights[kept])
    assert whole.item() == pytest.approx(part.item(), abs=1e-13)
    grads = [torch.autograd.grad(value, student)[0] for value in (whole, part)]
    assert_close(grads[0], grads[1].tolist())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("eps", [0.05, 0.001])
def test_short_numbers_follow_long_ones(eps: float, dtype: torch.dtype) -> None:
    torch.manual_seed(8)
    student, teacher = unit(64, 128).to(dtype), unit(64, 128).to(dtype)
    with torch.autocast("cpu", torch.bfloat16):
        value = local_transport(student, teacher, eps=eps)
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(local_transport(student.double(), teacher.double(), eps=eps).item(), abs=1e-5)


def test_rounds_stay_in_bounds_where_batches_do_not_resemble() -> None:
    student, teacher = torch.eye(64)[:1].expand(256, 64) + 1e-3 * torch.randn(256, 64), -torch.eye(64)[:3]
    for eps in (1e-3, 0.05):
        value = local_transport(student, teacher, eps=eps, iterations=200)
        assert value.item() == pytest.approx(
            local_transport(student.double(), teacher.double(), eps=eps, iterations=200).item(), abs=1e-4
        )


def test_envelope_is_cheaper_than_the_graph_through_the_iterations() -> None:
    student, teacher = torch.randn(64, 128).requires_grad_(), torch.randn(64, 128)
    spent: dict[str, list[float]] = {name: [] for name in GRADIENTS}
    for _ in range(7):
        for name, times in spent.items():
            start = time.process_time()
            local_transport(student, teacher, gradient=name).backward()  # type: ignore[arg-type]
            times.append(time.process_time() - start)
    assert min(spent["unrolled"]) > 1.6 * min(spent["envelope"])


def test_bad_input_is_refused() -> None:
    with pytest.raises(ShapeError, match="project both"):
        local_transport(torch.zeros(3, 4), torch.zeros(3, 5))
    with pytest.raises(ShapeError, match=r"give \[3\]"):
        local_transport(torch.ones(3, 4), torch.ones(2, 4), student_weights=torch.ones(2) / 2)
    with pytest.raises(ShapeError, match="at least one"):
        sinkhorn(torch.zeros(0, 3))
    for options in ({"eps": 0.0}, {"iterations": 0}, {"rho": -1.0}):
        with pytest.raises(ConfigError, match="above 0"):
            sinkhorn(torch.zeros(2, 2), **options)  # type: ignore[arg-type]
