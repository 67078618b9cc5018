"""What tests of methods with heads and memory banks share: facts, batches with teachers, heads that are told."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from coterie.core import Batch, Facts, PeerFacts, PeerOutput


def sizes(dim: int, classes: int = 10) -> PeerFacts:
    return PeerFacts(embedding_dim=dim, num_classes=classes)


def facts_of(peers: int = 1, *, own: int = 12, other: int = 14, teachers: int = 1, **changes: Any) -> Facts:
    given: dict[str, Any] = {
        "num_peers": peers,
        "leader": peers - 1,
        "num_classes": 10,
        "embedding_dims": (own,) * peers,
        "labels": torch.arange(40) % 10,
        "num_epochs": 2,
        "seed": 5,
        "peers": (sizes(own),) * peers,
        "teachers": (sizes(other, 7),) * teachers,
    }
    return Facts(**given | changes)


def batch_of(indices: Tensor, *teachers: Tensor, step: int = 0) -> Batch:
    return Batch(
        views=torch.zeros(1, len(indices), 1, 1, 1),
        labels=indices % 10,
        indices=indices,
        epoch=torch.tensor(0),
        step=torch.tensor(step),
        teachers=tuple(PeerOutput(logits=torch.zeros(len(e), 7), embedding=e) for e in teachers),
    )


def peers_of(*embeddings: Tensor) -> list[PeerOutput]:
    return [PeerOutput(logits=torch.zeros(len(e), 10, dtype=e.dtype), embedding=e) for e in embeddings]


class Given(nn.Module):
    """A head that says what it was told, so that the gradient to embeddings shows."""

    def __init__(self) -> None:
        super().__init__()
        self.says = nn.Parameter(torch.zeros(()))

    def forward(self, embedding: Tensor) -> Tensor:
        return self.says.view(embedding.shape)
