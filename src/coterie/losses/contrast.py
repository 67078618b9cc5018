"""Noise-contrastive estimation over memory banks: an embedding is told apart from rows of another peer's bank.

One criterion serves MCL-OKD (M peers, all pairs) and CRD (student and teacher, the same with M = 2). For an anchor e
and a bank row v the score is h = exp(<e, v> / temperature); with r = h / mean(h), S negatives and N training images,
a directed term is the mean over anchors of

    log(1 + (S + eps N) / r_positive) + sum over negatives of log(1 + (r + eps N) / S).

That is `-log(P / (P + q + eps)) - sum log(q / (P + q + eps))` of the published code with P = h / Z, Z = N mean(h) and
q = S / N, written so that float32 keeps the small terms. But for eps it does not depend on N.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, product
from typing import Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from coterie.core.errors import ShapeError
from coterie.losses.candidates import Candidates, mask_bias, scorer
from coterie.losses.logits import at_least_float32

Pair = tuple[int, int]
"""One directed term: (anchor peer, peer that owns the bank)."""

_BLOCK_VALUES = 1 << 18  # scores worked on at a time on a CPU, so that several passes stay in its cache
_SCORES_AT_ONCE = 1 << 22  # scores held at a time on a CPU, 16 MiB of float32
_LARGEST_RATIO = 1e30  # keeps a frozen Z that no longer fits from turning float32 into infinity


@dataclass(frozen=True, slots=True)
class Contrast:
    """What `nce_embeddings` returns.

    Attributes:
        loss: `[]`, the sum of all terms, with gradient to the embeddings.
        terms: `[P]`, each directed term in the order of the pairs, detached.
        log_means: logarithm of the mean score, the constant of each term: `[P, 1]`, or `[P, B]` with `z="anchor"`;
            detached.
    """

    loss: Tensor
    terms: Tensor
    log_means: Tensor


def contrast_pairs(num_peers: int, *, leader: int = -1, graph: Literal["full", "core"] = "full") -> tuple[Pair, ...]:
    """List the directed pairs of a contrastive graph.

    Args:
        num_peers: M.
        leader: the leader's index; negative numbers count from the end.
        graph: `full` for all M(M-1) ordered pairs, `core` for the 2(M-1) that contain the leader.

    Returns:
        (anchor, bank) for each term; for i < j in lexicographic order, anchor j on bank i, then anchor i on bank j.

    Example:
        >>> contrast_pairs(3, graph="core")
        ((2, 0), (0, 2), (2, 1), (1, 2))
    """
    kept = [p for p in combinations(range(num_peers), 2) if graph == "full" or leader % num_peers in p]
    return tuple(pair for i, j in kept for pair in ((j, i), (i, j)))


def nce_embeddings(
    embeddings: Tensor | Sequence[Tensor],
    banks: Tensor,
    candidates: Candidates,
    *,
    pairs: Sequence[Pair],
    temperature: float = 0.1,
    z: Literal["batch", "anchor"] | Tensor = "batch",
    num_train: int | None = None,
    eps: float = 1e-7,
) -> Contrast:
    """Contrast the embeddings of M peers with the memory banks of other peers.

    The gradient is formed in the forward pass and only `[M, B, D]` is kept for the backward pass. With shared negatives
    the largest tensor is `[anchors of one bank, B, S]`, on a CPU `[B, S]` or up to 16 MiB. Half precision is raised to
    float32, inside autocast too; float32 anchors meet bfloat16 banks in bfloat16 products with float32 sums.

    Args:
        embeddings: `[M, B, D]`, or M times `[B, D]`, rows of length 1; receives the gradient.
        banks: `[M, N, D]`, one bank per peer, in float32, bfloat16 or the embeddings' dtype; constants.
        candidates: rows of the positives and negatives.
        pairs: (anchor, bank) of each directed term.
        temperature: divides the inner products.
        z: where the mean score comes from, always a constant for the gradient: `batch` takes one over the scores of
            all anchors of a term, `anchor` one per anchor (the paper's equations 9 and 10), and a tensor `[P, 1]` of
            log means is taken as it is, except where it is nan: there the batch's own is used, and returned.
        num_train: N in the eps term; the number of bank rows by default.
        eps: as in the published code.

    Returns:
        Loss, its directed terms and their log means.

    Raises:
        ShapeError: embeddings, banks, positives or pairs do not fit together.

    Example:
        >>> e = F.normalize(torch.ones(2, 1, 4), dim=-1)
        >>> rows = Candidates(positives=torch.tensor([0]), negatives=torch.arange(1, 5))
        >>> result = nce_embeddings(e, e.expand(2, 5, 4), rows, pairs=contrast_pairs(2), eps=0.0)
        >>> result.terms  # all scores equal: log(S + 1) + S log(1 + 1 / S)
        tensor([2.5020, 2.5020])

    Reference:
        Yang, An and Xu, Multi-view Contrastive Learning for Online Knowledge Distillation, ICASSP 2021,
        arXiv:2006.04093, equations 8 to 12; Tian, Krishnan and Isola, CRD, ICLR 2020, arXiv:1910.10699.
    """
    stacked = embeddings if isinstance(embeddings, Tensor) else torch.stack(list(embeddings))
    _check(stacked, banks, candidates, pairs)
    noise = (banks.shape[1] if num_train is None else num_train) * eps
    plan = _Plan(tuple(pairs), temperature, z, noise)
    with torch.autocast(stacked.device.type, enabled=False):
        rows = at_least_float32(stacked)
        loss, terms, log_means = _Nce.apply(rows, banks, candidates, plan)  # type: ignore[no-untyped-call]
    return Contrast(loss, terms, log_means)


@dataclass(frozen=True, slots=True)
class _Plan:
    """Everything of a call that is not a row: which pairs, and the constants of the criterion."""

    pairs: tuple[Pair, ...]
    temperature: float
    z: Literal["batch", "anchor"] | Tensor
    noise: float

    def by_bank(self) -> dict[int, list[int]]:
        """Positions in `pairs` that read each bank."""
        slots: dict[int, list[int]] = {}
        for slot, (_, bank) in enumerate(self.pairs):
            slots.setdefault(bank, []).append(slot)
        return slots


class _Context(Protocol):
    """What autograd hands to a function."""

    saved_tensors: tuple[Tensor, ...]

    def save_for_backward(self, *tensors: Tensor) -> None: ...

    def mark_non_differentiable(self, *tensors: Tensor) -> None: ...


class _Nce(torch.autograd.Function):
    """Value and gradient in one go, bank by bank, on one reused block of scores."""

    @staticmethod
    def forward(
        ctx: _Context, embeddings: Tensor, banks: Tensor, candidates: Candidates, plan: _Plan
    ) -> tuple[Tensor, Tensor, Tensor]:
        size, tau = embeddings.shape[1], plan.temperature
        bias, weights = mask_bias(candidates, embeddings.dtype), candidates.weights(embeddings.dtype)
        grad = torch.zeros_like(embeddings)
        values: list[Tensor] = [grad] * len(plan.pairs)
        log_means = list(values)
        at_once = _sets_at_once(size * candidates.num_negatives, embeddings.device)
        for bank, group in plan.by_bank().items():
            source = scorer(banks[bank], candidates, embeddings.dtype)
            positives = banks[bank].index_select(0, candidates.positives).to(embeddings.dtype)
            for slots in (group[start : start + at_once] for start in range(0, len(group), at_once)):
                anchors = torch.stack([embeddings[plan.pairs[slot][0]] for slot in slots]) / tau
                raw, criterion = source.scores(anchors), _Criterion(_rows_of(plan.z, slots), plan.noise, weights)
                value, log_mean, pull = criterion((anchors * positives).sum(-1), raw, bias)
                slopes = source.pull(raw).to(grad.dtype).mul_(weights[:, None]).addcmul_(pull[..., None], positives)
                for k, slot in enumerate(slots):
                    grad[plan.pairs[slot][0]].add_(slopes[k], alpha=1 / (size * tau))
                    values[slot], log_means[slot] = value[k], log_mean[k]
        ctx.save_for_backward(grad)
        terms, means = torch.stack(values), torch.stack(log_means)
        ctx.mark_non_differentiable(terms, means)
        return terms.sum(), terms, means

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: _Context, grad_loss: Tensor, *_: Tensor) -> tuple[Tensor, None, None, None]:
        (grad,) = ctx.saved_tensors
        return grad * grad_loss, None, None, None


@dataclass(frozen=True, slots=True)
class _Criterion:
    """The directed terms of some sets of anchors with one bank.

    Attributes:
        z: as in `nce_embeddings`, with the rows of these terms.
        noise: eps times N.
        weights: `[B]` weight of each row's negatives.
    """

    z: Literal["batch", "anchor"] | Tensor
    noise: float
    weights: Tensor

    def __call__(self, positive: Tensor, raw: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Evaluate the terms and turn the negatives' scores into their slopes, in place.

        Args:
            positive: `[A, B]` logarithms of the positives' scores.
            raw: `[A, B, S]` logarithms of the negatives' scores, perhaps in bfloat16; overwritten by the derivative of
                a term, times B and divided by the row's weight.
            bias: `[B, S]`, added to them.

        Returns:
            Terms `[A]`, log means `[A, 1]` or `[A, B]`, derivative with respect to the positives times B `[A, B]`.
        """
        count, parts = raw.shape[2], list(_parts(raw))
        shares = raw if raw.dtype == positive.dtype else torch.empty_like(raw, dtype=positive.dtype)
        spare = torch.empty_like(shares[parts[0]])
        sums, negative = torch.empty_like(positive), torch.empty_like(positive)
        for part in parts:
            sums[part] = _shares(raw[part], shares[part], None if bias is None else bias[part[1]], spare)
        log_mean = self._log_means(torch.logaddexp(positive, sums + self.weights.log()) - math.log(count + 1))
        log_noise = math.log(count + self.noise)
        ratios = (sums - log_mean - log_noise).exp().clamp_(max=_LARGEST_RATIO)
        for part in parts:
            negative[part] = _slopes(raw[part], shares[part], ratios[part], spare)
        negative = negative * self.weights + count * math.log1p(self.noise / count)
        margin = log_noise + log_mean - positive
        return (F.softplus(margin) + negative).mean(dim=1), log_mean, margin.sigmoid().neg_()

    def _log_means(self, log_rows: Tensor) -> Tensor:
        """Log means of the terms from those of their anchors, `[A, B]`."""
        if self.z == "anchor":
            return log_rows
        log_mean = torch.logsumexp(log_rows, 1, keepdim=True) - math.log(log_rows.shape[1])
        return torch.where(self.z.isnan(), log_mean, self.z.to(log_mean)) if isinstance(self.z, Tensor) else log_mean


def _sets_at_once(values: int, device: torch.device) -> int:
    """How many sets of anchors, each with so many scores, are contrasted with a bank at a time."""
    return max(1, _SCORES_AT_ONCE // values) if device.type == "cpu" else 1 << 30


def _parts(scores: Tensor) -> Iterator[tuple[slice, slice]]:
    """Cut `[A, B, S]` into pieces that stay in a CPU's cache, the first as large as any; elsewhere take it whole."""
    if scores.device.type != "cpu":
        yield slice(None), slice(None)
        return
    rows = max(1, _BLOCK_VALUES // scores.shape[2])
    for anchors, start in product(range(scores.shape[0]), range(0, scores.shape[1], rows)):
        yield slice(anchors, anchors + 1), slice(start, start + rows)


def _shares(raw: Tensor, shares: Tensor, bias: Tensor | None, spare: Tensor) -> Tensor:
    """Of log scores `[A, R, S]` plus a bias `[R, S]`, write the softmax of each row; return log sums `[A, R]`."""
    scores = spare[:, : raw.shape[1]].copy_(raw)
    if bias is not None:
        scores += bias
    tops = scores.amax(dim=2)
    torch.softmax(scores, 2, out=shares)
    return tops - shares.amax(dim=2).log()


def _slopes(raw: Tensor, shares: Tensor, ratio: Tensor, spare: Tensor) -> Tensor:
    """With x = share * ratio, write x / (1 + x) over raw scores `[A, R, S]`; return sums of log(1 + x), `[A, R]`."""
    x, scratch = shares.mul_(ratio[..., None]), spare[:, : raw.shape[1]]
    total = torch.log1p(x, out=scratch).sum(dim=2)
    x /= torch.add(x, 1, out=scratch)
    if raw.dtype != x.dtype:
        raw.copy_(x)
    return total


def _rows_of(z: Literal["batch", "anchor"] | Tensor, slots: Sequence[int]) -> Literal["batch", "anchor"] | Tensor:
    return torch.stack([z[slot] for slot in slots]) if isinstance(z, Tensor) else z


def _check(embeddings: Tensor, banks: Tensor, candidates: Candidates, pairs: Sequence[Pair]) -> None:
    if embeddings.dim() != 3 or banks.dim() != 3 or embeddings.shape[::2] != banks.shape[::2]:
        raise ShapeError(
            f"embeddings {tuple(embeddings.shape)} and banks {tuple(banks.shape)} must be [M, B, D] and [M, N, D];"
            " give every peer a bank of its embedding's size"
        )
    if candidates.positives.shape != embeddings.shape[1:2]:
        raise ShapeError(
            f"positives {tuple(candidates.positives.shape)} for embeddings {tuple(embeddings.shape)};"
            " give one row for each image of the batch"
        )
    if not pairs or not all(0 <= peer < embeddings.shape[0] for pair in pairs for peer in pair):
        raise ShapeError(f"pairs {list(pairs)} for {embeddings.shape[0]} peers; name at least one pair of these peers")
