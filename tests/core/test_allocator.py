"""Freed memory that stays: large tensors are made again without a page fault."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

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


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="about the allocator of Linux")
def test_memory_that_was_freed_is_used_again() -> None:
    assert faults("keep") < faults() / 3


def flags_at(address: int) -> set[str]:
    """What the system notes of the mapping that holds an address."""
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if match := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            inside = int(match[1], 16) <= address < int(match[2], 16)
        elif inside and line.startswith("VmFlags:"):
            return set(line.split()[1:])
    raise AssertionError(f"no mapping holds {address:#x}")


@pytest.mark.skipif(not Path("/sys/kernel/mm/transparent_hugepage").exists(), reason="about large pages of Linux")
def test_large_pages_are_asked_for_below_the_whole_of_a_large_tensor() -> None:
    fresh = torch.empty((1 << 25) + 3)
    assert "hg" not in flags_at(fresh.data_ptr() + (1 << 26))
    advise_large_pages(fresh)
    for offset in (1 << 12, 1 << 26, fresh.numel() * 4 - (2 << 12)):
        assert "hg" in flags_at(fresh.data_ptr() + offset)
    assert bool((fresh.fill_(1) == 1).all())
