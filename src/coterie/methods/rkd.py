"""Relational knowledge distillation: distances and angles between images, as the teacher embeds them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from coterie.cohort import Link, TeacherMethod
from coterie.cohort.comparing import Compared
from coterie.core import METHODS, Batch, Paper, PeerFacts, PeerOutput
from coterie.core.knobs import check_knobs
from coterie.losses.relations import rkd_angle, rkd_distance


@METHODS.register("rkd")
class RelationalDistillation(TeacherMethod):
    """Cross-entropy and the differences in distances and in angles between the embeddings of a batch.

    Embeddings may have any sizes. Angles are those of all triples, so time and memory grow with B x B x B.
    """

    paper = Paper(
        title="Relational Knowledge Distillation",
        authors="Park et al.",
        year=2019,
        venue="CVPR",
        arxiv="1904.05068",
    )
    term = "rkd"

    @dataclass(frozen=True, kw_only=True)
    class Config(TeacherMethod.Config):
        """Knobs of RKD; the defaults are those of the benchmark of CRD, and of the paper for classification.

        Attributes:
            relations: `d` for distances (RKD-D), `a` for angles (RKD-A), `da` for both (RKD-DA).
            distance: factor of distances; 1 for metric learning.
            angle: factor of angles; 2 for metric learning.
        """

        relations: Literal["d", "a", "da"] = "da"
        distance: float = 25.0
        angle: float = 50.0

        def __post_init__(self) -> None:
            super().__post_init__()
            check_knobs(self, not_negative=("distance", "angle"))

    config: Config

    def link(self, student: PeerFacts, teacher: PeerFacts) -> Link:
        """Compare relations, whatever the sizes of the embeddings."""
        return Compared(self._compare)

    def _compare(self, student: PeerOutput, teacher: PeerOutput, batch: Batch) -> Tensor:
        config, pair = self.config, (student.embedding, teacher.embedding)
        if config.relations == "d":
            return config.distance * rkd_distance(*pair)
        if config.relations == "a":
            return config.angle * rkd_angle(*pair)
        return config.distance * rkd_distance(*pair) + config.angle * rkd_angle(*pair)
