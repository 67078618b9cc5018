"""States of the global random generators of torch, its CUDA devices, numpy and Python, without pickle.

What this package draws itself is a function of (seed, epoch, step, sample) and needs no state; a user's network may
draw from the global generators, dropout for one, and then their states belong to the run.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Mapping
from typing import Any

import numpy
import torch
from torch import Tensor

from coterie.core.errors import CheckpointError
from coterie.core.files import JsonValue, RecordWarning
from coterie.engine.snapshot import Tensors, as_mapping


def rng_tensors() -> Tensors:
    """Words of all generators: `torch` and `cuda0`, ... as uint8, `numpy` and `python` as int64 `[624]`."""
    tensors = {"torch": torch.get_rng_state()}
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        tensors |= {f"cuda{number}": state for number, state in enumerate(torch.cuda.get_rng_state_all())}
    tensors["numpy"] = torch.from_numpy(_numpy_state()["state"]["key"].astype(numpy.int64))
    tensors["python"] = torch.tensor(random.getstate()[1][:-1], dtype=torch.int64)
    return tensors


def rng_values() -> JsonValue:
    """Positions in those words, and the second normal number that numpy and Python keep in store."""
    state = _numpy_state()
    _, words, waiting = random.getstate()
    return {
        "numpy": {"pos": state["state"]["pos"], "has_gauss": state["has_gauss"], "gauss": state["gauss"]},
        "python": {"pos": words[-1], "gauss": waiting},
    }


def restore_rng(tensors: Mapping[str, Tensor], values: JsonValue) -> None:
    """Set all generators back; generators of devices that are not here are dropped with a warning.

    Args:
        tensors: what `rng_tensors` returned.
        values: what `rng_values` returned.

    Raises:
        CheckpointError: these are not states of generators.
    """
    try:
        torch.set_rng_state(tensors["torch"])
        _restore_numpy(tensors["numpy"], as_mapping(as_mapping(values)["numpy"]))
        _restore_python(tensors["python"], as_mapping(as_mapping(values)["python"]))
        _restore_devices({name: tensor for name, tensor in tensors.items() if name.startswith("cuda")})
    except (KeyError, ValueError, TypeError, RuntimeError, OverflowError) as error:
        raise CheckpointError(
            f"the checkpoint holds no usable state of random generators ({error}); use an older checkpoint"
        ) from error


def _restore_numpy(words: Tensor, place: Mapping[str, JsonValue]) -> None:
    key = _checked(words, place["pos"]).numpy().astype(numpy.uint32)
    spare = {"has_gauss": place["has_gauss"], "gauss": place["gauss"]}
    numpy.random.set_state({"bit_generator": "MT19937", "state": {"key": key, "pos": place["pos"]}, **spare})


def _restore_python(words: Tensor, place: Mapping[str, JsonValue]) -> None:
    random.setstate((3, (*_checked(words, place["pos"]).tolist(), place["pos"]), place["gauss"]))


def _checked(words: Tensor, position: JsonValue) -> Tensor:
    if words.shape != (624,) or words.dtype != torch.int64:
        raise ValueError(f"{words.dtype} {list(words.shape)} instead of int64 [624]")
    if not isinstance(position, int) or not 0 <= position <= 624:  # numpy would read beyond its words
        raise ValueError(f"position {position!r} is not in 0 .. 624")
    return words


def _restore_devices(states: Mapping[str, Tensor]) -> None:
    here = torch.cuda.device_count() if torch.cuda.is_available() else 0
    for name, state in states.items():
        number = int(name.removeprefix("cuda"))
        if number < here:
            torch.cuda.set_rng_state(state, number)
        else:
            message = f"random generator of {name} dropped: this machine has {here} such devices"
            warnings.warn(message, RecordWarning, stacklevel=3)


def _numpy_state() -> dict[str, Any]:
    state: dict[str, Any] = numpy.random.get_state(legacy=False)
    return state
