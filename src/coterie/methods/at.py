"""Attention transfer: each stage of the student is to answer as strongly at each position as the teacher's."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from coterie.cohort import Link, TeacherMethod
from coterie.cohort.connectors import map_pairs, paired_maps, pools_in_words
from coterie.core import METHODS, Batch, Paper, PeerFacts, PeerOutput
from coterie.core.knobs import check_knobs
from coterie.losses.feature_maps import at_loss


class Attention(Link):
    """Differences of the attention maps of all stages.

    Args:
        student: sizes of its outputs.
        teacher: sizes of its outputs.
        p: power of the activations.

    Raises:
        ConfigError: one of them has no stages.
    """

    def __init__(self, student: PeerFacts, teacher: PeerFacts, p: int) -> None:
        super().__init__()
        self.pairs = map_pairs("at", student, teacher)
        self.p = p

    def forward(self, student: PeerOutput, teacher: PeerOutput, batch: Batch) -> Tensor:
        """Sum the differences of all stages, `[]`, with gradient to the student's maps."""
        maps = zip(*paired_maps(student, teacher, len(self.pairs)), strict=True)
        return torch.stack([at_loss(own, goal, p=self.p) for own, goal in maps]).sum()

    def describe(self) -> str:
        """Which maps are pooled."""
        return pools_in_words(self.pairs)


@METHODS.register("at")
class AttentionTransfer(TeacherMethod):
    """Cross-entropy and the squared differences of attention maps, the mean of squared activations over channels."""

    paper = Paper(
        title="Paying More Attention to Attention",
        authors="Zagoruyko and Komodakis",
        year=2017,
        venue="ICLR",
        arxiv="1612.03928",
    )
    needs = replace(TeacherMethod.needs, stage_maps=True)
    term = "at"

    @dataclass(frozen=True, kw_only=True)
    class Config(TeacherMethod.Config):
        """Knobs of AT.

        Attributes:
            p: power of the activations in an attention map.
        """

        weight: float = 1000.0
        p: int = 2

        def __post_init__(self) -> None:
            TeacherMethod.Config.__post_init__(self)
            check_knobs(self, count=("p",))

    config: Config

    def link(self, student: PeerFacts, teacher: PeerFacts) -> Link:
        """Compare all stages, the last with the last; sizes may differ."""
        return Attention(student, teacher, self.config.p)
