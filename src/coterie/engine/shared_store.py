"""Checkpoints of several processes: rank 0 writes and reads them and hands out what it has read."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy
import torch

from coterie.core.draws import mix
from coterie.core.errors import ParallelError
from coterie.core.files import JsonValue
from coterie.engine.checkpoint import CheckpointStore
from coterie.engine.keeper import PATIENCE, CheckpointKeeper
from coterie.engine.loop import Run
from coterie.engine.mesh import hand_out_peers, with_optimizers
from coterie.engine.rng_state import restore_rng, rng_tensors, rng_values
from coterie.engine.snapshot import Snapshot, as_mapping
from coterie.engine.together import Together


class SharedStore(CheckpointStore):
    """A `CheckpointStore` that only rank 0 opens, so that ranks need no disk in common.

    Args:
        folder: `checkpoints/` of a run.
        keep: how many to keep.
        keep_every: steps between those that are kept for good besides.
        together: the ranks.
    """

    def __init__(self, folder: Path, keep: int, keep_every: int, together: Together) -> None:
        super().__init__(folder, keep, keep_every)
        self.together = together

    def steps(self) -> list[int]:
        """Step numbers of the checkpoints on disk; none on other ranks than 0."""
        return super().steps() if self.together.world.writes else []

    def save(self, step: int, snapshot: Snapshot, *, now: float | None = None) -> Path:
        """Store a snapshot, on rank 0; see `CheckpointStore.save`."""
        return super().save(step, snapshot, now=now) if self.together.world.writes else self.path_of(step)

    def load_newest(self, *, read_only: bool = False) -> tuple[int, Snapshot] | None:
        """Read the newest sound checkpoint on rank 0, for all; see `CheckpointStore.load_newest`."""
        found = None
        with self.together.checked("reading a checkpoint"):
            if self.together.world.writes:
                found = super().load_newest(read_only=read_only)
        return hand_out(found, self.together)


class SharedKeeper(CheckpointKeeper):
    """A `CheckpointKeeper` of several processes: all gather what rank 0 writes.

    Ranks agree at each save on how it and the one before went, so that they fail together. In the background rank 0
    alone copies and writes. All wait at the last checkpoint before they leave, since a launcher ends the processes that
    are left when one has gone.

    Args:
        together: the ranks.
        options: those of `CheckpointKeeper`.
    """

    def __init__(self, together: Together, **options: Any) -> None:  # noqa: ANN401
        super().__init__(**options)
        self.together = together
        self.background = self.background and together.world.writes

    def on_step(self, run: Run) -> None:
        """Save when the number of batches has reached a multiple of `every`; see `CheckpointKeeper.save`."""
        if self.every and run.passed(self.every):
            self.save(run, PATIENCE)

    def snapshot(self, run: Run) -> Snapshot:
        """Gather what a checkpoint holds of a run, and the random generators of all ranks.

        Raises:
            ParallelError: ranks do not hold the same.
        """
        hand_out_peers(run.objective, self.together.world)
        own = super().snapshot(run)
        check_alike(own, self.together)
        return with_generators(with_optimizers(own, run.objective.cohort, self.together.world), self.together)

    def save(self, run: Run, patience: int = 1) -> None:
        """Write a checkpoint on rank 0; see `CheckpointKeeper.save`. What fails on one rank fails on all."""
        with self.together.checked("saving"):
            super().save(run, patience)


def hand_out(found: tuple[int, Snapshot] | None, together: Together) -> tuple[int, Snapshot] | None:
    """Give all ranks the snapshot that rank 0 has read."""
    step, snapshot = found or (-1, Snapshot())
    index = [
        [stem, name, str(tensor.dtype).removeprefix("torch."), list(tensor.shape)]
        for stem, section in snapshot.tensors.items()
        for name, tensor in section.items()
    ]
    head = json.loads(together.tell(json.dumps([step, list(snapshot.tensors), index, dict(snapshot.values)])))
    step, stems, index, values = head
    tensors: dict[str, dict[str, torch.Tensor]] = {stem: {} for stem in stems}
    for stem, name, dtype, shape in index:
        own = snapshot.tensors[stem][name].contiguous() if found else torch.empty(shape, dtype=getattr(torch, dtype))
        together.hand_out(own)
        tensors[stem][name] = own
    return None if step < 0 else (step, Snapshot(tensors=tensors, values=values))


def check_alike(snapshot: Snapshot, together: Together) -> None:
    """Compare what ranks hold by one sum for each part of it, so that none goes on with weights of its own.

    Args:
        snapshot: of this rank.
        together: the ranks, all of which must call this.

    Raises:
        ParallelError: a sum differs; the part is named.
    """
    peers = [f"peer{m}" for m in range(len(snapshot.tensors)) if f"peer{m}" in snapshot.tensors]
    names = [*peers, "method", "memory", "meters", *(f"{owner}.optim" for owner in (*peers, "method"))]
    sums = torch.stack([_sum_of(snapshot.tensors.get(stem)) for stem in names]).cpu()
    for rank, other in enumerate(together.collect(sums)):
        same = torch.isclose(sums, other, rtol=1e-6) | (sums < 0) | (other < 0)
        apart = [name for name, equal in zip(names, same.tolist(), strict=True) if not equal]
        if apart:
            raise ParallelError(
                f"rank {rank} holds another {apart[0]} than rank {together.world.rank}; resume from the last"
                " checkpoint, and let nothing but the method's own steps change weights"
            )


def _sum_of(section: Mapping[str, torch.Tensor] | None) -> torch.Tensor:
    """Sum of the absolute values of all floating point tensors, float64; -1 for what this rank has not."""
    if section is None:
        return -torch.ones((), dtype=torch.float64)
    values = [tensor.abs().sum(dtype=torch.float64) for tensor in section.values() if tensor.is_floating_point()]
    return torch.stack([value.cpu() for value in values]).sum() if values else torch.zeros((), dtype=torch.float64)


def with_generators(snapshot: Snapshot, together: Together) -> Snapshot:
    """Add the states of the other ranks' random generators to what rank 0 saves.

    Args:
        snapshot: of this rank.
        together: the ranks, all of which must call this.
    """
    own, places = rng_tensors(), rng_values()
    found = {name: together.collect(tensor) for name, tensor in own.items()}
    tensors = {**snapshot.tensors}
    values: dict[str, JsonValue] = {**snapshot.values}
    for rank, text in enumerate(together.texts(json.dumps(places))):
        if rank:
            tensors[f"rng{rank}"] = {name: states[rank] for name, states in found.items()}
            values[f"rng{rank}"] = json.loads(text)
    return Snapshot(tensors=tensors, values=values)


def restore_generators(snapshot: Snapshot, rank: int, seed: int) -> None:
    """Set the global generators of another rank than 0 to where they were; fresh ones where the run had fewer ranks.

    Args:
        snapshot: of the run.
        rank: of this process.
        seed: of the generators of this rank when nothing was saved for it.
    """
    place = [value for key in ("epoch", "position") if isinstance(value := snapshot.values.get(key), int)]
    stem = f"rng{rank}"
    if stem in snapshot.tensors:
        restore_rng(snapshot.tensors[stem], as_mapping(snapshot.value(stem)))
    elif rank:
        fresh = mix(seed, "rank", rank, *place)
        torch.manual_seed(fresh)
        numpy.random.seed(fresh % 2**32)
        random.seed(fresh)
