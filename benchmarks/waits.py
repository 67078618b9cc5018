"""The figure on waiting: how often a training step makes the host and an accelerator wait for each other."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.learners import make_learner
from benchmarks.methods import measurable
from benchmarks.sizes import Setting
from benchmarks.table import Row
from benchmarks.timing import Ratio, Step

_WAITS = {"_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_dim", "unique_consecutive", "equal"}
_MASKED = {"index", "index_put", "index_put_"}
_READS = ("tolist", "numpy")


class Waits(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts operations that read a value on the host or whose shape depends on values.

    Attributes:
        found: their names, in order.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: list[str] = []

    def __torch_dispatch__(
        self,
        func: torch._ops.OpOverload,
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> object:
        name = func.overloadpacket.__name__
        if name in _WAITS or (name in _MASKED and any(map(_is_mask, args[1]))):
            self.found.append(name)
        return func(*args, **(kwargs or {}))


def waits_of(step: Step, device: torch.device) -> list[str]:
    """Name the operations of a step that wait: counted by dispatch, and on CUDA by the driver too.

    Args:
        step: what is watched.
        device: where it runs.
    """
    with Waits() as waits, _reads_into(waits.found):
        step()
    return waits.found if device.type != "cuda" else [*waits.found, *_cuda_waits(step)]


def waiting(setting: Setting) -> Iterator[Row]:
    """Count the waits of a whole MCL-OKD step, and of a step of every method at a smaller size."""
    found = waits_of(make_learner(setting).step, setting.device)
    yield _row("waits.mcl_okd", "host synchronisations, MCL-OKD step", found)
    sizes = setting.sizes
    fewer = replace(sizes, batch=min(8, sizes.batch), num_train=min(2_000, sizes.num_train))
    there = replace(setting, sizes=fewer)
    total: list[str] = []
    for name in measurable(setting):
        learner = make_learner(there, name)
        total += [f"{name}: {wait}" for wait in waits_of(learner.step, setting.device)]
    yield _row("waits.methods", "host synchronisations, steps of all methods", total)


def _row(key: str, title: str, found: list[str]) -> Row:
    count = float(len(found))
    note = ", ".join(sorted(set(found)))
    return Row(key=key, title=title, measured=Ratio(count, count, count), unit="", limit=0.0, note=note)


@contextmanager
def _reads_into(found: list[str]) -> Iterator[None]:
    """Note calls that copy a tensor to Python or numpy, which no operation stands for on a CPU."""
    kept = {name: getattr(Tensor, name) for name in _READS}

    def noted(name: str) -> Any:  # noqa: ANN401 (takes the place of methods with other signatures)
        def read(tensor: Tensor, *args: Any, **options: Any) -> object:  # noqa: ANN401
            found.append(name)
            return kept[name](tensor, *args, **options)

        return read

    try:
        for name in _READS:
            setattr(Tensor, name, noted(name))
        yield
    finally:
        for name, original in kept.items():
            setattr(Tensor, name, original)


def _cuda_waits(step: Step) -> list[str]:
    torch.cuda.synchronize()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return ["synchronisation" for warning in caught if "called a synchronizing" in str(warning.message)]


def _is_mask(index: Tensor | None) -> bool:
    return index is not None and index.dtype in (torch.bool, torch.uint8)
