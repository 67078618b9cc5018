"""What a run must keep, as named tensors and plain values: gathered from live objects, checked on the way back."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn

from coterie.core.errors import CheckpointError
from coterie.core.files import JsonValue
from coterie.core.method import Memory
from coterie.core.shards import cut_as, whole_of

Tensors = dict[str, Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """The whole state of a run at one step.

    Attributes:
        tensors: by the stem of the file that holds them (`peer0`, `peer0.optim`, `method`, `memory`, ...) and by name.
        values: what JSON can hold: counters, options of the optimiser, positions. Nothing that depends on the clock
            belongs here, or equal runs have unequal digests.
    """

    tensors: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)
    values: Mapping[str, JsonValue] = field(default_factory=dict)

    def section(self, stem: str) -> Mapping[str, Tensor]:
        """The tensors of one file.

        Raises:
            CheckpointError: the checkpoint has no such file.
        """
        if stem not in self.tensors:
            raise CheckpointError(f"the checkpoint has no {stem!r}; resume with the recipe of the run that wrote it")
        return self.tensors[stem]

    def value(self, name: str) -> JsonValue:
        """One plain value.

        Raises:
            CheckpointError: the checkpoint has no such value.
        """
        if name not in self.values:
            raise CheckpointError(f"the checkpoint has no value {name!r}; resume with the version that wrote it")
        return self.values[name]

    @property
    def num_bytes(self) -> int:
        """Size of all tensors."""
        return sum(tensor.nbytes for section in self.tensors.values() for tensor in section.values())


class Plain(Protocol):
    """Something that gives the plain network of each peer, such as a `Cohort` or a list of modules."""

    def __len__(self) -> int:
        """M, the number of peers."""

    def __getitem__(self, peer: int, /) -> nn.Module:
        """The network of a peer."""


def module_tensors(module: nn.Module) -> Tensors:
    """Parameters and persistent buffers of a module, by name, detached and not copied.

    Raises:
        CheckpointError: the module keeps state that is not a tensor.
    """
    state: dict[str, object] = module.state_dict()
    tensors: Tensors = {}
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise CheckpointError(
                f"{type(module).__name__} keeps {name!r} as a {type(value).__name__}, which a checkpoint cannot hold;"
                " make it a buffer"
            )
        tensors[name] = whole_of(value.detach())
    return tensors


def peer_tensors(peers: Plain) -> dict[str, Tensors]:
    """Tensors of every peer under `peer0`, `peer1`, ...; each is a whole plain network, shared stages included."""
    return {f"peer{m}": module_tensors(peers[m]) for m in range(len(peers))}


def restore_module(module: nn.Module, tensors: Mapping[str, Tensor], *, what: str) -> None:
    """Copy tensors into a module of the same names, shapes and dtypes.

    Args:
        module: what `tensors` was gathered from, or a fresh one of the same kind.
        tensors: by name.
        what: how an error calls the module, such as `peer 0`.

    Raises:
        CheckpointError: they do not fit; then nothing was changed.
    """
    check_tensors(module_tensors(module), tensors, what=what)
    _load(module, tensors)


def restore_peers(peers: Plain, snapshot: Snapshot) -> None:
    """Copy the tensors of every peer back; all are checked before the first is changed.

    Raises:
        CheckpointError: another number of peers, or networks that do not fit.
    """
    saved = sum(stem.startswith("peer") and "." not in stem for stem in snapshot.tensors)
    if saved != len(peers):
        raise CheckpointError(f"the checkpoint has {saved} peers and the recipe {len(peers)}; set cohort.peers={saved}")
    for m in range(len(peers)):
        check_tensors(module_tensors(peers[m]), snapshot.section(f"peer{m}"), what=f"peer {m}")
    for m in range(len(peers)):
        _load(peers[m], snapshot.section(f"peer{m}"))


def _load(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    own: dict[str, Tensor] = module.state_dict()
    module.load_state_dict({name: cut_as(tensor, own[name]) for name, tensor in tensors.items()}, strict=True)


def check_tensors(expected: Mapping[str, Tensor], given: Mapping[str, Tensor], *, what: str) -> None:
    """Require the same names, shapes and dtypes.

    Args:
        expected: of the live object.
        given: of the checkpoint.
        what: how an error calls the object.

    Raises:
        CheckpointError: the first three differences, in one line.
    """
    names = dict.fromkeys([*expected, *given])
    differences = [found for name in names if (found := _difference(name, expected.get(name), given.get(name)))]
    if differences:
        more = f" and {len(differences) - 3} more" if len(differences) > 3 else ""
        raise CheckpointError(
            f"{what} does not fit the checkpoint: {', '.join(differences[:3])}{more};"
            " resume with the recipe of the run that wrote it"
        )


def memory_tensors(memories: Mapping[str, Memory]) -> Tensors:
    """Tensors of every memory of a method, under `memory/name`."""
    return {f"{key}/{name}": tensor for key in memories for name, tensor in memories[key].state().items()}


def restore_memories(memories: Mapping[str, Memory], tensors: Mapping[str, Tensor]) -> None:
    """Give every memory its tensors back; all are checked before the first is changed.

    Raises:
        CheckpointError: the memories are others or of other sizes, for instance because the data set changed.
    """
    check_tensors(memory_tensors(memories), tensors, what="the memory of the method")
    for key, memory in memories.items():
        prefix = f"{key}/"
        memory.load_state({name[len(prefix) :]: tensors[name] for name in tensors if name.startswith(prefix)})


def digest(snapshot: Snapshot) -> str:
    """SHA-256 over all names, dtypes, shapes, bits and values: equal for equal runs, whatever the device.

    Returns:
        64 hexadecimal digits.

    Example:
        >>> one = Snapshot(tensors={"peer0": {"w": torch.zeros(2)}})
        >>> digest(one) == digest(Snapshot(tensors={"peer0": {"w": torch.tensor([0.0, -0.0])}}))
        False
    """
    state = hashlib.sha256()
    for stem, section in sorted(snapshot.tensors.items()):
        for name, tensor in sorted(section.items()):
            state.update(repr((stem, name, str(tensor.dtype), tuple(tensor.shape))).encode())
            flat = tensor.detach().cpu().contiguous().reshape(-1)
            state.update(flat.view(torch.uint8).numpy().data)
    state.update(values_json(snapshot.values))
    return state.hexdigest()


def values_json(values: Mapping[str, JsonValue]) -> bytes:
    """The one spelling of plain values; floats that are not finite stay floats, as only this package reads them."""
    return json.dumps(values, sort_keys=True, indent=1, allow_nan=True).encode() + b"\n"


def as_list(value: JsonValue) -> Sequence[JsonValue]:
    """Narrow a value of a checkpoint to a list; anything else becomes an empty one, which fails the next check."""
    return value if isinstance(value, Sequence) and not isinstance(value, str) else ()


def as_count(value: JsonValue) -> int:
    """Narrow a value of a checkpoint to an integer; anything else becomes 0."""
    return value if isinstance(value, int) else 0


def as_mapping(value: JsonValue) -> Mapping[str, JsonValue]:
    """Narrow a value of a checkpoint to a mapping; anything else becomes an empty one, which fails the next check."""
    return value if isinstance(value, Mapping) else {}


def _difference(name: str, expected: Tensor | None, given: Tensor | None) -> str:
    if given is None:
        return f"{name!r} is missing"
    if expected is None:
        return f"{name!r} is not known"
    same = _kind(given) == _kind(expected)
    return "" if same else f"{name!r} is {_kind(given)} and must be {_kind(expected)}"


def _kind(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
