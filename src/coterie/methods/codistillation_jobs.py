"""Codistillation between jobs: peers are pulled to what networks of other jobs, stale copies of them, say."""

from __future__ import annotations

import torch
from torch import Tensor

from coterie.cohort.codistilling import CodistillationMethod
from coterie.core import METHODS, Batch, Needs, Peers, Terms
from coterie.losses.logits import summed_cross_entropy
from coterie.losses.partner_targets import trusted_cross_entropy, trusted_entropy, trusted_mean


@METHODS.register("codistillation_jobs")
class CodistillationJobs(CodistillationMethod):
    """Cross-entropy of each peer and, after a burn-in, with the mean probabilities of other jobs' networks.

    The partners' outputs come with the batch, each with the trust in it, which falls as they grow old: without a
    partner that is heard of, training goes on as if there were none. Behind another method, as in
    `dml+codistillation_jobs`, only the pull is added. How weights travel is set in `exchange`.
    """

    needs = Needs(partners=True)

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
        return terms.add("partners", pull, self.weight_at(batch, pull))
