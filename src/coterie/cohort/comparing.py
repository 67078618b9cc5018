"""Teacher methods whose links train nothing: a plain loss between what a student and a teacher say."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from coterie.cohort.teaching import Link, TeacherMethod, require_same_classes
from coterie.core.errors import ConfigError
from coterie.core.knobs import check_knobs
from coterie.core.method import PeerFacts
from coterie.core.types import Batch, PeerOutput

Comparison = Callable[[PeerOutput, PeerOutput, Batch], Tensor]


class Compared(Link):
    """A link that is a loss and nothing else.

    Args:
        loss: maps the outputs of a student and of a teacher and the batch to `[]`, with gradient to the student.
    """

    def __init__(self, loss: Comparison) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, student: PeerOutput, teacher: PeerOutput, batch: Batch) -> Tensor:
        """Compute the loss `[]`."""
        return self.loss(student, teacher, batch)


class ScoreMethod(TeacherMethod):
    """Base of the methods that compare class scores: a subclass says how; the classes must be the same."""

    @dataclass(frozen=True, kw_only=True)
    class Config(TeacherMethod.Config):
        """Knobs that all these methods have.

        Attributes:
            temperature: T, divides the logits of both.
        """

        temperature: float = 4.0

        def __post_init__(self) -> None:
            super().__post_init__()
            check_knobs(self, positive=("temperature",))

    config: Config

    def link(self, student: PeerFacts, teacher: PeerFacts) -> Link:
        """Compare class scores, which must be of the same classes."""
        require_same_classes(self.term, student, teacher)
        return Compared(lambda own, goal, batch: self.compare(own.logits, goal.logits, batch))

    def compare(self, student: Tensor, teacher: Tensor, batch: Batch) -> Tensor:
        """Compute the loss between logits.

        Args:
            student: `[B, K]`, with gradient.
            teacher: `[B, K]`, constants.
            batch: the images both saw.

        Returns:
            `[]`, before weighting.
        """
        raise NotImplementedError


def last_map(output: PeerOutput) -> Tensor:
    """The map `[B, C, H, W]` after the last stage."""
    return output.stages[-1]


def require_stages(name: str, student: PeerFacts, teacher: PeerFacts, *, remedy: str) -> None:
    """Refuse networks whose maps are not known.

    Args:
        name: of the method that reads the maps of stages.
        student: sizes of its outputs.
        teacher: sizes of its outputs.
        remedy: what to do instead, the end of the error's sentence.

    Raises:
        ConfigError: the network of one of them names no stages.
    """
    for side, facts in (("student", student), ("teacher", teacher)):
        if not facts.stages:
            raise ConfigError(f"{name} reads the maps of stages, and the network of the {side} names none; {remedy}")
