"""Layers of a network by their kind, and hooks on them that do not stay."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from torch import nn
from torch.utils.hooks import RemovableHandle

L = TypeVar("L", bound=nn.Module)


def layers_of(net: nn.Module, kind: type[L]) -> list[L]:
    """All layers of a kind, in the order they were defined.

    Example:
        >>> layers_of(nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1)), nn.Linear)
        [Linear(in_features=2, out_features=3, bias=True), Linear(in_features=3, out_features=1, bias=True)]
    """
    return [layer for layer in net.modules() if isinstance(layer, kind)]


@contextmanager
def removed_at_the_end(hooks: Iterable[RemovableHandle]) -> Iterator[None]:
    """Context at whose end hooks are removed, whatever happens in it.

    Args:
        hooks: what registering them returned.
    """
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
