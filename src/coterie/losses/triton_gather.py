"""Scores of anchors with bank rows of their own, and the way back, in Triton kernels that copy no rows.

Used only where Triton is installed and a bank lies on a GPU. A row is read from the bank, multiplied in float32
and dropped; sums over many rows are accumulated on chip, and partial sums are added in a set order.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import cache

import torch
from torch import Tensor

with suppress(ImportError):  # so that the module can be looked at where Triton is missing
    import triton
    import triton.language as tl

Kernel = Callable[..., None]

_ROWS = 32  # bank rows at a time in a program
_NEGATIVES_PER_PROGRAM = 2048


class FusedGather:
    """A scorer of negatives of each anchor's own that holds nothing of size B x S x D.

    Args:
        bank: `[N, D]` contiguous rows in float32 or bfloat16, constants.
        negatives: `[B, S]` int64.
    """

    def __init__(self, bank: Tensor, negatives: Tensor) -> None:
        self._bank = bank
        self._negatives = negatives.contiguous()
        self._count = negatives.shape[1]
        self._splits = triton.cdiv(self._count, _NEGATIVES_PER_PROGRAM)

    def scores(self, anchors: Tensor) -> Tensor:
        """Inner products of anchors `[A, B, D]` with their negatives, `[A, B, S]`, in float32."""
        scores = torch.empty(*anchors.shape[:2], self._count, dtype=torch.float32, device=anchors.device)
        self._launch(_scores_kernel, anchors.float().contiguous(), scores)
        return scores

    def pull(self, weights: Tensor) -> Tensor:
        """Sum the negatives' rows with weights `[A, B, S]`, to `[A, B, D]` in float32."""
        shape = self._splits, *weights.shape[:2], self._bank.shape[1]
        partial = torch.empty(shape, dtype=torch.float32, device=weights.device)
        self._launch(_pull_kernel, weights.float().contiguous(), partial)
        return partial.sum(dim=0)

    def _launch(self, kernel: Kernel, given: Tensor, out: Tensor) -> None:
        """Run one program for each anchor and part of its negatives; anchors of one image, which share rows, first."""
        sets, size = given.shape[:2]
        dim = self._bank.shape[1]
        _compiled(kernel)[sets, size, self._splits](
            self._bank,
            self._negatives,
            given,
            out,
            self._count,
            dim,
            ROWS=_ROWS,
            WIDTH=triton.next_power_of_2(dim),
        )


@cache
def _compiled(kernel: Kernel) -> triton.JITFunction:
    return triton.jit(kernel)


def _scores_kernel(  # type: ignore[no-untyped-def]  # noqa: ANN202
    bank,  # noqa: ANN001
    negatives,  # noqa: ANN001
    anchors,  # noqa: ANN001
    scores,  # noqa: ANN001
    count,  # noqa: ANN001
    dim,  # noqa: ANN001
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """Write the inner products of one anchor `[D]` with a part of its negatives."""
    image = tl.program_id(1).to(tl.int64)
    anchor = tl.program_id(0) * tl.num_programs(1) + image
    axis = tl.arange(0, WIDTH)
    own = tl.load(anchors + anchor * dim + axis, mask=axis < dim, other=0.0)
    share = tl.cdiv(count, tl.num_programs(2))
    first = tl.program_id(2) * share
    end = min(first + share, count)
    for start in range(first, end, ROWS):
        columns = start + tl.arange(0, ROWS)
        inside = columns < end
        places = tl.load(negatives + image * count + columns, mask=inside, other=0)
        cells = inside[:, None] & (axis < dim)[None, :]
        rows = tl.load(bank + places[:, None] * dim + axis[None, :], mask=cells, other=0.0).to(tl.float32)
        tl.store(scores + anchor * count + columns, tl.sum(rows * own[None, :], axis=1), mask=inside)


def _pull_kernel(  # type: ignore[no-untyped-def]  # noqa: ANN202
    bank,  # noqa: ANN001
    negatives,  # noqa: ANN001
    weights,  # noqa: ANN001
    partial,  # noqa: ANN001
    count,  # noqa: ANN001
    dim,  # noqa: ANN001
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """Write the weighted sum `[D]` of a part of one anchor's negatives."""
    image = tl.program_id(1).to(tl.int64)
    anchor = tl.program_id(0) * tl.num_programs(1) + image
    axis = tl.arange(0, WIDTH)
    total = tl.zeros((WIDTH,), dtype=tl.float32)
    share = tl.cdiv(count, tl.num_programs(2))
    first = tl.program_id(2) * share
    end = min(first + share, count)
    for start in range(first, end, ROWS):
        columns = start + tl.arange(0, ROWS)
        inside = columns < end
        places = tl.load(negatives + image * count + columns, mask=inside, other=0)
        cells = inside[:, None] & (axis < dim)[None, :]
        rows = tl.load(bank + places[:, None] * dim + axis[None, :], mask=cells, other=0.0).to(tl.float32)
        own = tl.load(weights + anchor * count + columns, mask=inside, other=0.0)
        total += tl.sum(rows * own[:, None], axis=0)
    split = tl.program_id(2) * tl.num_programs(0) * tl.num_programs(1)
    tl.store(partial + (split + anchor) * dim + axis, total, mask=axis < dim)
