"""Tensors of which each process has a part: how parts become whole again, and whole tensors parts.

torch calls them DTensors. Whatever is no such tensor is left as it is, so that callers need not ask.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeGuard

from torch import Tensor

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor


def whole_of(tensor: Tensor) -> Tensor:
    """The whole of a tensor; all processes that have a part of it must call this."""
    return tensor.full_tensor() if is_shard(tensor) else tensor


def part_here(tensor: Tensor) -> Tensor:
    """What this process has of a tensor; a view."""
    return tensor.to_local() if is_shard(tensor) else tensor


def cut_as(whole: Tensor, like: Tensor) -> Tensor:
    """A tensor that every process has, cut into parts as another one is; nothing is sent.

    Args:
        whole: of the shape of `like`, on any device.
        like: a tensor of which this process has a part, or a whole one.
    """
    if not is_shard(like):
        return whole
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(whole.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def is_shard(tensor: Any) -> TypeGuard[DTensor]:  # noqa: ANN401 - whose type takes long to import
    """Whether this process may have a part of a tensor only."""
    return hasattr(tensor, "full_tensor")
