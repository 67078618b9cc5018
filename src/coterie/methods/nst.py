"""Neuron selectivity transfer: the channels of a stage are to be distributed as the teacher's are."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from coterie.cohort import Link, TeacherMethod
from coterie.cohort.connectors import map_pairs, paired_maps, pools_in_words
from coterie.core import METHODS, Batch, Paper, PeerFacts, PeerOutput
from coterie.losses.feature_maps import nst_loss


class Selectivity(Link):
    """Maximum mean discrepancies of the channels of all stages.

    Args:
        student: sizes of its outputs.
        teacher: sizes of its outputs.

    Raises:
        ConfigError: one of them has no stages.
    """

    def __init__(self, student: PeerFacts, teacher: PeerFacts) -> None:
        super().__init__()
        self.pairs = map_pairs("nst", student, teacher)

    def forward(self, student: PeerOutput, teacher: PeerOutput, batch: Batch) -> Tensor:
        """Sum the discrepancies of all stages, `[]`, with gradient to the student's maps."""
        maps = zip(*paired_maps(student, teacher, len(self.pairs)), strict=True)
        return torch.stack([nst_loss(own, goal) for own, goal in maps]).sum()

    def describe(self) -> str:
        """Which maps are pooled."""
        return pools_in_words(self.pairs)


@METHODS.register("nst")
class NeuronSelectivityTransfer(TeacherMethod):
    """Cross-entropy and the maximum mean discrepancy of channels, with the polynomial kernel of degree 2."""

    paper = Paper(
        title="Like What You Like: Knowledge Distill via Neuron Selectivity Transfer",
        authors="Huang and Wang",
        year=2017,
        venue="arXiv",
        arxiv="1707.01219",
    )
    needs = replace(TeacherMethod.needs, stage_maps=True)
    term = "nst"

    @dataclass(frozen=True, kw_only=True)
    class Config(TeacherMethod.Config):
        """Knobs of NST, those that all teachers' methods have."""

        weight: float = 50.0

    config: Config

    def link(self, student: PeerFacts, teacher: PeerFacts) -> Link:
        """Compare all stages, the last with the last; sizes and channels may differ."""
        return Selectivity(student, teacher)
