"""Finds where a step makes an accelerator and the host wait for each other, on any device, a CPU too."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

_WAITS = {"_local_scalar_dense", "nonzero", "masked_select", "unique_dim", "_unique2", "unique_consecutive", "equal"}
_INDEXED = {"index", "index_put", "index_put_"}
_READS = ("tolist", "numpy")


@contextmanager
def noted_waits() -> Iterator[list[str]]:
    """Context that notes operations which read a value on the host, or whose shape depends on values.

    Yields:
        Their names in the order they are met: `index` is indexing with a mask.

    Example:
        >>> values = torch.ones(3)
        >>> with noted_waits() as found:
        ...     total = values.sum().item() + len(values[values > 0])
        >>> found
        ['_local_scalar_dense', 'index']
    """
    found: list[str] = []
    kept = {name: getattr(Tensor, name) for name in _READS}  # on a CPU no operation stands for these
    try:
        for name, read in kept.items():
            setattr(Tensor, name, _noting(found, name, read))
        with _Noting(found):
            yield found
    finally:
        for name, read in kept.items():
            setattr(Tensor, name, read)


class _Noting(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self, found: list[str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._found = found

    def __torch_dispatch__(
        self,
        func: torch._ops.OpOverload,
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> object:
        name = func.overloadpacket.__name__
        if name in _WAITS or (name in _INDEXED and any(map(_is_mask, args[1]))):
            self._found.append(name)
        return func(*args, **(kwargs or {}))


def _noting(found: list[str], name: str, read: Callable[..., object]) -> Callable[..., object]:
    def noted(tensor: Tensor, *args: object, **options: object) -> object:
        found.append(name)
        return read(tensor, *args, **options)

    return noted


def _is_mask(index: Tensor | None) -> bool:
    return index is not None and index.dtype in (torch.bool, torch.uint8)
