"""The allocator of the C library, told to keep the memory that tensors on a CPU give back.

Activations of a training step come and go at every step. glibc hands pieces above 32 MiB, and the top of its heap, back
to the system each time, which then fills them with zeros, page by page, when they are asked for again.
"""

from __future__ import annotations

import ctypes
import sys

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # M_TRIM_THRESHOLD and M_MMAP_MAX of malloc.h
_NEVER = -1


def keep_freed_memory() -> bool:
    """Let the process keep freed memory for its next tensors, to its end; harmless when called again.

    Returns:
        Whether the allocator has taken the advice: False where the C library is not glibc.

    Example:
        >>> keep_freed_memory() == keep_freed_memory()
        True
    """
    if sys.platform != "linux":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and bool(mallopt(_MMAP_MAX, 0) and mallopt(_TRIM_THRESHOLD, _NEVER))
