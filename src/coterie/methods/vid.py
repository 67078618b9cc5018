"""Variational information distillation: the student's maps are to tell as much as they can about the teacher's."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor, nn

from coterie.cohort import Link, TeacherMethod
from coterie.cohort.connectors import map_pairs, paired_maps, pools_in_words
from coterie.core import METHODS, Batch, ConfigError, Paper, PeerFacts, PeerOutput
from coterie.losses.feature_maps import pool_to_smaller
from coterie.losses.responses import vid_loss, vid_mean, vid_raw_scale


class VariationalHead(nn.Module):
    """A normal distribution of the teacher's map: the mean by three 1x1 convolutions, one variance for each channel.

    Args:
        channels: of the student's map.
        wanted: channels of the teacher's map.
        variance: at the start.
    """

    def __init__(self, channels: int, wanted: int, variance: float) -> None:
        super().__init__()
        sizes = ((channels, wanted), (wanted, wanted), (wanted, wanted))
        self.layers = nn.ModuleList(nn.Linear(*size, bias=False) for size in sizes)
        self.raw_scale = nn.Parameter(torch.full((wanted,), vid_raw_scale(variance)))

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Map `[B, C, H, W]` and `[B, C', H', W']` to the negative log likelihood `[]`.

        Gradient reaches the student's map and the head.
        """
        own, goal = pool_to_smaller(student, teacher)
        weights = [cast("nn.Linear", layer).weight for layer in self.layers]
        return vid_loss(vid_mean(own, weights), goal, self.raw_scale)


class Likelihood(Link):
    """Negative log likelihoods of the teacher's stages.

    Args:
        student: sizes of its outputs.
        teacher: sizes of its outputs.
        variance: of every channel at the start.

    Raises:
        ConfigError: one of them has no stages.
    """

    def __init__(self, student: PeerFacts, teacher: PeerFacts, variance: float) -> None:
        super().__init__()
        self.pairs = map_pairs("vid", student, teacher)
        self.heads = nn.ModuleList(VariationalHead(own[0], goal[0], variance) for own, goal in self.pairs)

    def forward(self, student: PeerOutput, teacher: PeerOutput, batch: Batch) -> Tensor:
        """Sum the likelihoods of all stages, `[]`, with gradient to the student's maps and the heads."""
        maps = zip(self.heads, *paired_maps(student, teacher, len(self.pairs)), strict=True)
        return torch.stack([head(own, goal) for head, own, goal in maps]).sum()

    def describe(self) -> str:
        """The heads, and which maps are pooled."""
        heads = ", ".join(f"{own[0]} to {goal[0]} channels" for own, goal in self.pairs)
        return "; ".join(filter(None, [f"heads {heads}", pools_in_words(self.pairs)]))


@METHODS.register("vid")
class VariationalInformationDistillation(TeacherMethod):
    """Cross-entropy and the negative log likelihood of the teacher's maps under a normal that the student predicts."""

    paper = Paper(
        title="Variational Information Distillation for Knowledge Transfer",
        authors="Ahn et al.",
        year=2019,
        venue="CVPR",
        arxiv="1904.05835",
    )
    needs = replace(TeacherMethod.needs, stage_maps=True)
    term = "vid"

    @dataclass(frozen=True, kw_only=True)
    class Config(TeacherMethod.Config):
        """Knobs of VID.

        Attributes:
            variance: of every channel at the start, before it is trained.
        """

        variance: float = 5.0

        def __post_init__(self) -> None:
            TeacherMethod.Config.__post_init__(self)
            if self.variance <= 1e-4:
                raise ConfigError(f"variance={self.variance} of vid; give a number above 0.0001")

    config: Config

    def link(self, student: PeerFacts, teacher: PeerFacts) -> Link:
        """Predict all stages of the teacher, the last from the last."""
        return Likelihood(student, teacher, self.config.variance)
