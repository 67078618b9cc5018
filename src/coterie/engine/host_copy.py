"""A copy of the state of a run in host memory, which stays as it was while training goes on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy

import torch
from torch import Tensor

from coterie.engine.snapshot import Snapshot, Tensors
from coterie.engine.tensor_files import in_file_order

_Kinds = list[tuple[str, torch.dtype, torch.Size]]


class HostCopy:
    """Copies snapshots into memory that is used again for the next one, so that saving allocates it once.

    Each section lies in one buffer, in the order of its file. The memory is pinned where tensors come from CUDA, whose
    copies then run side by side; it is as large as what a checkpoint holds.

    Example:
        >>> weight, copy = torch.ones(2), HostCopy()
        >>> snapshot = copy.take(Snapshot(tensors={"peer0": {"w": weight}}))
        >>> _ = weight.zero_()
        >>> snapshot.section("peer0")["w"].tolist(), copy.num_bytes
        ([1.0, 1.0], 8)
    """

    def __init__(self) -> None:
        self._sections: dict[str, tuple[_Kinds, Tensors]] = {}

    @property
    def num_bytes(self) -> int:
        """Size of the buffers."""
        return sum(tensor.nbytes for _, views in self._sections.values() for tensor in views.values())

    @torch.no_grad()
    def take(self, snapshot: Snapshot) -> Snapshot:
        """Copy tensors and values; the copy before is overwritten.

        Args:
            snapshot: of live tensors, on any device.

        Returns:
            Contiguous tensors in host memory, whole when this returns.

        Raises:
            CheckpointError: a tensor cannot be stored.
        """
        self._sections = {stem: self._section(stem, tensors) for stem, tensors in snapshot.tensors.items()}
        tensors = {stem: views for stem, (_, views) in self._sections.items()}
        pairs = [(tensors[stem][name], tensor.detach()) for stem, name, tensor in _each(snapshot)]
        if pairs:  # torch refuses empty lists
            _overwrite(*map(list, zip(*pairs, strict=True)))
        return Snapshot(tensors=tensors, values=deepcopy(dict(snapshot.values)))

    def _section(self, stem: str, tensors: Mapping[str, Tensor]) -> tuple[_Kinds, Tensors]:
        ordered = in_file_order(tensors)
        kinds = [(name, tensor.dtype, tensor.shape) for name, tensor in ordered]
        before, views = self._sections.get(stem, (None, {}))
        return kinds, views if before == kinds else _buffer_for(ordered)


def _buffer_for(ordered: Sequence[tuple[str, Tensor]]) -> dict[str, Tensor]:
    """Memory for tensors, by name."""
    sizes = [tensor.nbytes for _, tensor in ordered]
    pinned = any(tensor.is_cuda for _, tensor in ordered)
    parts = torch.split(torch.empty(sum(sizes), dtype=torch.uint8, pin_memory=pinned), sizes)
    pairs = zip(parts, ordered, strict=True)
    return {name: part.view(tensor.dtype).view(tensor.shape) for part, (name, tensor) in pairs}


def _each(snapshot: Snapshot) -> Iterator[tuple[str, str, Tensor]]:
    for stem, section in snapshot.tensors.items():
        for name, tensor in section.items():
            yield stem, name, tensor


def _overwrite(copies: list[Tensor], sources: list[Tensor]) -> None:
    devices = {tensor.device for tensor in sources if tensor.is_cuda}
    torch._foreach_copy_(copies, sources, non_blocking=bool(devices))
    for device in devices:
        torch.cuda.synchronize(device)
