"""Global random generators continue where they stood."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from typing import Any

import numpy
import pytest
import torch

from coterie.core import CheckpointError
from coterie.core.files import RecordWarning
from coterie.engine.rng_state import restore_rng, rng_tensors, rng_values


@pytest.fixture(autouse=True)
def untouched() -> Iterator[None]:
    before = torch.get_rng_state(), numpy.random.get_state(), random.getstate()
    yield
    torch.set_rng_state(before[0])
    numpy.random.set_state(before[1])
    random.setstate(before[2])


def draw() -> list[Any]:
    return [
        torch.randn(3).tolist(),
        torch.rand(1, dtype=torch.float64).item(),
        numpy.random.standard_normal(3).tolist(),
        numpy.random.randint(1 << 30),
        random.gauss(0, 1),
        random.random(),
    ]


@pytest.mark.parametrize("before", [0, 1, 7, 700])
def test_all_generators_go_on_as_if_nothing_had_happened(before: int) -> None:
    for _ in range(before):
        draw()  # an odd number of normal draws leaves a spare one in store
    tensors, values = rng_tensors(), json.loads(json.dumps(rng_values()))
    copies = {name: tensor.clone() for name, tensor in tensors.items()}
    expected = [draw() for _ in range(5)]
    restore_rng(copies, values)
    assert [draw() for _ in range(5)] == expected
    assert all(torch.equal(tensors[name], copies[name]) for name in copies), "a saved state moved with the generator"


@pytest.mark.parametrize("name", ["torch", "numpy", "python"])
@pytest.mark.parametrize("wrong", [torch.zeros(3, dtype=torch.uint8), torch.zeros(624), None])
def test_what_is_no_state_is_one_line(name: str, wrong: torch.Tensor | None) -> None:
    tensors = rng_tensors()
    tensors.pop(name) if wrong is None else tensors.update({name: wrong})
    with pytest.raises(CheckpointError, match="no usable state of random generators") as caught:
        restore_rng(tensors, rng_values())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("values", [None, {}, {"numpy": {}, "python": {}}, {"numpy": {"pos": "x"}, "python": 3}, "far"])
def test_values_of_a_stranger_are_one_line(values: Any) -> None:
    if values == "far":
        values = json.loads(json.dumps(rng_values()))
        values["numpy"]["pos"] = 1 << 20
    with pytest.raises(CheckpointError, match="no usable state"):
        restore_rng(rng_tensors(), values)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without such a device")
def test_generators_of_devices_that_are_not_here_are_dropped_aloud() -> None:
    with pytest.warns(RecordWarning, match="generator of cuda0 dropped"):
        restore_rng({**rng_tensors(), "cuda0": torch.zeros(16, dtype=torch.uint8)}, rng_values())
