"""First weights of peers from files: a leader that was exported, or a peer of another run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file

from coterie.cohort import Cohort
from coterie.core.errors import CheckpointError, ConfigError
from coterie.core.files import read_json
from coterie.engine import CheckpointStore
from coterie.engine.snapshot import Tensors, restore_module


def load_weights(cohort: Cohort, sources: Sequence[str]) -> None:
    """Give peers the weights that were trained elsewhere.

    Args:
        cohort: fresh peers.
        sources: one text per peer, first to last: a safetensors file, the folder of a run (its leader), `RUN#2` (its
            peer 2), or an empty text to leave the peer fresh. Fewer texts than peers leave the rest fresh.

    Raises:
        ConfigError: more texts than peers, or a source that does not exist.
        CheckpointError: a source is damaged, is not safetensors, or is of another network.
    """
    if len(sources) > len(cohort):
        raise ConfigError(f"cohort.weights names {len(sources)} sources for {len(cohort)} peers; give one per peer")
    for peer, source in enumerate(sources):
        if source:
            restore_module(cohort[peer], _read(source), what=f"peer {peer}, given {source},")


def _read(source: str) -> Tensors:
    place, _, number = source.partition("#")
    path = Path(place)
    if path.is_dir():
        return _of_run(path, number)
    if not path.is_file():
        raise ConfigError(f"no weights at {place!r}; give a safetensors file or the folder of a run")
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is not a safetensors file ({error}); nothing else is loaded") from None


def _of_run(folder: Path, number: str) -> Tensors:
    found = CheckpointStore(folder / "checkpoints").load_newest(read_only=True)
    if found is None:
        raise ConfigError(f"{folder} holds no checkpoint; give the folder of a run that has saved one")
    peers = sum(stem.startswith("peer") and "." not in stem for stem in found[1].tensors)
    peer = int(number) if number.isdecimal() else _leader(folder, peers)
    if peer >= peers:
        raise ConfigError(f"{folder} has {peers} peers and no peer {peer}; give a number below {peers}")
    return dict(found[1].section(f"peer{peer}"))


def _leader(folder: Path, peers: int) -> int:
    result = folder / "result.json"
    record = read_json(result) if result.is_file() else None
    leader = record.get("leader") if isinstance(record, dict) else None
    return leader if isinstance(leader, int) else peers - 1
