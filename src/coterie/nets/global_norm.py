"""Batch norm whose statistics are those of all images of a batch, on whatever ranks they are.

It takes the place of `torch.nn.functional.batch_norm` while a network runs, so that networks keep their layers, the
names of their state and the kernels of evaluation, and any layer that calls the function is reached. torch's own
`SyncBatchNorm` replaces layers and refuses a CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from coterie.core.world import added, summed, whole, world


def shared_statistics() -> AbstractContextManager[object]:
    """Context in which batch norm sees the images of all ranks; it changes nothing in a world of one."""
    return nullcontext() if world().data.size == 1 or not world().global_norm else _GlobalNorm()


class _GlobalNorm(TorchFunctionMode):
    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        if func is F.batch_norm:
            return batch_norm(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """Do what `torch.nn.functional.batch_norm` does, over the images of all ranks.

    Args:
        input: `[b, C, ...]`, this rank's share; as many images on every rank.
        running_mean: `[C]`, moved in place in training.
        running_var: `[C]`, moved in place in training.
        weight: `[C]`.
        bias: `[C]`.
        training: whether statistics are those of the batch.
        momentum: share of the batch in the running statistics.
        eps: added to the variance.

    Returns:
        `[b, C, ...]`, with gradient to input, weight and bias of all ranks.
    """
    if not training:
        return F.batch_norm(input, running_mean, running_var, weight, bias, False, momentum, eps)
    out, mean, variance = _Norm.apply(input, weight, bias, eps)  # type: ignore[no-untyped-call]
    count = _count(input)
    _move(running_mean, mean, momentum)
    _move(running_var, variance * (count / max(count - 1, 1)), momentum)
    normed: Tensor = out
    return normed


class _Norm(torch.autograd.Function):
    """Normalises with torch's own kernels, one small exchange forward and one backward."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        images: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        eps: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        means, variances = whole(torch.stack(_moments(_wide(images)))[None]).unbind(1)
        mean = means.mean(0)
        variance = variances.mean(0) + (means - mean).square().mean(0)
        ctx.save_for_backward(images, weight, bias, mean, variance)
        ctx.eps = eps
        ctx.mark_non_differentiable(mean, variance)
        return F.batch_norm(images, mean, variance, weight, bias, False, 0.0, eps), mean, variance

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        images, weight, bias, mean, variance = ctx.saved_tensors
        if torch.is_grad_enabled():
            return *_differentiable_slopes(slopes[0], images, weight, bias, ctx.eps), None
        shape, scale, slope = _shape(images), (variance + ctx.eps).rsqrt(), slopes[0].contiguous()
        factors = scale if weight is None else weight * scale
        to_weight, to_bias = _sums(slope, images, mean, variance, ctx.eps)
        of_weight, of_bias = added(torch.stack([to_weight, to_bias])) / _count(images)
        to_images = F.batch_norm(
            _wide(images), mean, variance, -factors * of_weight, -factors * of_bias, False, 0.0, ctx.eps
        )
        to_images = to_images.addcmul_(_wide(slope), factors.view(shape)).to(images.dtype)
        return to_images, None if weight is None else to_weight, None if bias is None else to_bias, None


def _moments(images: Tensor) -> list[Tensor]:
    """Mean and variance of each channel of this rank's images, `[C]` each."""
    if images.device.type != "cpu" or not images.is_contiguous():
        return list(torch.batch_norm_update_stats(images, None, None, 0.0))
    # that kernel and `var_mean` are four times slower here than three passes
    mean = images.mean(_over(images))
    centred = images - mean.view(_shape(images))
    squares, _ = _sums(centred, centred, torch.zeros_like(mean), torch.ones_like(mean), 0.0)
    return [mean, squares / (images.numel() // images.shape[1])]


def _sums(slope: Tensor, images: Tensor, mean: Tensor, variance: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Over all values of a channel, the slope times the normalised image, and the slope: two times `[C]`."""
    wanted = [False, True, True]
    _, products, slopes = torch.ops.aten.native_batch_norm_backward(
        slope, images, torch.ones_like(mean), mean, variance, None, None, False, eps, wanted
    )
    return products, slopes


def _differentiable_slopes(
    slopes: Tensor, images: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> list[Tensor | None]:
    """The gradients of `_Norm`, to be differentiated again: by way of the formula."""
    given = [images, weight, bias]
    wanted = [tensor for tensor in given if tensor is not None and tensor.requires_grad]
    out = _by_formula(images, weight, bias, eps)
    found = iter(torch.autograd.grad(out, wanted, slopes, create_graph=True))
    return [next(found) if tensor is not None and tensor.requires_grad else None for tensor in given]


def _by_formula(images: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    wide, shape, over = _wide(images), _shape(images), _over(images)
    mean = summed(wide.sum(over)) / _count(images)
    centred = wide - mean.view(shape)
    variance = summed(centred.square().sum(over)) / _count(images)
    scale = (variance + eps).rsqrt() if weight is None else weight * (variance + eps).rsqrt()
    out = centred * scale.view(shape)
    return (out if bias is None else out + bias.view(shape)).to(images.dtype)


def _wide(images: Tensor) -> Tensor:
    return images.to(torch.promote_types(images.dtype, torch.float32))


def _over(images: Tensor) -> list[int]:
    return [0, *range(2, images.dim())]


def _shape(images: Tensor) -> list[int]:
    return [1, -1] + [1] * (images.dim() - 2)


def _count(images: Tensor) -> int:
    """Values of a channel on all ranks."""
    return images.numel() // images.shape[1] * world().data.size


@torch.no_grad()
def _move(running: Tensor | None, seen: Tensor, momentum: float) -> None:
    if running is not None:
        running.mul_(1 - momentum).add_(seen.to(running.dtype), alpha=momentum)
