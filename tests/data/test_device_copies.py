"""Batches reach the device as they are, and on CUDA without waiting."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from coterie.data.transfer import moved


def numbered(count: int, seen: list[int]) -> Iterator[tuple[Tensor, Tensor]]:
    for number in range(count):
        seen.append(number)
        yield torch.full((64, 3, 32, 32), number, dtype=torch.uint8), torch.tensor([number])


def test_on_the_cpu_nothing_is_copied_or_taken_early() -> None:
    seen: list[int] = []
    batches = moved(numbered(3, seen), torch.device("cpu"))
    images, rows = next(batches)
    assert seen == [0]
    assert (int(images[0, 0, 0, 0]), rows.tolist()) == (0, [0])
    assert [int(rows) for _, rows in batches] == [1, 2]
    mine = torch.arange(3)
    assert next(moved([(mine, mine)], torch.device("cpu")))[0] is mine


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_cuda_batches_arrive_whole_while_the_device_is_busy() -> None:
    device = torch.device("cuda")
    work = torch.randn(2048, 2048, device=device)
    sums = []
    for images, rows in moved(numbered(20, []), device):
        work = torch.tanh(work @ work)  # the next copies run beside this
        sums.append((images.to(torch.int64).sum(), rows.sum()))
        del images, rows  # their memory may be used again as soon as the sums are done
    assert [int(row) for _, row in sums] == list(range(20))
    assert [int(total) for total, _ in sums] == [64 * 3 * 32 * 32 * number for number in range(20)]
