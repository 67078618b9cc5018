"""Multi-view contrastive learning for online distillation: peers contrast their embeddings, the ensemble teaches one.

The loss is the sum of the peers' cross-entropies, alpha times the KL from the mean of all logits to the leader, and
beta times the contrastive terms between every peer's embedding and the memory banks of the other peers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from coterie.cohort import draw_candidates
from coterie.core import METHODS, Batch, Facts, Method, Needs, Paper, Peers, Terms, logits_of
from coterie.core.knobs import check_knobs
from coterie.losses.candidates import Candidates
from coterie.losses.contrast import Contrast, contrast_pairs, nce_embeddings
from coterie.losses.logits import kl_logits, mean_logits, summed_cross_entropy
from coterie.memory.bank import BankDtype, MemoryBank
from coterie.memory.negatives import Negatives
from coterie.nets.heads import LinearHead, embed_peers, make_heads


@METHODS.register("mcl_okd")
class MultiViewContrast(Method):
    """Cross-entropy, leader KL, noise contrast over memory banks.

    The contrast of a step reads the banks as they were before it; `after_step` then moves the rows of the batch
    towards the very embeddings the loss has used, which wait on the method in between and belong to no checkpoint.

    Attributes:
        heads: one linear head with L2 norm per peer, trained with the peers.
        bank: rows `[M, N, D]`, one memory bank per peer.
        negatives: draws the rows to contrast with.
        pairs: (anchor, bank) of each contrastive term.
        log_means: `[P, 1]` with `z = "frozen"`, the log mean scores of the first batch, nan until then; else None.
    """

    paper = Paper(
        title="Multi-view Contrastive Learning for Online Knowledge Distillation",
        authors="Yang, An and Xu",
        year=2021,
        venue="ICASSP",
        arxiv="2006.04093",
    )
    needs = Needs(min_peers=2)

    @dataclass(frozen=True, kw_only=True)
    class Config(Method.Config):
        """Knobs of MCL-OKD; the defaults are the paper's for CIFAR-100.

        Attributes:
            temperature: T of the KL to the leader.
            alpha: factor of the KL to the leader.
            beta: factor of the sum of contrastive terms.
            contrast_temperature: tau, divides the inner products of embeddings.
            num_negatives: S per anchor; by default the paper's 16384, or all images of other classes where fewer. A
                number that is given and exceeds them is refused, unless `data.limit` is what makes them few.
            embedding_dim: D of heads and banks.
            bank_momentum: share of a bank row that stays when its image is seen.
            bank_dtype: how bank rows are stored: `bfloat16` halves them, and is faster where the device multiplies it.
            graph: `full` contrasts all ordered pairs of peers, `core` those with the leader.
            z: constant of the scores: mean over the `batch` anew at each step and pair (as the published code), over
                each `anchor` (as the paper), or over the first batch and `frozen` (as CRD).
            negatives: `shared` by the batch and masked by class, or `per_sample` of other classes (as published).
            positives: the bank row of the image itself (`exact`) or of an image of its class (`relax`).
        """

        temperature: float = 3.0
        alpha: float = 1.0
        beta: float = 0.025
        contrast_temperature: float = 0.1
        num_negatives: int | None = None
        embedding_dim: int = 128
        bank_momentum: float = 0.5
        bank_dtype: BankDtype = "float32"
        graph: Literal["full", "core"] = "full"
        z: Literal["batch", "anchor", "frozen"] = "batch"
        negatives: Literal["shared", "per_sample"] = "shared"
        positives: Literal["exact", "relax"] = "exact"

        def __post_init__(self) -> None:
            check_knobs(
                self, positive=("temperature", "contrast_temperature", "embedding_dim"), share=("bank_momentum",)
            )

    config: Config
    log_means: Tensor | None

    def __init__(self, config: Config, facts: Facts) -> None:
        super().__init__(config, facts)
        dim = config.embedding_dim
        self.pairs = contrast_pairs(facts.num_peers, leader=facts.leader, graph=config.graph)
        self.negatives = Negatives(facts.labels, config.num_negatives, seed=facts.seed, lower=facts.limited)
        share, dtype = config.bank_momentum, config.bank_dtype
        self.bank = MemoryBank(facts.num_peers, facts.num_train, dim, momentum=share, seed=facts.seed, dtype=dtype)
        self.memories = {"bank": self.bank, "negatives": self.negatives}
        self.heads = make_heads(LinearHead, facts.embedding_dims, dim)
        unknown = torch.full((len(self.pairs), 1), torch.nan)
        self.register_buffer("log_means", unknown if config.z == "frozen" else None)
        self._used: tuple[Tensor, Tensor] | None = None

    def losses(self, peers: Peers, batch: Batch) -> Terms:
        """Terms `task` (to all peers), `leader_kl` (to the leader's logits only), `contrast` (to embeddings, heads)."""
        logits = logits_of(peers)
        ensemble = mean_logits(logits).detach()
        pull = kl_logits(logits[self.facts.leader], ensemble, temperature=self.config.temperature)
        embeddings = embed_peers(self.heads, peers)
        contrast = self.contrast(embeddings, self.candidates(batch))
        self._used = embeddings.detach(), contrast.log_means
        terms = Terms().add("task", summed_cross_entropy(logits, batch.labels))
        return terms.add("leader_kl", pull, self.config.alpha).add("contrast", contrast.loss, self.config.beta)

    def contrast(self, embeddings: Tensor, candidates: Candidates) -> Contrast:
        """Contrast unit embeddings `[M, B, D]` with the banks; gradient to the embeddings only."""
        return nce_embeddings(
            embeddings,
            self.bank.rows,
            candidates,
            pairs=self.pairs,
            temperature=self.config.contrast_temperature,
            z="anchor" if self.config.z == "anchor" else "batch" if self.log_means is None else self.log_means,
        )

    def candidates(self, batch: Batch) -> Candidates:
        """Draw the rows to contrast a batch with: a function of seed, step and, per sample, image."""
        config = self.config
        return draw_candidates(self.negatives, batch, negatives=config.negatives, positives=config.positives)

    def after_step(self, peers: Peers, batch: Batch) -> None:
        """Move the batch's bank rows towards the embeddings of this step; keep the first log means when frozen."""
        if self._used is None:
            return
        embeddings, log_means = self._used
        self._used = None
        self.bank.update(batch.indices, embeddings)
        if self.log_means is not None:
            self.log_means.copy_(log_means)

    def describe(self) -> dict[str, str]:
        """Size of the banks, and how the contrast is set up."""
        peers, rows, dim = self.bank.rows.shape
        config = self.config
        return {
            "memory banks": f"{peers} x {rows} x {dim}, {self.bank.mebibytes:.1f} MiB",
            "negatives": f"{self.negatives.num_negatives} per anchor, {config.negatives}",
            "contrast": f"{len(self.pairs)} directed pairs ({config.graph} graph), mean score per {config.z}",
        }
