"""Peers that live in different processes: what each says is told to all, and nothing else of it.

Every rank of a `peers` line runs its own peers on the same images, then all learn what all have said and compute the
same loss. Its own outputs stay as they are; those of others arrive as constants. The gradient that a rank's loss sends
into its own outputs is therefore that of one process, to the bit, and no gradient is sent.

Second derivatives couple peers: how a step of one would change the gradient of another. Inside `twice` outputs of
others take gradient too, and what a backward pass sends into outputs is exchanged when it is differentiated again. One
process then takes the same way, without an exchange, so that its sums are formed in the same order.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain, compress, starmap
from operator import attrgetter
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from coterie.core.types import PeerOutput, by_identity
from coterie.core.world import Line, World, world

_twice = False
_learns = attrgetter("learns")


class _Kind(NamedTuple):
    """What must be known of a tensor before it arrives."""

    dtype: str
    shape: tuple[int, ...]
    learns: bool
    channels_last: bool

    def like(self) -> Tensor:
        return torch.empty(self.shape, dtype=getattr(torch, self.dtype), device="meta")


class _Layout(NamedTuple):
    """The tensors of one rank's outputs; of each output the numbers of its tensors, and how many of stages it has."""

    kinds: tuple[_Kind, ...]
    outputs: tuple[tuple[tuple[int, ...], int], ...]


class _Share(NamedTuple):
    """The tensors that take gradient, rank by rank along a line."""

    kinds: tuple[tuple[_Kind, ...], ...]
    line: Line

    def own(self, tensors: Sequence[Any]) -> Sequence[Any]:
        """This rank's part of what is given for the tensors of all ranks."""
        before = sum(map(len, self.kinds[: self.line.rank]))
        return tensors[before : before + len(self.kinds[self.line.rank])]


@contextmanager
def twice() -> Iterator[None]:
    """Context whose forward passes may be differentiated twice with respect to the peers' weights."""
    global _twice
    before, _twice = _twice, True
    try:
        yield
    finally:
        _twice = before


def told(outputs: Sequence[PeerOutput]) -> list[PeerOutput]:
    """Tell the other ranks of the line what this one's peers say, and learn what theirs do, in one exchange.

    Args:
        outputs: of this rank's peers, `[b, ...]` tensors; every rank of the line has run its own on the same images.

    Returns:
        Those of all M peers in order, `[b, ...]`: the very tensors that were given, and constants in the place of the
        others; inside `twice` copies that have gradient where there was one.
    """
    here = world()
    bound = _twice and torch.is_grad_enabled()
    if not (here.spread or bound):
        return list(outputs)
    tensors = list(by_identity(outputs).values())
    layouts = _layouts(_layout(outputs, tensors), here)
    kinds, _ = zip(*layouts, strict=True)
    found = _sent(tensors, kinds, here.peers)
    if bound:
        found = _bound(found, kinds, here.peers)
    return list(chain.from_iterable(map(_outputs, found, layouts)))


@torch.no_grad()
def in_order(own: Sequence[Tensor], like: Tensor) -> list[Tensor]:
    """Append the scalars `[]` of all ranks of a line, such as the norms of parameters, in order of peers.

    Args:
        own: of this rank; other ranks may have more or fewer.
        like: says dtype and device where a rank has none.
    """
    here = world()
    if not here.spread:
        return list(own)
    counts = list(map(int, _along(here, here.texts(str(len(own))))))
    mine = like.new_zeros(max(counts), dtype=torch.float64)  # which holds all narrower numbers as they are
    if own:
        mine[: len(own)] = torch.stack(list(own))
    parts = [part[:count] for part, count in zip(_all_gathered(mine, here.peers), counts, strict=True)]
    return list(torch.cat(parts).to(like.dtype).unbind())


