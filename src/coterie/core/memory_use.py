"""How much memory this process has needed so far, and how much there is to be had."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path

import torch


def peak_bytes(device: torch.device | str = "cpu") -> int:
    """Most memory in use at any moment so far; reading it does not wait for the device.

    Args:
        device: `cuda` for what torch has allocated there; for others the resident memory of this process.

    Returns:
        Bytes; 0 where the system does not tell.

    Example:
        >>> before = peak_bytes()
        >>> peak_bytes() >= before
        True
    """
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return _from_proc("/proc/self/status", "VmHWM") or _largest_resident()


def free_bytes(device: torch.device | str = "cpu") -> int:
    """Memory that is to be had without taking any from others.

    Args:
        device: `cuda` for its own memory; for others that of the machine.

    Returns:
        Bytes; `sys.maxsize` where the system does not tell.

    Example:
        >>> free_bytes() > 0
        True
    """
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return _from_proc("/proc/meminfo", "MemAvailable") or _physical()


def _from_proc(path: str, name: str) -> int:
    """A figure of Linux, in bytes; 0 without one.

    `getrusage` is not asked there: a process that was just started inherits the figure of the one that has started it.
    """
    with contextlib.suppress(OSError):
        for line in Path(path).read_text().splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) * 1024
    return 0


def _largest_resident() -> int:
    if sys.platform == "win32":
        return 0
    import resource

    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest if sys.platform == "darwin" else largest * 1024


def _physical() -> int:
    with contextlib.suppress(AttributeError, ValueError, OSError):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return sys.maxsize
