"""Correlation congruence: images of a batch relate to each other for the student as they do for the teacher."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from coterie.cohort import Link, TeacherMethod
from coterie.cohort.comparing import Compared
from coterie.core import METHODS, Batch, Paper, PeerFacts, PeerOutput
from coterie.core.knobs import check_knobs
from coterie.losses.relations import cc_loss, cc_neighbour_loss


class Neighbours(Link):
    """The agreement of errors of images next to each other in the batch, between trained maps of both embeddings.

    Args:
        student_dim: size of the student's embedding.
        teacher_dim: size of the teacher's.
        dim: size both are brought to.
    """

    def __init__(self, student_dim: int, teacher_dim: int, dim: int) -> None:
        super().__init__()
        self.student_map = nn.Linear(student_dim, dim)
        self.teacher_map = nn.Linear(teacher_dim, dim)

    def forward(self, student: PeerOutput, teacher: PeerOutput, batch: Batch) -> Tensor:
        """Compute the loss `[]`, with gradient to the student's embedding and both maps."""
        own, goal = self.student_map(student.embedding), self.teacher_map(teacher.embedding.detach())
        return cc_neighbour_loss(own, goal, detach=False)

    def describe(self) -> str:
        """Sizes of both maps."""
        own, goal = self.student_map, self.teacher_map
        return (
            f"linear maps of the embeddings, {own.in_features} to {own.out_features} of the student and"
            f" {goal.in_features} to {goal.out_features} of the teacher, both trained"
        )


@METHODS.register("cc")
class CorrelationCongruence(TeacherMethod):
    """Cross-entropy and how differently student and teacher relate the images of a batch, in one of three forms."""

    paper = Paper(
        title="Correlation Congruence for Knowledge Distillation",
        authors="Peng et al.",
        year=2019,
        venue="ICCV",
        arxiv="1904.01802",
    )
    term = "cc"

    @dataclass(frozen=True, kw_only=True)
    class Config(TeacherMethod.Config):
        """Knobs of CC; the weight is that of the benchmark of CRD, which fits `neighbours` only.

        Attributes:
            form: `neighbours` as the benchmark of CRD, `unit` for the paper's mean squared difference of kernels
                between embeddings of length 1, or `raw` for the norm of that difference without giving them length 1.
            embedding_dim: size to which `neighbours` maps both embeddings.
            kernel: of `unit` and `raw`, `gaussian` as a Taylor series, or `bilinear`.
            gamma: width of the Gaussian.
            order: highest power of its series.
        """

        weight: float = 0.02
        form: Literal["neighbours", "unit", "raw"] = "neighbours"
        embedding_dim: int = 128
        kernel: Literal["gaussian", "bilinear"] = "gaussian"
        gamma: float = 0.4
        order: int = 2

        def __post_init__(self) -> None:
            super().__post_init__()
            check_knobs(self, positive=("embedding_dim", "gamma", "order"))

    config: Config

    def link(self, student: PeerFacts, teacher: PeerFacts) -> Link:
        """Map both embeddings to one size for `neighbours`; compare them as they are otherwise."""
        if self.config.form == "neighbours":
            return Neighbours(student.embedding_dim, teacher.embedding_dim, self.config.embedding_dim)
        return Compared(self._compare)

    def _compare(self, student: PeerOutput, teacher: PeerOutput, batch: Batch) -> Tensor:
        config = self.config
        assert config.form != "neighbours"
        return cc_loss(
            student.embedding,
            teacher.embedding,
            kernel=config.kernel,
            form=config.form,
            gamma=config.gamma,
            order=config.order,
        )
