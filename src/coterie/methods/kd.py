"""Knowledge distillation: the student imitates the teacher's softened class probabilities."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from coterie.cohort.comparing import ScoreMethod
from coterie.core import METHODS, Batch, Paper
from coterie.losses.logits import kl_logits


@METHODS.register("kd")
class KnowledgeDistillation(ScoreMethod):
    """Cross-entropy with a small weight and the KL from the teacher's softened probabilities.

    The weights are those of the benchmark of CRD: 0.1 for the labels and 0.9 for the teacher.
    """

    paper = Paper(
        title="Distilling the Knowledge in a Neural Network",
        authors="Hinton, Vinyals and Dean",
        year=2015,
        venue="NIPS Deep Learning Workshop",
        arxiv="1503.02531",
    )
    term = "kd"

    @dataclass(frozen=True, kw_only=True)
    class Config(ScoreMethod.Config):
        """Knobs of KD.

        Attributes:
            temperature: T of the KL.
        """

        weight: float = 0.9
        task: float = 0.1

    config: Config

    def compare(self, student: Tensor, teacher: Tensor, batch: Batch) -> Tensor:
        """Compute the KL times the temperature squared, `[]`, with gradient to the student's logits."""
        return kl_logits(student, teacher, temperature=self.config.temperature)
