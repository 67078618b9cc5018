from __future__ import annotations

import pytest
import torch

from coterie.core import CheckpointError, ConfigError, ShapeError
from coterie.memory.queue import EmbeddingQueue


def test_fresh_rows_are_unit_and_depend_on_the_seed() -> None:
    rows = EmbeddingQueue(2, 500, 8, seed=3).rows
    assert torch.allclose(rows.norm(dim=-1), torch.ones(2, 500))
    assert float(rows.mean(dim=1).abs().max()) < 0.1  # no direction is preferred
    assert torch.equal(rows, EmbeddingQueue(2, 500, 8, seed=3).rows)
    assert not torch.equal(rows, EmbeddingQueue(2, 500, 8, seed=4).rows)


@pytest.mark.parametrize(("length", "size"), [(6, 2), (7, 3), (5, 5), (4, 9)])
def test_it_holds_the_newest_embeddings(length: int, size: int) -> None:
    queue = EmbeddingQueue(2, length, 3)
    pushed = [torch.randn(2, size, 3, requires_grad=True) for _ in range(5)]
    kept = queue.rows.unbind(1)
    for embeddings in pushed:
        queue.push(embeddings)
        kept = (*kept, *embeddings.detach().unbind(1))[-length:]
        order = (torch.arange(length) + int(queue.oldest)) % length
        assert torch.equal(queue.rows[:, order], torch.stack(kept, dim=1))
    assert not queue.rows.requires_grad


def test_state_goes_to_another_queue_in_its_dtype() -> None:
    old, new = EmbeddingQueue(1, 5, 2), EmbeddingQueue(1, 5, 2, seed=9)
    old.push(torch.ones(1, 3, 2))
    new.move(lambda tensor: tensor.double() if tensor.is_floating_point() else tensor)
    new.load_state(old.state())
    assert torch.equal(new.rows.float(), old.rows) and int(new.oldest) == 3
    assert new.rows.dtype == torch.float64 and new.oldest.dtype == torch.int64
    assert new.mebibytes == 5 * 2 * 8 / 2**20


def test_bad_input_is_one_line() -> None:
    queue = EmbeddingQueue(2, 5, 3)
    with pytest.raises(ConfigError, match="length of at least 1"):
        EmbeddingQueue(2, 0, 3)
    with pytest.raises(ShapeError, match=r"give \[M, B, D\]"):
        queue.push(torch.zeros(2, 4, 2))
    with pytest.raises(CheckpointError, match=r"'rows' of the saved queue is \[2, 6, 3\] and must be \[2, 5, 3\]"):
        queue.load_state(EmbeddingQueue(2, 6, 3).state())
    with pytest.raises(CheckpointError, match="'oldest' of the saved queue is missing"):
        queue.load_state({"rows": queue.rows})
