"""Collaborative learning: all peers learn from one soft target that is made of all of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from coterie.core import METHODS, Batch, DataError, Facts, Method, Needs, Paper, Peers, Terms, logits_of
from coterie.core.knobs import check_knobs
from coterie.losses.joint_targets import error_products, least_error_weights, min_logit_target, naive_target
from coterie.losses.logits import at_least_float32, mean_logits, summed_cross_entropy, summed_kl
from coterie.losses.simplex import simplex_weights


@METHODS.register("kdcl")
class CollaborativeLearning(Method):
    """Cross-entropy of each peer plus the KL from one target per image, a constant, to each peer.

    Each peer sees its own distorted copy of the image, so that the target also teaches to ignore distortions.

    Attributes:
        error_matrix: `[M, M]` with `target = "general"`, the inner products of the peers' errors on held-out images,
            nan before the first epoch is over; else None.
        mixture: `[M]` with `target = "general"`, the weights of the peers' logits, equal in the first epoch; else None.
    """

    paper = Paper(
        title="Online Knowledge Distillation via Collaborative Learning",
        authors="Guo et al.",
        year=2020,
        venue="CVPR",
    )
    needs = Needs(min_peers=2, views="per_peer")

    @dataclass(frozen=True, kw_only=True)
    class Config(Method.Config):
        """Knobs of KDCL.

        Attributes:
            target: `minlogit` takes the smallest shifted logit of each class, `naive` the logits of the best peer,
                `linear` the best convex combination, `general` the mixture that errs least on held-out images,
                estimated after every epoch, and `mean` the plain mean, which is none of the paper's four.
            per: whether `naive` and `linear` choose for each `sample` or for the whole `batch`.
            views: one view `per_peer`, or one that is `shared` by all (the paper's ablation).
            temperature: T of the KL.
            weight: factor of the KL.
            ridge: added to the diagonal of the error matrix, as a share of its mean, before `general` inverts it.
        """

        target: Literal["minlogit", "naive", "linear", "general", "mean"] = "minlogit"
        per: Literal["sample", "batch"] = "sample"
        views: Literal["per_peer", "shared"] = "per_peer"
        temperature: float = 2.0
        weight: float = 1.0
        ridge: float = 1e-6

        def __post_init__(self) -> None:
            check_knobs(self, positive=("temperature",), not_negative=("ridge",))

    config: Config
    error_matrix: Tensor | None
    mixture: Tensor | None

    def __init__(self, config: Config, facts: Facts) -> None:
        super().__init__(config, facts)
        peers = facts.num_peers
        general = config.target == "general"
        self.register_buffer("error_matrix", torch.full((peers, peers), torch.nan) if general else None)
        self.register_buffer("mixture", torch.full((peers,), 1 / peers) if general else None)

    def requirements(self) -> Needs:
        """Views and held-out images as configured."""
        views: int | Literal["per_peer"] = "per_peer" if self.config.views == "per_peer" else 1
        return replace(self.needs, views=views, held_out=self.config.target == "general")

    def losses(self, peers: Peers, batch: Batch) -> Terms:
        """Terms `task` and `joint`, with gradient to every peer's logits; the target is a constant."""
        logits = logits_of(peers)
        target = self.target(logits, batch.labels)
        pull = summed_kl(logits, [target] * len(logits), temperature=self.config.temperature)
        return Terms().add("task", summed_cross_entropy(logits, batch.labels)).add("joint", pull, self.config.weight)

    @torch.no_grad()
    def target(self, logits: Sequence[Tensor], labels: Tensor) -> Tensor:
        """Make the target of a batch.

        Args:
            logits: M times `[B, K]`.
            labels: `[B]` int64.

        Returns:
            `[B, K]` raw class scores in at least float32, a constant.
        """
        config = self.config
        if config.target == "mean":
            return mean_logits(logits)
        scores = torch.stack([at_least_float32(peer) for peer in logits])
        if config.target == "minlogit":
            return min_logit_target(scores, labels)
        if config.target == "naive":
            return naive_target(scores, labels, per=config.per)
        return (self._shares(scores, labels)[..., None] * scores).sum(dim=0)

    def _shares(self, scores: Tensor, labels: Tensor) -> Tensor:
        if self.mixture is None:
            return simplex_weights(scores, labels, per=self.config.per)
        return self.mixture[:, None]

    def after_epoch(self, held_out: Iterable[tuple[Sequence[Tensor], Tensor]]) -> None:
        """Estimate the error matrix and the mixture anew from logits on held-out images.

        Raises:
            DataError: `target = "general"` and there are no held-out images.
        """
        if self.error_matrix is None or self.mixture is None:
            return
        matrix = _mean_error_products(held_out)
        self.error_matrix.copy_(matrix)
        self.mixture.copy_(least_error_weights(matrix, ridge=self.config.ridge))

    def describe(self) -> dict[str, str]:
        """How the target is made and who sees what."""
        config = self.config
        choice = f" per {config.per}" if config.target in ("naive", "linear") else ""
        views = "its own view" if config.views == "per_peer" else "the same view"
        return {"target": f"{config.target}{choice} at temperature {config.temperature:g}; each peer sees {views}"}


def _mean_error_products(held_out: Iterable[tuple[Sequence[Tensor], Tensor]]) -> Tensor:
    """Inner products `[M, M]` of the peers' errors, the mean over all images."""
    sums = [(error_products(logits, labels), labels.shape[0]) for logits, labels in held_out]
    if not sums:
        raise DataError('method.target="general" needs held-out images and got none; raise data.validation')
    products, counts = zip(*sums, strict=True)
    mean: Tensor = torch.stack(products).sum(dim=0) / sum(counts)
    return mean
