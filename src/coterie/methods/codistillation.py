"""Codistillation: each peer is pulled to the mean prediction of stale copies of the others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from coterie.cohort.codistilling import CodistillationMethod
from coterie.cohort.ema import CohortCopy
from coterie.core import METHODS, Batch, Facts, Needs, Outer, Peers, Terms, logits_of
from coterie.core.knobs import check_knobs
from coterie.losses.logits import at_least_float32, soft_cross_entropy, summed_cross_entropy


@METHODS.register("codistillation")
class Codistillation(CodistillationMethod):
    """Cross-entropy of each peer and, after a burn-in, with the mean probabilities of the other peers' stale copies.

    The copies are made when the run is built, see the same views in evaluation mode and are constants. They are run
    during the burn-in too, where their term has weight 0.

    Attributes:
        copies: the stale peers; None until the method is attached to a cohort.
    """

    needs = Needs(min_peers=2, outer_every=50)

    @dataclass(frozen=True, kw_only=True)
    class Config(CodistillationMethod.Config):
        """Knobs of codistillation.

        Attributes:
            interval: steps between refreshes of the stale copies.
        """

        interval: int = 50

        def __post_init__(self) -> None:
            super().__post_init__()
            check_knobs(self, count=("interval",))

    config: Config

    def __init__(self, config: Config, facts: Facts) -> None:
        super().__init__(config, facts)
        self.copies: CohortCopy | None = None

    def requirements(self) -> Needs:
        """An outer step at every refresh."""
        return replace(self.needs, outer_every=self.config.interval)

    def attach(self, cohort: nn.Module) -> None:
        """Make the first stale copies."""
        self.copies = CohortCopy(cohort)
        self.memories = {"copies": self.copies}

    def losses(self, peers: Peers, batch: Batch) -> Terms:
        """Terms `task` and `pull`, with gradient to every peer's logits."""
        assert self.copies is not None, "codistillation is used before it is attached to a cohort"
        logits = logits_of(peers)
        pull = self.pull(logits, logits_of(self.copies(batch.views)))
        terms = Terms().add("task", summed_cross_entropy(logits, batch.labels))
        return terms.add("pull", pull, self.weight_at(batch, pull))

    def pull(self, logits: Sequence[Tensor], stale: Sequence[Tensor]) -> Tensor:
        """Pull every peer towards the mean prediction of the other peers' copies.

        Args:
            logits: M times `[B, K]` raw class scores; each receives gradient.
            stale: M times `[B, K]` raw class scores of the copies, constants.

        Returns:
            `[]`, summed over the peers and averaged over the batch.
        """
        others = _mean_chances_of_others(stale)
        total = torch.stack([soft_cross_entropy(own, mean) for own, mean in zip(logits, others, strict=True)]).sum()
        if self.config.divergence == "kl":
            total = total + torch.special.xlogy(others, others).sum() / others.shape[1]
        return total

    def outer_step(self, outer: Outer) -> None:
        """Refresh the stale copies."""
        assert self.copies is not None
        self.copies.refresh(outer.cohort)

    def describe(self) -> dict[str, str]:
        """Age of the copies and length of the burn-in."""
        refreshed = f"of every peer, refreshed every {self.config.interval} steps"
        return {"stale copies": refreshed, "burn-in": f"{self.burn_in} {self.config.burn_in_unit}"}


def _mean_chances_of_others(logits: Sequence[Tensor]) -> Tensor:
    """For each peer the mean of the other peers' probabilities, `[M, B, K]`, constants."""
    chances = torch.stack([at_least_float32(scores.detach()).softmax(dim=1) for scores in logits])
    return (chances.sum(dim=0) - chances) / (len(logits) - 1)
