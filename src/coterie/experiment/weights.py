"""First weights of peers from files: a leader that was exported, or a peer of another run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from coterie.core.errors import ConfigError
from coterie.core.files import read_json
from coterie.engine import CheckpointStore
from coterie.engine.snapshot import Tensors, restore_module
from coterie.nets.tapped import plain

_TORCH_SUFFIXES = (".pt", ".pth", ".bin", ".pkl", ".tar", ".ckpt")
_WRAPPERS = ("state_dict", "model")


def load_weights(nets: Sequence[nn.Module], sources: Sequence[str]) -> None:
    """Give peers the weights that were trained elsewhere.

    Args:
        nets: fresh peers.
        sources: one text per peer, first to last: what `read_weights` takes, or an empty text to
            leave the peer fresh. Fewer texts than peers leave the rest fresh.

    Raises:
        ConfigError: more texts than peers, or a source that does not exist, is damaged or holds more than tensors.
        CheckpointError: a source is of another network.
    """
    if len(sources) > len(nets):
        raise ConfigError(f"cohort.weights names {len(sources)} sources for {len(nets)} peers; give one per peer")
    for peer, source in enumerate(sources):
        if source:
            restore_module(plain(nets[peer]), read_weights(source), what=f"peer {peer}, given {source},")


def read_weights(source: str) -> Tensors:
    """Read the tensors of one network.

    Args:
        source: a safetensors file, a state dict that torch has saved, the folder of a run (its leader) or `RUN#2`.

    Raises:
        ConfigError: it does not exist, is damaged, or holds more than plain tensors.
    """
    place, _, number = source.partition("#")
    path = Path(place)
    if path.is_dir():
        return _of_run(path, number)
    if not path.is_file():
        raise ConfigError(f"no weights at {place!r}; give a safetensors file or the folder of a run")
    return _of_torch(path) if path.suffix in _TORCH_SUFFIXES else _of_safetensors(path)


def leader_of(folder: Path, peers: int) -> int:
    """Which peer of a run is its leader: what its result says, or else the last."""
    result = folder / "result.json"
    record = read_json(result) if result.is_file() else None
    leader = record.get("leader") if isinstance(record, dict) else None
    return leader if isinstance(leader, int) else peers - 1


def _of_safetensors(path: Path) -> Tensors:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise ConfigError(
            f"{path} is not a safetensors file ({error}); give one, or a state dict of torch in a .pt or .pth file"
        ) from None


def _of_torch(path: Path) -> Tensors:
    try:
        found: object = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds on damaged or hostile files
        why = (str(error).splitlines() or [type(error).__name__])[0]
        raise ConfigError(
            f"{path} holds more than plain tensors or is damaged, and nothing in it was run ({why[:120]}); save a state"
            " dict with safetensors.torch.save_file"
        ) from None
    return _state_dict(found, path)


def _state_dict(found: object, path: Path) -> Tensors:
    found = _unwrapped(found)
    if not isinstance(found, dict) or not all(isinstance(value, Tensor) for value in found.values()):
        raise ConfigError(f"{path} is not a state dict; save module.state_dict() with safetensors")
    return {str(name).removeprefix("module."): value for name, value in found.items()}


def _unwrapped(found: object) -> object:
    """A state dict without the dictionaries that training scripts put around it."""
    for key in _WRAPPERS:
        found = found.get(key, found) if isinstance(found, dict) else found
    return found


def _of_run(folder: Path, number: str) -> Tensors:
    found = CheckpointStore(folder / "checkpoints").load_newest(read_only=True)
    if found is None:
        raise ConfigError(f"{folder} holds no checkpoint; give the folder of a run that has saved one")
    peers = sum(stem.startswith("peer") and "." not in stem for stem in found[1].tensors)
    peer = int(number) if number.isdecimal() else leader_of(folder, peers)
    if peer >= peers:
        raise ConfigError(f"{folder} has {peers} peers and no peer {peer}; give a number below {peers}")
    return dict(found[1].section(f"peer{peer}"))
