"""Prototypical networks: a query belongs to the class whose mean support embedding is nearest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from coterie.cohort.episodic import EpisodeMethod
from coterie.core import METHODS, Paper
from coterie.losses.prototypes import cosine_scores, euclidean_scores


@METHODS.register("prototypes")
class PrototypicalNetworks(EpisodeMethod):
    """Cross-entropy of queries over minus squared distances to class means, each peer a prototypical network."""

    paper = Paper(
        title="Prototypical Networks for Few-shot Learning",
        authors="Snell, Swersky and Zemel",
        year=2017,
        venue="NeurIPS",
        arxiv="1703.05175",
    )
    term = "prototypes"

    @dataclass(frozen=True, kw_only=True)
    class Config(EpisodeMethod.Config):
        """Knobs of prototypical networks; ways and queries differ from data set to data set.

        Attributes:
            distance: `euclidean`, squared and summed over the embedding as in the paper, or `cosine`.
        """

        distance: Literal["euclidean", "cosine"] = "euclidean"

    config: Config

    @property
    def head(self) -> str:
        """The distance of training."""
        return self.config.distance

    def scores(self, support: Tensor, queries: Tensor) -> Tensor:
        """Distances or cosines `[W * Q, W]`, divided by the temperature."""
        score = euclidean_scores if self.config.distance == "euclidean" else cosine_scores
        return score(support, queries) / self.config.temperature
