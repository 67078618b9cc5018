"""Matrix products with sums in float32, by the fastest kernel that a device has for float32 or bfloat16 factors."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

Product = Callable[[Tensor, Tensor], Tensor]


def factor_dtype(rows: Tensor, dtype: torch.dtype) -> torch.dtype:
    """Choose in what dtype rows are multiplied with a tensor of another dtype.

    Args:
        rows: one factor.
        dtype: of the other one, at least float32.

    Returns:
        bfloat16 where the rows have it, the other factor is float32 and the device multiplies bfloat16 in hardware;
        else the other factor's dtype.

    Example:
        >>> factor_dtype(torch.ones(2, 3, dtype=torch.bfloat16), torch.float64)
        torch.float64
    """
    narrow = rows.dtype == torch.bfloat16 and dtype == torch.float32
    return torch.bfloat16 if narrow and (rows.device.type != "cpu" or _multiplies_bfloat16()) else dtype


def product(left: Tensor, right: Tensor) -> Tensor:
    """Multiply two matrices of one dtype; not differentiable.

    Args:
        left: `[R, D]`.
        right: `[D, C]`, contiguous or the transpose of a contiguous matrix.

    Returns:
        `[R, C]`. Of bfloat16 factors, summed in float32: float32 on CUDA, rounded to bfloat16 elsewhere.

    Example:
        >>> product(torch.ones(1, 3), torch.ones(3, 2))
        tensor([[3., 3.]])
    """
    if left.dtype == torch.bfloat16 and left.is_cuda:
        return torch.mm(left, right, out_dtype=torch.float32)
    if left.dtype == torch.float32 and left.device.type == "cpu":
        return _float32_on_cpu()(left, right)
    return torch.mm(left, right)


@cache
def _multiplies_bfloat16() -> bool:
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


@cache
def _float32_on_cpu() -> Product:
    """Choose oneDNN's product over that of `torch.mm`: 2.5 times as fast where MKL leaves AVX-512 unused.

    Both sum in float32, in full precision.
    """
    linear = getattr(torch.ops.mkldnn, "_linear_pointwise", None)
    if linear is None or not torch.backends.cpu.get_cpu_capability().startswith("AVX512"):
        return torch.mm
    return lambda left, right: linear(left, right.t(), None, "none", [], "")
