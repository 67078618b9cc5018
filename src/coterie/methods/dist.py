"""Distillation from a stronger teacher: correlations of class probabilities instead of the probabilities themselves."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from coterie.cohort.comparing import ScoreMethod
from coterie.core import METHODS, Batch, Paper
from coterie.core.knobs import check_knobs
from coterie.losses.teacher_logits import dist_loss


@METHODS.register("dist")
class StrongerTeacher(ScoreMethod):
    """Cross-entropy and what the probabilities of student and teacher lack in correlation, by image and by class."""

    paper = Paper(
        title="Knowledge Distillation from A Stronger Teacher",
        authors="Huang et al.",
        year=2022,
        venue="NeurIPS",
        arxiv="2205.10536",
    )
    term = "dist"

    @dataclass(frozen=True, kw_only=True)
    class Config(ScoreMethod.Config):
        """Knobs of DIST.

        Attributes:
            temperature: tau, divides the logits of both.
            inter: factor of the part over the classes of an image.
            intra: factor of the part over the images of a batch, class by class.
        """

        weight: float = 2.0
        temperature: float = 1.0
        inter: float = 1.0
        intra: float = 1.0

        def __post_init__(self) -> None:
            super().__post_init__()
            check_knobs(self, not_negative=("inter", "intra"))

    config: Config

    def compare(self, student: Tensor, teacher: Tensor, batch: Batch) -> Tensor:
        """Compute both parts, weighted, `[]`, with gradient to the student's logits."""
        config = self.config
        return dist_loss(student, teacher, inter=config.inter, intra=config.intra, temperature=config.temperature)
