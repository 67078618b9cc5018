"""What an anchor is contrasted with: rows of a memory bank, scored without a tensor of size B x S x D."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import product as pairs_of
from typing import Literal, Protocol

import torch
from torch import Tensor

from coterie.core.errors import ShapeError
from coterie.losses.logits import at_least_float32
from coterie.losses.products import factor_dtype, product

_CHUNK_VALUES = 1 << 20  # values of rows gathered at a time on a CPU, 4 MiB of float32: they stay in its cache
_CHUNK_VALUES_ELSEWHERE = 1 << 25
_GEMM_ROWS_PER_NEGATIVE = 8  # measured on a CPU: up to here scoring all N rows is faster than copying S per sample


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidates:
    """Rows of the memory banks that a batch is contrasted with; the same rows in every bank.

    Attributes:
        positives: `[B]` int64, the row each anchor is drawn to: its own, or another one of its class.
        negatives: int64 rows it is pushed from: `[S]` shared by the batch, or `[B, S]` for each anchor its own.
        same_class: with shared negatives, `[B, S]` bool, True where a negative has the anchor's class. Such a cell is
            left out, and the n_i cells that remain in row i are weighted S / n_i.
        per_sample: how `[B, S]` negatives are scored: `gemm` scores every bank row and picks, `gather` copies rows
            chunk by chunk, `auto` takes the faster one for the sizes at hand.
    """

    positives: Tensor
    negatives: Tensor
    same_class: Tensor | None = None
    per_sample: Literal["auto", "gemm", "gather"] = "auto"

    def __post_init__(self) -> None:
        size = self.positives.shape[0]
        if self.negatives.dim() == 2 and (self.negatives.shape[0] != size or self.same_class is not None):
            raise ShapeError(
                f"negatives {tuple(self.negatives.shape)} for {size} anchors must be [B, S] without a same-class mask;"
                " share them as [S] to mask"
            )
        if self.same_class is not None and self.same_class.shape != (size, self.num_negatives):
            raise ShapeError(
                f"the same-class mask is {tuple(self.same_class.shape)}; give [B, S] = {[size, self.num_negatives]}"
            )

    @property
    def num_negatives(self) -> int:
        """S, negatives per anchor."""
        return self.negatives.shape[-1]

    def weights(self, dtype: torch.dtype) -> Tensor:
        """S / n_i of each anchor, `[B]`: 1 without a mask."""
        if self.same_class is None:
            return torch.ones(self.positives.shape, dtype=dtype, device=self.positives.device)
        left = self.num_negatives - self.same_class.sum(dim=1)
        return self.num_negatives / left.clamp(min=1).to(dtype)


class Scorer(Protocol):
    """Inner products of anchors with the negatives of one bank, and their transpose."""

    def scores(self, anchors: Tensor) -> Tensor:
        """Inner products of anchors `[A, B, D]` with their negatives, `[A, B, S]`, contiguous and the caller's own.

        They are in the dtype of the anchors, or in bfloat16 where a CPU has multiplied in that.
        """

    def pull(self, weights: Tensor) -> Tensor:
        """Sum the negatives' rows with weights `[A, B, S]`, of the dtype of the scores or longer, to `[A, B, D]`."""


def scorer(bank: Tensor, candidates: Candidates, dtype: torch.dtype) -> Scorer:
    """Choose how the negatives of one bank are scored.

    Args:
        bank: `[N, D]` rows, constants, in float32, bfloat16 or the dtype of the anchors.
        candidates: rows to score.
        dtype: of the anchors.

    Returns:
        A scorer; one bank's worth of memory, dropped after use.
    """
    negatives = candidates.negatives
    if negatives.dim() == 1:
        return _Shared(bank.index_select(0, negatives).to(factor_dtype(bank, dtype)))
    fits = bank.shape[0] <= _GEMM_ROWS_PER_NEGATIVE * candidates.num_negatives
    small = fits and bank.device.type == "cpu"  # elsewhere the way back, a scatter, has no fixed order of sums
    if candidates.per_sample == "gemm" or (candidates.per_sample == "auto" and small):
        return _Gemm(bank.to(factor_dtype(bank, dtype)), negatives)
    fused = bank.is_cuda and candidates.per_sample == "auto" and dtype == torch.float32 and find_spec("triton")
    return _fused(bank, negatives) if fused else _Gather(bank, negatives, factor_dtype(bank, dtype))


