"""Similarity-preserving distillation: images that are alike for the teacher become alike for the student."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from torch import Tensor

from coterie.cohort import Link, TeacherMethod
from coterie.cohort.comparing import Compared, last_map, require_stages
from coterie.core import METHODS, Batch, Needs, Paper, PeerFacts, PeerOutput
from coterie.losses.relations import sp_loss


@METHODS.register("sp")
class SimilarityPreserving(TeacherMethod):
    """Cross-entropy and the squared difference of the similarities of all pairs of images, rows of length 1.

    Maps are flattened and may have any channels and sizes. The weight is that of paper and benchmark of CRD.
    """

    paper = Paper(
        title="Similarity-Preserving Knowledge Distillation",
        authors="Tung and Mori",
        year=2019,
        venue="ICCV",
        arxiv="1907.09682",
    )
    term = "sp"

    @dataclass(frozen=True, kw_only=True)
    class Config(TeacherMethod.Config):
        """Knobs of SP.

        Attributes:
            at: where similarities are taken, at the map of the last stage (`map`) or at the `embedding`.
        """

        weight: float = 3000.0
        at: Literal["map", "embedding"] = "map"

    config: Config

    def requirements(self) -> Needs:
        """Stage maps where similarities are taken there."""
        return replace(self.needs, stage_maps=self.config.at == "map")

    def link(self, student: PeerFacts, teacher: PeerFacts) -> Link:
        """Compare similarities, whatever the sizes of maps and embeddings."""
        if self.config.at == "map":
            remedy = "give a network with stages, or compare embeddings with method.at=embedding"
            require_stages("sp", student, teacher, remedy=remedy)
        return Compared(self._compare)

    def _compare(self, student: PeerOutput, teacher: PeerOutput, batch: Batch) -> Tensor:
        if self.config.at == "map":
            return sp_loss(last_map(student), last_map(teacher))
        return sp_loss(student.embedding, teacher.embedding)
