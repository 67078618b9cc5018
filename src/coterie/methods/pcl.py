"""Peer collaborative learning: an ensemble classifier on all embeddings, and averaged peers, teach each peer."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import permutations
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from coterie.cohort.ema import CohortCopy
from coterie.core import METHODS, Batch, Facts, Method, Needs, Outer, Paper, Peers, Terms, logits_of
from coterie.core.knobs import check_knobs
from coterie.losses.logits import at_least_float32, kl_logits, summed_cross_entropy, summed_kl
from coterie.losses.ramp import ramp_up


@METHODS.register("pcl")
class PeerCollaboration(Method):
    """Cross-entropies of peers and ensemble, KL from the ensemble, and KL from moving averages of the other peers.

    The ensemble is a linear classifier on the embeddings of all peers side by side. Its cross-entropy sends gradient to
    every embedding; as a teacher it is a constant, and so are the averaged peers. Each peer sees its own view.

    Attributes:
        classifier: logits of the ensemble from all embeddings.
        averages: mean teachers of the peers; None until the method is attached to a cohort.
    """

    paper = Paper(
        title="Peer Collaborative Learning for Online Knowledge Distillation",
        authors="Wu and Gong",
        year=2021,
        venue="AAAI",
        arxiv="2006.04147",
    )
    needs = Needs(min_peers=2, views="per_peer", outer_every=1)

    @dataclass(frozen=True, kw_only=True)
    class Config(Method.Config):
        """Knobs of PCL.

        Attributes:
            temperature: T of both KL terms.
            weight: factor of both KL terms.
            ramp_epochs: epochs over which both grow to their weight; 0 for none.
            momentum: share of an averaged weight that stays at a step, or step / (step + 1) where that is less.
            views: one view `per_peer`, or one that is `shared` by all.
        """

        temperature: float = 3.0
        weight: float = 1.0
        ramp_epochs: int = 80
        momentum: float = 0.999
        views: Literal["per_peer", "shared"] = "per_peer"

        def __post_init__(self) -> None:
            check_knobs(self, positive=("temperature",), share=("momentum",))

    config: Config

    def __init__(self, config: Config, facts: Facts) -> None:
        super().__init__(config, facts)
        self.classifier = nn.Linear(sum(facts.embedding_dims), facts.num_classes)
        self.averages: CohortCopy | None = None

    def requirements(self) -> Needs:
        """Views as configured."""
        return replace(self.needs, views="per_peer" if self.config.views == "per_peer" else 1)

    def attach(self, cohort: nn.Module) -> None:
        """Start the averages at the peers' fresh weights."""
        self.averages = CohortCopy(cohort)
        self.memories = {"averages": self.averages}

    def losses(self, peers: Peers, batch: Batch) -> Terms:
        """Terms `task`, `ensemble` (to embeddings and classifier), `from_ensemble` and `from_peers` (to logits)."""
        assert self.averages is not None, "peer collaborative learning is used before it is attached to a cohort"
        logits = logits_of(peers)
        together = self.ensemble(peers)
        down = summed_kl(logits, [together] * len(logits), temperature=self.config.temperature)
        across = self.from_peers(logits, logits_of(self.averages(batch.views)))
        weight = self.config.weight * ramp_up(batch.epoch, self.config.ramp_epochs, dtype=down.dtype)
        terms = Terms().add("task", summed_cross_entropy(logits, batch.labels))
        terms.add("ensemble", F.cross_entropy(together, batch.labels))
        return terms.add("from_ensemble", down, weight).add("from_peers", across, weight)

    def from_peers(self, logits: list[Tensor], averaged: list[Tensor]) -> Tensor:
        """Mean KL from the averages of the other peers to each peer, summed over the peers.

        Args:
            logits: M times `[B, K]`; each receives gradient.
            averaged: M times `[B, K]`, what the averaged peers say; constants.

        Returns:
            `[]`.
        """
        pulls = [
            kl_logits(logits[m], averaged[j], temperature=self.config.temperature)
            for m, j in permutations(range(len(logits)), 2)
        ]
        return torch.stack(pulls).sum() / (len(logits) - 1)

    def ensemble(self, peers: Peers) -> Tensor:
        """Classify all embeddings together: `[B, K]`, with gradient to embeddings and classifier."""
        return at_least_float32(self.classifier(torch.cat([peer.embedding for peer in peers], dim=1)))

    def outer_step(self, outer: Outer) -> None:
        """Move the averages towards the peers."""
        assert self.averages is not None
        step = outer.batch.step.to(torch.float32)
        self.averages.update(outer.cohort, (step / (step + 1)).clamp(max=self.config.momentum))

    def describe(self) -> dict[str, str]:
        """Size of the ensemble's classifier, and how the averages move."""
        size = self.classifier.in_features
        return {
            "ensemble": f"linear classifier on {size} features of {self.facts.num_peers} peers",
            "averages": f"of every peer, momentum {self.config.momentum:g}",
        }
