"""Processes as a mesh, `peer` x `data`: who holds which peers, and how what they hold comes together in a checkpoint.

A checkpoint has the layout of one process: whole networks and the whole state of the optimiser, by names of peers. A
run that was begun on one mesh therefore goes on on any other, or in one process.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from itertools import chain, count
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

from coterie.cohort import Cohort
from coterie.cohort.ema import CohortCopy, copies_among
from coterie.config import TrainConfig
from coterie.core.across import packed, unpacked
from coterie.core.errors import ConfigError
from coterie.core.files import JsonValue
from coterie.core.method import Needs
from coterie.core.world import Line, World
from coterie.engine.groups import make_group
from coterie.engine.objective import Objective
from coterie.engine.snapshot import Snapshot, Tensors, as_list, as_mapping, module_tensors

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

_OPTIM = ".optim"
_METHOD = ("method.",)
_visits = chain([""], map(str, count(1)))  # a process may train several times


def check_mesh(train: TrainConfig, size: int) -> None:
    """Refuse a mesh that does not have as many places as there are processes.

    Args:
        train: says over how many processes the peers are split, and whether they are cut into parts.
        size: all processes.

    Raises:
        ConfigError: one does not divide the other, or there is one process for all parts of a peer.
    """
    peer_ranks = train.peer_ranks
    if train.shard and size == peer_ranks:
        raise ConfigError(
            f"train.shard cuts each peer into parts and there is one process for all of them; start more than"
            f" {peer_ranks}, or set train.shard=false"
        )
    if peer_ranks < 1 or size % peer_ranks:
        raise ConfigError(
            f"train.peer_ranks={peer_ranks} and {size} process{'es' * (size > 1)} train together; give a number that"
            " divides theirs, 1 for all peers in each"
        )


def lines(rank: int, size: int, train: TrainConfig, timeout: timedelta) -> dict[str, Any]:
    """Make the groups of a mesh; all processes must call this.

    Args:
        rank: of this process.
        size: number of processes.
        train: says over how many processes the peers are split, and whether they are cut into parts.
        timeout: how long ranks wait for each other.

    Returns:
        What `World` takes as `peers`, `rows` and `mesh`; nothing where every process holds all of all peers.
    """
    if train.peer_ranks == 1 and not train.shard:
        return {}
    places = torch.arange(size).view(train.peer_ranks, -1)
    row, column = divmod(rank, places.shape[1])
    peers, rows = _line(places.T, column, row, timeout), _line(places, row, column, timeout)
    return {"peers": peers, "rows": rows, "mesh": _mesh(places, [peers.group, rows.group])}


def _line(lines: Tensor, own: int, place: int, timeout: timedelta) -> Line:
    """Make the groups of parallel lines of ranks `[lines, ranks]`; this process has a place in its own one."""
    groups = [make_group(timeout, ranks=line) for line in lines.tolist()]
    return Line(rank=place, size=lines.shape[1], group=groups[own])


def _mesh(places: Tensor, groups: list[dist.ProcessGroup | None]) -> DeviceMesh:
    from torch.distributed.device_mesh import DeviceMesh

    kind = {"nccl": "cuda"}.get(dist.get_backend(), "cpu")
    visit = next(_visits)  # torch remembers meshes by their names, and takes a later one for one whose groups are gone
    names = (f"peer{visit}", f"data{visit}")
    return DeviceMesh.from_group(groups, kind, mesh=places, mesh_dim_names=names)  # type: ignore[arg-type]


def groups_of(world: World) -> list[dist.ProcessGroup | None]:
    """The groups that were made for a world, in an order that is the same in all processes."""
    own = (world.control, world.patient, world.peers.group, world.data.group)
    return [group for group in own if group is not None]


def divide(cohort: Cohort, world: World) -> None:
    """Keep the peers that live in this process.

    Args:
        cohort: freshly built, the same in all processes.
        world: the ranks.

    Raises:
        ConfigError: peers cannot be split evenly, or share stages with peers elsewhere.
    """
    if not world.spread:
        return
    ranks = world.peers.size
    if len(cohort) % ranks:
        raise ConfigError(
            f"{len(cohort)} peers cannot be split evenly over train.peer_ranks={ranks}; give as many peers on each"
        )
    cohort.keep(world.block(len(cohort)))


def check_divisible(name: str, needs: Needs, cohort: Cohort, world: World) -> None:
    """Refuse a method that cannot have its peers in several processes.

    Args:
        name: of the method.
        needs: of the method.
        cohort: divided.
        world: the ranks.

    Raises:
        ConfigError: it reads more of peers than what they say.
    """
    if not world.spread:
        return
    if needs.one_place:
        raise ConfigError(
            f"{name} uses more of its peers than what they say, so all must live in one process; set train.peer_ranks=1"
        )
    if needs.outer_every:
        _check_outer(name, cohort)


def _check_outer(name: str, cohort: Cohort) -> None:
    size = len(cohort.here)
    blocks = [list(range(first, first + size)) for first in range(0, len(cohort), size)]
    idle = next(filter(cohort.frozen.issuperset, blocks), None)
    if idle:
        raise ConfigError(
            f"{name} takes outer steps, for which a peer must learn in every process, and peers {idle} are frozen; set"
            " train.peer_ranks=1"
        )


def cohorts_of(objective: Objective) -> list[Cohort]:
    """The cohort and all copies of it that its method keeps."""
    copies = copies_among(objective.method.memories.values())
    return [objective.cohort, *chain.from_iterable(map(CohortCopy.cohorts, copies))]


@torch.no_grad()
def hand_out_peers(objective: Objective, world: World) -> None:
    """Let the modules of peers that live elsewhere have their weights; all processes must call this.

    Args:
        objective: its cohort, and the copies that its method keeps.
        world: the ranks.
    """
    if not world.spread:
        return
    for cohort in cohorts_of(objective):
        for m in range(len(cohort)):
            _hand_out_peer(cohort, m, world)


def _hand_out_peer(cohort: Cohort, m: int, world: World) -> None:
    tensors = list(module_tensors(cohort[m]).values())
    row = packed(tensors).cpu()
    dist.broadcast(row, world.owner(m, len(cohort)), group=world.control)
    if m not in cohort.here:
        torch._foreach_copy_(tensors, unpacked(row, tensors))


def with_optimizers(own: Snapshot, cohort: Cohort, world: World) -> Snapshot:
    """Add the optimiser's state of the peers that live elsewhere to what rank 0 saves; all processes must call this.

    Args:
        own: gathered in this process, with the optimiser's state of its own peers.
        cohort: divided.
        world: the ranks.
    """
    if not world.spread:
        return own
    entries = list(_entries(own, [f"peer{m}{_OPTIM}" for m in cohort.here]))
    index = [(stem, name, str(t.dtype).removeprefix("torch."), list(t.shape)) for stem, name, t in entries]
    names, heads = _split(_names_in(own))
    said = world.texts(json.dumps([index, names]))[:: world.data.size]
    indices, peers = zip(*map(json.loads, said), strict=True)
    tensors = {**own.tensors, **_exchanged(entries, indices, world)}
    return _with(own, tensors, [*chain.from_iterable(peers), *heads])


def part_of(snapshot: Snapshot, cohort: Cohort) -> Snapshot:
    """What a process takes of a whole snapshot: of the optimiser's state only that of its own peers.

    Args:
        snapshot: of one process.
        cohort: divided, or not.
    """
    if not cohort.divided:
        return snapshot
    away = sorted(set(range(len(cohort))).difference(cohort.here))
    stems = _without(snapshot.tensors, [f"peer{m}{_OPTIM}" for m in away])
    names = _without(_names_in(snapshot), [f"peer{m}." for m in away])
    return _with(snapshot, {stem: snapshot.tensors[stem] for stem in stems}, names)


def _entries(snapshot: Snapshot, stems: Sequence[str]) -> Iterator[tuple[str, str, Tensor]]:
    for stem in stems:
        for name, tensor in snapshot.tensors.get(stem, {}).items():
            yield stem, name, tensor


def _exchanged(
    entries: Sequence[tuple[str, str, Tensor]], indices: Sequence[Sequence[Any]], world: World
) -> dict[str, Tensors]:
    """Send rank 0 the tensors of the own peers, once for all ranks that hold them; on rank 0 all that were sent."""
    if world.data.rank:
        return {}
    if world.rank:
        dist.send(packed([tensor.cpu() for *_, tensor in entries]), 0, group=world.control)
        return {}
    places = range(world.data.size, world.size, world.data.size)
    found: dict[str, Tensors] = {}
    for place, index in zip(places, indices[1:], strict=True):
        found |= _received(index, place, world)
    return found


def _received(index: Sequence[Any], source: int, world: World) -> dict[str, Tensors]:
    likes = [torch.empty(shape, dtype=getattr(torch, dtype), device="meta") for _, _, dtype, shape in index]
    row = torch.empty(sum(like.nbytes for like in likes), dtype=torch.uint8)
    dist.recv(row, source, group=world.control)
    found: dict[str, Tensors] = {}
    for (stem, name, *_), tensor in zip(index, unpacked(row, likes), strict=True):
        found.setdefault(stem, {})[name] = tensor
    return found


def _names_in(snapshot: Snapshot) -> list[str]:
    """Names of the parameters that the optimiser changes; there is one group of them."""
    (group,) = as_list(as_mapping(snapshot.value("optimizer")).get("groups"))
    return [str(name) for name in as_list(as_mapping(group).get("names"))]


def _split(names: Sequence[str]) -> tuple[list[str], list[str]]:
    """Names of the peers' parameters, and of the method's, which every process has."""
    return _without(names, _METHOD), [name for name in names if name.startswith(_METHOD)]


def _without(names: Iterable[str], beginnings: Iterable[str]) -> list[str]:
    """Names that begin with none of some words."""
    left_out = tuple(beginnings)
    return [name for name in names if not name.startswith(left_out)]


def _with(snapshot: Snapshot, tensors: Mapping[str, Mapping[str, Tensor]], names: Sequence[str]) -> Snapshot:
    """A snapshot with other tensors, and with the options of the optimiser for other parameters."""
    optimizer: Mapping[str, JsonValue] = as_mapping(snapshot.value("optimizer"))
    (group,) = as_list(optimizer.get("groups"))
    renamed: JsonValue = {**optimizer, "groups": [{**as_mapping(group), "names": list(names)}]}
    return replace(snapshot, tensors=tensors, values={**snapshot.values, "optimizer": renamed})
