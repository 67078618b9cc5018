"""On-the-fly native ensemble: a gate on the shared map mixes the branches' logits to the teacher of all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from coterie.core import METHODS, Batch, ConfigError, Facts, Method, Needs, Paper, Peers, ShapeError, Terms, logits_of
from coterie.core.knobs import check_knobs
from coterie.losses.logits import at_least_float32, summed_cross_entropy, summed_kl
from coterie.losses.ramp import ramp_up


class Gate(nn.Module):
    """Weights of the branches, from a map they share: pooling, linear map, batch normalisation, ReLU, softmax.

    Branches whose normalised score is below 0 get equal weights. Computed in the dtype of its weights.

    Args:
        channels: C of the shared map.
        branches: M.
    """

    def __init__(self, channels: int, branches: int) -> None:
        super().__init__()
        self.linear = nn.Linear(channels, branches)
        self.norm = nn.BatchNorm1d(branches)

    def forward(self, maps: Tensor) -> Tensor:
        """Map `[B, C, H, W]` to weights `[B, M]` with sum 1; gradient to the map and the gate.

        Raises:
            ShapeError: there is only one image to normalise over.
        """
        if self.training and maps.shape[0] < 2:
            raise ShapeError("the gate of ONE normalises over the batch and got 1 image; raise data.batch_size above 1")
        with torch.autocast(maps.device.type, enabled=False):
            pooled = maps.to(self.linear.weight.dtype).mean(dim=(2, 3))
            weights: Tensor = F.relu(self.norm(self.linear(pooled))).softmax(dim=1)
        return weights


@METHODS.register("one")
class NativeEnsemble(Method):
    """Cross-entropy of each branch and of the gated ensemble, plus the KL from the ensemble to each branch.

    The ensemble is a constant in the KL and learns, through gate and branches, from its own cross-entropy.

    Attributes:
        gate: reads the last map that all branches share; the one of the leader where peers see views of their own.
    """

    paper = Paper(
        title="Knowledge Distillation by On-the-Fly Native Ensemble",
        authors="Lan, Zhu and Gong",
        year=2018,
        venue="NeurIPS",
        arxiv="1806.04606",
    )
    needs = Needs(min_peers=2, stage_maps=True, shared_stages=1)

    @dataclass(frozen=True, kw_only=True)
    class Config(Method.Config):
        """Knobs of ONE.

        Attributes:
            temperature: T of the KL.
            weight: factor of the KL.
            ramp_epochs: epochs over which the KL grows to its weight; 0 for none.
            target_offset: added to each probability of the target; the authors' code adds 1e-7.
        """

        temperature: float = 3.0
        weight: float = 1.0
        ramp_epochs: int = 80
        target_offset: float = 0.0

        def __post_init__(self) -> None:
            check_knobs(self, positive=("temperature",))

    config: Config

    def __init__(self, config: Config, facts: Facts) -> None:
        super().__init__(config, facts)
        channels = facts.stage_channels[facts.leader] if facts.stage_channels else ()
        if len(channels) < facts.shared:
            raise ConfigError("ONE must know the channels of the last shared map; give StagedNet its stage_channels")
        self.gate = Gate(channels[facts.shared - 1], facts.num_peers)

    def losses(self, peers: Peers, batch: Batch) -> Terms:
        """Terms `task`, `ensemble` (to all logits, the shared map and the gate) and `distill` (to all logits)."""
        logits = logits_of(peers)
        mixed = self.ensemble(peers)
        pull = summed_kl(
            logits, [mixed] * len(logits), temperature=self.config.temperature, offset=self.config.target_offset
        )
        ramp = ramp_up(batch.epoch, self.config.ramp_epochs, dtype=pull.dtype)
        terms = Terms().add("task", summed_cross_entropy(logits, batch.labels))
        terms.add("ensemble", F.cross_entropy(mixed, batch.labels))
        return terms.add("distill", pull, self.config.weight * ramp)

    def ensemble(self, peers: Peers) -> Tensor:
        """Mix the logits of the branches with the weights of the gate, `[B, K]`, with gradient to both."""
        weights = self.gate(peers[self.facts.leader].stages[self.facts.shared])
        return mix(weights, logits_of(peers))

    def describe(self) -> dict[str, str]:
        """What the gate reads, and the ramp-up."""
        ramp = f"over {self.config.ramp_epochs} epochs" if self.config.ramp_epochs else "none"
        size = self.gate.linear.in_features
        return {"gate": f"{self.facts.num_peers} weights from {size} shared channels", "ramp-up": ramp}


def mix(weights: Tensor, logits: Sequence[Tensor]) -> Tensor:
    """Add up logits with weights of their own for each image.

    Args:
        weights: `[B, M]`; receives gradient.
        logits: M times `[B, K]`; each receives gradient.

    Returns:
        `[B, K]`, at least float32.

    Example:
        >>> mix(torch.tensor([[0.25, 0.75]]), [torch.tensor([[4.0]]), torch.tensor([[8.0]])])
        tensor([[7.]])
    """
    return (weights.t()[..., None] * torch.stack([at_least_float32(scores) for scores in logits])).sum(dim=0)
