"""The map before the last activation of a stage, and the batch norm it comes from.

Where a stage ends with an activation, it is what goes into that activation; a max-pool behind it is left out. Where the
activation of a stage's map stands at the beginning of the next part, behind a batch norm (pre-activation networks), it
is what that batch norm gives. Where there is none (linear bottlenecks), it is the stage's map.

Nothing of a network is written twice for it: the inputs of a few modules are noted during a forward pass that asks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, MutableMapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import Protocol, runtime_checkable

from torch import Tensor, nn

from coterie.nets.layers import layers_of, removed_at_the_end

Notes = MutableMapping[nn.Module, Tensor]
"""What went into each watched module when it ran last."""

_ACTIVATIONS = (nn.ReLU, nn.ReLU6, nn.Tanh)
_POOLS = (nn.MaxPool2d, nn.AvgPool2d)


@dataclass(frozen=True, slots=True, kw_only=True)
class Boundary:
    """Where the map before an activation is found.

    Attributes:
        inputs: modules whose inputs make the map; none where it is the stage's own map.
        norm: the batch norm that made the map, or made it but for a shortcut; None where that is not so for all
            channels.
        join: makes the map of the noted inputs; not called for a single one.
    """

    inputs: tuple[nn.Module, ...] = ()
    norm: nn.BatchNorm2d | None = None
    join: Callable[..., Tensor] | None = None

    def read(self, notes: Notes) -> Tensor:
        """Make the map `[B, C, H, W]` of what was noted, with gradient."""
        found = [notes[layer] for layer in self.inputs]
        return found[0] if self.join is None else self.join(*found)


@runtime_checkable
class Ends(Protocol):
    """A block that knows the map before the activation it ends with."""

    def ending(self) -> Boundary | None:
        """Where that map is found."""


@runtime_checkable
class Opens(Protocol):
    """A block that begins with batch norm and activation of what comes in."""

    def opening(self) -> Boundary | None:
        """Where the map between the two is found."""


def find_boundaries(stages: Sequence[nn.Module], neck: nn.Module) -> tuple[Boundary, ...]:
    """Find the map before the last activation of each stage.

    Args:
        stages: run one after the other.
        neck: runs after them.

    Returns:
        One for each stage; empty where one of them is not found.

    Example:
        >>> stage = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2))
        >>> [boundary.norm is stage[1] for boundary in find_boundaries([stage], nn.Flatten())]
        [True]
        >>> find_boundaries([nn.Conv2d(3, 4, 1)], nn.Flatten())
        ()
    """
    found = []
    for stage, after in pairwise([*stages, neck]):
        boundary = ending_of(stage) or opening_of(after)
        if boundary is None:
            return ()
        found.append(boundary if boundary.inputs else replace(boundary, inputs=(after,)))
    return tuple(found)


def ending_of(stage: nn.Module) -> Boundary | None:
    """Find the map before the activation that a stage ends with; None where it ends otherwise."""
    layers = _without_last_pools(_unrolled(stage))
    if layers and isinstance(layers[-1], Ends):
        return layers[-1].ending()
    return _between(layers[-2:])


def _without_last_pools(layers: list[nn.Module]) -> list[nn.Module]:
    while layers and isinstance(layers[-1], _POOLS):
        layers.pop()
    return layers


def opening_of(part: nn.Module) -> Boundary | None:
    """Find the map between batch norm and activation that a part begins with; None where it begins otherwise."""
    layers = _unrolled(part)
    if layers and isinstance(layers[0], Opens):
        return layers[0].opening()
    return _between(layers[:2])


def last_norm(part: nn.Module) -> nn.BatchNorm2d | None:
    """The batch norm that was defined last in a part."""
    return next(reversed(layers_of(part, nn.BatchNorm2d)), None)


@contextmanager
def noting(boundaries: Sequence[Boundary], notes: Notes) -> Iterator[None]:
    """Context in which the inputs of the modules of boundaries are noted.

    Args:
        boundaries: of one network.
        notes: filled; a module that runs again overwrites its note.
    """
    layers = {layer for boundary in boundaries for layer in boundary.inputs}
    hooks = [layer.register_forward_pre_hook(partial(_note, notes)) for layer in layers]
    with removed_at_the_end(hooks):
        yield


def _note(notes: Notes, layer: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
    notes[layer] = inputs[0]
    return (inputs[0].clone(),) if getattr(layer, "inplace", False) else None


def _between(layers: Sequence[nn.Module]) -> Boundary | None:
    if len(layers) == 2 and isinstance(layers[0], nn.BatchNorm2d) and isinstance(layers[1], _ACTIVATIONS):
        return Boundary(inputs=(layers[1],), norm=layers[0])
    return None


def _unrolled(part: nn.Module) -> list[nn.Module]:
    """The modules of nested sequences, in the order they run."""
    if isinstance(part, nn.Sequential):
        return [layer for child in part for layer in _unrolled(child)]
    return [part]
