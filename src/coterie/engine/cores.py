"""Where the processes of one machine compute, and that the threads that carry their messages do not push them aside.

Linux likes to wake a process on the core of the one whose message it waited for, where both then take turns. And a
thread of gloo that finds its connection in use by the thread it has just pushed aside asks again and again until the
scheduler ends its slice, some 3 ms later: as long as a small layer takes.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_GLOO = ("gloo_tcp_loop", "pt_gloo_runloop")  # names of threads


@contextmanager
def own_cores(number: int, count: int) -> Iterator[None]:
    """Context in which this thread, and what it starts, keeps to its part of the machine's cores.

    Nothing changes where somebody has chosen cores already, there are fewer of them than processes, or the system
    cannot be asked.

    Args:
        number: of this process on its machine, from 0.
        count: processes on this machine.
    """
    found = _free_cores()
    part = len(found) // count
    if count == 1 or not part:
        yield
        return
    os.sched_setaffinity(0, found[number * part : (number + 1) * part])
    try:
        yield
    finally:
        os.sched_setaffinity(0, found)


def calm_messengers() -> None:
    """Let gloo's threads run when a core is free, instead of when a message comes; new ones are not affected."""
    for task in Path("/proc/self/task").glob("*"):
        with suppress(OSError):  # a thread that has just ended
            if (task / "comm").read_text().strip() in _GLOO:
                os.sched_setscheduler(int(task.name), os.SCHED_BATCH, os.sched_param(0))


def usable_cores() -> int:
    """Number of cores that this process may use; of the machine, where the system cannot be asked."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def _free_cores() -> list[int]:
    """All cores of this machine if this thread may use all of them, else none."""
    if sys.platform != "linux":
        return []
    found = sorted(os.sched_getaffinity(0))
    return found if len(found) == os.cpu_count() else []
