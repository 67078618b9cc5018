"""Flow of solution procedure: how the student's maps change from stage to stage is to equal the teacher's change."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from torch import Tensor

from coterie.cohort import Link, TeacherMethod
from coterie.cohort.connectors import Shape, Which, map_pairs, paired_maps
from coterie.core import METHODS, Batch, ConfigError, Paper, PeerFacts, PeerOutput
from coterie.losses.feature_maps import fsp_loss

_WHICH: Which = "stem and stages"


class Flow(Link):
    """Differences of the flow matrices between neighbouring maps, from the stem to the last stage.

    Args:
        student: sizes of its outputs.
        teacher: sizes of its outputs.

    Raises:
        ConfigError: one of them has no stages, or channels differ.
    """

    def __init__(self, student: PeerFacts, teacher: PeerFacts) -> None:
        super().__init__()
        pairs = map_pairs("fsp", student, teacher, _WHICH)
        self.count = len(pairs)
        own, goal = map(_channels, zip(*pairs, strict=True))
        if own != goal:
            raise ConfigError(
                f"fsp compares products of channels, and the student's maps have {own} channels and the"
                f" teacher's {goal}; choose networks of equal widths, such as resnet20 and resnet56"
            )

    def forward(self, student: PeerOutput, teacher: PeerOutput, batch: Batch) -> Tensor:
        """Sum the differences, `[]`, with gradient to the student's maps."""
        return fsp_loss(*paired_maps(student, teacher, self.count, _WHICH))


@METHODS.register("fsp")
class FlowOfSolutionProcedure(TeacherMethod):
    """First equal products of each stage's channels with the next one's, then cross-entropy alone."""

    paper = Paper(
        title="A Gift from Knowledge Distillation",
        authors="Yim et al.",
        year=2017,
        venue="CVPR",
    )
    needs = replace(TeacherMethod.needs, stage_maps=True, equal_channels=True)
    term = "fsp"

    @dataclass(frozen=True, kw_only=True)
    class Config(TeacherMethod.Config):
        """Knobs of FSP, those that all teachers' methods have."""

        initial_epochs: int = 30

    config: Config

    def link(self, student: PeerFacts, teacher: PeerFacts) -> Link:
        """Compare stem and stages, which must have equal channels."""
        return Flow(student, teacher)


def _channels(shapes: Iterable[Shape]) -> list[int]:
    return [shape[0] for shape in shapes]
