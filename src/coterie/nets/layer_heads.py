"""Modules on the features of all layers of all peers: weights of layer pairs, and a gate over a network's exits."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class LayerWeights(nn.Module):
    """How much a layer of one peer matches a layer of another, image by image.

    Every layer has a linear projection; a weight is the sigmoid of the cosine of two projections, between 0.27 and
    0.73 and the same in both directions. Two layers of one peer have the weight 0.

    Args:
        dims: size of the features of every layer, peer by peer.
        width: size of the projections.

    Example:
        >>> weights = LayerWeights([[6, 6], [5, 5]])([torch.randn(3, 6)] * 2 + [torch.randn(3, 5)] * 2)
        >>> weights.shape, float(weights[0, 1].detach().sum())
        (torch.Size([4, 4, 3]), 0.0)

    Reference:
        Yang et al., Online Knowledge Distillation via Mutual Contrastive Learning for Visual Recognition, TPAMI 2023,
        arXiv:2207.11518, section 4.3.
    """

    apart: Tensor

    def __init__(self, dims: Sequence[Sequence[int]], width: int = 128) -> None:
        super().__init__()
        self.projections = nn.ModuleList(nn.Linear(dim, width) for dim in chain.from_iterable(dims))
        owner = torch.repeat_interleave(torch.arange(len(dims)), torch.tensor(list(map(len, dims))))
        self.register_buffer("apart", owner[:, None] != owner, persistent=False)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Map the features of P layers, each `[B, D_p]`, to weights `[P, P, B]`, with gradient to both sides."""
        with torch.autocast(features[0].device.type, enabled=False):
            pairs = zip(cast("Iterable[nn.Linear]", self.projections), features, strict=True)
            projected = torch.stack([F.normalize(layer(seen.to(layer.weight.dtype)), dim=1) for layer, seen in pairs])
            cosines = torch.einsum("pbd,qbd->pqb", projected, projected)
            return cosines.sigmoid() * self.apart[..., None]


class ExitGate(nn.Module):
    """Mixes the logits of a network's exits with shares that depend on the image.

    Args:
        dim: size of the features of each exit.
        exits: L, number of exits.

    Example:
        >>> ExitGate(6, 3)([torch.randn(4, 6)] * 3, [torch.ones(4, 10)] * 3).shape
        torch.Size([4, 10])

    Reference:
        Yang et al., TPAMI 2023, arXiv:2207.11518.
    """

    def __init__(self, dim: int, exits: int) -> None:
        super().__init__()
        self.first = nn.Linear(exits * dim, dim)
        self.second = nn.Linear(dim, exits)

    def forward(self, features: Sequence[Tensor], logits: Sequence[Tensor]) -> Tensor:
        """Mix logits, L times `[B, K]`, by their features, L times `[B, D]`; with gradient to all.

        Returns:
            `[B, K]`, the mean of the exits' logits weighted by a softmax over the exits.
        """
        with torch.autocast(features[0].device.type, enabled=False):
            seen = torch.cat(list(features), dim=1).to(self.first.weight.dtype)
            shares = self.second(F.relu(self.first(seen))).softmax(dim=1)
            return torch.einsum("bl,lbk->bk", shares, torch.stack(list(logits)).to(shares.dtype))
