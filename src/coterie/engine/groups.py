"""How processes meet, in a store and in groups: in about as long as a wait may take, also if somebody dies or hangs."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import Future
from datetime import timedelta
from typing import TYPE_CHECKING

import torch.distributed as dist

if TYPE_CHECKING:
    from torch.distributed.distributed_c10d import Store

_TRIES = 5  # gloo waits as often for a connection, as long as the group's own waits each time
_SHORTEST = timedelta(seconds=3)


def connecting(timeout: timedelta) -> timedelta:
    """The time-out to make a group of gloo with, for all its connections to be there, or given up, in `timeout`.

    Example:
        >>> connecting(timedelta(minutes=10))
        datetime.timedelta(seconds=120)
    """
    return min(timeout, max(timeout / _TRIES, _SHORTEST))


def make_group(
    timeout: timedelta,
    *,
    ranks: Sequence[int] | None = None,
    backend: str | None = None,
    patience: timedelta | None = None,
) -> dist.ProcessGroup:
    """Make a group; all processes must call this, and be there.

    Args:
        timeout: how long processes wait for each other while it is made.
        ranks: that take part; all by default.
        backend: that of the default group by default.
        patience: how long they wait for each other in it; `timeout` by default.
    """
    gloo = (backend or dist.get_backend()) == "gloo"
    group: dist.ProcessGroup = dist.new_group(
        None if ranks is None else list(ranks), backend=backend, timeout=connecting(timeout) if gloo else timeout
    )
    if ranks is None or dist.get_rank() in ranks:
        set_patience(group, patience or timeout)
    return group


def open_store(timeout: timedelta) -> tuple[Store, int, int]:
    """Find the store that a launcher's variables name, the rank of this process, and the number of processes.

    Torch waits for a connection as long as it is told, and then, without limit, for the first answer of whatever has
    taken it: a process that hangs, or another service.

    Args:
        timeout: how long to wait, for each of the two.

    Returns:
        Store, rank and number of processes.

    Raises:
        ValueError: not all of the variables are set.
        RuntimeError: nobody listens there, or what listens does not answer.
    """
    from torch.distributed.rendezvous import rendezvous

    limit = 2 * timeout.total_seconds()
    found: Future[tuple[Store, int, int]] = Future()

    def ask() -> None:
        try:
            found.set_result(next(rendezvous("env://", timeout=timeout)))
        except Exception as error:
            found.set_exception(error)

    threading.Thread(target=ask, name="rendezvous", daemon=True).start()
    try:
        return found.result(limit)
    except TimeoutError:
        raise RuntimeError(f"what listens there has not answered in {limit:g} s") from None


def set_patience(group: dist.ProcessGroup | None, patience: timedelta) -> None:
    """Say how long processes wait for each other in a group from now on; None is the default group."""
    from torch.distributed.distributed_c10d import _set_pg_timeout

    _set_pg_timeout(patience, group)


def wait_for_all(store: Store, size: int, timeout: timedelta) -> None:
    """Wait until as many processes have called this.

    Args:
        store: of them alone.
        size: their number.
        timeout: how long to wait for the last one.

    Raises:
        RuntimeError: it did not come.
    """
    if store.add("here", 1) >= size:
        store.set("all", "here")
    store.wait(["all"], timeout)
