"""Activation boundaries: the student's responses are to lie on the side of zero on which the teacher's lie."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import cast

from torch import Tensor, nn

from coterie.cohort import Link, TeacherMethod
from coterie.cohort.connectors import Connector, Passing, Which, connect, map_pairs, paired_maps
from coterie.core import METHODS, Batch, Paper, PeerFacts, PeerOutput
from coterie.core.knobs import check_knobs
from coterie.losses.responses import ab_loss

_WHICH: Which = "preactivations"


class ActivationBoundary(Link):
    """Hinge errors of the responses before the last activation of each stage.

    Args:
        student: sizes of its outputs.
        teacher: sizes of its outputs.
        margin: distance from zero that is asked for.

    Raises:
        ConfigError: one of them has no such maps.
    """

    def __init__(self, student: PeerFacts, teacher: PeerFacts, margin: float) -> None:
        super().__init__()
        self.margin = margin
        pairs = map_pairs("ab", student, teacher, _WHICH)
        self.connectors = nn.ModuleList(Passing(own) if own == goal else Connector(own, goal) for own, goal in pairs)

    def forward(self, student: PeerOutput, teacher: PeerOutput, batch: Batch) -> Tensor:
        """Sum the errors, `[]`, with gradient to the student's maps and the connectors."""
        maps = paired_maps(student, teacher, len(self.connectors), _WHICH)
        return ab_loss(*connect(self.connectors, *maps), margin=self.margin)

    def describe(self) -> str:
        """The connectors."""
        return ", ".join(cast("Connector", connector).describe() for connector in self.connectors)


@METHODS.register("ab")
class ActivationBoundaries(TeacherMethod):
    """First responses on the teacher's side of zero, by a squared hinge, then cross-entropy alone."""

    paper = Paper(
        title="Knowledge Transfer via Distillation of Activation Boundaries Formed by Hidden Neurons",
        authors="Heo et al.",
        year=2019,
        venue="AAAI",
        arxiv="1811.03233",
    )
    needs = replace(TeacherMethod.needs, preactivations=True)
    term = "ab"

    @dataclass(frozen=True, kw_only=True)
    class Config(TeacherMethod.Config):
        """Knobs of AB.

        Attributes:
            margin: distance from zero that a response is to keep.
        """

        initial_epochs: int = 30
        margin: float = 1.0

        def __post_init__(self) -> None:
            TeacherMethod.Config.__post_init__(self)
            check_knobs(self, not_negative=("margin",))

    config: Config

    def link(self, student: PeerFacts, teacher: PeerFacts) -> Link:
        """Connect the maps before the activations of all stages, the last with the last."""
        return ActivationBoundary(student, teacher, self.config.margin)
