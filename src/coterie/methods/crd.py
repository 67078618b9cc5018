"""Contrastive representation distillation: a student's embedding is told which teacher embedding is of its image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from coterie.cohort import BankedLink, Link, TeacherMethod, draw_candidates
from coterie.cohort.banked import BankedConfig
from coterie.core import METHODS, Batch, ConfigError, Facts, Paper, PeerFacts, PeerOutput
from coterie.core.knobs import check_knobs
from coterie.losses.contrast import nce_embeddings
from coterie.memory.bank import MemoryBank
from coterie.memory.negatives import Negatives

PAIRS = ((0, 1), (1, 0))
"""The student's embeddings on the teacher's bank, and the teacher's on the student's."""

MOST_NEGATIVES = 16384


class NoiseContrast(BankedLink):
    """Each side's embeddings contrasted with the other side's memory bank.

    Args:
        student: sizes of its outputs.
        teacher: sizes of its outputs.
        config: the knobs.
        facts: labels and seed.

    Raises:
        ConfigError: the data cannot serve the negatives.

    Attributes:
        log_means: `[2, 1]` with `z="frozen"`, the log mean scores of the first batch, nan until then; else None.
    """

    config: ContrastiveRepresentationDistillation.Config
    bank: MemoryBank
    draws: Negatives
    log_means: Tensor | None

    def __init__(
        self, student: PeerFacts, teacher: PeerFacts, config: ContrastiveRepresentationDistillation.Config, facts: Facts
    ) -> None:
        super().__init__(student, teacher, config, facts)
        self.remember(most=MOST_NEGATIVES)
        self.register_buffer("log_means", torch.full((2, 1), torch.nan) if config.z == "frozen" else None)
        self._found: Tensor | None = None

    def forward(self, student: PeerOutput, teacher: PeerOutput, batch: Batch) -> Tensor:
        """Compute both directed terms, summed: `[]`, with gradient to the student and to both heads."""
        config = self.config
        contrast = nce_embeddings(
            self.embed(student, teacher),
            self.bank.rows,
            draw_candidates(
                self.draws,
                batch,
                negatives=config.negatives,
                positives=config.positives,
                unlabelled=config.unlabelled,
            ),
            pairs=PAIRS,
            temperature=config.contrast_temperature,
            z="anchor" if config.z == "anchor" else "batch" if self.log_means is None else self.log_means,
        )
        self._found = contrast.log_means
        return contrast.loss

    def after_step(self, student: PeerOutput, teacher: PeerOutput, batch: Batch) -> None:
        """Move the batch's bank rows; keep the first log means when frozen."""
        super().after_step(student, teacher, batch)
        if self.log_means is not None and self._found is not None:
            self.log_means.copy_(self._found)
        self._found = None

    def describe(self) -> str:
        """Sizes, and how the contrast is set up."""
        return f"{super().describe()}, {self.config.negatives}; Z {self.config.z}"


@METHODS.register("crd")
class ContrastiveRepresentationDistillation(TeacherMethod):
    """Cross-entropy and noise contrast between student and teacher over two memory banks.

    The contrast is that of MCL-OKD with two networks of which one does not learn, and its own constant Z.
    """

    paper = Paper(
        title="Contrastive Representation Distillation",
        authors="Tian, Krishnan and Isola",
        year=2020,
        venue="ICLR",
        arxiv="1910.10699",
    )
    term = "crd"

    @dataclass(frozen=True, kw_only=True)
    class Config(BankedConfig):
        """Knobs of CRD; the defaults are the paper's for CIFAR-100.

        Attributes:
            contrast_temperature: tau, divides the inner products of embeddings.
            z: constant of the scores: mean over the first batch and `frozen` (as published), over each `batch` anew (as
                MCL-OKD), or over each `anchor`.
            negatives: `shared` by the batch and masked by class, or `per_sample` of other classes (as published).
            positives: the bank row of the image itself (`exact`) or of an image of its class (`relax`).
        """

        weight: float = 0.8
        contrast_temperature: float = 0.07
        z: Literal["frozen", "batch", "anchor"] = "frozen"
        negatives: Literal["shared", "per_sample"] = "shared"
        positives: Literal["exact", "relax"] = "exact"

        def __post_init__(self) -> None:
            super().__post_init__()
            check_knobs(self, positive=("contrast_temperature",))
            if self.unlabelled and self.positives == "relax":
                raise ConfigError("positives=relax are images of one class, and unlabelled=true knows none; give exact")

    config: Config

    def link(self, student: PeerFacts, teacher: PeerFacts) -> Link:
        """Two heads and two banks; the teacher's classes may be others than the student's."""
        return NoiseContrast(student, teacher, self.config, self.facts)
