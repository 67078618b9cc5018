"""Mutual contrastive learning between all layers of all peers, each pair of layers with a weight for every image.

P layers in all are the stages of the M peers, peer by peer. Only pairs of layers of different peers have weights above
0; a pair (p, q) contrasts the embeddings of layers p and q as mutual contrastive learning does with two peers, every
row of an anchor times its weight. Both orders of a pair count.

Everything here can be differentiated twice, so that weights can be learnt through steps on these losses.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, permutations

import torch
import torch.nn.functional as F
from torch import Tensor

from coterie.core.errors import ShapeError
from coterie.losses.candidates import Candidates
from coterie.losses.logits import at_least_float32
from coterie.losses.mutual_contrast import Columns, MutualContrast, contrast_rows, log_probabilities


def layerwise_contrast(
    scores: Tensor, weights: Tensor, *, within: Columns, across: Columns, temperature: float = 3.0
) -> MutualContrast:
    """Compute the four losses of all pairs of layers over the images of a batch.

    Args:
        scores: `[P, P, B, B]`, embeddings of one layer (first axis) against those of another; receives gradient.
        weights: `[P, P, B]`, 0 for two layers of one peer; receives gradient.
        within: the images of the batch as candidates of a layer's own.
        across: the images of the batch as candidates of another layer.
        temperature: T of the soft losses, which carry a factor T squared.

    Returns:
        The losses, in at least float32. Targets of the soft losses are constants.

    Raises:
        ShapeError: scores and weights do not fit together.

    Example:
        >>> columns = Columns(positives=torch.ones(3, 3, dtype=torch.bool))
        >>> weights = 1 - torch.eye(2)[..., None].expand(2, 2, 3)
        >>> layerwise_contrast(torch.zeros(2, 2, 3, 3), weights, within=columns, across=columns).vcl  # 4 log 3
        tensor(4.3944)

    Reference:
        Yang et al., Online Knowledge Distillation via Mutual Contrastive Learning for Visual Recognition, TPAMI 2023,
        arXiv:2207.11518, section 4.
    """
    if scores.dim() != 4 or weights.shape != scores.shape[:3]:
        raise ShapeError(
            f"scores {tuple(scores.shape)} and weights {tuple(weights.shape)} must be [P, P, B, B] and [P, P, B]"
        )
    with torch.autocast(scores.device.type, enabled=False):
        scores, weights = at_least_float32(scores), at_least_float32(weights)
        both = weights + weights.transpose(0, 1)
        own = scores.diagonal(dim1=0, dim2=1).movedim(-1, 0)
        log_own = log_probabilities(own / temperature, within.soft)
        log_other = log_probabilities(scores / temperature, across.soft)
        target = log_other.transpose(0, 1).detach()
        icl_pulls = F.kl_div(log_other, target, reduction="none", log_target=True).sum(dim=-1)
        factor = temperature**2 / scores.shape[2]
        return MutualContrast(
            vcl=(both.sum(dim=1) * contrast_rows(own, within)).sum() / within.num_anchors,
            icl=(both * contrast_rows(scores, across)).sum() / across.num_anchors,
            soft_vcl=(both * _pulls(log_own, log_own)).sum() * factor,
            soft_icl=(both * icl_pulls).sum() * factor,
        )


def layerwise_bank_contrast(
    scores: Tensor,
    weights: Tensor,
    *,
    layers: Sequence[int],
    columns: tuple[Columns, Columns],
    temperature: float = 3.0,
    released_banks: bool = False,
) -> MutualContrast:
    """Compute the four losses of all pairs of layers over rows of memory banks, one bank per peer.

    Args:
        scores: `[M, P, B, C]`, embeddings of every layer against rows of each bank; receives gradient.
        weights: `[P, P, B]`, 0 for two layers of one peer; receives gradient.
        layers: number of layers of each peer, P in all.
        columns: rows of a peer's own bank and of another peer's bank, as candidates.
        temperature: T of the soft losses, which carry a factor T squared.
        released_banks: contrast both layers of a pair with the bank of the first one's peer, as the published code
            does, where the paper contrasts each with its own.

    Returns:
        The losses, in at least float32. Targets of the soft losses are constants.

    Raises:
        ShapeError: scores, weights and layers do not fit together.

    Reference:
        Yang et al., TPAMI 2023, arXiv:2207.11518, section 4; banks as in `bank_scores`.
    """
    if scores.shape[:2] != (len(layers), sum(layers)) or weights.shape != (*scores.shape[1:2] * 2, scores.shape[2]):
        raise ShapeError(
            f"scores {tuple(scores.shape)}, weights {tuple(weights.shape)} and layers {list(layers)} must be"
            " [M, P, B, C], [P, P, B] and M numbers that add up to P"
        )
    within, across = columns
    with torch.autocast(scores.device.type, enabled=False):
        scores, weights = at_least_float32(scores), at_least_float32(weights)
        hard = contrast_rows(scores, within), contrast_rows(scores, across)
        soft = tuple(log_probabilities(scores / temperature, part.soft) for part in (within, across))
        parts = []
        for first, second in permutations(_blocks(layers), 2):
            (a, one), (b, two) = first, second
            pair, home = weights[one, two], a if released_banks else b
            parts.append(
                torch.stack(
                    [
                        _both(pair, hard[0][a, one], hard[0][home, two]),
                        _both(pair, hard[1][b, one], hard[1][a, two]),
                        _both_pulls(pair, soft[0][a, one], soft[0][home, two]),
                        _both_pulls(pair, soft[1][b, one], soft[1][a, two]),
                    ]
                )
            )
        vcl, icl, soft_vcl, soft_icl = torch.stack(parts).sum(dim=0)
        factor = temperature**2 / scores.shape[2]
        return MutualContrast(
            vcl=vcl / within.num_anchors,
            icl=icl / across.num_anchors,
            soft_vcl=soft_vcl * factor,
            soft_icl=soft_icl * factor,
        )


def layer_bank_scores(
    embeddings: Tensor, banks: Tensor, *, positives: Tensor, candidates: Candidates, temperature: float
) -> Tensor:
    """Inner products of the embeddings of all layers with rows of all banks; can be differentiated twice.

    Args:
        embeddings: `[P, B, D]` rows of length 1; receives gradient.
        banks: `[M, N, D]`, one bank per peer; constants.
        positives: `[B, Q]` int64, rows whose scores come first.
        candidates: its negatives, `[S]` or `[B, S]`, give the scores that follow. Negatives that are not shared are
            copied for each image, S x D numbers of them.
        temperature: tau, divides the inner products.

    Returns:
        `[M, P, B, Q + S]`, in at least float32.

    Example:
        >>> negatives = Candidates(positives=torch.tensor([1]), negatives=torch.tensor([0, 2, 3]))
        >>> e, banks = torch.ones(6, 1, 4) / 2, torch.ones(2, 5, 4) / 2
        >>> layer_bank_scores(e, banks, positives=torch.tensor([[1]]), candidates=negatives, temperature=0.5).shape
        torch.Size([2, 6, 1, 4])
    """
    with torch.autocast(embeddings.device.type, enabled=False):
        anchors = at_least_float32(embeddings) / temperature
        blocks = []
        for bank in banks:
            rows = bank[candidates.negatives].to(anchors.dtype)
            shared = rows.dim() == 2
            near = torch.einsum("pbd,bqd->pbq", anchors, bank[positives].to(anchors.dtype))
            far = anchors @ rows.t() if shared else torch.einsum("pbd,bsd->pbs", anchors, rows)
            blocks.append(torch.cat([near, far], dim=-1))
        return torch.stack(blocks)


def _blocks(layers: Sequence[int]) -> list[tuple[int, slice]]:
    ends = list(accumulate(layers))
    return [(m, slice(end - count, end)) for m, (count, end) in enumerate(zip(layers, ends, strict=True))]


def _both(weights: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """Rows of both layers of every pair, weighted and summed: `[K, L, B]`, `[K, B]` and `[L, B]` to `[]`."""
    return (weights * (first[:, None] + second)).sum()


def _both_pulls(weights: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """KL of every pair in both directions, weighted and summed: `[K, L, B]`, `[K, B, C]` and `[L, B, C]` to `[]`."""
    return (weights * (_pulls(first, second) + _pulls(second, first).transpose(0, 1))).sum()


def _pulls(log_own: Tensor, log_target: Tensor) -> Tensor:
    """KL from constant targets, row by row: `[K, B, C]` and `[L, B, C]` to `[K, L, B]`, without `[K, L, B, C]`."""
    log_target = log_target.detach()
    target = log_target.exp()
    return (target * log_target).sum(dim=-1) - torch.einsum("lbc,kbc->klb", target, log_own)
