"""Joining the processes that `torchrun`, or any launcher that sets the same variables, has started."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from itertools import count
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist

from coterie.config import TrainConfig
from coterie.core.errors import ConfigError, ParallelError, one_line
from coterie.core.world import ALONE, World, inside
from coterie.engine.cores import calm_messengers, own_cores
from coterie.engine.groups import connecting, make_group, open_store, set_patience, wait_for_all
from coterie.engine.interrupt import Interrupt
from coterie.engine.mesh import check_mesh, groups_of, lines
from coterie.engine.together import Together

if TYPE_CHECKING:
    from torch.distributed.distributed_c10d import Store

_FOREVER = timedelta(days=7)
_visits = count()  # a process may train several times: each time under other names
_unsafe = False  # whether there are groups, or attempts at them, of ours that nobody has taken down


@contextmanager
def joined(train: TrainConfig, interrupt: Interrupt) -> Iterator[Together]:
    """Context in which this process trains together with the others of its launch, or alone.

    Groups that a program has set up before it calls this library are used and stay; gloo's threads give way to those
    that compute from then on, see `calm_messengers`. Our groups are taken down at the end if all went well; after an
    error a process ends by `leave`, as the others may be gone.

    Args:
        train: device, time-out, and whose statistics batch norm uses.
        interrupt: the flag that signals raise in this process.

    Raises:
        ConfigError: the launcher's variables are incomplete, the device cannot be shared, or the peers cannot be split
            over so many processes.
        ParallelError: the other processes cannot be reached in time.
    """
    ours = not (dist.is_available() and dist.is_initialized())
    size = _number("WORLD_SIZE", 1) if ours else dist.get_world_size()
    check_mesh(train, size)
    if size == 1:
        yield Together(ALONE, interrupt)
        return
    on_cuda = _take_device(train.device)
    here = 1 if on_cuda or not ours else _number("LOCAL_WORLD_SIZE", 1)
    with own_cores(_number("LOCAL_RANK", 0), here), _met(train, interrupt, on_cuda, ours) as together:
        yield together


@contextmanager
def _met(train: TrainConfig, interrupt: Interrupt, on_cuda: bool, ours: bool) -> Iterator[Together]:
    """Context in which the groups are there; see `joined`."""
    global _unsafe
    timeout = timedelta(seconds=train.timeout)
    if ours:
        _set_up("nccl" if on_cuda else "gloo", timeout)
    _unsafe = ours
    try:
        together = Together(_world(train, timeout), interrupt, _notes())
    except RuntimeError as error:
        raise ParallelError(f"lost the other processes before all had met ({one_line(error)[:120]})") from error
    calm_messengers()
    with inside(together.world):
        yield together
    if ours:
        gc.collect()  # a wrapper that outlives its group brings the process down at its end
    for group in (*groups_of(together.world), *[None] * ours):
        dist.destroy_process_group(group)
    _unsafe = False


def leave(status: int) -> int:
    """Give back the exit status of a process, or end it at once where its groups could not be taken down.

    Args:
        status: of the process.
    """
    if _unsafe:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    return status


def _world(train: TrainConfig, timeout: timedelta) -> World:
    rank, size = dist.get_rank(), dist.get_world_size()
    return World(
        rank=rank,
        size=size,
        **lines(rank, size, train, timeout),
        control=make_group(timeout, backend="gloo"),
        patient=make_group(timeout, backend="gloo", patience=_FOREVER),
        global_norm=train.sync_batch_norm,
    )


def _notes() -> Store:
    """Where ranks note what they are doing."""
    from torch.distributed.distributed_c10d import PrefixStore, _get_default_store

    return PrefixStore(f"coterie-notes{next(_visits)}", _get_default_store())


def _set_up(backend: str, timeout: timedelta) -> None:
    global _unsafe
    from torch.distributed.distributed_c10d import PrefixStore

    place = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
    try:
        store, rank, size = open_store(timeout)
        store.set_timeout(timeout)
        own = PrefixStore(f"coterie{next(_visits)}", store)
        wait_for_all(own, size, timeout)
        short = connecting(timeout) if backend == "gloo" else timeout
        dist.init_process_group(backend, store=own, rank=rank, world_size=size, timeout=short)
        set_patience(None, timeout)
    except ValueError as error:
        raise ConfigError(f"WORLD_SIZE is set and not all of the launcher's variables: {one_line(error)}") from None
    except RuntimeError as error:
        _unsafe = True  # a thread may be waiting still
        raise ParallelError(
            f"cannot reach the other processes at {place} ({one_line(error)[:120]}); start all of them, and let"
            " MASTER_ADDR and MASTER_PORT name the first one's host and a free port"
        ) from error


def _take_device(name: str) -> bool:
    """Make this process's accelerator the current one; whether there is one.

    Raises:
        ConfigError: one device is named for several processes.
    """
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    kind = name if name != "auto" else "cpu" if accelerator is None else accelerator.type
    here = _number("LOCAL_WORLD_SIZE", 1)
    if ":" in kind and here > 1:
        raise ConfigError(f"train.device={name!r} is one device for {here} processes; set train.device=auto")
    if not kind.startswith("cuda") or not torch.cuda.is_available():
        return False
    place = _number("LOCAL_RANK", 0)
    if ":" not in kind:
        if place >= torch.cuda.device_count():
            raise ConfigError(
                f"process {place} of this machine finds {torch.cuda.device_count()} CUDA devices; start one process"
                " for each device, or set train.device=cpu"
            )
        torch.cuda.set_device(place)
    return True


def _number(variable: str, default: int) -> int:
    text = os.environ.get(variable, str(default))
    if not text.isdecimal():
        raise ConfigError(f"{variable}={text!r} is no number; start processes with torchrun")
    return int(text)
