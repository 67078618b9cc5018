"""Deep mutual learning: every peer also learns from the predictions of every other peer."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import permutations
from typing import Literal

import torch

from coterie.core import METHODS, Batch, ConfigError, Method, Needs, Paper, Peers, Terms
from coterie.losses.logits import kl_logits, summed_cross_entropy

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
        """

        preset: Literal["paper", "mcl-okd"] = "paper"
        temperature: float | None = None
        weight: float = 1.0
        average: bool = True

        def __post_init__(self) -> None:
            if self.temperature is not None and self.temperature <= 0:
                raise ConfigError(f"method.temperature={self.temperature}; give a number above 0")

    config: Config

    @property
    def temperature(self) -> float:
        """T of the mutual term."""
        given = self.config.temperature
        return TEMPERATURES[self.config.preset] if given is None else given

    def losses(self, peers: Peers, batch: Batch) -> Terms:
        """Terms `task` and `mutual`, with gradient to every peer's logits."""
        logits = [peer.logits for peer in peers]
        pulls = [kl_logits(own, other, temperature=self.temperature) for own, other in permutations(logits, 2)]
        share = self.config.weight / (len(peers) - 1) if self.config.average else self.config.weight
        task = summed_cross_entropy(logits, batch.labels)
        return Terms().add("task", task).add("mutual", torch.stack(pulls).sum(), weight=share)

    def describe(self) -> dict[str, str]:
        """Temperature and number of mutual terms."""
        peers = self.facts.num_peers
        return {"mutual": f"{peers * (peers - 1)} KL terms at temperature {self.temperature:g}"}
