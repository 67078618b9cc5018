"""Collaborative learning of heads: each learns from the mean of the others, on a tree with rescaled gradients."""

from __future__ import annotations

from dataclasses import dataclass

from coterie.core import METHODS, Batch, Method, Needs, Paper, Peers, Terms, logits_of
from coterie.core.knobs import check_knobs
from coterie.losses.logits import mean_of_others, summed_cross_entropy, summed_kl


@METHODS.register("cl_ilr")
class CollaborativeHeads(Method):
    """Cross-entropy and KL from the mean of the other heads.

    Where peers part, the gradient is divided by the number of branches (intermediate-layer rescaling), so that shared
    stages learn as fast as those of one network. The paper's layout is a tree, `cohort.tree`; any other one works.
    """

    paper = Paper(
        title="Collaborative Learning for Deep Neural Networks",
        authors="Song and Chai",
        year=2018,
        venue="NeurIPS",
        arxiv="1805.11761",
    )
    needs = Needs(min_peers=2, rescale_branches=True)

    @dataclass(frozen=True, kw_only=True)
    class Config(Method.Config):
        """Knobs of CL-ILR.

        Attributes:
            temperature: T of the KL.
            task_share: factor of the cross-entropies, from 0 to 1; the KL takes the rest.
        """

        temperature: float = 2.0
        task_share: float = 0.5

        def __post_init__(self) -> None:
            check_knobs(self, positive=("temperature",), fraction=("task_share",))

    config: Config

    def losses(self, peers: Peers, batch: Batch) -> Terms:
        """Terms `task` and `collective`, with gradient to every peer's logits."""
        logits = logits_of(peers)
        share = self.config.task_share
        pull = summed_kl(logits, mean_of_others(logits), temperature=self.config.temperature)
        return Terms().add("task", summed_cross_entropy(logits, batch.labels), share).add("collective", pull, 1 - share)

    def describe(self) -> dict[str, str]:
        """The two shares."""
        share = self.config.task_share
        return {
            "shares": f"{share:g} labels, {1 - share:g} mean of the others at temperature {self.config.temperature:g}"
        }
