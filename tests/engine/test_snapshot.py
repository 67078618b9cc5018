"""What a snapshot gathers and what it refuses to give back."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from coterie.cohort.cohort import Cohort
from coterie.core import CheckpointError
from coterie.engine.snapshot import (
    Snapshot,
    digest,
    memory_tensors,
    module_tensors,
    peer_tensors,
    restore_memories,
    restore_module,
    restore_peers,
)
from toy_run import Toy, ToyMemory


def test_a_restored_toy_goes_on_as_the_first_would_have() -> None:
    first = Toy()
    for number in range(5):
        first.step(number)
    copy = {stem: {name: t.clone() for name, t in part.items()} for stem, part in first.snapshot(5).tensors.items()}
    saved = Snapshot(tensors=copy, values=first.snapshot(5).values)
    before = digest(saved)
    straight = [first.step(number) for number in range(5, 9)]
    second = Toy()
    second.restore(saved)
    assert [second.step(number) for number in range(5, 9)] == straight
    assert digest(second.snapshot(9)) == digest(first.snapshot(9))
    assert digest(saved) == before, "training changed the snapshot it was restored from"


CHANGES: dict[str, Callable[[dict], object]] = {
    "value": lambda t: t["a"].__setitem__(0, 2.0),
    "sign of zero": lambda t: t["a"].__setitem__(1, -0.0),
    "dtype": lambda t: t.__setitem__("a", t["a"].to(torch.float64)),
    "shape": lambda t: t.__setitem__("a", t["a"].view(2, 2)),
    "name": lambda t: t.__setitem__("c", t.pop("b")),
    "fewer": lambda t: t.pop("b"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_digest_sees_every_change(change: str) -> None:
    def make() -> dict[str, torch.Tensor]:
        return {"a": torch.tensor([1.0, 0.0, 0.0, 3.0]), "b": torch.tensor(1)}

    changed = make()
    CHANGES[change](changed)
    plain = digest(Snapshot(tensors={"peer0": make()}, values={"x": 1}))
    assert digest(Snapshot(tensors={"peer0": changed}, values={"x": 1})) != plain
    assert digest(Snapshot(tensors={"peer0": make()}, values={"x": 1.0})) != plain
    assert digest(Snapshot(tensors={"peer0": dict(reversed(make().items()))}, values={"x": 1})) == plain


def test_digest_ignores_how_a_tensor_lies_in_memory() -> None:
    image = torch.arange(24.0).view(1, 2, 3, 4)
    last = image.to(memory_format=torch.channels_last)
    assert last.stride() != image.stride()
    one, other = (Snapshot(tensors={"p": {"w": tensor, "empty": torch.zeros(0)}}) for tensor in (image, last))
    assert digest(one) == digest(other)


def test_every_peer_is_a_whole_plain_network() -> None:
    toy = Toy()
    saved = peer_tensors(toy.peers)
    assert saved["peer0"]["0.weight"].data_ptr() == saved["peer1"]["0.weight"].data_ptr(), "the toy shares a layer"
    for m, peer in enumerate(toy.peers):
        assert saved[f"peer{m}"].keys() == peer.state_dict().keys()
    cohort = Cohort([nn.Sequential(nn.Flatten(), nn.Linear(4, 3)) for _ in range(2)])
    assert list(peer_tensors(cohort)["peer1"]) == ["1.weight", "1.bias"]


def test_other_networks_are_refused_and_nothing_is_changed() -> None:
    saved = Snapshot(tensors=peer_tensors(Toy(width=6).peers))
    other = Toy(width=7)
    other.peers[0] = Toy(width=6).peers[1]
    before = digest(Snapshot(tensors=peer_tensors(other.peers)))
    with pytest.raises(
        CheckpointError, match=r"peer 1 does not fit.*'0.weight' is float32 \[6, 4\] and must be"
    ) as caught:
        restore_peers(other.peers, saved)
    assert "and 4 more" in str(caught.value)
    assert digest(Snapshot(tensors=peer_tensors(other.peers))) == before
    with pytest.raises(CheckpointError, match=r"2 peers and the recipe 1; set cohort\.peers=2"):
        restore_peers(other.peers[:1], saved)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"weight": torch.zeros(3, 2)}, "'bias' is missing"),
        ({"weight": torch.zeros(3, 2), "bias": torch.zeros(3), "extra": torch.zeros(1)}, "'extra' is not known"),
        ({"weight": torch.zeros(3, 2), "bias": torch.zeros(())}, r"'bias' is float32 \[\] and must be float32 \[3\]"),
        ({"weight": torch.zeros(3, 2).half(), "bias": torch.zeros(3)}, r"'weight' is float16 \[3, 2\]"),
    ],
)
def test_a_module_takes_only_what_fits(given: dict[str, torch.Tensor], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        restore_module(nn.Linear(2, 3), given, what="the head")


def test_state_that_is_no_tensor_is_refused() -> None:
    class Odd(nn.Module):
        def get_extra_state(self) -> object:
            return {"secret": 1}

    with pytest.raises(CheckpointError, match="_extra_state' as a dict"):
        module_tensors(Odd())


def test_memories_come_back_or_are_refused() -> None:
    source, target = {"a": ToyMemory(), "b": ToyMemory()}, {"a": ToyMemory(), "b": ToyMemory()}
    source["b"].rows[2] = 5.0
    restore_memories(target, memory_tensors(source))
    assert torch.equal(target["b"].rows, source["b"].rows) and not target["a"].rows.any()
    with pytest.raises(CheckpointError, match=r"memory of the method does not fit.*'b/rows' is missing"):
        restore_memories(target, memory_tensors({"a": source["a"]}))


def test_a_missing_part_is_named() -> None:
    with pytest.raises(CheckpointError, match="no 'memory'"):
        Snapshot().section("memory")
    with pytest.raises(CheckpointError, match="no value 'epoch'"):
        Snapshot().value("epoch")
