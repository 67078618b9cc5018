"""Figures on Sinkhorn: what the envelope gradient saves, and whose gradient it is."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import median
from typing import Literal

import torch
from torch import Tensor

from benchmarks.sizes import Setting
from benchmarks.table import Row
from benchmarks.timing import Ratio, Step, ratio, repeated, take_turns, timer_for
from coterie.losses.sinkhorn import cosine_cost, local_transport, sinkhorn

_EPS = 0.05
_TIMES = 20  # in one measurement
_CONVERGED = 2000  # iterations after which the gradients are compared


def transport(setting: Setting) -> Iterator[Row]:
    """Time both gradients of the transport, and compare the envelope with the gradient of the entropic value."""
    sizes = setting.sizes
    student, teacher = _sets(setting, torch.float32)

    def side(gradient: Literal["unrolled", "envelope"]) -> Step:
        def step() -> None:
            value = local_transport(student, teacher, eps=_EPS, iterations=sizes.iterations, gradient=gradient)
            torch.autograd.grad(value, student)

        return repeated(step, _TIMES)

    sides = {"unrolled": side("unrolled"), "envelope": side("envelope")}
    times = take_turns(sides, rounds=max(setting.rounds, 7), timer=timer_for(setting.device), warm_up=2)
    yield Row(
        key="sinkhorn.time",
        title=f"Sinkhorn, {sizes.iterations} iterations: unrolled / envelope",
        measured=ratio(times["unrolled"], times["envelope"]),
        limit=1.6,
        at_least=True,
        note=" / ".join(f"{median(times[name]) / _TIMES:.2f} ms" for name in sides),
    )
    gap = gradient_gap(setting)
    title = "envelope against the gradient of the entropic value, relative"
    note = f"float64, {_CONVERGED} iterations"
    yield Row(key="sinkhorn.gradient", title=title, measured=Ratio(gap, gap, gap), unit="", limit=1e-4, note=note)


def gradient_gap(setting: Setting) -> float:
    """Relative distance, at convergence in float64, of the envelope gradient from autograd through all iterations."""
    student, teacher = _sets(setting, torch.float64)
    value = local_transport(student, teacher, eps=_EPS, iterations=_CONVERGED)
    (ours,) = torch.autograd.grad(value, student)
    (truth,) = torch.autograd.grad(entropic_value(student, teacher), student)
    return float((ours - truth).norm() / truth.norm())


def entropic_value(student: Tensor, teacher: Tensor) -> Tensor:
    """`sum(P * C) + eps * KL(P || a b^T)` with uniform weights, its graph through every iteration."""
    cost = cosine_cost(student, teacher)
    mass = sinkhorn(cost, eps=_EPS, iterations=_CONVERGED).mass
    divergence: Tensor = torch.special.xlogy(mass, mass * cost.numel()).sum()
    return (mass * cost).sum() + _EPS * divergence


def _sets(setting: Setting, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    teacher = torch.randn(setting.sizes.batch, setting.sizes.dim, dtype=dtype)
    student = teacher + torch.randn(setting.sizes.batch, setting.sizes.dim, dtype=dtype)
    return student.to(setting.device).requires_grad_(), teacher.to(setting.device)
