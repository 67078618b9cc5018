"""Copies of the state stay what they were, in memory that is used again."""

from __future__ import annotations

import pytest
import torch

from coterie.core import CheckpointError
from coterie.engine.host_copy import HostCopy
from coterie.engine.snapshot import Snapshot, digest
from toy_run import Toy


def test_a_copy_is_bit_equal_and_stays_so() -> None:
    toy, copy = Toy(), HostCopy()
    for step in range(3):
        toy.step(step)
        live = toy.snapshot(step)
        before = digest(live)
        taken = copy.take(live)
        assert digest(taken) == before
        toy.step(step)
        assert digest(taken) == before != digest(toy.snapshot(step))


def test_memory_is_used_again_and_no_larger_than_the_state() -> None:
    toy, copy = Toy(), HostCopy()
    toy.step(0)
    first = copy.take(toy.snapshot(0))
    places = {tensor.data_ptr() for section in first.tensors.values() for tensor in section.values()}
    toy.step(1)
    second = copy.take(toy.snapshot(1))
    assert {tensor.data_ptr() for section in second.tensors.values() for tensor in section.values()} == places
    assert copy.num_bytes == toy.snapshot(1).num_bytes


def test_layouts_and_values_are_copied() -> None:
    maps = torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last)
    rows = torch.arange(12.0).view(3, 4).t()
    extra = {"peers": [0, 1]}
    taken = HostCopy().take(Snapshot(tensors={"a": {"maps": maps, "rows": rows, "none": torch.zeros(0)}}, values=extra))
    assert torch.equal(taken.section("a")["maps"], maps) and torch.equal(taken.section("a")["rows"], rows)
    extra["peers"].append(2)
    assert taken.value("peers") == [0, 1]


def test_a_section_that_changes_gets_other_memory() -> None:
    copy = HostCopy()
    copy.take(Snapshot(tensors={"a": {"w": torch.ones(3)}, "gone": {"w": torch.ones(5)}}))
    taken = copy.take(Snapshot(tensors={"a": {"w": torch.ones(4)}, "new": {}}))
    assert taken.section("a")["w"].tolist() == [1.0] * 4 and taken.section("new") == {}
    assert copy.num_bytes == 16


def test_what_cannot_be_stored_is_refused_at_once() -> None:
    with pytest.raises(CheckpointError, match="store dense tensors only"):
        HostCopy().take(Snapshot(tensors={"a": {"w": torch.eye(3).to_sparse()}}))


@pytest.mark.gpu
def test_copies_from_a_device_are_whole_and_pinned() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    copy, weights = HostCopy(), [torch.randn(1 << 20, device="cuda") for _ in range(8)]
    for _ in range(3):
        expected = [weight.cpu() for weight in weights]
        taken = copy.take(Snapshot(tensors={"a": {str(number): weight for number, weight in enumerate(weights)}}))
        for weight in weights:
            weight.mul_(2)
        section = taken.section("a")
        assert all(torch.equal(section[str(number)], old) for number, old in enumerate(expected))
        assert all(tensor.is_pinned() for tensor in section.values())