@torch.no_grad()
def largest(tensor: Tensor) -> Tensor:
    """The largest value that any rank of a mesh has, element by element; a new tensor, or the one that was given."""
    if world().mesh is None:
        return tensor
    found = tensor.clone()
    dist.all_reduce(found, dist.ReduceOp.MAX)
    return found


def packed(tensors: Sequence[Tensor]) -> Tensor:
    """The bytes of tensors on one device in one row, uint8."""
    flat = [tensor.detach().contiguous().reshape(-1).view(torch.uint8) for tensor in tensors]
    return torch.cat(flat) if flat else torch.empty(0, dtype=torch.uint8)


def unpacked(row: Tensor, likes: Sequence[Tensor]) -> list[Tensor]:
    """Undo `packed`, for tensors of the dtypes and shapes of `likes`; what lies behind them is left."""
    sizes = [like.nbytes for like in likes]
    return list(map(_viewed, torch.split(row[: sum(sizes)], sizes), likes))


def _viewed(part: Tensor, like: Tensor) -> Tensor:
    aligned = part if part.storage_offset() % like.itemsize == 0 else part.clone()
    return aligned.view(like.dtype).view(like.shape)


def _sent(tensors: Sequence[Tensor], kinds: Sequence[Sequence[_Kind]], line: Line) -> list[list[Tensor]]:
    """Exchange tensors: for each rank of the line its own, which are left as they are on the rank that has them."""
    if line.size == 1:
        return [list(tensors)]
    with torch.no_grad():
        own = packed(tensors)
        row = torch.zeros(max(map(_num_bytes, kinds)), dtype=torch.uint8, device=own.device)
        row[: len(own)] = own
        found = list(starmap(_arrived, zip(_all_gathered(row, line), kinds, strict=True)))
    found[line.rank] = list(tensors)
    return found


def _num_bytes(kinds: Sequence[_Kind]) -> int:
    return sum(kind.like().nbytes for kind in kinds)


def _arrived(row: Tensor, kinds: Sequence[_Kind]) -> list[Tensor]:
    """The tensors of a rank from what it has sent."""
    return list(map(_laid_out, unpacked(row, list(map(_Kind.like, kinds))), kinds))


def _all_gathered(row: Tensor, line: Line) -> list[Tensor]:
    parts = [torch.empty_like(row) for _ in range(line.size)]
    dist.all_gather(parts, row, group=line.group)
    return parts


def _laid_out(tensor: Tensor, kind: _Kind) -> Tensor:
    return tensor.contiguous(memory_format=torch.channels_last) if kind.channels_last else tensor


def _bound(found: list[list[Tensor]], kinds: Sequence[Sequence[_Kind]], line: Line) -> list[list[Tensor]]:
    """Let tensors of all ranks depend on this rank's, wherever they take gradient."""
    share = _Share(tuple(map(_learning, kinds)), line)
    learning = tuple(compress(chain.from_iterable(found), map(_learns, chain.from_iterable(kinds))))
    own = share.own(learning)
    if not own:
        return found
    bound = iter(_Everyone.apply(share, learning, *own))  # type: ignore[no-untyped-call]
    return [_replaced(said, of, bound) for said, of in zip(found, kinds, strict=True)]


def _learning(kinds: Sequence[_Kind]) -> tuple[_Kind, ...]:
    return tuple(filter(_learns, kinds))


def _replaced(tensors: Sequence[Tensor], kinds: Sequence[_Kind], others: Iterator[Tensor]) -> list[Tensor]:
    """Those that take gradient replaced by the next of others."""
    return [next(others) if kind.learns else tensor for tensor, kind in zip(tensors, kinds, strict=True)]


