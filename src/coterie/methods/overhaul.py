"""A comprehensive overhaul of feature distillation: responses before the ReLU, as far as they matter to the teacher."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import cast

from torch import Tensor, nn

from coterie.cohort import Link, TeacherMethod
from coterie.cohort.connectors import Connector, Which, connect, map_pairs, paired_maps
from coterie.core import METHODS, Batch, ConfigError, Paper, PeerFacts, PeerOutput
from coterie.losses.responses import overhaul_loss, overhaul_margin, overhaul_target

_WHICH: Which = "preactivations"


class PartialError(Link):
    """Partial squared errors of the responses before the last activation of each stage.

    Args:
        student: sizes of its outputs.
        teacher: sizes of its outputs, and the batch norms that its margins follow from.

    Raises:
        ConfigError: one of them has no such maps, or the teacher's do not come from batch norms.
    """

    def __init__(self, student: PeerFacts, teacher: PeerFacts) -> None:
        super().__init__()
        pairs = map_pairs("overhaul", student, teacher, _WHICH)
        self.connectors = nn.ModuleList(Connector(own, goal) for own, goal in pairs)
        for place, norm in enumerate(teacher.norms[-len(pairs) :]):
            self.register_buffer(f"margin{place}", _margin(norm, f"pair {place + 1} of {len(pairs)}"))

    def forward(self, student: PeerOutput, teacher: PeerOutput, batch: Batch) -> Tensor:
        """Sum the errors, `[]`, with gradient to the student's maps and the connectors."""
        maps = paired_maps(student, teacher, len(self.connectors), _WHICH)
        owns, goals = connect(self.connectors, *maps)
        return overhaul_loss(owns, [overhaul_target(*pair) for pair in zip(goals, self._margins(), strict=True)])

    def describe(self) -> str:
        """The connectors."""
        return ", ".join(cast("Connector", connector).describe() for connector in self.connectors)

    def _margins(self) -> list[Tensor]:
        return [self.get_buffer(f"margin{place}") for place in range(len(self.connectors))]


@METHODS.register("overhaul")
class Overhaul(TeacherMethod):
    """Cross-entropy and a squared error before the ReLU that ignores what is inactive in both networks."""

    paper = Paper(
        title="A Comprehensive Overhaul of Feature Distillation",
        authors="Heo et al.",
        year=2019,
        venue="ICCV",
        arxiv="1904.01866",
    )
    needs = replace(TeacherMethod.needs, preactivations=True)
    term = "overhaul"

    @dataclass(frozen=True, kw_only=True)
    class Config(TeacherMethod.Config):
        """Knobs of Overhaul, those that all teachers' methods have."""

    config: Config

    def link(self, student: PeerFacts, teacher: PeerFacts) -> Link:
        """Connect the maps before the activations of all stages, the last with the last."""
        return PartialError(student, teacher)


def _margin(norm: tuple[Tensor, Tensor] | None, pair: str) -> Tensor:
    if norm is None:
        raise ConfigError(
            f"overhaul takes its margins from batch norms, and {pair} of the teacher's maps has none for all channels;"
            " choose another teacher, or method=ab"
        )
    return overhaul_margin(*norm)
