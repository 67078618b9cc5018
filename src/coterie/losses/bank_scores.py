"""Scores of embeddings against rows of memory banks, with a gradient that needs no tensor of size B x S x D."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from coterie.core.errors import ShapeError
from coterie.losses.candidates import Candidates, Scorer, scorer
from coterie.losses.logits import at_least_float32
from coterie.losses.mutual_contrast import Columns


def bank_scores(
    embeddings: Tensor, banks: Tensor, *, positives: Tensor, candidates: Candidates, temperature: float
) -> Tensor:
    """Inner products of the embeddings of all peers with rows of all banks.

    Args:
        embeddings: `[M, B, D]` rows of length 1; receives gradient.
        banks: `[M, N, D]`, one bank per peer; constants.
        positives: `[B, P]` int64, rows whose scores come first.
        candidates: its negatives, `[S]` or `[B, S]`, give the scores that follow; the rest of it is not used.
        temperature: tau, divides the inner products.

    Returns:
        `[M, M, B, P + S]`, in at least float32; block (a, b) holds the embeddings of b against the bank of a.

    Raises:
        ShapeError: embeddings, banks and rows do not fit together.

    Example:
        >>> negatives = Candidates(positives=torch.tensor([1]), negatives=torch.tensor([0, 2, 3]))
        >>> e, banks = torch.ones(2, 1, 4) / 2, torch.ones(2, 5, 4) / 2
        >>> bank_scores(e, banks, positives=torch.tensor([[1]]), candidates=negatives, temperature=0.5).unique()
        tensor([2.])
    """
    if embeddings.dim() != 3 or banks.dim() != 3 or embeddings.shape[::2] != banks.shape[::2]:
        raise ShapeError(
            f"embeddings {tuple(embeddings.shape)} and banks {tuple(banks.shape)} must be [M, B, D] and [M, N, D];"
            " give every peer a bank of its embedding's size"
        )
    if positives.dim() != 2 or positives.shape[0] != embeddings.shape[1]:
        raise ShapeError(
            f"positives are {tuple(positives.shape)} for {embeddings.shape[1]} embeddings; give [B, P], some for each"
        )
    with torch.autocast(embeddings.device.type, enabled=False):
        anchors = at_least_float32(embeddings) / temperature
        scores: Tensor = _BankScores.apply(anchors, banks, positives, candidates)  # type: ignore[no-untyped-call]
        return scores


def bank_columns(
    candidates: Candidates, num_positives: int, *, self_pair: bool, dtype: torch.dtype = torch.float32
) -> tuple[Columns, Columns]:
    """Say what the columns of `bank_scores` are: the image's own row, rows of its class, then negatives.

    A peer's own bank is read without the image's own row, which is an older embedding of the very anchor. Negatives
    shared by the batch are left out where they have the anchor's class; the n that remain count S / n times.

    Args:
        candidates: the negatives, with their same-class mask when they are shared.
        num_positives: P, own row included.
        self_pair: whether the image's own row in another peer's bank is a candidate, and a positive, of the hard loss.
        dtype: of the log weights: that of the scores.

    Returns:
        Columns of a peer's own bank and of another peer's bank.

    Example:
        >>> rows = Candidates(positives=torch.tensor([1]), negatives=torch.tensor([0, 2, 3]))
        >>> within, across = bank_columns(rows, 2, self_pair=True)
        >>> within.positives, within.hard, across.positives
        (tensor([[False,  True]]), tensor([[-inf, 0., 0., 0., 0.]]), tensor([[True, True]]))
    """
    own_row = torch.arange(num_positives, device=candidates.positives.device) == 0
    others = ~own_row.expand(len(candidates.positives), -1)
    rest = _negative_weights(candidates, dtype)
    counted = rest.new_zeros(num_positives)
    everything = torch.cat([counted.expand(len(rest), -1), rest], dim=1)
    without_own = torch.cat([counted.masked_fill(own_row, -torch.inf).expand(len(rest), -1), rest], dim=1)
    soft = None if candidates.same_class is None else everything
    within = Columns(positives=others, hard=without_own, soft=without_own)
    if not self_pair:
        return within, Columns(positives=others, hard=without_own, soft=soft)
    return within, Columns(positives=torch.ones_like(others), hard=soft, soft=soft)


def _negative_weights(candidates: Candidates, dtype: torch.dtype) -> Tensor:
    """Logarithm of how often each negative counts, `[B, S]`, or `[1, S]` where all count once."""
    if candidates.same_class is None:
        return torch.zeros(1, candidates.num_negatives, dtype=dtype, device=candidates.negatives.device)
    return candidates.weights(dtype).log()[:, None].masked_fill(candidates.same_class, -torch.inf)


class _Context(Protocol):
    """What autograd hands to a function."""

    sources: list[tuple[Tensor, Scorer]]


class _BankScores(torch.autograd.Function):
    """One bank after the other, straight into the result."""

    @staticmethod
    def forward(ctx: _Context, anchors: Tensor, banks: Tensor, positives: Tensor, candidates: Candidates) -> Tensor:
        peers, size, _ = anchors.shape
        first = positives.shape[1]
        scores = anchors.new_empty(peers, peers, size, first + candidates.num_negatives)
        ctx.sources = []
        for bank, out in zip(banks, scores, strict=True):
            drawn = bank.index_select(0, positives.flatten()).to(anchors.dtype).view(size, first, -1)
            source = scorer(bank, candidates, anchors.dtype)
            out[..., :first] = torch.einsum("mbd,bpd->mbp", anchors, drawn)
            out[..., first:] = source.scores(anchors)
            ctx.sources.append((drawn, source))
        return scores

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: _Context, grad: Tensor) -> tuple[Tensor, None, None, None]:
        parts = []
        for weights, (drawn, source) in zip(grad, ctx.sources, strict=True):
            first = drawn.shape[1]
            parts.append(torch.einsum("mbp,bpd->mbd", weights[..., :first], drawn) + source.pull(weights[..., first:]))
        return torch.stack(parts).sum(dim=0), None, None, None
