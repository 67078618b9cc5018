"""Matching networks: a query takes the labels of the support it attends to."""

from __future__ import annotations

from torch import Tensor

from coterie.cohort.episodic import EpisodeMethod
from coterie.core import METHODS, Paper
from coterie.losses.prototypes import matching_scores


@METHODS.register("matching")
class MatchingNetworks(EpisodeMethod):
    """Negative log of the attention that queries pay to the support of their class, without full context embeddings.

    The cosines are divided by the temperature, 1 in the paper.
    """

    paper = Paper(
        title="Matching Networks for One Shot Learning",
        authors="Vinyals et al.",
        year=2016,
        venue="NeurIPS",
        arxiv="1606.04080",
    )
    term = "matching"

    @property
    def head(self) -> str:
        """Attention, as in training."""
        return "matching"

    def scores(self, support: Tensor, queries: Tensor) -> Tensor:
        """Log-probabilities `[W * Q, W]`."""
        return matching_scores(support, queries, temperature=self.config.temperature)
