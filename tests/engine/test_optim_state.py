"""The state of an optimiser by names: exact, and refused when a shape, a dtype or a name differs."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import nn

from coterie.core import CheckpointError
from coterie.engine.optim_state import (
    by_owner,
    joined_owners,
    optimizer_tensors,
    optimizer_values,
    parameter_names,
    restore_optimizer,
)

KINDS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4),
    "plain sgd": lambda p: torch.optim.SGD(p, lr=0.1),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.1, betas=(0.8, 0.95)),
    "amsgrad": lambda p: torch.optim.AdamW(p, lr=0.1, amsgrad=True),
    "tensor rate": lambda p: torch.optim.AdamW(p, lr=torch.tensor(0.1)),
}


def build(kind: str, dtype: torch.dtype = torch.float32) -> tuple[list[nn.Module], Any, dict[torch.Tensor, str]]:
    torch.manual_seed(0)
    peers: list[nn.Module] = [
        nn.Sequential(nn.Conv2d(2, 3, 3), nn.Flatten(), nn.Linear(12, 2)).to(dtype) for _ in range(2)
    ]
    peers[0].to(memory_format=torch.channels_last)
    names = parameter_names(peers, nn.Linear(2, 2))
    decayed = [p for p in names if p.dim() > 1]
    return peers, KINDS[kind]([{"params": decayed}, {"params": [p for p in names if p.dim() == 1]}]), names


def work(peers: list[nn.Module], optimizer: torch.optim.Optimizer, rate: float) -> None:
    for peer in peers:
        dtype = next(peer.parameters()).dtype
        peer(torch.ones(1, 2, 4, 4, dtype=dtype)).square().sum().backward()
    for group in optimizer.param_groups:
        if not isinstance(group["lr"], torch.Tensor):
            group["lr"] = rate
    optimizer.step()
    optimizer.zero_grad()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", KINDS)
def test_a_restored_optimiser_goes_on_to_the_bit(kind: str, dtype: torch.dtype) -> None:
    peers, optimizer, names = build(kind, dtype)
    for _ in range(3):
        work(peers, optimizer, rate=0.03)
    tensors = {name: tensor.clone() for name, tensor in optimizer_tensors(optimizer, names).items()}
    kept = {name: tensor.clone() for name, tensor in tensors.items()}
    values = json.loads(json.dumps(optimizer_values(optimizer, names)))

    others, other, other_names = build(kind, dtype)
    for peer, source in zip(others, peers, strict=True):
        peer.load_state_dict(source.state_dict())
    restore_optimizer(other, other_names, joined_owners(by_owner(tensors)), values)
    assert optimizer_values(other, other_names) == values
    for mine, yours in ((peers, optimizer), (others, other)):
        for rate in (0.03, 0.01):
            work(mine, yours, rate)
    for peer, source in zip(others, peers, strict=True):
        for name, tensor in source.state_dict().items():
            assert torch.equal(peer.state_dict()[name], tensor), name
    for name, tensor in optimizer_tensors(optimizer, names).items():
        assert torch.equal(optimizer_tensors(other, other_names)[name], tensor), name
    assert all(torch.equal(tensors[name], kept[name]) for name in kept), "training changed the saved tensors"


def test_tensors_are_named_after_their_parameters() -> None:
    peers, optimizer, names = build("adamw")
    assert optimizer_tensors(optimizer, names) == {}
    work(peers, optimizer, 0.1)
    tensors = optimizer_tensors(optimizer, names)
    assert tensors["peer1.2.weight/exp_avg"].shape == (2, 12)
    assert tensors["peer1.2.weight/step"].shape == () and tensors["peer1.2.weight/step"] == 1
    assert sorted(by_owner(tensors)) == ["peer0.optim", "peer1.optim"]
    assert "2.weight/exp_avg" in by_owner(tensors)["peer1.optim"]
    assert not any(name.startswith("method") for name in tensors), "a head without gradient has no state"


def test_a_shared_parameter_has_one_name() -> None:
    shared = nn.Linear(2, 2)
    names = parameter_names([nn.Sequential(shared), nn.Sequential(shared, nn.Linear(2, 1))])
    assert list(names.values()) == ["peer0.0.weight", "peer0.0.bias", "peer1.1.weight", "peer1.1.bias"]


@pytest.mark.parametrize(
    ("entry", "tensor", "message"),
    [
        ("peer0.2.weight/momentum_buffer", torch.zeros(2, 4), r"peer0\.2\.weight has shape \(2, 4\)"),
        ("peer0.2.weight/momentum_buffer", torch.zeros(()), r"peer0\.2\.weight has shape \(\)"),
        ("peer0.2.weight/momentum_buffer", torch.zeros(2, 12).half(), r"in torch\.float16 and must have"),
        ("peer0.2.weight/step", torch.zeros(1), r"'step' of peer0\.2\.weight has shape \(1,\)"),
        ("peer7.2.weight/momentum_buffer", torch.zeros(2, 12), r"state of 'peer7\.2\.weight'"),
        ("nonsense", torch.zeros(2), "state of ''"),
    ],
)
def test_what_does_not_fit_is_refused(entry: str, tensor: torch.Tensor, message: str) -> None:
    peers, optimizer, names = build("sgd")
    work(peers, optimizer, 0.1)
    values, tensors = optimizer_values(optimizer, names), optimizer_tensors(optimizer, names)
    before = {name: t.clone() for name, t in tensors.items()}
    with pytest.raises(CheckpointError, match=message):
        restore_optimizer(optimizer, names, {**tensors, entry: tensor}, values)
    assert all(torch.equal(t, before[name]) for name, t in optimizer_tensors(optimizer, names).items())


def edited(values: Any, **changes: Any) -> Any:
    copy = json.loads(json.dumps(values))
    for key, value in changes.items():
        copy["groups"][0]["options"][key] = value
    return copy


def test_another_kind_or_group_is_refused() -> None:
    _, optimizer, names = build("sgd")
    values = optimizer_values(optimizer, names)
    _, adamw, others = build("adamw")
    with pytest.raises(CheckpointError, match="'SGD' and the recipe asks for 'AdamW'"):
        restore_optimizer(adamw, others, {}, values)
    _, amsgrad, others = build("amsgrad")
    with pytest.raises(CheckpointError, match="1 parameter groups and the optimiser 2"):
        restore_optimizer(optimizer, names, {}, {"kind": "SGD", "groups": values["groups"][:1]})
    with pytest.raises(CheckpointError, match=r"options of the optimiser differ \(odd\)"):
        restore_optimizer(optimizer, names, {}, edited(values, odd=1))
    swapped = {"kind": "SGD", "groups": values["groups"][::-1]}
    with pytest.raises(CheckpointError, match="other parameters than the checkpoint: method"):
        restore_optimizer(optimizer, names, {}, swapped)
    assert amsgrad.param_groups


@pytest.mark.parametrize("values", [None, [], {}, {"kind": "SGD"}, {"kind": "SGD", "groups": [3, 4]}, "x"])
def test_values_of_a_stranger_are_one_line(values: Any) -> None:
    _, optimizer, names = build("sgd")
    with pytest.raises(CheckpointError):
        restore_optimizer(optimizer, names, {}, values)


@pytest.mark.parametrize(
    ("key", "value"), [("lr", "high"), ("lr", [1]), ("betas", [0.9]), ("betas", 3), ("amsgrad", {})]
)
def test_options_of_a_stranger_are_one_line(key: str, value: Any) -> None:
    _, optimizer, names = build("adamw")
    with pytest.raises(CheckpointError):
        restore_optimizer(optimizer, names, {}, edited(optimizer_values(optimizer, names), **{key: value}))


def test_state_that_could_not_be_checked_is_refused_when_saved() -> None:
    weight = nn.Parameter(torch.ones(4, 4))
    optimizer = torch.optim.Adafactor([weight])
    weight.sum().backward()
    optimizer.step()
    with pytest.raises(CheckpointError, match=r"of peer0\.w has shape"):
        optimizer_tensors(optimizer, {weight: "peer0.w"})
    with pytest.raises(CheckpointError, match="has no name"):
        optimizer_tensors(optimizer, {})
    optimizer.state[weight] = {"history": [1]}
    with pytest.raises(CheckpointError, match=r"keeps 'history' of peer0\.w as a list"):
        optimizer_tensors(optimizer, {weight: "peer0.w"})
