"""Heads between a peer's embedding and a loss."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from coterie.core.types import Peers


class LinearHead(nn.Module):
    """A linear map with bias, then division by the L2 norm: embeddings of peers made comparable.

    Computed in the dtype of its weights, inside autocast too: lengths of rows need more digits than bfloat16 has.

    Args:
        in_dim: size of the peer's embedding.
        out_dim: D of the result.

    Example:
        >>> lengths = LinearHead(6, 4)(torch.ones(2, 6)).norm(dim=1)
        >>> bool(torch.allclose(lengths, torch.ones(2)))
        True

    Reference:
        Tian, Krishnan and Isola, Contrastive Representation Distillation, ICLR 2020, arXiv:1910.10699.
    """

    def __init__(self, in_dim: int, out_dim: int = 128) -> None:
        super().__init__()
        self.linear = nn.Linear(in_dim, out_dim)

    def forward(self, embedding: Tensor) -> Tensor:
        """Map `[B, in_dim]` to rows of length 1, `[B, out_dim]`, with gradient to input and weights."""
        with torch.autocast(embedding.device.type, enabled=False):
            return F.normalize(self.linear(embedding.to(self.linear.weight.dtype)), dim=1)


class TwoLayerHead(nn.Module):
    """A linear map, ReLU and another linear map, both with bias, then division by the L2 norm.

    Computed in the dtype of its weights, inside autocast too; see `LinearHead`.

    Args:
        in_dim: size of the peer's embedding.
        out_dim: D of the result, and size of what the ReLU sees.

    Example:
        >>> TwoLayerHead(6, 4)(torch.ones(2, 6)).shape
        torch.Size([2, 4])

    Reference:
        Chen et al., A Simple Framework for Contrastive Learning of Visual Representations, ICML 2020, arXiv:2002.05709.
    """

    def __init__(self, in_dim: int, out_dim: int = 128) -> None:
        super().__init__()
        self.first = nn.Linear(in_dim, out_dim)
        self.second = nn.Linear(out_dim, out_dim)

    def forward(self, embedding: Tensor) -> Tensor:
        """Map `[B, in_dim]` to rows of length 1, `[B, out_dim]`, with gradient to input and weights."""
        with torch.autocast(embedding.device.type, enabled=False):
            return F.normalize(self.second(F.relu(self.first(embedding.to(self.first.weight.dtype)))), dim=1)


def make_heads(kind: Callable[[int, int], nn.Module], in_dims: Iterable[int], out_dim: int) -> nn.ModuleList:
    """Build a head for each of several embeddings.

    Args:
        kind: such as `LinearHead`.
        in_dims: size of each embedding.
        out_dim: D of all results.
    """
    return nn.ModuleList(kind(size, out_dim) for size in in_dims)


def embed_peers(heads: nn.ModuleList, peers: Peers) -> Tensor:
    """Run the head of each peer on its embedding: `[M, B, D]`, with gradient to embeddings and heads."""
    return torch.stack([head(peer.embedding) for head, peer in zip(heads, peers, strict=True)])
