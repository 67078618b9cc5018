from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from coterie.core import CheckpointError, ShapeError
from coterie.memory.bank import MemoryBank


def test_fresh_rows_are_uniform_with_expected_length_one() -> None:
    rows = MemoryBank(2, 4000, 48, seed=5).rows.double()
    bound = (3 / 48) ** 0.5
    assert rows.abs().max() <= bound and rows.abs().max() > 0.999 * bound
    assert rows.norm(dim=-1).mean().item() == pytest.approx(1.0, abs=5e-3)
    counts = torch.histc(rows, bins=20, min=-bound, max=bound)
    expected = rows.numel() / 20
    assert ((counts - expected) ** 2 / expected).sum() < 50  # chi-square, 19 degrees of freedom, p = 1e-4


def test_fresh_rows_depend_on_seed_and_peer_only() -> None:
    bank = MemoryBank(3, 10, 4, seed=1)
    assert torch.equal(bank.rows[:2], MemoryBank(2, 10, 4, seed=1).rows)
    assert not torch.equal(bank.rows, MemoryBank(3, 10, 4, seed=2).rows)
    assert not torch.equal(bank.rows[0], bank.rows[1])


def test_many_rows_are_drawn_in_pieces_that_join() -> None:
    long, short = MemoryBank(1, 30_000, 10, seed=3).rows, MemoryBank(1, 1000, 10, seed=3).rows
    assert torch.equal(long[:, :1000], short)
    values = long[0].unique()
    assert values.numel() > 0.98 * 65_536  # nearly all of the possible ones are among 300,000
    assert values.diff().max() < 20 * (3 / 10) ** 0.5 / 32_768


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_update_moves_only_the_rows_of_the_batch(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    bank = MemoryBank(2, 9, 4, momentum=0.3)
    bank.move(lambda rows: rows.to(dtype))
    before = bank.rows.clone()
    embeddings = F.normalize(torch.randn(2, 3, 4, dtype=dtype), dim=-1).requires_grad_()
    bank.update(torch.tensor([7, 0, 4]), embeddings)
    expected = before.clone()
    for m in range(2):
        for b, row in enumerate([7, 0, 4]):
            moved = 0.3 * before[m, row] + 0.7 * embeddings[m, b].detach()
            expected[m, row] = moved / moved.square().sum().sqrt()
    assert torch.allclose(bank.rows, expected, rtol=1e-6, atol=1e-7)
    assert torch.equal(bank.rows[:, [1, 2, 3, 5, 6, 8]], before[:, [1, 2, 3, 5, 6, 8]])
    assert not bank.rows.requires_grad and bank.rows.dtype == dtype


def test_bfloat16_rows_are_float32_ones_rounded_once() -> None:
    torch.manual_seed(0)
    narrow, exact = MemoryBank(2, 9, 4, momentum=0.3, dtype="bfloat16"), MemoryBank(2, 9, 4, momentum=0.3)
    assert narrow.rows.dtype == torch.bfloat16 and torch.equal(narrow.rows, exact.rows.bfloat16())
    assert narrow.mebibytes == exact.mebibytes / 2
    exact.rows = narrow.rows.float()
    embeddings = F.normalize(torch.randn(2, 3, 4), dim=-1)
    for bank in (narrow, exact):
        bank.update(torch.tensor([7, 0, 4]), embeddings)
    assert torch.equal(narrow.rows, exact.rows.bfloat16())


def test_first_embedding_of_a_repeated_row_counts() -> None:
    torch.manual_seed(1)
    embeddings = torch.randn(1, 4, 3)
    twice, once = MemoryBank(1, 5, 3), MemoryBank(1, 5, 3)
    twice.update(torch.tensor([2, 4, 2, 2]), embeddings)
    once.update(torch.tensor([2, 4]), embeddings[:, :2])
    assert torch.equal(twice.rows, once.rows)


@pytest.mark.case(64)
def test_update_refuses_what_does_not_fit() -> None:
    bank = MemoryBank(2, 5, 3)
    with pytest.raises(ShapeError, match=r"give \[M, B, D\]"):
        bank.update(torch.tensor([1]), torch.zeros(2, 2, 3))
    for row in (-1, 5):
        with pytest.raises((IndexError, RuntimeError)):
            bank.update(torch.tensor([row]), torch.zeros(2, 1, 3))


def test_state_goes_round() -> None:
    old, new = MemoryBank(2, 5, 3, seed=1), MemoryBank(2, 5, 3, seed=2)
    new.load_state({name: tensor.clone() for name, tensor in old.state().items()})
    assert torch.equal(new.rows, old.rows) and new.rows is not old.rows
    assert old.mebibytes == 2 * 5 * 3 * 4 / 2**20


@pytest.mark.case(63)
@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        ((2, 50_000, 3), "data set changed: N 50000 -> 49990"),
        ((3, 49_990, 3), "number of peers changed: M 3 -> 2"),
        ((2, 49_990, 4), "embedding size changed: D 4 -> 3"),
    ],
)
def test_load_names_what_changed(sizes: tuple[int, int, int], words: str) -> None:
    bank = MemoryBank(2, 49_990, 3)
    with pytest.raises(CheckpointError, match=words) as error:
        bank.load_state({"rows": torch.zeros(sizes)})
    assert str(list(sizes)) in str(error.value) and "[2, 49990, 3]" in str(error.value)


def test_load_refuses_missing_or_flat_rows() -> None:
    bank = MemoryBank(2, 5, 3)
    with pytest.raises(CheckpointError, match="no rows"):
        bank.load_state({"queue": torch.zeros(1)})
    with pytest.raises(CheckpointError, match="another number of axes"):
        bank.load_state({"rows": torch.zeros(2, 5)})
