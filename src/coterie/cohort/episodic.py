"""Methods that learn from few-shot episodes: each batch is one, and each peer is scored on its queries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from coterie.core.knobs import check_knobs
from coterie.core.method import Episode, Method, Needs
from coterie.core.types import Batch, PeerOutput, Peers, Terms
from coterie.losses.prototypes import episode_loss, split_episode


class EpisodeMethod(Method):
    """Base of the few-shot methods: a subclass says how queries are scored by the support.

    Alone, such a method trains the encoders only, and the classifiers of the peers stay as they are. Behind another
    method it adds its term, and the classifiers are that one's: auxiliary, over all training classes.

    Attributes:
        term: what the term is called in displays and logs.
    """

    needs = Needs(episode=Episode(ways=5, shots=1, queries=15))
    term: ClassVar[str] = "episode"

    @dataclass(frozen=True, kw_only=True)
    class Config(Method.Config):
        """Knobs that these methods have.

        Attributes:
            ways: classes in an episode; more than at test time help.
            shots: images of each class to learn from; as many as at test time.
            queries: images of each class to classify.
            episodes: episodes, and so batches, in an epoch.
            temperature: divides the scores.
            weight: factor of the term.
        """

        ways: int = 5
        shots: int = 1
        queries: int = 15
        episodes: int = 100
        temperature: float = 1.0
        weight: float = 1.0

        def __post_init__(self) -> None:
            check_knobs(
                self,
                count=("shots", "queries", "episodes"),
                several=("ways",),
                positive=("temperature",),
                not_negative=("weight",),
            )

    config: Config

    @property
    def head(self) -> str:
        """How embeddings are read when classes are new, a name that `coterie.evaluation.fewshot` knows."""
        return "euclidean"

    def requirements(self) -> Needs:
        """The needs, with the episodes of the configuration."""
        config = self.config
        episode = Episode(
            ways=config.ways,
            shots=config.shots,
            queries=config.queries,
            per_epoch=config.episodes,
            head=self.head,
        )
        return replace(self.needs, episode=episode)

    def scores(self, support: Tensor, queries: Tensor) -> Tensor:
        """Score queries.

        Args:
            support: `[W, S, D]`, with gradient.
            queries: `[W, Q, D]`, with gradient.

        Returns:
            `[W * Q, W]`, before the softmax, with gradient; queries class by class.
        """
        raise NotImplementedError

    def losses(self, peers: Peers, batch: Batch) -> Terms:
        """One term, summed over the peers that learn, with gradient to their embeddings."""
        values = [self._loss(peer) for peer in self._learning(peers)]
        return Terms().add(self.term, torch.stack(values).sum(), self.config.weight)

    def added_losses(self, peers: Peers, batch: Batch) -> Terms:
        """The same term."""
        return self.losses(peers, batch)

    def describe(self) -> dict[str, str]:
        """What an episode is made of."""
        config = self.config
        sizes = f"{config.ways} ways, {config.shots} shots, {config.queries} queries"
        return {"episodes": f"{sizes}; {config.episodes} an epoch"}

    def _loss(self, peer: PeerOutput) -> Tensor:
        return episode_loss(self.scores(*split_episode(peer.embedding, self.config.ways, self.config.shots)))

    def _learning(self, peers: Peers) -> Sequence[PeerOutput]:
        return [peers[m] for m in self.facts.learning]
