"""Probabilistic knowledge transfer: neighbourhoods of images as probabilities, learnt from the teacher's."""

from __future__ import annotations

from dataclasses import dataclass

from coterie.cohort import Link, TeacherMethod
from coterie.cohort.comparing import Compared
from coterie.core import METHODS, Paper, PeerFacts
from coterie.losses.relations import pkt_loss


@METHODS.register("pkt")
class ProbabilisticTransfer(TeacherMethod):
    """Cross-entropy and the divergence between the chances that one image of the batch picks another, by cosine.

    Embeddings may have any sizes. The weight is that of the benchmark of CRD.
    """

    paper = Paper(
        title="Learning Deep Representations with Probabilistic Knowledge Transfer",
        authors="Passalis and Tefas",
        year=2018,
        venue="ECCV",
        arxiv="1803.10837",
    )
    term = "pkt"

    @dataclass(frozen=True, kw_only=True)
    class Config(TeacherMethod.Config):
        """Knobs of PKT."""

        weight: float = 30000.0

    config: Config

    def link(self, student: PeerFacts, teacher: PeerFacts) -> Link:
        """Compare chances, whatever the sizes of the embeddings."""
        return Compared(lambda own, goal, batch: pkt_loss(own.embedding, goal.embedding))