class _Everyone(torch.autograd.Function):
    """This rank's tensors become those of all; its backward pass keeps this rank's.

    What comes back is the same on all ranks, as they compute the same. Tensors that nothing reads send None, not zeros.
    """

    @staticmethod
    def forward(ctx: Any, share: _Share, known: Sequence[Tensor] | None, *own: Tensor) -> tuple[Tensor, ...]:  # noqa: ANN401
        ctx.share = share
        ctx.set_materialize_grads(False)
        found = known or chain.from_iterable(_sent(own, share.kinds, share.line))
        return tuple(tensor.view_as(tensor) for tensor in found)

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor | None) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        return None, None, *_Own.apply(ctx.share, *slopes)  # type: ignore[no-untyped-call]


class _Own(torch.autograd.Function):
    """Keeps this rank's part of what is the same on all ranks; its backward pass puts all parts together again."""

    @staticmethod
    def forward(ctx: Any, share: _Share, *slopes: Tensor | None) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        ctx.share = share
        ctx.set_materialize_grads(False)
        ctx.read = [slope is not None for slope in slopes]
        return tuple(None if slope is None else slope.view_as(slope) for slope in share.own(slopes))

    @staticmethod
    def backward(ctx: Any, *bent: Tensor | None) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        share: _Share = ctx.share
        full = _filled(bent, share.kinds[share.line.rank])
        everyone = _Everyone.apply(share, None, *full)  # type: ignore[no-untyped-call]
        return None, *(slope if read else None for slope, read in zip(everyone, ctx.read, strict=True))


def _filled(slopes: Sequence[Tensor | None], kinds: Sequence[_Kind]) -> list[Tensor]:
    """Zeros in the place of what nothing reads; something is read, or there were no backward pass."""
    device = next(slope.device for slope in slopes if slope is not None)
    return [
        torch.zeros_like(kind.like(), device=device) if slope is None else slope
        for slope, kind in zip(slopes, kinds, strict=True)
    ]


def _layout(outputs: Sequence[PeerOutput], tensors: Sequence[Tensor]) -> _Layout:
    places = {id(tensor): place for place, tensor in enumerate(tensors)}
    return _Layout(tuple(map(_kind, tensors)), tuple(_numbered(output, places) for output in outputs))


def _numbered(output: PeerOutput, places: Mapping[int, int]) -> tuple[tuple[int, ...], int]:
    return tuple(places[id(tensor)] for tensor in output.tensors()), len(output.stages)


def _kind(tensor: Tensor) -> _Kind:
    last = tensor.dim() == 4 and not tensor.is_contiguous() and tensor.is_contiguous(memory_format=torch.channels_last)
    return _Kind(str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape), tensor.requires_grad, last)


def _layouts(own: _Layout, here: World) -> list[_Layout]:
    """The layouts of all ranks of the line, asked for once for each of this rank's; they change together."""
    if not here.spread:
        return [own]
    key = own, torch.is_grad_enabled(), torch.is_autocast_enabled("cpu"), torch.is_autocast_enabled("cuda")
    if key not in here.notes:
        here.notes[key] = list(map(_read, _along(here, here.texts(json.dumps(own)))))
    found: list[_Layout] = here.notes[key]
    return found


def _read(text: str) -> _Layout:
    kinds, outputs = json.loads(text)
    return _Layout(
        tuple(_Kind(dtype, tuple(shape), learns, last) for dtype, shape, learns, last in kinds),
        tuple((tuple(numbers), stages) for numbers, stages in outputs),
    )


def _along(here: World, texts: Sequence[str]) -> list[str]:
    """Those of this rank's line among the texts of all ranks."""
    return list(texts[here.data.rank :: here.data.size])


def _outputs(tensors: Sequence[Tensor], layout: _Layout) -> list[PeerOutput]:
    return [_output(tensors, numbers, stages) for numbers, stages in layout.outputs]


def _output(tensors: Sequence[Tensor], numbers: Sequence[int], stages: int) -> PeerOutput:
    logits, embedding, *maps = map(tensors.__getitem__, numbers)
    return PeerOutput(
        logits=logits, embedding=embedding, stages=tuple(maps[:stages]), preactivations=tuple(maps[stages:])
    )
