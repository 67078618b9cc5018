"""Mutual contrastive learning without labels: the four losses over momentum embeddings and queues, as in MoCo."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from coterie.cohort.ema import CohortCopy
from coterie.core import METHODS, Batch, Facts, Method, Needs, Outer, Paper, PeerOutput, Peers, Terms, logits_of
from coterie.core.knobs import check_knobs
from coterie.losses.logits import summed_cross_entropy
from coterie.losses.mutual_contrast import Columns, MutualContrast, mutual_contrast, scores_of
from coterie.memory.queue import EmbeddingQueue
from coterie.nets.heads import LinearHead, TwoLayerHead, embed_peers, make_heads

HEADS = {"linear": LinearHead, "two_layer": TwoLayerHead}


@METHODS.register("mcl_moco")
class MutualMomentumContrast(Method):
    """The four losses of MCL between peers that see the first view and momentum copies that see the second.

    An anchor's positive is its own image in a momentum copy, its negatives are a queue of that copy's embeddings from
    earlier steps. The copies follow the peers at the end of a step, which is the same as before their forward pass in
    the next one; the queues then take the keys the loss has used. Labels are not used, unless `task` is above 0.

    Attributes:
        heads: one head with L2 norm per peer, trained with the peers.
        queue: rows `[M, Q, D]`, the last keys of every momentum copy.
        copies: momentum copies of peers and heads; they normalise by the batch, as the peers do.
    """

    paper = Paper(
        title="Mutual Contrastive Learning for Visual Representation Learning",
        authors="Yang, An, Cai and Xu",
        year=2022,
        venue="AAAI",
        arxiv="2104.12565",
    )
    needs = Needs(views=2, peer_views=1, min_peers=2, outer_every=1)

    @dataclass(frozen=True, kw_only=True)
    class Config(Method.Config):
        """Knobs of MCL on MoCo; the defaults are the published ones.

        Attributes:
            vcl: factor of the contrast within peers.
            icl: factor of the contrast across peers.
            soft_vcl: factor of the distilled contrast within peers.
            soft_icl: factor of the distilled contrast across peers.
            task: factor of the cross-entropy with the labels; with 0 the classifiers learn nothing.
            contrast_temperature: tau, divides the inner products of embeddings.
            temperature: T of the soft losses, on top of tau.
            embedding_dim: D of heads and queues.
            head: `linear`, or `two_layer` with a ReLU in between.
            momentum: share of the momentum copies that stays at each step.
            queue_length: Q, keys kept of each copy; by default 65536, or half of the training images where fewer, so
                that an image seldom meets an older key of its own.
        """

        vcl: float = 1.0
        icl: float = 1.0
        soft_vcl: float = 1.0
        soft_icl: float = 1.0
        task: float = 0.0
        contrast_temperature: float = 0.07
        temperature: float = 3.0
        embedding_dim: int = 128
        head: Literal["linear", "two_layer"] = "linear"
        momentum: float = 0.999
        queue_length: int | None = None

        def __post_init__(self) -> None:
            positive = ("contrast_temperature", "temperature", "embedding_dim", "queue_length")
            check_knobs(self, positive=positive, fraction=("momentum",))

    config: Config

    def __init__(self, config: Config, facts: Facts) -> None:
        super().__init__(config, facts)
        dim = config.embedding_dim
        length = config.queue_length or max(1, min(65536, facts.num_train // 2))
        self.heads = make_heads(HEADS[config.head], facts.embedding_dims, dim)
        self.queue = EmbeddingQueue(facts.num_peers, length, dim, seed=facts.seed)
        self.memories = {"queue": self.queue}
        self.copies: CohortCopy | None = None
        self._keys: Tensor | None = None

    def attach(self, cohort: nn.Module) -> None:
        """Make the momentum copies of peers and heads."""
        self.copies = CohortCopy(_Encoders(cohort, self.heads))
        self.memories = {"queue": self.queue, "copies": self.copies}

    def losses(self, peers: Peers, batch: Batch) -> Terms:
        """Terms `task`, `vcl`, `icl`, `soft_vcl`, `soft_icl`; the last four have gradient to embeddings and heads.

        At weight 0 the task still takes part, so that every parameter has a gradient, if only one of zeros.
        """
        config = self.config
        assert self.copies is not None, "MCL on MoCo is used before it is attached to a cohort"
        self._keys = torch.stack([peer.embedding for peer in self.copies(batch.views[1:2])])
        queries = embed_peers(self.heads, peers)
        contrast = self.contrast(queries, self._keys)
        task = summed_cross_entropy(logits_of(peers), batch.labels)
        terms = Terms().add("task", task, config.task)
        terms.add("vcl", contrast.vcl, config.vcl).add("icl", contrast.icl, config.icl)
        return terms.add("soft_vcl", contrast.soft_vcl, config.soft_vcl).add(
            "soft_icl", contrast.soft_icl, config.soft_icl
        )

    def contrast(self, queries: Tensor, keys: Tensor) -> MutualContrast:
        """Contrast queries `[M, B, D]` with keys `[M, B, D]` and queues; gradient to the queries only."""
        tau = self.config.contrast_temperature
        positives = (queries[:, None] * keys).sum(dim=-1, keepdim=True) / tau
        negatives = scores_of(queries, self.queue.rows, temperature=tau)
        first = Columns(positives=torch.ones(queries.shape[1], 1, dtype=torch.bool, device=queries.device))
        scores = torch.cat([positives.to(negatives.dtype), negatives], dim=-1)
        return mutual_contrast(scores, within=first, across=first, temperature=self.config.temperature)

    def after_step(self, peers: Peers, batch: Batch) -> None:
        """Put the keys of this step into the queues."""
        if self._keys is not None:
            self.queue.push(self._keys)
            self._keys = None

    def outer_step(self, outer: Outer) -> None:
        """Move the momentum copies towards peers and heads."""
        assert self.copies is not None
        self.copies.update(_Encoders(outer.cohort, self.heads), self.config.momentum)

    def describe(self) -> dict[str, str]:
        """Size of the queues, and how slowly the copies follow."""
        peers, length, dim = self.queue.rows.shape
        return {
            "queues": f"{peers} x {length} x {dim}, {self.queue.mebibytes:.1f} MiB",
            "momentum copies": f"{peers} peers and heads at {self.config.momentum:g}, on the second view",
            "labels": f"weight {self.config.task:g}",
        }


class _Encoders(nn.Module):
    """Peers with their heads, whose outputs carry unit embeddings; they always normalise by the batch."""

    def __init__(self, cohort: nn.Module, heads: nn.ModuleList) -> None:
        super().__init__()
        self.cohort = cohort
        self.heads = heads

    def train(self, mode: bool = True) -> _Encoders:
        """Stay in training mode: momentum encoders do not use running statistics."""
        return super().train(True)

    def forward(self, views: Tensor) -> list[PeerOutput]:
        """Map views `[V, B, C, H, W]` to M outputs with embeddings `[B, D]` of length 1."""
        peers: Peers = self.cohort(views)
        return [replace(peer, embedding=head(peer.embedding)) for head, peer in zip(self.heads, peers, strict=True)]
