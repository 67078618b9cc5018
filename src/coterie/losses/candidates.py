"""What an anchor is contrasted with: rows of a memory bank, scored without a tensor of size B x S x D."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from coterie.core.errors import ShapeError

_CHUNK_VALUES = 4 << 20  # values of gathered rows held at a time, 16 MiB of float32
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

    def scores(self, anchors: Tensor, out: Tensor) -> None:
        """Write the inner products of anchors `[A, B, D]` with their negatives to `out` `[A, B, S]`."""

    def pull(self, weights: Tensor) -> Tensor:
        """Sum the negatives' rows with weights `[A, B, S]`, to `[A, B, D]`."""


def scorer(bank: Tensor, candidates: Candidates, bias: Tensor | None) -> Scorer:
    """Choose how the negatives of one bank are scored.

    Args:
        bank: `[N, D]` rows, constants.
        candidates: rows to score.
        bias: what `mask_bias` made of the candidates.

    Returns:
        A scorer; one bank's worth of memory, dropped after use.
    """
    negatives = candidates.negatives
    if negatives.dim() == 1:
        return _Shared(bank.index_select(0, negatives), bias)
    fits = bank.shape[0] <= _GEMM_ROWS_PER_NEGATIVE * candidates.num_negatives
    small = fits and bank.device.type == "cpu"  # elsewhere the way back, a scatter, has no fixed order of sums
    gemm = candidates.per_sample == "gemm" or (candidates.per_sample == "auto" and small)
    return _Gemm(bank, negatives) if gemm else _Gather(bank, negatives)


def mask_bias(candidates: Candidates, dtype: torch.dtype) -> Tensor | None:
    """Minus infinity in same-class cells and 0 elsewhere, `[B, S]`: added to scores it costs no pass of its own."""
    if candidates.same_class is None:
        return None
    zeros = torch.zeros(candidates.same_class.shape, dtype=dtype, device=candidates.same_class.device)
    return zeros.masked_fill_(candidates.same_class, float("-inf"))


class _Shared:
    """One set of rows for all anchors: one matrix product there and one back."""

    def __init__(self, rows: Tensor, bias: Tensor | None) -> None:
        self._rows = rows
        self._bias = bias

    def scores(self, anchors: Tensor, out: Tensor) -> None:
        flat = out.flatten(0, 1)
        if self._bias is None:
            torch.mm(anchors.flatten(0, 1), self._rows.t(), out=flat)
        else:
            out.copy_(self._bias)
            flat.addmm_(anchors.flatten(0, 1), self._rows.t())

    def pull(self, weights: Tensor) -> Tensor:
        return (weights.flatten(0, 1) @ self._rows).reshape(*weights.shape[:2], -1)


class _Gemm:
    """Rows of each anchor's own, from scores of the whole bank: for banks not much larger than S."""

    def __init__(self, bank: Tensor, negatives: Tensor) -> None:
        self._bank = bank
        self._negatives = negatives
        self._all = bank.new_empty(0)

    def scores(self, anchors: Tensor, out: Tensor) -> None:
        self._all = (anchors.flatten(0, 1) @ self._bank.t()).reshape(*anchors.shape[:2], -1)
        torch.gather(self._all, 2, self._negatives.expand_as(out), out=out)

    def pull(self, weights: Tensor) -> Tensor:
        spread = self._all.zero_().scatter_add_(2, self._negatives.expand_as(weights), weights)
        return (spread.flatten(0, 1) @ self._bank).reshape(*weights.shape[:2], -1)


class _Gather:
    """Rows of each anchor's own, copied for a few samples at a time: for banks much larger than S."""

    def __init__(self, bank: Tensor, negatives: Tensor) -> None:
        self._bank = bank
        self._negatives = negatives

    def scores(self, anchors: Tensor, out: Tensor) -> None:
        for part, rows in self._chunks():
            out[:, part] = (anchors[:, part].transpose(0, 1) @ rows.transpose(1, 2)).transpose(0, 1)

    def pull(self, weights: Tensor) -> Tensor:
        total = weights.new_empty(*weights.shape[:2], self._bank.shape[1])
        for part, rows in self._chunks():
            total[:, part] = (weights[:, part].transpose(0, 1) @ rows).transpose(0, 1)
        return total

    def _chunks(self) -> Iterator[tuple[slice, Tensor]]:
        size, count = self._negatives.shape
        step = max(1, _CHUNK_VALUES // (count * self._bank.shape[1]))
        for start in range(0, size, step):
            part = slice(start, min(start + step, size))
            rows = self._bank.index_select(0, self._negatives[part].flatten())
            yield part, rows.view(part.stop - start, count, -1)
