"""Batches on their way from the CPU to the device, while the device still computes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor


def moved(batches: Iterable[tuple[Tensor, Tensor]], device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """Bring each batch to a device.

    To a CUDA device they go from pinned memory on a stream of their own, so that a copy runs beside the step before it;
    the stream that computes waits for it there, and the CPU for nothing.

    Args:
        batches: images, and labels or rows, on the CPU, pinned or not.
        device: where they are wanted.

    Yields:
        The two tensors of each batch, for use on the stream that is current when it is asked for.
    """
    if device.type != "cuda":
        yield from ((images.to(device), others.to(device)) for images, others in batches)
        return
    copies = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    for images, others in batches:
        yield _copied(images, device, copies), _copied(others, device, copies)


def _copied(tensor: Tensor, device: torch.device, copies: torch.cuda.Stream) -> Tensor:
    current = torch.cuda.current_stream(device)
    with torch.cuda.stream(copies):
        found = tensor.pin_memory().to(device, non_blocking=True)
    current.wait_stream(copies)
    found.record_stream(current)  # its memory belongs to the other stream, which must not use it again too early
    return found
