"""The processes that train one cohort together, and how tensors pass between them with their gradient.

Each process, a rank, runs the peers on its share of the images of a batch. What the peers say is gathered, so that a
method sees the whole batch on every rank, computes the same losses and keeps the same memories, and knows of no rank.

Gradients follow one rule: what autograd differentiates is the sum over ranks of their losses, which are all the same
one. The mean over ranks of the gradients of their copies of a parameter is then the gradient of that loss, to first and
to second order, whether a parameter was used before the gathering (each rank has a part) or after it (each has all).

Where peers live in different processes ranks form a mesh: along its `data` lines they hold the same peers and share a
batch, as above; along its `peers` lines they see the same images and hold different peers, see `coterie.core.across`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

from coterie.core.types import PeerOutput, by_identity

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """Ranks along one dimension of the mesh, as one of them sees them.

    Attributes:
        rank: place of this process in `0 .. size-1`.
        size: number of ranks.
        group: carries tensors of the device; None for all processes that torch was set up with.
    """

    rank: int = 0
    size: int = 1
    group: dist.ProcessGroup | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """This process among those that train together.

    Attributes:
        rank: number of this process in `0 .. size-1`; rank 0 writes the folder of the run.
        size: number of processes.
        peers: ranks that see the same images and hold other peers each; this one only where each holds all peers.
        rows: ranks that hold the same peers and share the images of a batch; None for all processes.
        mesh: both dimensions as torch names them, `peer` and `data`; None where each process holds all of all peers.
        control: carries small messages between all processes, on the CPU.
        patient: as `control`, for waits without a practical limit.
        global_norm: whether batch norm takes its statistics from the images of all ranks.
        notes: what ranks have told each other once and need not say again.
    """

    rank: int = 0
    size: int = 1
    peers: Line = Line()
    rows: Line | None = None
    mesh: DeviceMesh | None = None
    control: dist.ProcessGroup | None = None
    patient: dist.ProcessGroup | None = None
    global_norm: bool = True
    notes: dict[object, Any] = field(default_factory=dict, compare=False, repr=False)

    @property
    def alone(self) -> bool:
        """Whether this is the only process."""
        return self.size == 1

    @property
    def data(self) -> Line:
        """The ranks that hold the same peers and share the images of a batch."""
        return self.rows or Line(rank=self.rank, size=self.size)

    @property
    def spread(self) -> bool:
        """Whether peers live in different processes."""
        return self.peers.size > 1

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
        line = self.data
        part = rows.shape[-1] // line.size
        return rows if line.size == 1 else rows[..., line.rank * part : (line.rank + 1) * part]

    def block(self, count: int) -> range:
        """Which of `count` peers live in this process, as many as in every other one.

        Example:
            >>> World(rank=1, size=2, peers=Line(rank=1, size=2), rows=Line()).block(4)
            range(2, 4)
        """
        part = count // self.peers.size
        return range(self.peers.rank * part, (self.peers.rank + 1) * part)

    def owner(self, peer: int, count: int) -> int:
        """Number of the first process in which one of `count` peers lives."""
        return peer // (count // self.peers.size) * self.data.size

    def texts(self, text: str) -> list[str]:
        """What every process has to say, in order of ranks; each may say as much as it likes."""
        if self.alone:
            return [text]
        content = torch.frombuffer(bytearray(text.encode() or b" "), dtype=torch.uint8)
        sizes = _gather_rows(torch.tensor([len(content)]), Line(size=self.size, group=self.control)).tolist()
        padded = content.new_zeros(1, max(sizes))
        padded[0, : len(content)] = content
        rows = _gather_rows(padded, Line(size=self.size, group=self.control))
        return [bytes(row[:size].tolist()).decode() for row, size in zip(rows, sizes, strict=True)]


FEW = 8
"""Ranks up to which small tensors are gathered and then added: half the messages of an exchange that adds."""

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
    """Put together what the peers say about all shares of a batch.

    Tensors of one dtype travel together: one exchange for all peers, however many. A map that several peers share is
    sent once.

    Args:
        outputs: of the peers on this rank's images; `[B / size, ...]` tensors.

    Returns:
        The same on the whole batch, `[B, ...]` in the order of its rows, with gradient where there was one.
    """
    line = _current.data
    if line.size == 1:
        return list(outputs)
    kinds: dict[torch.dtype, list[Tensor]] = {}
    for tensor in by_identity(outputs).values():
        kinds.setdefault(tensor.dtype, []).append(tensor)
    gathered: dict[int, Tensor] = {}
    for alike in kinds.values():
        gathered |= zip(map(id, alike), _gather_together(alike, line), strict=True)
    return [_replaced(output, gathered) for output in outputs]


@torch.no_grad()
def whole(rows: Tensor) -> Tensor:
    """Append the rows `[b, ...]` of all ranks to `[B, ...]`, without gradient."""
    return rows if _current.data.size == 1 else _gather_rows(rows, _current.data)


@torch.no_grad()
def averaged(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Average tensors of one dtype over the ranks that hold the same peers, in one exchange.

    Args:
        tensors: such as gradients; the same shapes on all ranks.

    Returns:
        New tensors, or those that were given for a world of one.
    """
    line = _current.data
    if line.size == 1 or not tensors:
        return list(tensors)
    flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
    dist.all_reduce(flat, group=line.group)
    parts = torch.split(flat / line.size, [tensor.numel() for tensor in tensors])
    return [part.view(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)]


