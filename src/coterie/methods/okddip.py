"""Diverse peers: each auxiliary peer learns from its own mixture of all of them, the leader from their mean."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from coterie.core import METHODS, Batch, Facts, Method, Needs, Paper, Peers, Terms, logits_of
from coterie.core.knobs import check_knobs
from coterie.losses.logits import at_least_float32, kl_logits, mean_logits, summed_cross_entropy, summed_kl
from coterie.losses.ramp import ramp_up


class PeerAttention(nn.Module):
    """How much each peer listens to each peer: softmax of inner products of queries and keys, one map each for all.

    Not divided by a square root, and a peer listens to itself as well. Computed in the dtype of its weights.

    Args:
        in_dim: D of the embeddings.
        out_dim: size of queries and keys.
    """

    def __init__(self, in_dim: int, out_dim: int) -> None:
        super().__init__()
        self.query = nn.Linear(in_dim, out_dim, bias=False)
        self.key = nn.Linear(in_dim, out_dim, bias=False)

    def forward(self, embeddings: Sequence[Tensor]) -> Tensor:
        """Map A embeddings `[B, D]` to `[B, A, A]`, rows with sum 1; gradient to embeddings and both maps."""
        with torch.autocast(embeddings[0].device.type, enabled=False):
            stacked = torch.stack(list(embeddings), dim=1).to(self.query.weight.dtype)
            return torch.bmm(self.query(stacked), self.key(stacked).transpose(1, 2)).softmax(dim=2)


@METHODS.register("okddip")
class DiversePeers(Method):
    """Cross-entropy, KL from mixtures to auxiliary peers and from their mean to the leader.

    As in the authors' code no target is a constant unless `detach` says so: then gradient flows from the terms of one
    auxiliary peer, and from the leader's, to the logits of the auxiliary peers. With `detach = "values"` the terms of a
    peer still reach the embeddings of the others, through the attention, which has no other source of gradient.

    Attributes:
        attention: shared by the auxiliary peers; the leader takes no part.
        auxiliaries: all peers but the leader.
    """

    paper = Paper(
        title="Online Knowledge Distillation with Diverse Peers",
        authors="Chen et al.",
        year=2020,
        venue="AAAI",
        arxiv="1912.00350",
    )
    needs = Needs(min_peers=3, equal_embeddings="auxiliary")

    @dataclass(frozen=True, kw_only=True)
    class Config(Method.Config):
        """Knobs of OKDDip.

        Attributes:
            temperature: T of both KL terms.
            weight: factor of both KL terms.
            ramp_epochs: epochs over which both grow to their weight; 0 for none.
            attention_dim: size of queries and keys; an eighth of the embedding's by default.
            detach: `none` as the authors' code, or `values`: logits inside targets are constants.
            ensemble: peers whose mean is reported as the ensemble: `auxiliaries` as in the paper, or `all`.
            target_offset: added to each probability of the targets; the authors' code adds 1e-7.
        """

        temperature: float = 3.0
        weight: float = 1.0
        ramp_epochs: int = 80
        attention_dim: int | None = None
        detach: Literal["none", "values"] = "none"
        ensemble: Literal["auxiliaries", "all"] = "auxiliaries"
        target_offset: float = 0.0

        def __post_init__(self) -> None:
            check_knobs(self, positive=("attention_dim", "temperature"))

    config: Config

    def __init__(self, config: Config, facts: Facts) -> None:
        super().__init__(config, facts)
        self.auxiliaries = tuple(m for m in range(facts.num_peers) if m != facts.leader)
        dim = facts.embedding_dims[self.auxiliaries[0]]
        self.attention = PeerAttention(dim, config.attention_dim or max(1, dim // 8))

    def losses(self, peers: Peers, batch: Batch) -> Terms:
        """Terms `task`, `group` (from the mixtures to the auxiliary peers) and `leader` (from their mean to it)."""
        config = self.config
        attention = self.attention([peers[a].embedding for a in self.auxiliaries])
        own = [peers[a].logits for a in self.auxiliaries]
        values = self._mixed_values(own)
        targets = aggregate(attention, values)
        group = summed_kl(own, targets, temperature=config.temperature, detach=False, offset=config.target_offset)
        leader = kl_logits(
            peers[self.facts.leader].logits,
            mean_logits(values),
            temperature=config.temperature,
            detach=False,
            offset=config.target_offset,
        )
        weight = config.weight * ramp_up(batch.epoch, config.ramp_epochs, dtype=group.dtype)
        task = summed_cross_entropy(logits_of(peers), batch.labels)
        return Terms().add("task", task).add("group", group, weight).add("leader", leader, weight)

    def _mixed_values(self, logits: list[Tensor]) -> list[Tensor]:
        """What mixtures are made of: logits of the auxiliary peers, as constants where so configured."""
        return [scores.detach() for scores in logits] if self.config.detach == "values" else logits

    def ensemble(self, peers: Peers) -> Tensor:
        """Mean logits `[B, K]` of the auxiliary peers, or of all, as configured."""
        chosen = self.auxiliaries if self.config.ensemble == "auxiliaries" else range(len(peers))
        return mean_logits([peers[m].logits for m in chosen])

    def describe(self) -> dict[str, str]:
        """Who teaches whom, and the ramp-up."""
        dim, count = self.attention.query.out_features, len(self.auxiliaries)
        ramp = f"over {self.config.ramp_epochs} epochs" if self.config.ramp_epochs else "none"
        return {"attention": f"{count} auxiliary peers, queries and keys of size {dim}", "ramp-up": ramp}


def aggregate(attention: Tensor, logits: Sequence[Tensor]) -> list[Tensor]:
    """Mix logits for each peer with its own weights.

    Args:
        attention: `[B, A, A]`, row a holds the weights of peer a; receives gradient.
        logits: A times `[B, K]`; each receives gradient.

    Returns:
        A targets `[B, K]`, at least float32.

    Example:
        >>> logits = [torch.tensor([[2.0]]), torch.tensor([[4.0]])]
        >>> one, two = aggregate(torch.tensor([[[1.0, 0.0], [0.5, 0.5]]]), logits)
        >>> float(one), float(two)
        (2.0, 3.0)
    """
    values = torch.stack([at_least_float32(scores) for scores in logits], dim=1)
    with torch.autocast(values.device.type, enabled=False):
        return list(torch.bmm(attention.to(values.dtype), values).unbind(dim=1))
