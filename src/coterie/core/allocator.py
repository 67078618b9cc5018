"""Memory of tensors on a CPU: freed memory is kept for the next tensors, and large tensors lie in large pages.

Activations of a training step come and go at every step. glibc hands pieces above 32 MiB, and the top of its heap, back
to the system each time, which then fills them with zeros, page by page, when they are asked for again.
"""

from __future__ import annotations

import ctypes
import gc
import mmap
import sys
from collections.abc import Callable

from torch import Tensor

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # M_TRIM_THRESHOLD and M_MMAP_MAX of malloc.h
_NEVER = -1
_WORTHWHILE = 4 << 20  # bytes


def keep_freed_memory() -> bool:
    """Let the process keep freed memory for its next tensors, to its end; harmless when called again.

    Returns:
        Whether the allocator has taken the advice: False where the C library is not glibc.

    Example:
        >>> keep_freed_memory() == keep_freed_memory()
        True
    """
    mallopt = _from_c("mallopt")
    return mallopt is not None and bool(mallopt(_MMAP_MAX, 0) and mallopt(_TRIM_THRESHOLD, _NEVER))


def advise_large_pages(fresh: Tensor) -> None:
    """Ask for large pages below a tensor that was never written, so that filling it takes few page faults.

    Nothing happens for tensors below 4 MiB, on other devices and where the system has no such pages.

    Args:
        fresh: contiguous, just made by `torch.empty`.
    """
    size = fresh.numel() * fresh.element_size()
    advise, huge = _from_c("madvise"), getattr(mmap, "MADV_HUGEPAGE", None)
    if advise is None or huge is None or fresh.device.type != "cpu" or size < _WORTHWHILE:
        return
    start = -(-fresh.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
    length = (fresh.data_ptr() + size - start) // mmap.PAGESIZE * mmap.PAGESIZE
    advise(ctypes.c_void_p(start), ctypes.c_size_t(length), huge)


def release_freed_memory() -> None:
    """Hand what was freed, and kept until now, back to the system; harmless where that cannot be asked for.

    Example:
        >>> release_freed_memory()
    """
    gc.collect()
    trim = _from_c("malloc_trim")
    if trim is not None:
        trim(0)


def _from_c(name: str) -> Callable[..., int] | None:
    """A function of glibc; None where the C library is another."""
    return getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None
