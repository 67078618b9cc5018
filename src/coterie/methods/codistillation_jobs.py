"""Codistillation between jobs: peers are pulled to what networks of other jobs, stale copies of them, say."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from coterie.core import METHODS, Batch, ConfigError, Facts, Method, Needs, Paper, Peers, Terms
from coterie.core.knobs import check_knobs
from coterie.losses.logits import summed_cross_entropy
from coterie.losses.partner_targets import trusted_cross_entropy, trusted_entropy, trusted_mean

_BURN_IN = 0.4  # share of the run, as in `codistillation`


@METHODS.register("codistillation_jobs")
class CodistillationJobs(Method):
    """Cross-entropy of each peer and, after a burn-in, with the mean probabilities of other jobs' networks.

    The partners' outputs come with the batch, each with the trust in it, which falls as they grow old: without a
    partner that is heard of, training goes on as if there were none. Behind another method, as in
    `dml+codistillation_jobs`, only the pull is added.

    Attributes:
        burn_in: epochs or steps before the peers hear of other jobs.
    """

    paper = Paper(
        title="Large Scale Distributed Neural Network Training through Online Distillation",
        authors="Anil et al.",
        year=2018,
        venue="ICLR",
        arxiv="1804.03235",
    )
    needs = Needs(partners=True)

    @dataclass(frozen=True, kw_only=True)
    class Config(Method.Config):
        """Knobs of codistillation between jobs; how weights travel is set in `exchange`.

        Attributes:
            burn_in: epochs or steps before the peers hear of other jobs; two fifths of the run by default.
            burn_in_unit: what `burn_in` counts.
            weight: factor of the pull after the burn-in.
            divergence: `cross_entropy` with the partners' probabilities, or the `kl` from them, which differs by a
                constant.
        """

        burn_in: int | None = None
        burn_in_unit: Literal["epochs", "steps"] = "epochs"
        weight: float = 1.0
        divergence: Literal["cross_entropy", "kl"] = "cross_entropy"

        def __post_init__(self) -> None:
            check_knobs(self, not_negative=("burn_in", "weight"))
            if self.burn_in is None and self.burn_in_unit == "steps":
                raise ConfigError('method.burn_in_unit="steps" without method.burn_in; give both')

    config: Config

    def __init__(self, config: Config, facts: Facts) -> None:
        super().__init__(config, facts)
        self.burn_in = int(_BURN_IN * facts.num_epochs) if config.burn_in is None else config.burn_in

    def losses(self, peers: Peers, batch: Batch) -> Terms:
        """Terms `task` and `partners`, with gradient to the logits of every peer that learns."""
        logits = [peers[m].logits for m in self.facts.learning]
        return self._add(Terms().add("task", summed_cross_entropy(logits, batch.labels)), logits, batch)

    def added_losses(self, peers: Peers, batch: Batch) -> Terms:
        """Term `partners`, with gradient to the logits of every peer that learns."""
        return self._add(Terms(), [peers[m].logits for m in self.facts.learning], batch)

    def pull(self, logits: list[Tensor], batch: Batch) -> Tensor:
        """Pull peers towards the partners' mean prediction, each image as far as the partners are trusted for it.

        Args:
            logits: of the peers that learn, `[B, K]` each; each receives gradient.
            batch: with what the partners say.

        Returns:
            `[]`, summed over the peers and averaged over the batch; 0 without partners.
        """
        if not batch.partners:
            return torch.stack([0 * scores.sum() for scores in logits]).sum()
        target, trust = trusted_mean([said.logits for said in batch.partners], [said.trust for said in batch.partners])
        total = torch.stack([trusted_cross_entropy(own, target, trust) for own in logits]).sum()
        if self.config.divergence == "kl":
            total = total - len(logits) * trusted_entropy(target, trust)
        return total

    def describe(self) -> dict[str, str]:
        """Length of the burn-in."""
        return {"burn-in": f"{self.burn_in} {self.config.burn_in_unit} before other jobs are heard"}

    def _add(self, terms: Terms, logits: list[Tensor], batch: Batch) -> Terms:
        pull = self.pull(logits, batch)
        clock = batch.epoch if self.config.burn_in_unit == "epochs" else batch.step
        return terms.add("partners", pull, self.config.weight * (clock >= self.burn_in).to(pull.dtype))
