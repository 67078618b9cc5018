"""Where the stages of a foreign network end: at the last map of every size."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate

import torch
from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class _Map:
    """What a module gave: a square map, `[B, C, H, W]` or, as windowed attention keeps them, `[B, H, W, C]`."""

    name: str
    channels: int
    side: int
    channels_last: bool


_Seen = list[_Map]


def find_stages(net: nn.Module, image_shape: Sequence[int], names: Sequence[str] = ()) -> dict[str, int]:
    """Find the modules that end the stem and the stages of a convolutional network.

    A copy of the network without memory is run on an image of that shape. Of all maps of one size the last one ends a
    stage; the first stage counts as the stem, and a map larger than one before it ends none. Considered are the
    children of the network and, where such a child holds maps of several sizes, its children in its place.

    Args:
        net: maps images `[B, C, H, W]` to logits.
        image_shape: `[C, S, S]`.
        names: modules to consider instead, by dotted name.

    Returns:
        Dotted names and channels, in the order the modules run, as `TappedNet` takes them; empty where there are no
        two sizes, as in a vision transformer, or where the network cannot be run so. A network that keeps channels
        last may give a map as deep as it is wide; nothing tells its dimensions apart, and it ends no stage.

    Example:
        >>> parts = nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 6, 3, padding=1)
        >>> find_stages(nn.Sequential(*parts), (3, 8, 8))
        {'1': 4, '3': 6}
    """
    twin = copy.deepcopy(net).to("meta").eval()
    ends = _ends(_outermost(_told_apart(_observe(twin, image_shape, names))))
    return {end.name: end.channels for end in ends} if len(ends) > 1 else {}


def _ends(seen: _Seen) -> _Seen:
    """The last map of each size, without those that are larger than one before them."""
    last = {each.side: each for each in seen}
    smallest = accumulate(last, min)
    return [end for end, side in zip(last.values(), smallest, strict=True) if end.side == side]


def _observe(net: nn.Module, image_shape: Sequence[int], names: Sequence[str]) -> _Seen:
    """Names and shapes of the maps that the considered modules give, in the order they run."""
    seen: _Seen = []
    for name in names or _children(net):
        net.get_submodule(name).register_forward_hook(partial(_note, seen, name))
    try:
        with torch.no_grad():
            net(torch.empty(1, *image_shape, device="meta"))
    except (AssertionError, RuntimeError, ValueError, TypeError):
        return []
    return seen


def _children(net: nn.Module) -> list[str]:
    """Names of the children of a network and of theirs."""
    names = []
    for name, child in net.named_children():
        names += [name, *(f"{name}.{inner}" for inner, _ in child.named_children())]
    return names


def _note(seen: _Seen, name: str, _layer: nn.Module, _inputs: object, output: object) -> None:
    if isinstance(output, Tensor) and output.dim() == 4 and output.shape[2] > 1:
        seen.extend(_square_maps(name, output.shape))


def _square_maps(name: str, shape: Sequence[int]) -> Iterator[_Map]:
    _, second, third, fourth = shape
    if third == fourth:
        yield _Map(name, second, third, channels_last=False)
    elif third == second:
        yield _Map(name, fourth, third, channels_last=True)


def _told_apart(seen: _Seen) -> _Seen:
    """Leave out maps as deep as they are wide, if the network is known to keep some with channels last."""
    doubtful = any(each.channels_last for each in seen)
    return [each for each in seen if not (doubtful and each.channels == each.side)]


def _outermost(seen: _Seen) -> _Seen:
    """Keep modules that hold maps of one size, and the children of those that hold several."""
    opened = _holders_of_several(seen)
    kept = {each.name for each in seen} - opened
    return [each for each in seen if each.name in kept and _parent(each.name) not in kept]


def _holders_of_several(seen: _Seen) -> set[str]:
    """Names of modules whose children give maps of several sizes."""
    sizes: dict[str, set[int]] = {}
    for each in seen:
        sizes.setdefault(_parent(each.name), set()).add(each.side)
    return {name for name, found in sizes.items() if name and len(found) > 1}


def _parent(name: str) -> str:
    return name.rpartition(".")[0]
