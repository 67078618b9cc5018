"""Deep mutual learning: every peer also learns from the predictions of every other peer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import Literal

from torch import Tensor

from coterie.core import METHODS, Batch, Method, Needs, Paper, Peers, Terms, logits_of
from coterie.core.knobs import check_knobs
from coterie.losses.logits import mean_of_others, summed_cross_entropy, summed_kl

TEMPERATURES = {"paper": 1.0, "mcl-okd": 2.0}


@METHODS.register("dml")
class DeepMutualLearning(Method):
    """Cross-entropy of each peer plus the mean KL from all other peers, whose predictions are constants.

    All peers are updated from the same forward pass.
    """

    paper = Paper(
        title="Deep Mutual Learning",
        authors="Zhang, Xiang, Hospedales and Lu",
        year=2018,
        venue="CVPR",
        arxiv="1706.00384",
    )
    needs = Needs(min_peers=2)

    @dataclass(frozen=True, kw_only=True)
    class Config(Method.Config):
        """Knobs of deep mutual learning.

        Attributes:
            preset: `paper` distils at temperature 1, `mcl-okd` at 2 as in the comparison of the MCL-OKD paper.
            temperature: of the mutual KL, instead of the preset's.
            weight: factor of the mutual term.
            average: divide each peer's mutual part by the M-1 others; otherwise they are summed.
            target: learn from every other peer (`pairwise`), or once from the mean of their logits (`ensemble`), as
                the published code of OKDDip does.
            detach: treat the others as constants; that code does not.
            target_offset: added to each probability of a target; that code adds 1e-7.
        """

        preset: Literal["paper", "mcl-okd"] = "paper"
        temperature: float | None = None
        weight: float = 1.0
        average: bool = True
        target: Literal["pairwise", "ensemble"] = "pairwise"
        detach: bool = True
        target_offset: float = 0.0

        def __post_init__(self) -> None:
            check_knobs(self, positive=("temperature",))

    config: Config

    @property
    def temperature(self) -> float:
        """T of the mutual term."""
        given = self.config.temperature
        return TEMPERATURES[self.config.preset] if given is None else given

    def losses(self, peers: Peers, batch: Batch) -> Terms:
        """Terms `task` and `mutual`, with gradient to every peer's logits."""
        logits = logits_of(peers)
        own, targets = self._pairs(logits)
        config = self.config
        pull = summed_kl(own, targets, temperature=self.temperature, detach=config.detach, offset=config.target_offset)
        share = config.weight * len(peers) / len(own) if config.average else config.weight
        return Terms().add("task", summed_cross_entropy(logits, batch.labels)).add("mutual", pull, weight=share)

    def describe(self) -> dict[str, str]:
        """Temperature and number of mutual terms."""
        peers = self.facts.num_peers
        count = peers * (peers - 1) if self.config.target == "pairwise" else peers
        return {"mutual": f"{count} KL terms at temperature {self.temperature:g}"}

    def _pairs(self, logits: list[Tensor]) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        """Who learns, and from what."""
        if self.config.target == "ensemble":
            return logits, mean_of_others(logits)
        own, others = zip(*permutations(logits, 2), strict=True)
        return own, others
