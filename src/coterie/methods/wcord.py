"""Wasserstein contrastive representation distillation, reconstructed: no implementation of its authors is public.

The global term tells matched pairs of student and teacher embeddings from mismatched ones with a critic that is never
steeper than 1 (the Kantorovich-Rubinstein dual). The local term moves the batch of student embeddings onto the batch of
teacher embeddings (the primal, with entropy). Which parts are inferred is written in `docs/teachers.md`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from coterie.cohort import BankedLink, Link, TeacherMethod, draw_candidates
from coterie.cohort.banked import BankedConfig, How
from coterie.core import METHODS, Batch, ConfigError, Facts, Paper, PeerFacts, PeerOutput, draws
from coterie.losses.candidates import Candidates
from coterie.losses.critic import LipschitzCritic, gradient_penalty
from coterie.losses.sinkhorn import local_transport
from coterie.losses.wasserstein import bank_dual, batch_dual
from coterie.memory.negatives import Negatives

MOST_NEGATIVES = 1024


class Transport(BankedLink):
    """A critic of pairs over memory banks or the batch, and the transport between the batches of both sides.

    Args:
        student: sizes of its outputs.
        teacher: sizes of its outputs.
        config: the knobs.
        facts: labels and seed.

    Raises:
        ConfigError: the data cannot serve the negatives.

    Attributes:
        critic: None without the global term.
    """

    config: WassersteinContrast.Config

    def __init__(
        self, student: PeerFacts, teacher: PeerFacts, config: WassersteinContrast.Config, facts: Facts
    ) -> None:
        super().__init__(student, teacher, config, facts)
        spectral = config.critic == "spectral"
        self.critic = LipschitzCritic(config.embedding_dim, normalise=spectral) if config.global_weight else None
        if self.critic is not None and config.negatives != "batch":
            self.remember(most=MOST_NEGATIVES)
        self._key = draws.mix(facts.seed, "penalty")

    def forward(self, student: PeerOutput, teacher: PeerOutput, batch: Batch) -> Tensor:
        """Compute what is asked for of dual, penalty and transport, `[P]`.

        Dual and transport have gradient to the student and both heads, dual and penalty to the critic.
        """
        config = self.config
        own, other = self.embed(student, teacher)
        values: list[Tensor] = []
        if self.critic is not None:
            values += self._of_critic(self.critic, own, other, batch)
        if config.local_weight:
            values.append(
                local_transport(own, other, eps=config.eps, iterations=config.iterations, gradient=config.gradient)
            )
        return torch.stack(values)

    def describe(self) -> str:
        """Sizes, and which terms there are."""
        config = self.config
        critic = f"{config.critic} critic of pairs ({config.negatives})" if self.critic is not None else ""
        moves = f"transport in {config.iterations} iterations, eps {config.eps:g}" if config.local_weight else ""
        return "; ".join(filter(None, (super().describe(), critic, moves)))

    def _of_critic(self, critic: LipschitzCritic, own: Tensor, other: Tensor, batch: Batch) -> list[Tensor]:
        dual = self._dual(critic, own, other, batch)
        if self.config.critic == "penalty":
            return [dual, self._penalty(critic, own, other, batch)]
        return [dual]

    def _dual(self, critic: LipschitzCritic, own: Tensor, other: Tensor, batch: Batch) -> Tensor:
        if self.bank is None or self.draws is None:
            return self._batch_dual(critic, own, other, batch)
        rows = self._drawn(self.draws, batch)
        return bank_dual(critic, own, other, self.bank.rows, rows, neg_weight=self.config.neg_weight).loss

    def _batch_dual(self, critic: LipschitzCritic, own: Tensor, other: Tensor, batch: Batch) -> Tensor:
        same = None if self.config.unlabelled else batch.labels[:, None] == batch.labels
        return batch_dual(critic, own, other, same_class=same, neg_weight=self.config.neg_weight).loss

    def _drawn(self, draws: Negatives, batch: Batch) -> Candidates:
        how: How = "per_sample" if self.config.negatives == "bank_per_sample" else "shared"
        return draw_candidates(draws, batch, negatives=how, unlabelled=self.config.unlabelled)

    def _penalty(self, critic: LipschitzCritic, own: Tensor, other: Tensor, batch: Batch) -> Tensor:
        """Slopes between each matched pair and the same teacher embedding with the next image's student embedding."""
        mix = draws.uniform(self._key, batch.step * self.facts.num_train + batch.indices)
        return gradient_penalty(critic, (other, own), (other, own.roll(1, dims=0)), mix)


@METHODS.register("wcord")
class WassersteinContrast(TeacherMethod):
    """Cross-entropy, a critic's dual between matched and mismatched pairs, and transport within the batch."""

    paper = Paper(
        title="Wasserstein Contrastive Representation Distillation",
        authors="Chen et al.",
        year=2021,
        venue="CVPR",
        arxiv="2012.08674",
    )
    term = "wcord"

    @dataclass(frozen=True, kw_only=True)
    class Config(BankedConfig):
        """Knobs of WCoRD; the authors' weights are not known.

        Attributes:
            global_weight: factor of the dual with the critic; 0 leaves the term, critic and banks out.
            local_weight: factor of the transport within the batch; 0 leaves it out.
            negatives: mismatched pairs of the dual: bank rows that the batch shares (`bank_shared`), or of each image
                (`bank_per_sample`), or the other images of the `batch`.
            neg_weight: whether mismatched pairs count as their `mean`, or as their sum (`count`).
            critic: what keeps it from being steep: layers divided by their norms (`spectral`), which guarantees a slope
                of at most 1, or a `penalty` on slopes other than 1.
            penalty_weight: factor of that penalty, beside the global weight.
            eps: weight of the entropy in the transport, in units of the cost.
            iterations: Sinkhorn iterations.
            gradient: the transport's: `envelope` takes the plan as a constant, `unrolled` goes through the iterations.
        """

        global_weight: float = 0.8
        local_weight: float = 0.05
        negatives: Literal["bank_shared", "bank_per_sample", "batch"] = "bank_shared"
        neg_weight: Literal["mean", "count"] = "mean"
        critic: Literal["spectral", "penalty"] = "spectral"
        penalty_weight: float = 10.0
        eps: float = 0.05
        iterations: int = 50
        gradient: Literal["envelope", "unrolled"] = "envelope"

        def __post_init__(self) -> None:
            super().__post_init__()
            weights = self.global_weight, self.local_weight
            if min(*weights, self.penalty_weight) < 0 or not any(weights):
                raise ConfigError(
                    f"global_weight={self.global_weight}, local_weight={self.local_weight} and"
                    f" penalty_weight={self.penalty_weight} of wcord; give 0 or more, and not 0 to both terms"
                )
            if self.eps <= 0 or self.iterations < 1:
                raise ConfigError(
                    f"eps={self.eps} and iterations={self.iterations} of wcord; give a number above 0 and at least 1"
                )

    config: Config

    def parts(self) -> Mapping[str, float]:
        """Terms `wcord.global`, `wcord.penalty` and `wcord.local`, those that there are."""
        config = self.config
        found: dict[str, float] = {}
        if config.global_weight:
            found["wcord.global"] = config.global_weight
            if config.critic == "penalty":
                found["wcord.penalty"] = config.global_weight * config.penalty_weight
        if config.local_weight:
            found["wcord.local"] = config.local_weight
        return found

    def link(self, student: PeerFacts, teacher: PeerFacts) -> Link:
        """Two heads and what the terms need; the teacher's classes may be others than the student's."""
        return Transport(student, teacher, self.config, self.facts)
