"""Named points where a test can stop the process: the only way to prove that a writer may die anywhere.

A test hook and nothing else. While the environment variable `COTERIE_CRASH_AT` is unset, a point does nothing. Set to
`name:count`, the process kills itself with SIGKILL when it passes point `name` for the `count`-th time; `*` counts
every point. A third part names another signal: `manifest-written:1:SIGTERM` asks for a polite stop in mid-save.
"""

from __future__ import annotations

import os
import signal
from collections import Counter

VARIABLE = "COTERIE_CRASH_AT"

_passed: Counter[str] = Counter()


def crash_point(name: str) -> None:
    """Mark a place in a writer; kills the process there when a test asked for it.

    Args:
        name: what has just been done, such as `tensors-written`; the same name may be passed many times.
    """
    plan = os.environ.get(VARIABLE)
    if plan:
        _pass(name, plan)


def points_passed() -> int:
    """How many points this process passed while the variable was set; the length of a list of places to crash at."""
    return _passed["*"]


def _pass(name: str, plan: str) -> None:
    _passed[name] += 1
    _passed["*"] += 1
    wanted, count, kind = (*plan.split(":"), "SIGKILL")[:3]
    if wanted in (name, "*") and _passed[wanted] == int(count):
        os.kill(os.getpid(), signal.Signals[kind])