def _fused(bank: Tensor, negatives: Tensor) -> Scorer:
    from coterie.losses.triton_gather import FusedGather  # Triton is not everywhere

    return FusedGather(bank, negatives)


def mask_bias(candidates: Candidates, dtype: torch.dtype) -> Tensor | None:
    """A number below every score in same-class cells and 0 elsewhere, `[B, S]`; None without a mask.

    It is finite: a row of nothing else must not become nan.
    """
    if candidates.same_class is None:
        return None
    zeros = torch.zeros(candidates.same_class.shape, dtype=dtype, device=candidates.same_class.device)
    return zeros.masked_fill_(candidates.same_class, torch.finfo(dtype).min / 2)


class _Shared:
    """One set of rows for all anchors: one matrix product there and one back."""

    def __init__(self, rows: Tensor) -> None:
        self._rows = rows

    def scores(self, anchors: Tensor) -> Tensor:
        flat = product(anchors.flatten(0, 1).to(self._rows.dtype), self._rows.t())
        return flat.view(*anchors.shape[:2], -1)

    def pull(self, weights: Tensor) -> Tensor:
        return product(weights.flatten(0, 1).to(self._rows.dtype), self._rows).view(*weights.shape[:2], -1)


class _Gemm:
    """Rows of each anchor's own, from scores of the whole bank: for banks not much larger than S."""

    def __init__(self, bank: Tensor, negatives: Tensor) -> None:
        self._bank = bank
        size, self._count = negatives.shape
        starts = torch.arange(size, device=negatives.device)[:, None] * len(bank)
        self._cells = (negatives + starts).flatten()  # of a matrix [B, N]

    def scores(self, anchors: Tensor) -> Tensor:
        scores = [
            product(part.to(self._bank.dtype), self._bank.t()).view(-1).index_select(0, self._cells) for part in anchors
        ]
        return torch.stack(scores).view(*anchors.shape[:2], self._count)

    def pull(self, weights: Tensor) -> Tensor:
        wide = torch.promote_types(weights.dtype, torch.float32)
        spread = torch.empty(weights.shape[1], len(self._bank), dtype=wide, device=weights.device)
        return torch.stack([self._pull(part.to(wide), spread) for part in weights])

    def _pull(self, weights: Tensor, spread: Tensor) -> Tensor:
        spread.zero_().view(-1).index_add_(0, self._cells, weights.flatten())
        return product(spread.to(self._bank.dtype), self._bank)


class _Gather:
    """Rows of each anchor's own, copied for a few samples at a time: for banks much larger than S."""

    def __init__(self, bank: Tensor, negatives: Tensor, dtype: torch.dtype) -> None:
        self._bank = bank
        self._negatives = negatives
        self._dtype = dtype

    def scores(self, anchors: Tensor) -> Tensor:
        scores = torch.empty(*anchors.shape[:2], self._negatives.shape[1], dtype=self._dtype, device=anchors.device)
        own = anchors.transpose(0, 1).to(self._dtype)
        for part, columns, rows in self._chunks():
            scores[:, part, columns] = _products(own[part], rows.transpose(1, 2)).transpose(0, 1)
        return scores

    def pull(self, weights: Tensor) -> Tensor:
        total = torch.zeros(
            *weights.shape[1::-1], self._bank.shape[1], dtype=at_least_float32(weights).dtype, device=weights.device
        )
        for part, columns, rows in self._chunks():
            total[part] += _products(weights[:, part, columns].transpose(0, 1).to(self._dtype), rows)
        return total.transpose(0, 1)

    def _chunks(self) -> Iterator[tuple[slice, slice, Tensor]]:
        """Some samples with all their negatives, or one sample with some of them: rows `[b, s, D]`."""
        size, count = self._negatives.shape
        values = _CHUNK_VALUES if self._bank.device.type == "cpu" else _CHUNK_VALUES_ELSEWHERE
        most = max(1, values // self._bank.shape[1])
        samples = max(1, most // count)
        for start, first in pairs_of(range(0, size, samples), range(0, count, most)):
            part, columns = slice(start, start + samples), slice(first, first + most)
            places = self._negatives[part, columns]
            yield part, columns, self._bank.index_select(0, places.flatten()).to(self._dtype).view(*places.shape, -1)


def _products(left: Tensor, right: Tensor) -> Tensor:
    """Products of `[b, A, D]` and `[b, D, C]`; one alone is much faster as a matrix than as a batch of one."""
    return left @ right if len(left) > 1 else product(left.squeeze(0), right.squeeze(0))[None]
