from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from coterie.core import ConfigError, Facts, Method, Needs, Paper, PeerOutput

FACTS = Facts(num_peers=2, leader=1, num_classes=3, embedding_dims=(4, 6), labels=torch.arange(9) % 3, num_epochs=5)


class Rows:
    """A memory of one tensor."""

    def __init__(self) -> None:
        self.rows = torch.ones(3)

    def state(self) -> dict[str, Tensor]:
        return {"rows": self.rows}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        self.rows = state["rows"]

    def move(self, change: Callable[[Tensor], Tensor]) -> None:
        self.rows = change(self.rows)


class Moving(Method):
    """Has a head, a buffer and a memory."""

    def __init__(self, config: Method.Config, facts: Facts) -> None:
        super().__init__(config, facts)
        self.head = nn.Linear(2, 2)
        self.memories = {"rows": Rows()}


def test_memories_move_with_their_method() -> None:
    method = Moving(Method.Config(), FACTS).double()
    assert method.head.weight.dtype == method.memories["rows"].rows.dtype == torch.float64
    assert list(method.state_dict()) == ["head.weight", "head.bias"]
    inner = nn.ModuleDict({"method": Moving(Method.Config(), FACTS)}).to(torch.float16)
    assert inner["method"].memories["rows"].rows.dtype == torch.float16


def test_facts_count_the_images() -> None:
    assert FACTS.num_train == 9


@pytest.mark.parametrize(
    ("needs", "message"),
    [
        (Needs(min_peers=3), r"Needy needs at least 3 peers and got 2; raise cohort\.peers"),
        (Needs(equal_embeddings=True), r"Needy needs peers with embeddings of one size and got \[4, 6\]"),
    ],
)
def test_needs_are_checked_when_a_method_is_built(needs: Needs, message: str) -> None:
    kind = type("Needy", (Method,), {"needs": needs, "__doc__": "Asks for something."})
    with pytest.raises(ConfigError, match=message):
        kind(Method.Config(), FACTS)
    kind(Method.Config(), replace(FACTS, num_peers=3, embedding_dims=(4, 4, 4)))


def test_the_ensemble_is_the_mean_of_logits() -> None:
    method = Method(Method.Config(), FACTS)
    logits = [torch.tensor([[1.0, 0.0]]), torch.tensor([[3.0, 4.0]])]
    peers = [PeerOutput(logits=rows, embedding=rows) for rows in logits]
    assert method.ensemble(peers).tolist() == [[2.0, 2.0]]
    assert method.describe() == {}
    assert list(method.outer_parameters()) == []
    with pytest.raises(NotImplementedError):
        method.losses([], None)  # type: ignore[arg-type]


def test_a_paper_is_cited_in_one_line() -> None:
    paper = Paper(title="T", authors="A and B", year=2020, venue="V", arxiv="1.2")
    assert paper.cite() == "A and B, T, V 2020, arXiv:1.2"
    assert replace(paper, arxiv="").cite() == "A and B, T, V 2020"
