"""Knowledge distillation: the student imitates the teacher's softened class probabilities."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from coterie.cohort import Link, TeacherMethod
from coterie.cohort.teaching import require_same_classes
from coterie.core import METHODS, Batch, ConfigError, Paper, PeerFacts, PeerOutput
from coterie.losses.logits import kl_logits


class SoftTargets(Link):
    """KL from the teacher's softened class probabilities to the student's, times the temperature squared.

    Args:
        temperature: T > 0.
    """

    def __init__(self, temperature: float) -> None:
        super().__init__()
        self.temperature = temperature

    def forward(self, student: PeerOutput, teacher: PeerOutput, batch: Batch) -> Tensor:
        """Compute the KL `[]`, with gradient to the student's logits."""
        return kl_logits(student.logits, teacher.logits, temperature=self.temperature)


@METHODS.register("kd")
class KnowledgeDistillation(TeacherMethod):
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
    class Config(TeacherMethod.Config):
        """Knobs of KD.

        Attributes:
            temperature: T of the KL.
        """

        weight: float = 0.9
        task: float = 0.1
        temperature: float = 4.0

        def __post_init__(self) -> None:
            TeacherMethod.Config.__post_init__(self)
            if self.temperature <= 0:
                raise ConfigError(f"temperature={self.temperature} of kd; give a number above 0")

    config: Config

    def link(self, student: PeerFacts, teacher: PeerFacts) -> Link:
        """Compare class scores, which must be of the same classes."""
        require_same_classes("kd", student, teacher)
        return SoftTargets(self.config.temperature)
