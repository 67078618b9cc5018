"""Mutual contrastive learning over memory banks, for many classes: candidates are rows of banks, not images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from coterie.core import METHODS, Batch, Facts, Method, Needs, Paper, Peers, Terms, logits_of
from coterie.core.knobs import check_knobs
from coterie.losses.bank_scores import bank_columns, bank_scores
from coterie.losses.candidates import Candidates
from coterie.losses.logits import mean_logits, summed_cross_entropy, summed_kl
from coterie.losses.mutual_contrast import MutualContrast, mutual_contrast
from coterie.memory.bank import BankDtype, MemoryBank
from coterie.memory.negatives import Negatives
from coterie.nets.heads import TwoLayerHead, embed_peers, make_heads


@METHODS.register("mcl_bank")
class MutualContrastOverBanks(Method):
    """Cross-entropy, KL from the ensemble to the leader and the four losses of MCL over rows of memory banks.

    An anchor is contrasted with its own row, rows of its class and rows of other classes. The banks are read as they
    were before the step; `after_step` moves the rows of the batch towards the embeddings the loss has used, which wait
    on the method in between and belong to no checkpoint.

    Attributes:
        heads: one two-layer head with L2 norm per peer, trained with the peers.
        bank: rows `[M, N, D]`, one memory bank per peer.
        negatives: draws the rows to contrast with.
    """

    paper = Paper(
        title="Mutual Contrastive Learning for Visual Representation Learning",
        authors="Yang, An, Cai and Xu",
        year=2022,
        venue="AAAI",
        arxiv="2104.12565",
    )
    needs = Needs(min_peers=2)

    @dataclass(frozen=True, kw_only=True)
    class Config(Method.Config):
        """Knobs of MCL over banks; the defaults are those of the published code for ImageNet.

        Attributes:
            vcl: factor of the contrast within peers (alpha).
            icl: factor of the contrast across peers (beta).
            soft_vcl: factor of the distilled contrast within peers (gamma).
            soft_icl: factor of the distilled contrast across peers (lambda).
            contrast_temperature: tau, divides the inner products of embeddings.
            temperature: T of every KL: of the ensemble and, on top of tau, of the soft losses.
            embedding_dim: D of heads and banks.
            bank_momentum: share of a bank row that stays when its image is seen.
            bank_dtype: how bank rows are stored: `bfloat16` halves them, and is faster where the device multiplies it.
            pos_k: rows of the anchor's class, drawn with replacement and possibly its own.
            neg_k: S, rows of other classes; by default 8192, or all images of other classes where fewer.
            negatives: `shared` by the batch and masked by class, or `per_sample` (as published).
            ensemble: whom the mean of all logits teaches: the leader, all peers or nobody (`off`).
            icl_self_pair: count the image's own row in another peer's bank as a positive, as published.
        """

        vcl: float = 0.1
        icl: float = 0.1
        soft_vcl: float = 1.0
        soft_icl: float = 1.0
        contrast_temperature: float = 0.07
        temperature: float = 3.0
        embedding_dim: int = 128
        bank_momentum: float = 0.5
        bank_dtype: BankDtype = "float32"
        pos_k: int = 1
        neg_k: int | None = None
        negatives: Literal["shared", "per_sample"] = "shared"
        ensemble: Literal["leader", "all", "off"] = "leader"
        icl_self_pair: bool = True

        def __post_init__(self) -> None:
            check_knobs(
                self,
                positive=("contrast_temperature", "temperature", "embedding_dim", "pos_k"),
                share=("bank_momentum",),
            )

    config: Config

    def __init__(self, config: Config, facts: Facts) -> None:
        super().__init__(config, facts)
        dim = config.embedding_dim
        self.negatives = Negatives(facts.labels, config.neg_k, seed=facts.seed, most=8192, lower=facts.limited)
        share, dtype = config.bank_momentum, config.bank_dtype
        self.bank = MemoryBank(facts.num_peers, facts.num_train, dim, momentum=share, seed=facts.seed, dtype=dtype)
        self.memories = {"bank": self.bank, "negatives": self.negatives}
        self.heads = make_heads(TwoLayerHead, facts.embedding_dims, dim)
        self._used: Tensor | None = None

    def losses(self, peers: Peers, batch: Batch) -> Terms:
        """Terms `task` (to all peers), `ensemble` (to the taught ones), `vcl`, `icl`, `soft_vcl`, `soft_icl`.

        The last four have gradient to embeddings and heads; bank rows and targets of KL terms are constants, so that
        a block of scores teaches the peer of its anchors only.
        """
        config = self.config
        logits = logits_of(peers)
        terms = Terms().add("task", summed_cross_entropy(logits, batch.labels))
        if config.ensemble != "off":
            terms.add("ensemble", self._ensemble_pull(logits))
        embeddings = embed_peers(self.heads, peers)
        self._used = embeddings.detach()
        contrast = self.contrast(embeddings, *self.candidates(batch))
        terms.add("vcl", contrast.vcl, config.vcl).add("icl", contrast.icl, config.icl)
        return terms.add("soft_vcl", contrast.soft_vcl, config.soft_vcl).add(
            "soft_icl", contrast.soft_icl, config.soft_icl
        )

    def _ensemble_pull(self, logits: list[Tensor]) -> Tensor:
        taught = logits if self.config.ensemble == "all" else [logits[self.facts.leader]]
        return summed_kl(taught, [mean_logits(logits)] * len(taught), temperature=self.config.temperature)

    def contrast(self, embeddings: Tensor, positives: Tensor, candidates: Candidates) -> MutualContrast:
        """Contrast unit embeddings `[M, B, D]` with bank rows: own and same-class `[B, P]`, then the candidates."""
        config = self.config
        scores = bank_scores(
            embeddings,
            self.bank.rows,
            positives=positives,
            candidates=candidates,
            temperature=config.contrast_temperature,
        )
        within, across = bank_columns(
            candidates, positives.shape[1], self_pair=config.icl_self_pair, dtype=scores.dtype
        )
        return mutual_contrast(scores, within=within, across=across, temperature=config.temperature)

    def candidates(self, batch: Batch) -> tuple[Tensor, Candidates]:
        """Draw the rows of a batch: own and same-class ones `[B, 1 + pos_k]`, and negatives."""
        labels, own, step = batch.labels, batch.indices, batch.step
        count = self.config.pos_k
        drawn = [self.negatives.same_class(labels, own, step * count + k) for k in range(count)]
        positives = torch.stack([own, *drawn], dim=1)
        if self.config.negatives == "per_sample":
            return positives, Candidates(positives=own, negatives=self.negatives.per_sample(labels, own, step))
        rows, same_class = self.negatives.shared(labels, step)
        return positives, Candidates(positives=own, negatives=rows, same_class=same_class)

    def after_step(self, peers: Peers, batch: Batch) -> None:
        """Move the batch's bank rows towards the embeddings of this step."""
        if self._used is not None:
            self.bank.update(batch.indices, self._used)
            self._used = None

    def describe(self) -> dict[str, str]:
        """Size of the banks, and what an anchor is contrasted with."""
        peers, rows, dim = self.bank.rows.shape
        negatives = f"{self.negatives.num_negatives} {self.config.negatives.replace('_', ' ')} negatives"
        return {
            "memory banks": f"{peers} x {rows} x {dim}, {self.bank.mebibytes:.1f} MiB",
            "contrast": f"own row, {self.config.pos_k} of the class and {negatives} per anchor",
        }
