"""Where the stages of a foreign network end: at the last map of every size."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

_Seen = list[tuple[str, tuple[int, ...]]]


def find_stages(net: nn.Module, image_shape: Sequence[int], names: Sequence[str] = ()) -> dict[str, int]:
    """Find the modules that end the stem and the stages of a convolutional network.

    A copy of the network without memory is run on an image of that shape. Of all maps of one size the last one ends a
    stage; the first stage counts as the stem. Considered are the children of the network and, where such a child holds
    maps of several sizes, its children in its place.

    Args:
        net: maps images `[B, C, H, W]` to logits.
        image_shape: `[C, H, W]`.
        names: modules to consider instead, by dotted name.

    Returns:
        Dotted names and channels, in the order the modules run, as `TappedNet` takes them; empty where there are no
        two sizes, as in a vision transformer, or where the network cannot be run so.

    Example:
        >>> parts = nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 6, 3, padding=1)
        >>> find_stages(nn.Sequential(*parts), (3, 8, 8))
        {'1': 4, '3': 6}
    """
    twin = copy.deepcopy(net).to("meta").eval()
    last = {size[2:]: (name, size[1]) for name, size in _outermost(_observe(twin, image_shape, names))}
    return dict(last.values()) if len(last) > 1 else {}


def _observe(net: nn.Module, image_shape: Sequence[int], names: Sequence[str]) -> _Seen:
    """Names and shapes of the maps that the considered modules give, in the order they run."""
    seen: _Seen = []
    for name in names or _children(net):
        net.get_submodule(name).register_forward_hook(partial(_note, seen, name))
    try:
        with torch.no_grad():
            net(torch.empty(1, *image_shape, device="meta"))
    except (RuntimeError, ValueError, TypeError):
        return []
    return seen


def _children(net: nn.Module) -> list[str]:
    """Names of the children of a network and of theirs."""
    names = []
    for name, child in net.named_children():
        names += [name, *(f"{name}.{inner}" for inner, _ in child.named_children())]
    return names


def _note(seen: _Seen, name: str, _layer: nn.Module, _inputs: object, output: object) -> None:
    if isinstance(output, Tensor) and output.dim() == 4 and output.shape[2] * output.shape[3] > 1:
        seen.append((name, tuple(output.shape)))


def _outermost(seen: _Seen) -> _Seen:
    """Keep modules that hold maps of one size, and the children of those that hold several."""
    sizes: dict[str, set[tuple[int, ...]]] = {}
    for name, shape in seen:
        sizes.setdefault(name.rpartition(".")[0], set()).add(shape[2:])
    opened = {name for name, found in sizes.items() if name and len(found) > 1}
    given = {name for name, _ in seen}
    return [
        (name, shape)
        for name, shape in seen
        if name not in opened and (name.rpartition(".")[0] in opened or name.rpartition(".")[0] not in given)
    ]
