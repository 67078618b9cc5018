"""Layers of M peers as one layer, on maps that hold the channels of all peers side by side, `[B, M * C, H, W]`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from coterie.core.errors import ConfigError


class Together(nn.Module):
    """The same layer of M peers; it owns none of them, so it keeps them from `nn.Module`'s eyes."""

    def __init__(self, layers: Sequence[Any]) -> None:
        super().__init__()
        self.layers = tuple(layers)

    @staticmethod
    def fits(layer: Any) -> bool:  # noqa: ANN401 - a layer of the kind that is replaced
        """Whether a layer uses nothing but what is done here."""
        return True

    def each(self, name: str) -> list[Tensor]:
        """A parameter or buffer of every peer; they have it, or none of them has."""
        return [getattr(layer, name) for layer in self.layers]

    def all(self, name: str) -> Tensor | None:
        """A parameter or buffer of all peers along the first dimension, with gradient to each; None where absent."""
        return None if getattr(self.layers[0], name) is None else torch.cat(self.each(name))


class JointConv(Together):
    """A convolution with M times the groups, or none where all peers see one image."""

    @staticmethod
    def fits(layer: nn.Conv2d) -> bool:
        """Whether the border is filled with zeros."""
        return layer.padding_mode == "zeros"

    def forward(self, maps: Tensor) -> Tensor:
        """Map `[B, M * C, H, W]`, or `[B, C, H, W]` without groups, to `[B, M * C', H', W']`."""
        layer, weight = self.layers[0], torch.cat(self.each("weight"))
        groups = maps.shape[1] // weight.shape[1]  # one image for all peers needs no groups at all
        return F.conv2d(maps, weight, self.all("bias"), layer.stride, layer.padding, layer.dilation, groups)


OF_NORMS = ("running_mean", "running_var", "weight", "bias")
"""The vectors of a batch norm; those that are moved come first."""


class JointNorm(Together):
    """Takes its vectors from `joined`, filled for all batch norms at once: one launch each, not one for every norm."""

    def __init__(self, layers: Sequence[Any]) -> None:
        super().__init__(layers)
        self.width = len(layers) * layers[0].num_features
        self.joined: dict[str, Tensor] = {}

    @staticmethod
    def fits(layer: nn.BatchNorm2d | nn.BatchNorm1d) -> bool:
        """Whether it has all four vectors and a fixed momentum."""
        return layer.affine and layer.track_running_stats and layer.momentum is not None

    def counts(self) -> list[Tensor]:
        """The peers' counters of batches, where they count."""
        return self.each("num_batches_tracked") if self.layers[0].training else []

    def forward(self, maps: Tensor) -> Tensor:
        """Normalise `[B, M * C, ...]`; the running statistics that were joined are moved."""
        layer = self.layers[0]
        mean, variance, weight, bias = (self.joined.pop(name) for name in OF_NORMS)
        return F.batch_norm(maps, mean, variance, weight, bias, layer.training, layer.momentum, layer.eps)


class JointLinear(Together):
    """A batch of M products."""

    def forward(self, rows: Tensor) -> Tensor:
        """Map `[B, M * D]` to `[B, M * K]`."""
        return self.products(apart(rows, len(self.layers))).transpose(0, 1).flatten(1)

    def products(self, rows: Tensor) -> Tensor:
        """Map `[M, B, D]` to `[M, B, K]`, each peer's rows by its own weights."""
        weight = torch.stack(self.each("weight")).transpose(1, 2)
        if self.layers[0].bias is None:
            return rows.bmm(weight)
        return torch.baddbmm(torch.stack(self.each("bias"))[:, None], rows, weight)


def apart(rows: Tensor, count: int) -> Tensor:
    """Rows `[B, M * D]` of all peers to `[M, B, D]`; a view."""
    if rows.dim() != 2:
        raise ConfigError(
            f"cohort.execution=grouped cannot run a linear layer over {rows.dim()} dimensions;"
            " set cohort.execution=loop, or auto"
        )
    return rows.view(rows.shape[0], count, -1).transpose(0, 1)


def join(parts: Sequence[Tensor], count: int) -> Tensor:
    """Append the channels of maps `[B, M * C_i, ...]` peer by peer."""
    apart = [part.view(part.shape[0], count, -1, *part.shape[2:]) for part in parts]
    return torch.cat(apart, dim=2).flatten(1, 2)
