"""Mutual contrastive learning: contrast within and across peers, and its distributions distilled from peer to peer.

Everything is computed from one tensor of scores `[M, M, B, C]`: inner products, over a temperature, of the B anchors of
one peer with C candidates of another. Candidates are the other images of the batch, rows of memory banks, or momentum
embeddings and a queue; the four losses are the same.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from coterie.core.errors import ShapeError
from coterie.losses.logits import at_least_float32


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    """What the candidates of an anchor are; the same for all pairs of peers.

    Attributes:
        positives: `[B, P]` bool, which of the first P candidates the anchor is drawn to. Anchors that have none take
            no part in the hard loss, which is a mean over the others.
        hard: `[B, C]` or `[1, C]`, logarithm of how often a candidate counts in the hard loss, -inf to leave it out;
            None counts each once.
        soft: the same for the soft loss.
    """

    positives: Tensor
    hard: Tensor | None = None
    soft: Tensor | None = None

    @property
    def num_anchors(self) -> Tensor:
        """How many anchors have a positive, `[]`, at least 1."""
        return self.positives.any(dim=1).sum().clamp(min=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class MutualContrast:
    """The four losses, each `[]`.

    Attributes:
        vcl: contrast within each peer (vanilla), summed over the M peers.
        icl: contrast across peers (interactive), summed over the M(M-1) ordered pairs.
        soft_vcl: KL from every other peer's distribution over candidates of its own, summed over ordered pairs.
        soft_icl: KL from the distribution of (b, a) to that of (a, b), summed over ordered pairs.
    """

    vcl: Tensor
    icl: Tensor
    soft_vcl: Tensor
    soft_icl: Tensor


def mutual_contrast(scores: Tensor, *, within: Columns, across: Columns, temperature: float = 3.0) -> MutualContrast:
    """Compute the four losses of all peers at once.

    Args:
        scores: `[M, M, B, C]`, the anchors of one peer (first axis) against the candidates of another (second axis; or
            the other way round, since every loss sums over both); receives the gradient.
        within: candidates of a peer's own.
        across: candidates of another peer.
        temperature: T of the soft losses, on top of the temperature of the scores; they carry a factor T squared.

    Returns:
        The losses, in at least float32. Targets of the soft losses are constants.

    Raises:
        ShapeError: the scores are not `[M, M, B, C]`, or there are fewer than two peers.

    Example:
        >>> columns = Columns(positives=torch.ones(3, 1, dtype=torch.bool))
        >>> losses = mutual_contrast(torch.zeros(2, 2, 3, 5), within=columns, across=columns)
        >>> losses.vcl, losses.soft_icl  # five equal candidates: log 5 for each of two peers
        (tensor(3.2189), tensor(0.))

    Reference:
        Yang, An, Cai and Xu, Mutual Contrastive Learning for Visual Representation Learning, AAAI 2022,
        arXiv:2104.12565, section 3.
    """
    if scores.dim() != 4 or not scores.shape[0] == scores.shape[1] > 1:
        raise ShapeError(f"scores are {tuple(scores.shape)}; give [M, M, B, C], a block for each pair of M > 1 peers")
    with torch.autocast(scores.device.type, enabled=False):
        scores = at_least_float32(scores).contiguous()
        peers = scores.shape[0]
        own = _diagonal(scores)
        other = scores.flatten(0, 1)[1:].view(peers - 1, peers + 1, *scores.shape[2:])[:, :peers]  # all (a, b), a != b
        log_other = log_probabilities(scores / temperature, across.soft)
        log_own = _diagonal(log_other)
        if within.soft is not across.soft:
            log_own = log_probabilities(own / temperature, within.soft)
        pulls = [_divergence(log_own, log_own.roll(shift, 0)) for shift in range(1, peers)]
        factor = temperature**2 / scores.shape[2]
        return MutualContrast(
            vcl=contrast_loss(own, within),
            icl=contrast_loss(other, across),
            soft_vcl=torch.stack(pulls).sum() * factor,
            soft_icl=_divergence(log_other, log_other.transpose(0, 1)) * factor,  # a block with itself adds nothing
        )


def contrast_loss(scores: Tensor, columns: Columns) -> Tensor:
    """Minus the mean log-probability of the positives among the candidates, averaged over anchors.

    Args:
        scores: `[..., B, C]` anchors against candidates; receives gradient.
        columns: which candidates are positives and how often each counts.

    Returns:
        `[]`, summed over the leading axes; 0 when no anchor has a positive.

    Example:
        >>> columns = Columns(positives=torch.tensor([[True], [False]]))
        >>> contrast_loss(torch.zeros(2, 4), columns)  # the second anchor is left out
        tensor(1.3863)

    Reference:
        Khosla et al., Supervised Contrastive Learning, NeurIPS 2020, arXiv:2004.11362, equation 2.
    """
    return contrast_rows(scores, columns).sum() / columns.num_anchors


def contrast_rows(scores: Tensor, columns: Columns) -> Tensor:
    """Minus the mean log-probability of the positives among the candidates, anchor by anchor; see `contrast_loss`.

    Returns:
        `[..., B]`, 0 for anchors that have no positive.
    """
    counts = columns.positives.sum(dim=1)
    pull = (scores[..., : columns.positives.shape[1]] * columns.positives).sum(dim=-1) / counts.clamp(min=1)
    rows = torch.logsumexp(_weighted(scores, columns.hard), dim=-1) - pull
    return torch.where(counts > 0, rows, 0)


def scores_of(anchors: Tensor, candidates: Tensor, *, temperature: float) -> Tensor:
    """Inner products of all peers' anchors with all peers' candidates, in one matrix product.

    Args:
        anchors: `[M, B, D]` rows of length 1; receives gradient.
        candidates: `[M, C, D]` rows of length 1; receives gradient too.
        temperature: tau, divides the inner products.

    Returns:
        `[M, M, B, C]`, in at least float32; block (a, b) holds the anchors of a against the candidates of b.

    Example:
        >>> scores_of(torch.ones(2, 3, 4) / 2, torch.ones(2, 5, 4) / 2, temperature=0.5).shape
        torch.Size([2, 2, 3, 5])
    """
    with torch.autocast(anchors.device.type, enabled=False):
        left, right = at_least_float32(anchors), at_least_float32(candidates)
        flat = (left.flatten(0, 1) / temperature) @ right.flatten(0, 1).t()
        return flat.view(*left.shape[:2], *right.shape[:2]).transpose(1, 2)


def batch_columns(labels: Tensor, *, self_pair: bool, soft_self: bool) -> Columns:
    """Take the images of a batch as each other's candidates; those of the anchor's label are its positives.

    Args:
        labels: `[B]` int64.
        self_pair: whether the anchor's own image is a candidate, and a positive, in the hard loss.
        soft_self: whether it is a candidate in the soft loss.

    Returns:
        Columns for C = B candidates.

    Example:
        >>> batch_columns(torch.tensor([4, 4, 7]), self_pair=False, soft_self=True).positives.sum(dim=1)
        tensor([1, 1, 0])
    """
    same = labels[:, None] == labels
    own = torch.eye(labels.shape[0], dtype=torch.bool, device=labels.device)
    left_out = torch.zeros(own.shape, device=labels.device).masked_fill_(own, -torch.inf)
    return Columns(
        positives=same if self_pair else same & ~own,
        hard=None if self_pair else left_out,
        soft=None if soft_self else left_out,
    )


def log_probabilities(scores: Tensor, log_weights: Tensor | None) -> Tensor:
    """Logarithm of the softmax over the candidates, the last axis.

    Args:
        scores: `[..., B, C]`; receives gradient.
        log_weights: `[B, C]` or `[1, C]`, logarithm of how often a candidate counts; None counts each once.
    """
    return F.log_softmax(_weighted(scores, log_weights), dim=-1)


def _diagonal(blocks: Tensor) -> Tensor:
    """The blocks of each peer with itself, `[M, M, B, C]` to `[M, B, C]`."""
    return blocks.diagonal(dim1=0, dim2=1).movedim(-1, 0)


def _weighted(scores: Tensor, log_weights: Tensor | None) -> Tensor:
    if log_weights is None:
        return scores
    least = torch.finfo(scores.dtype).min / 4  # in place of -inf: an anchor alone in its batch must not become nan
    return scores + log_weights.to(scores.dtype).clamp(min=least)


def _divergence(log_own: Tensor, log_target: Tensor) -> Tensor:
    """KL from constant targets, summed over everything."""
    return F.kl_div(log_own, log_target.detach(), reduction="sum", log_target=True)
