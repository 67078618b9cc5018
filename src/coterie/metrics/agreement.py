"""How alike peers are: their answers, their predicted probabilities, their embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from coterie.core.errors import ShapeError

SAME = 1e-3
"""Mean KL between two peers, in nats, below which they count as one; equal answers alone also come from easy images."""

COLLAPSED = 0.01
"""Spread of unit embeddings, as a share of the largest possible, below which an embedding counts as collapsed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Diversity:
    """Matrices between M peers, `[M, M]` on the device, and the spread of each embedding, `[M]`.

    Attributes:
        agreement: share of images that two peers put into the same class; symmetric, 1 on the diagonal.
        divergence: mean KL from the row's to the column's probabilities, in nats; 0 on the diagonal.
        similarity: linear CKA of two embeddings; symmetric, 1 on the diagonal.
        spread: mean squared distance of unit embeddings from their mean, in `[0, 1]`; 0 for a collapsed embedding.
    """

    agreement: Tensor
    divergence: Tensor
    similarity: Tensor
    spread: Tensor

    def alarms(self) -> list[str]:
        """Say in words which peers have become one and which embeddings have collapsed; reads from the device."""
        found = []
        apart = torch.maximum(self.divergence, self.divergence.T).tolist()
        for i in range(len(apart)):
            found += [f"peers {j} and {i} have become one" for j in range(i) if apart[i][j] < SAME]
        return found + [f"the embedding of peer {m} has collapsed" for m, s in enumerate(self.spread) if s < COLLAPSED]


def diversity(logits: Sequence[Tensor], embeddings: Sequence[Tensor]) -> Diversity:
    """Compare the outputs of M peers on the same images.

    Args:
        logits: M times `[B, K]`; no gradient is kept.
        embeddings: M times `[B, D_m]`; sizes may differ.

    Returns:
        The matrices; nothing is read from the device.

    Raises:
        ShapeError: another number of logits than of embeddings, or other images.

    Reference:
        Kornblith et al., Similarity of Neural Network Representations Revisited, ICML 2019, arXiv:1905.00414, for CKA.
    """
    _check_alike(logits, embeddings)
    log_p = torch.stack([row.detach().double().log_softmax(dim=1) for row in logits])
    answers = log_p.argmax(dim=2)
    entropy = (log_p.exp() * log_p).sum(dim=2).mean(dim=1)
    cross = torch.einsum("ibk,jbk->ij", log_p.exp(), log_p) / log_p.shape[1]
    rows = [row.detach().double() for row in embeddings]
    return Diversity(
        agreement=(answers[:, None] == answers[None]).double().mean(dim=2),
        divergence=(entropy[:, None] - cross).clamp(min=0),
        similarity=_cka(rows),
        spread=torch.stack([_spread(row) for row in rows]),
    )


def _check_alike(logits: Sequence[Tensor], embeddings: Sequence[Tensor]) -> None:
    if len(logits) != len(embeddings) or len({tensor.shape[0] for tensor in (*logits, *embeddings)}) != 1:
        raise ShapeError(f"{len(logits)} logits and {len(embeddings)} embeddings do not fit; give both of every peer")


def _cka(embeddings: Sequence[Tensor]) -> Tensor:
    grams = []
    for rows in embeddings:
        centred = rows - rows.mean(dim=0)
        gram = centred @ centred.T
        grams.append(gram / gram.norm().clamp(min=1e-12))
    flat = torch.stack(grams).flatten(1)
    return flat @ flat.T


def _spread(rows: Tensor) -> Tensor:
    unit = F.normalize(rows, dim=1)
    return (unit - unit.mean(dim=0)).square().sum(dim=1).mean()
