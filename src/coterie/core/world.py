"""The processes that train one cohort together, and how tensors pass between them with their gradient.

Each process, a rank, runs the peers on its share of the images of a batch. What the peers say is gathered, so that a
method sees the whole batch on every rank, computes the same losses and keeps the same memories, and knows of no rank.

Gradients follow one rule: what autograd differentiates is the sum over ranks of their losses, which are all the same
one. The mean over ranks of the gradients of their copies of a parameter is then the gradient of that loss, to first and
to second order, whether a parameter was used before the gathering (each rank has a part) or after it (each has all).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from coterie.core.types import PeerOutput


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """This process among those that train together.

    Attributes:
        rank: number of this process in `0 .. size-1`; rank 0 writes the folder of the run.
        size: number of processes.
        group: carries tensors of the device; None for all processes that torch was set up with.
        control: carries small messages, on the CPU.
        patient: as `control`, for waits without a practical limit.
        global_norm: whether batch norm takes its statistics from the images of all ranks.
    """

    rank: int = 0
    size: int = 1
    group: dist.ProcessGroup | None = None
    control: dist.ProcessGroup | None = None
    patient: dist.ProcessGroup | None = None
    global_norm: bool = True

    @property
    def alone(self) -> bool:
        """Whether this is the only process."""
        return self.size == 1

    @property
    def writes(self) -> bool:
        """Whether this process writes files and shows progress."""
        return self.rank == 0

    def share(self, rows: Tensor) -> Tensor:
        """This rank's part of the rows of a batch: `[..., B]` to `[..., B / size]`, whole batches for a world of one.

        Example:
            >>> World(rank=1, size=2).share(torch.arange(6))
            tensor([3, 4, 5])
        """
        if self.alone:
            return rows
        part = rows.shape[-1] // self.size
        return rows[..., self.rank * part : (self.rank + 1) * part]


ALONE = World()
"""The world of a process that trains by itself."""

_current = ALONE


def world() -> World:
    """The world that this process trains in now; `ALONE` unless a run has entered another one."""
    return _current


@contextmanager
def inside(entered: World) -> Iterator[World]:
    """Context in which `world()` is a given one."""
    global _current
    before, _current = _current, entered
    try:
        yield entered
    finally:
        _current = before


def gather(outputs: Sequence[PeerOutput]) -> list[PeerOutput]:
    """Put together what all ranks' peers say about their shares of a batch.

    Tensors of one dtype travel together: one exchange for all peers, however many. A map that several peers share is
    sent once.

    Args:
        outputs: of the peers on this rank's images; `[B / size, ...]` tensors.

    Returns:
        The same on the whole batch, `[B, ...]` in the order of its rows, with gradient where there was one.
    """
    if _current.alone:
        return list(outputs)
    found = {id(tensor): tensor for output in outputs for tensor in _tensors(output)}
    kinds: dict[torch.dtype, list[Tensor]] = {}
    for tensor in found.values():
        kinds.setdefault(tensor.dtype, []).append(tensor)
    gathered: dict[int, Tensor] = {}
    for alike in kinds.values():
        gathered |= zip(map(id, alike), _gather_together(alike, _current), strict=True)
    return [_replaced(output, gathered) for output in outputs]


@torch.no_grad()
def whole(rows: Tensor) -> Tensor:
    """Append the rows `[b, ...]` of all ranks to `[B, ...]`, without gradient."""
    return rows if _current.alone else _gather_rows(rows, _current)


@torch.no_grad()
def averaged(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Average tensors of one dtype over all ranks, in one exchange.

    Args:
        tensors: such as gradients; the same shapes on all ranks.

    Returns:
        New tensors, or those that were given for a world of one.
    """
    if _current.alone or not tensors:
        return list(tensors)
    flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
    dist.all_reduce(flat, group=_current.group)
    parts = torch.split(flat / _current.size, [tensor.numel() for tensor in tensors])
    return [part.view(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)]


def summed(tensor: Tensor) -> Tensor:
    """Add a tensor over all ranks, with gradient to each rank's own."""
    total: Tensor = tensor if _current.alone else _Sum.apply(tensor, _current)  # type: ignore[no-untyped-call]
    return total


class _Sum(torch.autograd.Function):
    """Adds over ranks; so does its backward pass."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, among: World) -> Tensor:  # noqa: ANN401
        ctx.among = among
        total = value.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total, group=among.group)
        return total

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor, None]:  # noqa: ANN401
        return _Sum.apply(slopes[0], ctx.among), None  # type: ignore[no-untyped-call]


class _Gather(torch.autograd.Function):
    """Appends the rows of all ranks; its backward pass gives each rank the sum of what all say about its own.

    What was sent together with other tensors is given as `known`. Each tensor still has a node of its own, so that one
    which no term reads sends no gradient of zeros into its network.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, among: World, known: Tensor | None = None) -> Tensor:  # noqa: ANN401
        ctx.among = among
        return _gather_rows(rows, among) if known is None else known.view_as(known)

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor, None, None]:  # noqa: ANN401
        return _Scatter.apply(slopes[0], ctx.among), None, None  # type: ignore[no-untyped-call]


class _Scatter(torch.autograd.Function):
    """Adds over ranks and keeps this rank's rows; its backward pass appends rows again.

    What is added is the same on all ranks, as they compute the same from gathered tensors, and stays so when it is
    differentiated again: nothing need be sent.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, among: World) -> Tensor:  # noqa: ANN401
        ctx.among = among
        part = len(rows) // among.size
        return rows[among.rank * part : (among.rank + 1) * part] * among.size

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor, None]:  # noqa: ANN401
        return _Gather.apply(slopes[0], ctx.among), None  # type: ignore[no-untyped-call]


def _gather_rows(rows: Tensor, among: World) -> Tensor:
    parts = [torch.empty_like(rows, memory_format=torch.contiguous_format) for _ in range(among.size)]
    dist.all_gather(parts, rows.contiguous(), group=among.group)
    return torch.cat(parts)


def _gather_together(tensors: Sequence[Tensor], among: World) -> list[Tensor]:
    """Gather tensors `[b, ...]` of one dtype in one exchange."""
    with torch.no_grad():
        flat = torch.cat([tensor.flatten(1) for tensor in tensors], dim=1)
        parts = torch.split(_gather_rows(flat, among), [tensor[0].numel() for tensor in tensors], dim=1)
        found = [part.reshape(-1, *tensor.shape[1:]) for part, tensor in zip(parts, tensors, strict=True)]
    return [
        _Gather.apply(tensor, among, known) if tensor.requires_grad else known  # type: ignore[no-untyped-call]
        for tensor, known in zip(tensors, found, strict=True)
    ]


def _tensors(output: PeerOutput) -> tuple[Tensor, ...]:
    return output.logits, output.embedding, *output.stages, *output.preactivations


def _replaced(output: PeerOutput, gathered: dict[int, Tensor]) -> PeerOutput:
    return replace(
        output,
        logits=gathered[id(output.logits)],
        embedding=gathered[id(output.embedding)],
        stages=tuple(gathered[id(tensor)] for tensor in output.stages),
        preactivations=tuple(gathered[id(tensor)] for tensor in output.preactivations),
    )
