"""Decoupled knowledge distillation: the true class against the rest, and the rest among themselves, weighted apart."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from coterie.cohort.comparing import ScoreMethod
from coterie.core import METHODS, Batch, Paper
from coterie.core.knobs import check_knobs
from coterie.losses.ramp import linear_ramp
from coterie.losses.teacher_logits import dkd_loss


@METHODS.register("dkd")
class DecoupledDistillation(ScoreMethod):
    """Cross-entropy and the two parts of the KL from the teacher, true class against the rest, and the rest, apart.

    The defaults are those of the paper's code for CIFAR-100, where the weight of the second part depends on the
    teacher: 8 in general, 6 or 2 for those that are less sure of themselves.
    """

    paper = Paper(
        title="Decoupled Knowledge Distillation",
        authors="Zhao et al.",
        year=2022,
        venue="CVPR",
        arxiv="2203.08679",
    )
    term = "dkd"

    @dataclass(frozen=True, kw_only=True)
    class Config(ScoreMethod.Config):
        """Knobs of DKD.

        Attributes:
            alpha: factor of the part about the true class.
            beta: factor of the part about the other classes.
            warmup_epochs: epochs in which the term grows to its full weight; 0 for none.
        """

        alpha: float = 1.0
        beta: float = 8.0
        warmup_epochs: int = 20

        def __post_init__(self) -> None:
            super().__post_init__()
            check_knobs(self, not_negative=("alpha", "beta", "warmup_epochs"))

    config: Config

    def compare(self, student: Tensor, teacher: Tensor, batch: Batch) -> Tensor:
        """Compute both parts, weighted, `[]`, with gradient to the student's logits."""
        config = self.config
        loss = dkd_loss(
            student, teacher, batch.labels, alpha=config.alpha, beta=config.beta, temperature=config.temperature
        )
        return loss * linear_ramp(batch.epoch, config.warmup_epochs, dtype=loss.dtype)
