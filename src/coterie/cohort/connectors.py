"""Connectors: what brings the map of a student to the shape of a teacher's, built from the two shapes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn

from coterie.core.errors import ConfigError
from coterie.core.method import PeerFacts
from coterie.core.types import PeerOutput
from coterie.losses.feature_maps import pool_to_smaller

Shape = tuple[int, int, int]
"""Channels, height and width of a map."""

Which = Literal["stages", "stem and stages", "preactivations"]

_NAMES: dict[Which, str] = {
    "stages": "maps of stages",
    "stem and stages": "maps of stem and stages",
    "preactivations": "maps before the activations of stages",
}


class Connector(nn.Module):
    """A convolution that gives the teacher's shape, batch norm and, where it is asked for, ReLU.

    Where the student's map is twice as large, it is a 3x3 convolution of stride 2; half as large, a transposed 4x4 one
    of stride 2; larger otherwise, one without padding of the size that is left; smaller otherwise, a 1x1 convolution,
    and the teacher's map is averaged to the student's size.

    Args:
        student: shape of the student's map.
        teacher: shape of the teacher's map.
        relu: whether a ReLU follows.

    Example:
        >>> import torch
        >>> connector = Connector((6, 8, 8), (4, 4, 4))
        >>> connector(torch.zeros(2, 6, 8, 8)).shape, connector.describe()
        (torch.Size([2, 4, 4, 4]), '6x8x8 to 4x4x4 by 3x3 convolution of stride 2')
    """

    def __init__(self, student: Shape, teacher: Shape, *, relu: bool = False) -> None:
        super().__init__()
        self.shapes = student, teacher
        layer, self._words = _fitting(student, teacher)
        self.body = nn.Sequential(layer, nn.BatchNorm2d(teacher[0]), *[nn.ReLU(inplace=True)] * relu)

    def forward(self, maps: Tensor) -> Tensor:
        """Map `[B, C, H, W]` of the student to the teacher's shape, with gradient to it and the weights."""
        connected: Tensor = self.body(maps)
        return connected

    def describe(self) -> str:
        """The two shapes and the convolution between them."""
        return f"{in_words(*self.shapes)} by {self._words}"


class Passing(nn.Module):
    """In place of a connector: the map as it is.

    Args:
        shape: of both maps.
    """

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape

    def forward(self, maps: Tensor) -> Tensor:
        """Give the map back."""
        return maps

    def describe(self) -> str:
        """The shape."""
        return f"{'x'.join(map(str, self.shape))} as it is"


def connect(
    connectors: nn.ModuleList, students: Sequence[Tensor], teachers: Sequence[Tensor]
) -> tuple[list[Tensor], list[Tensor]]:
    """Bring maps of a student to the shapes of a teacher's.

    Args:
        connectors: one for each pair of maps.
        students: maps `[B, C_l, H_l, W_l]`; with gradient.
        teachers: maps `[B, C'_l, H'_l, W'_l]`.

    Returns:
        The connected maps, and the teacher's, averaged to the size of the connected ones where these are smaller.
    """
    triples = zip(connectors, students, teachers, strict=True)
    pairs = [pool_to_smaller(connector(own), goal) for connector, own, goal in triples]
    return [own for own, _ in pairs], [goal for _, goal in pairs]


def map_pairs(name: str, student: PeerFacts, teacher: PeerFacts, which: Which = "stages") -> list[tuple[Shape, Shape]]:
    """Pair the maps of a student with those of a teacher, the last with the last.

    Where one has more of them, its first ones are left out.

    Args:
        name: of the method.
        student: sizes of its outputs.
        teacher: sizes of its outputs.
        which: maps after each stage, those and the stem's, or those before the last activation of each stage.

    Returns:
        (student's, teacher's) shape of each pair, shallow to deep.

    Raises:
        ConfigError: one of them has no such maps.
    """
    own, goal = _known(name, "student", student, which), _known(name, "teacher", teacher, which)
    count = min(len(own), len(goal))
    return list(zip(own[-count:], goal[-count:], strict=True))


def paired_maps(
    student: PeerOutput, teacher: PeerOutput, count: int, which: Which = "stages"
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """The maps whose shapes `map_pairs` gave.

    Args:
        student: its outputs.
        teacher: its outputs.
        count: how many pairs there are.
        which: as in `map_pairs`.

    Returns:
        The student's and the teacher's, `count` each, shallow to deep.
    """
    if which == "preactivations":
        return student.preactivations[-count:], teacher.preactivations[-count:]
    return student.stages[-count:], teacher.stages[-count:]


def in_words(student: Shape, teacher: Shape) -> str:
    """Two shapes as text.

    Example:
        >>> in_words((16, 8, 8), (64, 8, 8))
        '16x8x8 to 64x8x8'
    """
    return f"{'x'.join(map(str, student))} to {'x'.join(map(str, teacher))}"


def pools_in_words(pairs: Sequence[tuple[Shape, Shape]]) -> str:
    """Which maps are compared after pooling, as text; empty where all sizes agree.

    Example:
        >>> pools_in_words([((16, 8, 8), (64, 8, 8)), ((32, 4, 4), (64, 8, 8))])
        'averaged to the smaller size: 32x4x4 to 64x8x8'
    """
    unequal = [in_words(own, goal) for own, goal in pairs if own[1:] != goal[1:]]
    return f"averaged to the smaller size: {', '.join(unequal)}" if unequal else ""


def _known(name: str, side: str, facts: PeerFacts, which: Which) -> tuple[Shape, ...]:
    shapes = _shapes(facts, which)
    if not shapes:
        raise ConfigError(
            f"{name} compares {_NAMES[which]}, and the {side} has none that are known;"
            " choose networks of `coterie list nets`, or a method that compares embeddings"
        )
    return shapes


def _shapes(facts: PeerFacts, which: Which) -> tuple[Shape, ...]:
    if which == "preactivations":
        return facts.preactivations
    return facts.stages if which == "stem and stages" else facts.stages[1:]


def _fitting(student: Shape, teacher: Shape) -> tuple[nn.Module, str]:
    channels, own, goal = (student[0], teacher[0]), student[1:], teacher[1:]
    if own == _doubled(goal):
        return nn.Conv2d(*channels, 3, stride=2, padding=1, bias=False), "3x3 convolution of stride 2"
    if goal == _doubled(own):
        layer = nn.ConvTranspose2d(*channels, 4, stride=2, padding=1, bias=False)
        return layer, "transposed 4x4 convolution of stride 2"
    return _cutting(channels, own, goal)


def _doubled(sides: Sequence[int]) -> tuple[int, ...]:
    return tuple(2 * side for side in sides)


def _cutting(channels: tuple[int, int], own: Sequence[int], goal: Sequence[int]) -> tuple[nn.Module, str]:
    """A convolution without padding, as large as makes the student's map as small as the teacher's, or 1x1."""
    rows, columns = (max(1, 1 + size - wanted) for size, wanted in zip(own, goal, strict=True))
    words = f"{rows}x{columns} convolution"
    smaller = any(size < wanted for size, wanted in zip(own, goal, strict=True))
    return (
        nn.Conv2d(*channels, (rows, columns), bias=False),
        f"{words}, the teacher's averaged to its size" if smaller else words,
    )
