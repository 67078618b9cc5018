from __future__ import annotations

import pytest
import torch

from coterie.losses.products import factor_dtype, product


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("transposed", [False, True])
def test_products_of_both_layouts(dtype: torch.dtype, transposed: bool) -> None:
    torch.manual_seed(0)
    left, right = torch.randn(7, 33).to(dtype), torch.randn(33, 50).to(dtype)
    found = product(left, right.t().contiguous().t() if transposed else right)
    bound = {torch.float64: 1e-13, torch.float32: 1e-6, torch.bfloat16: 4e-3}[dtype]
    assert found.is_contiguous() and found.dtype == dtype
    assert torch.allclose(found.double(), left.double() @ right.double(), rtol=bound, atol=30 * bound)


def test_only_bfloat16_rows_with_float32_factors_stay_narrow() -> None:
    narrow, rows = torch.ones(2, 3, dtype=torch.bfloat16), torch.ones(2, 3)
    assert factor_dtype(narrow, torch.float64) == torch.float64
    assert factor_dtype(rows, torch.float32) == torch.float32
    assert factor_dtype(narrow, torch.float32) in (torch.float32, torch.bfloat16)
