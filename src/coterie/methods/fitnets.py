"""FitNets: a middle map of the student, through a regressor, is to equal the teacher's."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from coterie.cohort import Link, TeacherMethod
from coterie.cohort.connectors import Connector, Shape
from coterie.core import METHODS, Batch, ConfigError, Paper, PeerFacts, PeerOutput
from coterie.core.knobs import check_knobs
from coterie.losses.feature_maps import fitnet_loss, pool_to_smaller


class Hint(Link):
    """Mean squared difference of one map, the student's through a regressor.

    Args:
        student: shape of its map.
        teacher: shape of its map.
        stage: place of both maps, 0 for the stem's.
    """

    def __init__(self, student: Shape, teacher: Shape, stage: int) -> None:
        super().__init__()
        self.stage = stage
        self.regressor = Connector(student, teacher, relu=True)

    def forward(self, student: PeerOutput, teacher: PeerOutput, batch: Batch) -> Tensor:
        """Compute the error `[]`, with gradient to the student's map and the regressor."""
        guided = self.regressor(student.stages[self.stage])
        return fitnet_loss(*pool_to_smaller(guided, teacher.stages[self.stage]))

    def describe(self) -> str:
        """The regressor."""
        return f"regressor {self.regressor.describe()}"


@METHODS.register("fitnets")
class FitNets(TeacherMethod):
    """Cross-entropy and the mean squared difference of a middle map from the teacher's, after a trained regressor.

    As in the benchmark of CRD both are minimised at once; the paper's first stage is `initial_epochs`.
    """

    paper = Paper(
        title="FitNets: Hints for Thin Deep Nets",
        authors="Romero et al.",
        year=2015,
        venue="ICLR",
        arxiv="1412.6550",
    )
    needs = replace(TeacherMethod.needs, stage_maps=True)
    term = "fitnets"

    @dataclass(frozen=True, kw_only=True)
    class Config(TeacherMethod.Config):
        """Knobs of FitNets.

        Attributes:
            stage: whose map is compared, 0 for the stem.
        """

        weight: float = 100.0
        stage: int = 2

        def __post_init__(self) -> None:
            TeacherMethod.Config.__post_init__(self)
            check_knobs(self, not_negative=("stage",))

    config: Config

    def link(self, student: PeerFacts, teacher: PeerFacts) -> Link:
        """Connect the maps of the stage, which both must have."""
        stage = self.config.stage
        for side, facts in (("student", student), ("teacher", teacher)):
            _require_stage(stage, side, facts)
        return Hint(student.stages[stage], teacher.stages[stage], stage)


def _require_stage(stage: int, side: str, facts: PeerFacts) -> None:
    last = len(facts.stages) - 1
    if stage > last:
        remedy = f"give method.stage from 0 to {last}" if last > 0 else "choose networks of `coterie list nets`"
        raise ConfigError(f"fitnets compares stage {stage}, which the {side} does not have; {remedy}")
