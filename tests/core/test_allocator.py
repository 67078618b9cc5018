"""Freed memory that stays: large tensors are made again without a page fault."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from coterie.core.allocator import advise_large_pages

COUNT = """
import resource, sys
import torch
from coterie.core.allocator import keep_freed_memory

if "keep" in sys.argv:
    assert keep_freed_memory()
torch.set_num_threads(1)
for _ in range(8):  # until the free pieces fit
    torch.zeros(1 << 25)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(4):
    torch.zeros(1 << 25)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(*words: str) -> int:
    return int(subprocess.run([sys.executable, "-c", COUNT, *words], capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="about the allocator of Linux")
def test_memory_that_was_freed_is_used_again() -> None:
    assert faults("keep") < faults() / 3


def test_advice_on_large_pages_leaves_the_numbers_alone() -> None:
    for size in (1 << 10, (1 << 21) + 3):
        fresh = torch.empty(size)
        advise_large_pages(fresh)
        fresh.fill_(1)
        assert fresh.sum() == size
