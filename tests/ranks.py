"""Several processes that train one tiny run together, in float64, and what they and one process have in common."""

from __future__ import annotations

import gc
import os
import pickle
import tempfile
import traceback
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from coterie.config import Recipe
from coterie.core import METHODS, CoterieError
from coterie.core.record import RunFolder, read_metrics
from coterie.engine import CheckpointStore, Snapshot
from coterie.experiment import Experiment
from coterie.experiment.build import Parts
from faults import fork
from tiny import tiny

Found = tuple[str, Any]  # "ok" and what was returned, or the kind and the text of an error
WAIT = 60.0  # seconds that ranks wait for each other


def in_ranks(size: int, work: Callable[[int], Any], *, tidy: bool = True) -> list[Found]:
    """Run work in forked processes that are set up as ranks; what each returned or raised, in order."""
    with tempfile.TemporaryDirectory() as folder:
        children = [fork(lambda rank=rank: _as_rank(rank, size, Path(folder), work, tidy)) for rank in range(size)]
        codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        return [_found(Path(folder) / f"{rank}", codes[rank]) for rank in range(size)]


def _found(path: Path, code: int) -> Found:
    return pickle.loads(path.read_bytes()) if path.exists() else ("died", code)


def _as_rank(rank: int, size: int, folder: Path, work: Callable[[int], Any], tidy: bool) -> None:
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=size, timeout=timedelta(seconds=WAIT)
    )
    try:
        found: Found = ("ok", work(rank))
    except CoterieError as error:
        found = (type(error).__name__, str(error))
    except Exception as error:
        traceback.print_exc()
        found = (type(error).__name__, str(error))
    (folder / f".{rank}").write_bytes(pickle.dumps(found))
    (folder / f".{rank}").rename(folder / f"{rank}")
    if found[0] == "ok" and tidy:
        gc.collect()
        dist.destroy_process_group()


class _Doubled(nn.Module):
    """Lets a sight see images in float64."""

    def __init__(self, sight: Any) -> None:
        super().__init__()
        self.sight = sight

    def forward(self, images: Tensor) -> Tensor:
        return self.sight(images.double() if images.is_floating_point() else images)

    def shape(self, channels: int, size: int) -> tuple[int, int]:
        return self.sight.shape(channels, size)


class Precise(Experiment):
    """An experiment in float64, in which the order of a sum is all that can differ."""

    def build(self, peers: Sequence[int] = (), given: Snapshot | None = None) -> Parts:
        parts = super().build(peers, given)
        for module in (parts.cohort, parts.method, parts.teachers):
            module.double()
        parts.teachers.sights = nn.ModuleList(_Doubled(sight) for sight in parts.teachers.sights)
        object.__setattr__(parts, "sight", _Doubled(parts.sight))
        return parts


def recipe_for(method: str, **settings: object) -> Recipe:
    """A tiny recipe of a method that four ranks can share: batches of 8."""
    needs = METHODS[method.split("+")[0]].needs
    base: dict[str, object] = {
        "cohort__nets": ("cnn4_w4",) * max(2, needs.min_peers),
        "cohort__shared": needs.shared_stages,
        "cohort__frozen": (0,) if needs.teacher else (),
        "train__log_every": 2,
        "train__timeout": WAIT,
    }
    if needs.partners:
        base["cohort__leader"] = 0  # the first process speaks for it
    if needs.episode is not None:
        base |= {"method__ways": 4, "method__queries": 1, "fewshot__ways": 4}
    if needs.outer_every > 1 and hasattr(METHODS[method].Config(), "interval"):
        base |= {"method__interval": 3}
    return tiny(method, **(base | settings))


def on_mesh(recipe: Recipe, peer_ranks: int) -> Recipe:
    """The same recipe with its peers in several processes."""
    return replace(recipe, train=replace(recipe.train, peer_ranks=peer_ranks))


def train(recipe: Recipe, folder: Path, **options: bool) -> dict[str, Any]:
    """Train in float64; under `in_ranks` together with the other ranks."""
    return Precise(recipe, folder=folder, name="tiny", quiet=True).train(**options)


def difference(one: Path, other: Path) -> float:
    """The largest difference between two finished runs: state, scores and logged numbers, relative above 1."""
    states = [CheckpointStore(RunFolder(path).checkpoints).load_newest(read_only=True) for path in (one, other)]
    first, second = (_numbers(found[1].tensors) for found in states if found)
    logs = [_numbers(read_metrics(RunFolder(path).metrics)) for path in (one, other)]
    return max(_gap(first, second), _gap(*logs))


def _gap(first: dict[str, Tensor], second: dict[str, Tensor]) -> float:
    assert first.keys() == second.keys(), first.keys() ^ second.keys()
    gaps = [
        (first[name] - second[name]).abs() / first[name].abs().clamp(min=1.0) for name in first if first[name].numel()
    ]
    return max(float(gap.max()) for gap in gaps)


def _numbers(tree: Any, prefix: str = "") -> dict[str, Tensor]:
    """Every number of a tree by its path; states of random generators are not compared, other ranks have their own."""
    if isinstance(tree, dict):
        parts = tree.items()
    elif isinstance(tree, list):
        parts = enumerate(tree)
    elif isinstance(tree, Tensor):
        return {prefix: tree.double()}
    else:
        return {prefix: torch.tensor(float(tree))} if isinstance(tree, int | float) else {}
    found: dict[str, Tensor] = {}
    for key, value in parts:
        if not str(key).startswith("rng"):
            found |= _numbers(value, f"{prefix}/{key}")
    return found
