"""Knowledge distillation of standardised logits: relations between classes count, not sizes."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from coterie.cohort.comparing import ScoreMethod
from coterie.core import METHODS, Batch, Paper
from coterie.losses.teacher_logits import standardised_kl


@METHODS.register("kd_standardised")
class StandardisedDistillation(ScoreMethod):
    """Cross-entropy with a small weight and the KL between logits that have mean 0 and standard deviation 1 per image.

    Weights and temperature are those of the paper's code for CIFAR-100.
    """

    paper = Paper(
        title="Logit Standardization in Knowledge Distillation",
        authors="Sun et al.",
        year=2024,
        venue="CVPR",
        arxiv="2403.01427",
    )
    term = "kd_standardised"

    @dataclass(frozen=True, kw_only=True)
    class Config(ScoreMethod.Config):
        """Knobs of KD with standardised logits.

        Attributes:
            temperature: T, divides the standardised logits of both.
        """

        weight: float = 9.0
        task: float = 0.1
        temperature: float = 2.0

    config: Config

    def compare(self, student: Tensor, teacher: Tensor, batch: Batch) -> Tensor:
        """Compute the KL times the temperature squared, `[]`, with gradient to the student's logits."""
        return standardised_kl(student, teacher, temperature=self.config.temperature)
