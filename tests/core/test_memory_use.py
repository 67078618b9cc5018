from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from coterie.core import memory_use
from coterie.core.memory_use import free_bytes, peak_bytes

MIB = 2**20


@pytest.mark.slow
def test_the_peak_rises_with_what_is_used_and_stays() -> None:
    before = peak_bytes()
    held = torch.ones(before + 64 * MIB, dtype=torch.uint8)
    during = peak_bytes()
    assert during >= before + 60 * MIB  # the system counts a little late
    assert during <= 2 * before + 128 * MIB
    del held
    assert peak_bytes() >= during - MIB


@pytest.mark.slow
def test_a_new_process_does_not_inherit_the_peak_of_the_one_that_started_it() -> None:
    before = peak_bytes()
    words = [sys.executable, "-c", "from coterie.core.memory_use import peak_bytes; print(peak_bytes())"]
    held = torch.ones(before + 256 * MIB, dtype=torch.uint8)
    child = int(subprocess.run(words, capture_output=True, text=True, check=True).stdout)
    assert 64 * MIB < child < peak_bytes() - 128 * MIB
    assert held[0] == 1


def test_without_proc_the_system_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    known = peak_bytes(), free_bytes()
    monkeypatch.setattr(memory_use, "_from_proc", lambda path, name: 0)
    if sys.platform == "linux":
        assert 0.9 * known[0] <= peak_bytes() < 2**40
        assert known[1] <= free_bytes() < 2**44


def test_a_figure_that_is_not_there_is_nought() -> None:
    assert memory_use._from_proc("/no/such/file", "VmHWM") == 0
    assert memory_use._from_proc(__file__, "VmHWM") == 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_of_a_device_what_torch_has_allocated() -> None:
    before = peak_bytes("cuda")
    held = torch.ones(before + 64 * MIB, dtype=torch.uint8, device="cuda")
    assert peak_bytes("cuda") >= before + 64 * MIB
    assert 0 < free_bytes("cuda") < 2**40
    assert held.is_cuda
