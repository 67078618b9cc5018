from __future__ import annotations

import os
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from coterie.losses.candidates import Candidates, scorer
from coterie.losses.contrast import contrast_pairs, nce_embeddings
from coterie.losses.triton_gather import FusedGather

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if DEVICE == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("needs a GPU, or TRITON_INTERPRET=1 and Triton's interpreter", allow_module_level=True)
pytest.importorskip("triton")


@pytest.fixture(name="scene", params=[(2, 2, 16, 40), (3, 2, 20, 150)], ids=["one part", "parts, padded"])
def make_scene(request: Any, monkeypatch: Any) -> tuple[Tensor, Tensor, Tensor]:
    monkeypatch.setattr("coterie.losses.triton_gather._NEGATIVES_PER_PROGRAM", 64)
    sets, size, dim, count = request.param
    torch.manual_seed(0)
    anchors = F.normalize(torch.randn(sets, size, dim, device=DEVICE), dim=-1)
    bank = F.normalize(torch.randn(300, dim, device=DEVICE), dim=-1)
    return anchors, bank, torch.randint(300, (size, count), device=DEVICE)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_equals_the_eager_form(scene: Any, dtype: torch.dtype) -> None:
    anchors, bank, negatives = scene
    bank = bank.to(dtype)
    rows = Candidates(positives=negatives[:, 0], negatives=negatives, per_sample="gather")
    fused, eager = FusedGather(bank, negatives), scorer(bank.float(), rows, torch.float32)
    scores = fused.scores(anchors)
    assert torch.allclose(scores, eager.scores(anchors), rtol=1e-5, atol=1e-6)
    weights = torch.rand_like(scores)
    assert torch.allclose(fused.pull(weights), eager.pull(weights), rtol=1e-4, atol=1e-4)


def test_loss_and_gradient_are_those_of_the_eager_form(scene: Any, monkeypatch: Any) -> None:
    anchors, bank, negatives = scene
    rows = Candidates(positives=negatives[:, 0], negatives=negatives, per_sample="gather")
    banks, pairs = bank.expand(len(anchors), -1, -1), contrast_pairs(len(anchors))
    first, second = (anchors.clone().requires_grad_() for _ in range(2))
    nce_embeddings(first, banks, rows, pairs=pairs).loss.backward()
    monkeypatch.setattr("coterie.losses.contrast.scorer", lambda bank, rows, dtype: FusedGather(bank, rows.negatives))
    nce_embeddings(second, banks, rows, pairs=pairs).loss.backward()
    assert first.grad is not None and second.grad is not None
    assert torch.allclose(first.grad, second.grad, rtol=1e-4, atol=1e-5)
