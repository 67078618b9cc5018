"""What a run was made with: versions and hardware, and whether two runs can be equal to the bit."""

from __future__ import annotations

import contextlib
import platform
from collections.abc import Mapping
from functools import cache
from importlib import metadata
from pathlib import Path

import numpy
import torch

from coterie.core.files import JsonValue
from coterie.core.world import world

EXACT = ("torch", "cpu_capability", "threads", "devices", "processes")
"""What must be the same for a continued run to be equal, to the bit, to one that was never interrupted."""

_SAID = {"processes": "processes that share a batch"}  # what a key counts here, where its name does not say it


def describe_environment() -> dict[str, JsonValue]:
    """Versions of what computes and names of what it computes on; nothing about the user or the machine's name."""
    return {
        "coterie": package_version(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "platform": platform.platform(),
        "cpu": _cpu_model(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "devices": [torch.cuda.get_device_name(device) for device in range(torch.cuda.device_count())],
        "processes": world().size,
        "peer_ranks": world().peers.size,
    }


def exactness_lost(before: Mapping[str, JsonValue], now: Mapping[str, JsonValue]) -> list[str]:
    """Say what changed between two environments that can change the bits of a result.

    Args:
        before: what `describe_environment` returned when the run was saved.
        now: what it returns in the process that continues the run.

    Returns:
        One entry per difference; empty when equality to the bit is promised.

    Example:
        >>> exactness_lost({"torch": "2.11.0", "threads": 2}, {"torch": "2.13.0", "threads": 2})
        ["torch '2.11.0' -> '2.13.0'"]
    """
    before, now = map(_by_batch, (before, now))
    changed = [key for key in EXACT if before.get(key) != now.get(key)]
    return [f"{_SAID.get(key, key)} {before.get(key)!r} -> {now.get(key)!r}" for key in changed]


def _by_batch(environment: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
    """The same with those processes alone that share a batch: where peers live changes no bit."""
    full: dict[str, JsonValue] = {"processes": 1, "peer_ranks": 1, **environment}
    total, ranks = full["processes"], full["peer_ranks"]
    return {**full, "processes": total // ranks} if isinstance(total, int) and isinstance(ranks, int) else full


@cache
def package_version() -> str:
    """The version of this package as it is installed, or `unknown` when it runs from bare files."""
    try:
        return metadata.version("coterie")
    except metadata.PackageNotFoundError:
        return "unknown"


def _cpu_model() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