@torch.no_grad()
def added(small: Tensor) -> Tensor:
    """Add a small tensor over the ranks that share a batch, without gradient, in as few messages as it takes."""
    line = _current.data
    if line.size <= FEW:
        return whole(small[None]).sum(0)
    total = small.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(total, group=line.group)
    return total


def summed(tensor: Tensor) -> Tensor:
    """Add a tensor over the ranks that share a batch, with gradient to each rank's own."""
    line = _current.data
    total: Tensor = tensor if line.size == 1 else _Sum.apply(tensor, line)  # type: ignore[no-untyped-call]
    return total


class _Sum(torch.autograd.Function):
    """Adds over ranks; so does its backward pass."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, among: Line) -> Tensor:  # noqa: ANN401
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
    def forward(ctx: Any, rows: Tensor, among: Line, known: Tensor | None = None) -> Tensor:  # noqa: ANN401
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
    def forward(ctx: Any, rows: Tensor, among: Line) -> Tensor:  # noqa: ANN401
        ctx.among = among
        part = len(rows) // among.size
        return rows[among.rank * part : (among.rank + 1) * part] * among.size

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor, None]:  # noqa: ANN401
        return _Gather.apply(slopes[0], ctx.among), None  # type: ignore[no-untyped-call]


def _gather_rows(rows: Tensor, among: Line) -> Tensor:
    parts = [torch.empty_like(rows, memory_format=torch.contiguous_format) for _ in range(among.size)]
    dist.all_gather(parts, rows.contiguous(), group=among.group)
    return torch.cat(parts)


def _gather_together(tensors: Sequence[Tensor], among: Line) -> list[Tensor]:
    """Gather tensors `[b, ...]` of one dtype in one exchange."""
    with torch.no_grad():
        flat = torch.cat([tensor.flatten(1) for tensor in tensors], dim=1)
        parts = torch.split(_gather_rows(flat, among), [tensor[0].numel() for tensor in tensors], dim=1)
        found = [part.reshape(-1, *tensor.shape[1:]) for part, tensor in zip(parts, tensors, strict=True)]
    return [
        _Gather.apply(tensor, among, known) if tensor.requires_grad else known  # type: ignore[no-untyped-call]
        for tensor, known in zip(tensors, found, strict=True)
    ]


def _replaced(output: PeerOutput, gathered: dict[int, Tensor]) -> PeerOutput:
    return replace(
        output,
        logits=gathered[id(output.logits)],
        embedding=gathered[id(output.embedding)],
        stages=tuple(gathered[id(tensor)] for tensor in output.stages),
        preactivations=tuple(gathered[id(tensor)] for tensor in output.preactivations),
    )
