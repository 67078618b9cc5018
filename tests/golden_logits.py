"""Golden cases of losses between logits, and the pieces that tests of such methods are made of."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from coterie.core import Batch, Facts, PeerOutput

TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}


def cases(name: str) -> dict[str, Any]:
    """The cases of a golden file by name."""
    path = Path(__file__).parent / "golden" / f"{name}.json"
    return {case["name"]: case for case in json.loads(path.read_text())["cases"]}


def assert_close(given: Tensor | None, expected: object, dtype: torch.dtype = torch.float64) -> None:
    """Compare at the golden tolerance of a dtype, relative to the largest expected number."""
    assert given is not None
    target = torch.as_tensor(expected, dtype=torch.float64)
    assert given.shape == target.shape
    bound = TOLERANCE[dtype] * max(1.0, float(target.abs().max()))
    gap = float((given.detach().double() - target).abs().max())
    assert gap <= bound, f"off by {gap:.3g}, allowed are {bound:.3g}"


def leaf(values: object, dtype: torch.dtype = torch.float64) -> Tensor:
    """A trainable tensor."""
    return torch.as_tensor(values, dtype=dtype).clone().requires_grad_()


def make_facts(peers: int, *, dim: int = 5, leader: int = -1, **changes: Any) -> Facts:
    """Facts of a cohort on 20 images of 10 classes."""
    given: dict[str, Any] = {
        "num_peers": peers,
        "leader": leader % peers,
        "num_classes": 10,
        "embedding_dims": (dim,) * peers,
        "labels": torch.arange(20) % 10,
        "num_epochs": 10,
    }
    return Facts(**given | changes)


def make_batch(labels: Sequence[int] | Tensor, *, epoch: int = 0, step: int = 0, views: Tensor | None = None) -> Batch:
    """A batch with these labels; its images are not looked at unless they are given."""
    labels = torch.as_tensor(labels)
    images = torch.zeros(1, len(labels), 1, 1, 1) if views is None else views
    return Batch(
        views=images,
        labels=labels,
        indices=torch.arange(len(labels)),
        epoch=torch.tensor(epoch),
        step=torch.tensor(step),
    )


def outputs(
    logits: Sequence[Tensor], embeddings: Sequence[Tensor] = (), stages: tuple[Tensor, ...] = ()
) -> list[PeerOutput]:
    """Peer outputs with these logits, and zeros for embeddings that are not given."""
    embeddings = embeddings or [torch.zeros(len(z), 5, dtype=z.dtype) for z in logits]
    return [PeerOutput(logits=z, embedding=e, stages=stages) for z, e in zip(logits, embeddings, strict=True)]


def random_logits(peers: int, *, images: int = 6, scale: float = 2.0, seed: int = 7) -> list[Tensor]:
    """Trainable float64 logits `[images, 10]` of each peer."""
    own = torch.Generator().manual_seed(seed)
    return [leaf(scale * torch.randn(images, 10, dtype=torch.float64, generator=own)) for _ in range(peers)]


def slow_kl(student: Tensor, teacher: Tensor, temperature: float) -> float:
    """KL from teacher to student by loops over samples and classes, times the temperature squared."""
    total = 0.0
    for s, t in zip(student.detach() / temperature, teacher.detach() / temperature, strict=True):
        p, q = (t.exp() / t.exp().sum()).tolist(), (s.exp() / s.exp().sum()).tolist()
        total += sum(a * float(torch.tensor(a / b, dtype=torch.float64).log()) for a, b in zip(p, q, strict=True))
    return temperature**2 * total / len(student)


def slow_cross_entropy(logits: Tensor, labels: Sequence[int] | Tensor) -> float:
    """Mean of minus the log-probability of the true class, by a loop over samples."""
    rows = zip(logits.detach(), labels, strict=True)
    return sum(float(-(row[int(y)].exp() / row.exp().sum()).log()) for row, y in rows) / len(logits)
