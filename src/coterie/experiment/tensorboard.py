"""Rows of the log as TensorBoard events, when that package is installed."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class TensorBoard:
    """Context that writes every number of a row under its dotted name; without the package it does nothing.

    Args:
        folder: where the events go; made by the first row.
        writes: whether this process writes at all.
    """

    def __init__(self, folder: Path, *, writes: bool = True) -> None:
        self.folder = folder
        self._installed = writes and importlib.util.find_spec("tensorboard") is not None
        self._writer: SummaryWriter | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._writer is not None:
            self._writer.close()

    def on_row(self, row: Mapping[str, Any]) -> None:
        """Write the numbers of a row of `metrics.jsonl` at its step."""
        if not self._installed:
            return
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(self.folder), purge_step=row["step"])
        for name, value in _numbers(row, row["kind"]):
            self._writer.add_scalar(name, value, row["step"])


def _numbers(value: object, name: str) -> Iterator[tuple[str, float]]:
    if isinstance(value, int | float) and not isinstance(value, bool):
        yield name, float(value)
    for key, inner in _parts(value):
        yield from _numbers(inner, f"{name}/{key}")


def _parts(value: object) -> Iterable[tuple[object, object]]:
    if isinstance(value, Mapping):
        return value.items()
    if isinstance(value, Sequence) and not isinstance(value, str):
        return enumerate(value)
    return ()
