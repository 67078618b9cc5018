"""What every loss with a frozen teacher keeps to, whatever its formula."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from coterie.core import ShapeError
from coterie.losses.feature_maps import at_loss, fitnet_loss, fsp_loss, ft_loss, nst_loss
from coterie.losses.relations import cc_loss, cc_neighbour_loss, pkt_loss, rkd_angle, rkd_distance, sp_loss
from coterie.losses.responses import ab_layer_loss, ab_loss, overhaul_loss, partial_l2, vid_loss
from coterie.losses.teacher_logits import dist_loss, dkd_loss, standardised_kl

Loss = Callable[[Tensor, Tensor], Tensor]

ROWS: dict[str, Loss] = {
    "dkd": lambda s, t: dkd_loss(s, t, torch.arange(len(s)) % 3),
    "dist": dist_loss,
    "standardised": standardised_kl,
    "rkd_distance": rkd_distance,
    "rkd_angle": rkd_angle,
    "cc": cc_loss,
    "cc_raw": lambda s, t: cc_loss(s, t, form="raw"),
    "cc_bilinear": lambda s, t: cc_loss(s, t, kernel="bilinear"),
    "cc_neighbours": cc_neighbour_loss,
    "pkt": pkt_loss,
    "sp": sp_loss,
}
MAPS: dict[str, Loss] = {
    "sp": sp_loss,
    "at": at_loss,
    "at_p1": lambda s, t: at_loss(s, t, p=1),
    "ft": ft_loss,
    "fitnet": fitnet_loss,
    "nst": nst_loss,
    "fsp": lambda s, t: fsp_loss([s, 2 * s], [t, 2 * t]),
    "ab_mean": lambda s, t: ab_layer_loss(s, t, reduction="mean"),
    "ab": lambda s, t: ab_loss([s, s], [t, t]),
    "partial_l2": partial_l2,
    "overhaul": lambda s, t: overhaul_loss([s, s], [t, t]),
    "vid": lambda s, t: vid_loss(s, t, torch.ones(s.shape[1:2])),
}
LOSSES = [pytest.param(loss, (5, 6), id=f"rows-{name}") for name, loss in ROWS.items()] + [
    pytest.param(loss, (4, 3, 4, 4), id=f"maps-{name}") for name, loss in MAPS.items()
]

NOT_ZERO = ("maps-ab", "maps-ab_mean", "maps-vid")  # a margin to keep, a variance to pay for


def normal(shape: tuple[int, ...], seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def gradient(loss: Loss, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    student = student.detach().clone().requires_grad_()
    value = loss(student, teacher)
    (grad,) = torch.autograd.grad(value, student)
    return value.detach(), grad


@pytest.mark.parametrize(("loss", "shape"), LOSSES)
def test_gradient_is_that_of_the_value_and_the_teacher_gets_none(loss: Loss, shape: tuple[int, ...]) -> None:
    student, teacher = (normal(shape, seed, torch.float64).requires_grad_() for seed in (1, 2))
    assert torch.autograd.gradcheck(lambda own: loss(own, teacher.detach()), student)
    loss(student, teacher).backward()
    assert teacher.grad is None
    assert student.grad is not None and bool(student.grad.any())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("loss", "shape"), LOSSES)
def test_half_precision_is_computed_in_float32(loss: Loss, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    student, teacher = normal(shape, 1, dtype), normal(shape, 2, dtype)
    value, grad = gradient(loss, student, teacher)
    assert value.dtype == torch.float32
    assert torch.isfinite(grad).all()
    assert torch.equal(value, loss(student.float(), teacher.float()))


@pytest.mark.parametrize(("loss", "shape"), LOSSES)
def test_autocast_changes_nothing(loss: Loss, shape: tuple[int, ...]) -> None:
    student, teacher = normal(shape, 1), normal(shape, 2)
    with torch.autocast("cpu", torch.bfloat16):
        value = loss(student, teacher)
    assert value.dtype == torch.float32
    assert torch.equal(value, loss(student, teacher))


DEGENERATE: dict[str, Callable[[Tensor], Tensor]] = {
    "zeros": torch.zeros_like,
    "one value": torch.ones_like,
    "equal images": lambda x: x[:1].expand_as(x).contiguous(),
    "two equal images": lambda x: torch.cat([x[:1], x[:-1]]),
    "one image": lambda x: x[:1],
    "tiny": lambda x: 1e-20 * x,
    "large": lambda x: 1e4 * x,
    "one zero image": lambda x: torch.cat([torch.zeros_like(x[:1]), x[1:]]),
}


@pytest.mark.parametrize("kind", DEGENERATE)
@pytest.mark.parametrize(("loss", "shape"), LOSSES)
def test_degenerate_inputs_give_finite_gradients(loss: Loss, shape: tuple[int, ...], kind: str) -> None:
    change = DEGENERATE[kind]
    student, teacher = normal(shape, 3), normal(shape, 4)
    both = change(student)
    pairs = [(both, change(teacher)), (both, both)]
    if kind != "one image":
        pairs += [(both, teacher), (student, change(teacher))]
    for own, goal in pairs:
        value, grad = gradient(loss, own, goal)
        assert torch.isfinite(value)
        assert torch.isfinite(grad).all()


@pytest.mark.parametrize(("loss", "shape"), [case for case in LOSSES if case.id not in NOT_ZERO])
def test_equal_networks_have_no_loss(loss: Loss, shape: tuple[int, ...]) -> None:
    student = normal(shape, 5, torch.float64)
    assert float(loss(student, student)) == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize(("loss", "shape"), LOSSES)
def test_shapes_that_do_not_fit_are_refused_with_both_shapes(loss: Loss, shape: tuple[int, ...]) -> None:
    student, teacher = normal(shape, 1), normal((shape[0] + 1, *shape[1:]), 2)
    with pytest.raises(ShapeError, match=r"student .*\(\d, .*teacher .*\(\d, .*; (give|project|connect) ") as caught:
        loss(student, teacher)
    message = str(caught.value)
    assert str(tuple(student.shape)) in message
    assert str(tuple(teacher.shape)) in message
    assert "\n" not in message


@pytest.mark.parametrize(("loss", "shape"), LOSSES)
def test_axes_are_checked(loss: Loss, shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match=r"\(5,\) and teacher \(5,\) must both be \[B"):
        loss(torch.zeros(5), torch.zeros(5))


@pytest.mark.parametrize(
    ("loss", "shape", "largest"),
    [
        (rkd_angle, (6, 500), 6**3),
        (nst_loss, (2, 100, 2, 2), 2 * 100 * 4),
        (nst_loss, (2, 3, 10, 10), 2 * 3 * 100),
        (sp_loss, (4, 50, 3, 3), 4 * 450),
    ],
)
def test_nothing_large_is_kept_for_the_backward_pass(loss: Loss, shape: tuple[int, ...], largest: int) -> None:
    sizes: list[int] = []

    def keep(values: Tensor) -> Tensor:
        sizes.append(values.numel())
        return values

    student = normal(shape, 6).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda values: values):
        loss(student, normal(shape, 7))
    assert 0 < max(sizes) <= max(largest, student.numel())
