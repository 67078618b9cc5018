"""Peers that come and go: the parts of a run between which the cohort stays the same, and how one becomes the next."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from coterie.cohort import Cohort
from coterie.config import Recipe
from coterie.core.errors import ConfigError
from coterie.core.method import Method
from coterie.engine import Run, Snapshot
from coterie.engine.optim_state import adopt_optimizer, joined_owners, parameter_names
from coterie.engine.snapshot import Tensors, as_count, as_list, restore_module
from coterie.memory.bank import MemoryBank


@dataclass(frozen=True, slots=True)
class Phase:
    """Epochs in which the cohort stays the same.

    Attributes:
        start: the first epoch, counted from 0.
        end: the epoch after the last.
        peers: who takes part, by number in the recipe.
    """

    start: int
    end: int
    peers: tuple[int, ...]


def phases_of(recipe: Recipe) -> tuple[Phase, ...]:
    """Cut a run where peers join or leave.

    Raises:
        ConfigError: more epochs than peers, a peer that leaves before it joins, or a leader that is not there
            throughout.
    """
    count = len(recipe.cohort.nets) or recipe.cohort.peers
    joins = _one_each("joins", recipe.cohort.joins, count)
    leaves = _one_each("leaves", recipe.cohort.leaves, count)
    ends = [leave or recipe.epochs for leave in leaves]
    _check(recipe, joins, ends)
    cuts = sorted({0, recipe.epochs, *joins, *ends})
    return tuple(
        Phase(start, end, tuple(m for m in range(count) if joins[m] <= start < ends[m]))
        for start, end in pairwise(cuts)
    )


def phase_at(recipe: Recipe, epoch: int) -> Phase:
    """The phase that trains an epoch; after the last epoch, the last phase."""
    phases = phases_of(recipe)
    return next((phase for phase in phases if epoch < phase.end), phases[-1])


def epoch_of(snapshot: Snapshot) -> int:
    """Finished epochs when a snapshot was taken."""
    return as_count(snapshot.value("epoch"))


def peers_in(snapshot: Snapshot, recipe: Recipe) -> tuple[int, ...]:
    """Who took part when a snapshot was taken, by number in the recipe."""
    if "peers" not in snapshot.values:
        return phases_of(recipe)[0].peers
    return tuple(m for m in as_list(snapshot.value("peers")) if isinstance(m, int))


def adopt_peers(cohort: Cohort, peers: Sequence[int], snapshot: Snapshot, before: Sequence[int]) -> None:
    """Give the peers that stay their weights; those that join keep what they have.

    Args:
        cohort: freshly built.
        peers: who takes part, by number in the recipe.
        snapshot: the end of the phase before.
        before: who took part in it.

    Raises:
        CheckpointError: a network does not fit.
    """
    for place, peer in enumerate(peers):
        if peer in before:
            section = snapshot.section(f"peer{before.index(peer)}")
            restore_module(cohort[place], section, what=f"peer {peer}")


def adopt_rest(run: Run, peers: Sequence[int], snapshot: Snapshot, before: Sequence[int]) -> None:
    """Carry over what belongs to the peers that stay: heads, rows of memory banks, state of the optimiser.

    Lists of modules in a method hold as many for each peer, in order of peers. What does not fit the new cohort, such
    as a gate over all peers, starts fresh.

    Args:
        run: of the new cohort, whose peers have their weights.
        peers: who takes part, by number in the recipe.
        snapshot: the end of the phase before.
        before: who took part in it.
    """
    cohort, method = run.objective.cohort, run.objective.method
    places = {place: before.index(peer) for place, peer in enumerate(peers) if peer in before}
    names = dict(_old_names(method, places, len(peers)))
    _fill(method.state_dict(), names, snapshot.section("method"))
    _adopt_rows(method, snapshot, places)
    state = _expanded(joined_owners(snapshot.tensors), snapshot, before)
    renamed = {f"method.{new}": f"method.{old}" for new, old in names.items()} | _renamed_peers(cohort, places)
    adopt_optimizer(run.stepper.optimizer, parameter_names(cohort, method), state, renamed)


def _adopt_rows(method: Method, snapshot: Snapshot, places: Mapping[int, int]) -> None:
    for key, memory in method.memories.items():
        rows = snapshot.section("memory").get(f"{key}/rows")
        if isinstance(memory, MemoryBank) and rows is not None:
            memory.adopt(rows, places)


def _renamed_peers(cohort: Cohort, places: Mapping[int, int]) -> dict[str, str]:
    """Old names of the parameters of the peers that stay, by their new ones."""
    return {
        f"peer{new}.{name}": f"peer{old}.{name}"
        for new, old in places.items()
        for name, _ in cohort[new].named_parameters()
    }


def _one_each(name: str, given: Sequence[int], count: int) -> list[int]:
    if len(given) > count or any(epoch < 0 for epoch in given):
        raise ConfigError(f"cohort.{name}={list(given)} for {count} peers; give one epoch, 0 or later, for each peer")
    return [*given, *[0] * (count - len(given))]


def _check(recipe: Recipe, joins: Sequence[int], ends: Sequence[int]) -> None:
    leader = recipe.cohort.leader % len(joins)
    if joins[leader] or ends[leader] < recipe.epochs:
        raise ConfigError(f"the leader, peer {leader}, is there from first to last; let other peers join or leave")
    for peer, (join, end) in enumerate(zip(joins, ends, strict=True)):
        if not join < end <= recipe.epochs:
            raise ConfigError(
                f"peer {peer} joins before epoch {join} and leaves before epoch {end} of {recipe.epochs};"
                " let it join first and leave later, within the run"
            )


def _old_names(method: Method, places: Mapping[int, int], now: int) -> Iterator[tuple[str, str]]:
    """New and old name of every tensor of a method that can be carried over."""
    lists = {path: len(module) // now for path, module in method.named_modules() if _is_per_peer(module, now)}
    for name in method.state_dict():
        owner = _owner(name, lists)
        if owner is None:
            yield name, name
            continue
        number, _, rest = name.removeprefix(f"{owner}.").partition(".")
        place, part = divmod(int(number), lists[owner])
        if place in places:
            yield name, f"{owner}.{places[place] * lists[owner] + part}.{rest}"


def _is_per_peer(module: nn.Module, peers: int) -> bool:
    return isinstance(module, nn.ModuleList) and len(module) > 0 and len(module) % peers == 0


@torch.no_grad()
def _owner(name: str, lists: Iterable[str]) -> str | None:
    """The list of modules that a tensor belongs to."""
    return next((path for path in lists if name.startswith(f"{path}.")), None)


def _fill(tensors: Mapping[str, Tensor], names: Mapping[str, str], saved: Mapping[str, Tensor]) -> None:
    for new, old in names.items():
        if old in saved and saved[old].shape == tensors[new].shape:
            tensors[new].copy_(saved[old])


def _expanded(state: Tensors, snapshot: Snapshot, before: Sequence[int]) -> Tensors:
    """State of shared parameters under the name of every peer that has them; it was saved under the first one's."""
    found = dict(state)
    for entry, tensor in state.items():
        owner, _, rest = entry.partition(".")
        name = rest.rpartition("/")[0]
        for place in range(len(before)):
            if owner.startswith("peer") and _same(snapshot, owner, f"peer{place}", name):
                found.setdefault(f"peer{place}.{rest}", tensor)
    return found


def _same(snapshot: Snapshot, first: str, second: str, name: str) -> bool:
    one, other = snapshot.section(first).get(name), snapshot.section(second).get(name)
    return one is not None and other is not None and torch.equal(one, other)
