"""Mutual contrastive learning: peers contrast images within and across their embeddings, and match distributions.

The loss is the sum of the peers' cross-entropies, the KL from the mean of all logits, and four contrastive losses over
the images of the batch: vcl and icl within and across peers, and the distillation of either distribution.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from torch import Tensor

from coterie.core import METHODS, Batch, ConfigError, Facts, Method, Needs, Paper, Peers, Terms, logits_of
from coterie.core.knobs import check_knobs
from coterie.losses.logits import mean_logits, summed_cross_entropy, summed_kl
from coterie.losses.mutual_contrast import MutualContrast, batch_columns, mutual_contrast, scores_of
from coterie.nets.heads import TwoLayerHead, embed_peers, make_heads


@METHODS.register("mcl")
class MutualContrastiveLearning(Method):
    """Cross-entropy, KL from the ensemble and the four contrastive losses of MCL, over the images of a batch.

    Attributes:
        heads: one two-layer head with L2 norm per peer, trained with the peers.
    """

    paper = Paper(
        title="Mutual Contrastive Learning for Visual Representation Learning",
        authors="Yang, An, Cai and Xu",
        year=2022,
        venue="AAAI",
        arxiv="2104.12565",
    )
    needs = Needs(min_peers=2, samples_per_class=2)

    @dataclass(frozen=True, kw_only=True)
    class Config(Method.Config):
        """Knobs of MCL; the defaults are those of the published code for CIFAR-100.

        Attributes:
            vcl: factor of the contrast within peers (alpha).
            icl: factor of the contrast across peers (beta).
            soft_vcl: factor of the distilled contrast within peers (gamma).
            soft_icl: factor of the distilled contrast across peers (lambda).
            contrast_temperature: tau, divides the inner products of embeddings.
            temperature: T of every KL: of the ensemble and, on top of tau, of the soft losses.
            embedding_dim: D of the heads.
            ensemble: whom the mean of all logits teaches: all peers, the leader, nobody (`off`), or, as published
                (`auto`), all of two peers and the leader of more.
            samples_per_class: images of each class in a batch; 0 for plain shuffling. Images that are alone with their
                label take no part in vcl and icl.
            icl_self_pair: count the same image in two peers as a positive pair, which the paper does and the published
                code for CIFAR does not.
            soft_include_self: keep an image's similarity with itself in the soft losses, as published.
        """

        vcl: float = 0.1
        icl: float = 0.1
        soft_vcl: float = 1.0
        soft_icl: float = 1.0
        contrast_temperature: float = 0.1
        temperature: float = 3.0
        embedding_dim: int = 128
        ensemble: Literal["auto", "all", "leader", "off"] = "auto"
        samples_per_class: int = 2
        icl_self_pair: bool = False
        soft_include_self: bool = True

        def __post_init__(self) -> None:
            check_knobs(self, positive=("contrast_temperature", "temperature", "embedding_dim"))
            if self.samples_per_class < 0 or self.samples_per_class == 1:
                raise ConfigError(
                    f"method.samples_per_class={self.samples_per_class} leaves images without a partner;"
                    " give 2 or more, or 0 for plain shuffling"
                )

    config: Config

    def __init__(self, config: Config, facts: Facts) -> None:
        super().__init__(config, facts)
        self.heads = make_heads(TwoLayerHead, facts.embedding_dims, config.embedding_dim)

    def requirements(self) -> Needs:
        """The needs, with the samples per class of the configuration."""
        return replace(self.needs, samples_per_class=self.config.samples_per_class)

    @property
    def taught(self) -> tuple[int, ...]:
        """Peers that learn from the mean of all logits."""
        peers = range(self.facts.num_peers)
        whom = {"auto": "all" if len(peers) == 2 else "leader"}.get(self.config.ensemble, self.config.ensemble)
        return {"all": tuple(peers), "leader": (self.facts.leader,), "off": ()}[whom]

    def losses(self, peers: Peers, batch: Batch) -> Terms:
        """Terms `task` (to all peers), `ensemble` (to the taught ones), `vcl`, `icl`, `soft_vcl`, `soft_icl`.

        The last four have gradient to all embeddings and heads; only the targets of KL terms are constants.
        """
        config = self.config
        logits = logits_of(peers)
        terms = Terms().add("task", summed_cross_entropy(logits, batch.labels))
        if self.taught:
            terms.add("ensemble", self._ensemble_pull(logits))
        embeddings = embed_peers(self.heads, peers)
        contrast = self.contrast(embeddings, batch.labels)
        terms.add("vcl", contrast.vcl, config.vcl).add("icl", contrast.icl, config.icl)
        return terms.add("soft_vcl", contrast.soft_vcl, config.soft_vcl).add(
            "soft_icl", contrast.soft_icl, config.soft_icl
        )

    def _ensemble_pull(self, logits: Sequence[Tensor]) -> Tensor:
        taught = [logits[peer] for peer in self.taught]
        return summed_kl(taught, [mean_logits(logits)] * len(taught), temperature=self.config.temperature)

    def contrast(self, embeddings: Tensor, labels: Tensor) -> MutualContrast:
        """Contrast unit embeddings `[M, B, D]` of images with `labels` `[B]`; gradient to the embeddings."""
        config = self.config
        within = across = batch_columns(labels, self_pair=False, soft_self=config.soft_include_self)
        if config.icl_self_pair:
            across = replace(batch_columns(labels, self_pair=True, soft_self=True), soft=within.soft)
        scores = scores_of(embeddings, embeddings, temperature=config.contrast_temperature)
        return mutual_contrast(scores, within=within, across=across, temperature=config.temperature)

    def describe(self) -> dict[str, str]:
        """Size of the heads, whom the ensemble teaches, and how batches are made."""
        config, peers = self.config, self.facts.num_peers
        order = f"with {config.samples_per_class} images per class" if config.samples_per_class else "shuffled"
        return {
            "heads": f"{peers} of two layers, {config.embedding_dim} wide",
            "ensemble": f"teaches peers {list(self.taught)} at temperature {config.temperature:g}",
            "contrast": f"{peers} x {peers} blocks of scores, batches {order}",
        }
