"""A step that is recorded once, as a CUDA graph, and then repeated: one launch in place of thousands.

A graph repeats the same kernels on the same addresses. Therefore a batch is copied into tensors that stay, the learning
rate is a tensor, and everything the step changes is changed in its place. Steps taken before the recording, in which
libraries choose kernels and memories take their places, are undone to the bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from coterie.config import OptimConfig, TrainConfig
from coterie.core.errors import ConfigError
from coterie.core.method import Method
from coterie.core.types import Batch
from coterie.engine.loop import Done, Run, take_step
from coterie.engine.rng_state import restore_rng, rng_tensors, rng_values
from coterie.engine.snapshot import memory_tensors

_WARM_UP = 3  # steps; autograd and cuDNN settle in the first two


class Recorder(Protocol):
    """Turns a function that works on fixed tensors into one that repeats what it did."""

    def warm_up(self, step: Callable[[], Done]) -> None:
        """Call a step as it will be recorded, to be undone by the caller."""

    def record(self, step: Callable[[], Done]) -> Callable[[], Done]:
        """Note what a step does without doing it; return what does it."""


class CudaRecorder:
    """Records by a CUDA graph.

    Args:
        device: on which the step runs.
    """

    def __init__(self, device: torch.device) -> None:
        self.stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def warm_up(self, step: Callable[[], Done]) -> None:
        """Run the step beside the stream of everything else, as recording does."""
        self.stream.wait_stream(torch.cuda.current_stream(self.stream.device))
        with torch.cuda.stream(self.stream):
            step()
        torch.cuda.current_stream(self.stream.device).wait_stream(self.stream)

    def record(self, step: Callable[[], Done]) -> Callable[[], Done]:
        """Capture the step; each call of what is returned replays it and gives the same tensors, overwritten.

        Raises:
            ConfigError: the step reads from the device or does something else that cannot be captured.
        """
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, stream=self.stream):
                done = step()
        except RuntimeError as error:
            raise _refusal(str(error).splitlines()[0]) from error

        def replay() -> Done:
            graph.replay()
            return done

        return replay


class RecordedStep:
    """Takes the steps of a run by repeating a recording, made at the first batch; see `coterie.engine.loop.Step`.

    Batches of another shape than the first are stepped in the ordinary way.

    Args:
        recorder: how a step is recorded.
    """

    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder
        self._batch: Batch | None = None
        self._replay: Callable[[], Done] | None = None

    def __call__(self, run: Run, images: Batch) -> Done:
        """Take a step on a batch, at the learning rate the stepper was aimed at."""
        if self._batch is None or self._replay is None:
            self._batch = _clone(images)
            self._replay = self._record(run, self._batch)
        if not _alike(self._batch, images):
            return take_step(run, images)
        torch._foreach_copy_(list(_tensors(self._batch).values()), list(_tensors(images).values()))
        return self._replay()

    def _record(self, run: Run, batch: Batch) -> Callable[[], Done]:
        def step() -> Done:
            return take_step(run, batch)

        with _undone(run):
            for _ in range(_WARM_UP):
                self.recorder.warm_up(step)
        return self.recorder.record(step)


def check_recordable(method: Method, optim: OptimConfig, train: TrainConfig, device: torch.device) -> None:
    """Refuse runs whose step is not the same work each time, and devices that cannot record.

    Raises:
        ConfigError: a device other than CUDA, float16, accumulated batches, or a method that takes outer steps.
    """
    refused = {
        f"on {device.type}, only on CUDA": device.type != "cuda",
        "the gradient scaling of train.precision=float16": train.precision == "float16",
        f"optim.accumulate={optim.accumulate}": optim.accumulate > 1,
        f"the outer steps of {type(method).__name__}": method.requirements().outer_every > 0,
    }
    for what, found in refused.items():
        if found:
            raise _refusal(what)


@contextmanager
def _undone(run: Run) -> Iterator[None]:
    """Put back, in place, everything that steps change; what they add to the optimiser's state becomes 0.

    Raises:
        ConfigError: a memory of the method is no longer where it was.
    """
    live = _live(run)
    kept = {name: tensor.clone() for name, tensor in live.items()}
    known = {id(value): value.clone() for value in _states(run)}
    generators, places = rng_tensors(), rng_values()
    yield
    moved = [name for name, tensor in _live(run).items() if tensor.data_ptr() != live[name].data_ptr()]
    if moved:
        raise _refusal(f"a step that puts {moved[0]} somewhere else each time")
    with torch.no_grad():
        for name, tensor in live.items():
            tensor.copy_(kept[name])
        for value in _states(run):
            value.copy_(known.get(id(value), torch.zeros_like(value)))
    restore_rng(generators, places)


def _live(run: Run) -> dict[str, Tensor]:
    """Everything that a step changes, but for the optimiser's own state, by name."""
    objective = run.objective
    memories = {f"memory {name}": tensor for name, tensor in memory_tensors(objective.method.memories).items()}
    named = {**dict(objective.named_parameters()), **dict(objective.named_buffers()), **memories}
    return {name: tensor.detach() for name, tensor in named.items()}


def _states(run: Run) -> list[Tensor]:
    """The tensors that the optimiser keeps: momentum, counters."""
    states = run.stepper.optimizer.state.values()
    return [value for state in states for value in state.values() if isinstance(value, Tensor)]


def _tensors(batch: Batch) -> dict[str, Tensor]:
    values = {part.name: getattr(batch, part.name) for part in fields(batch)}
    return {name: value for name, value in values.items() if isinstance(value, Tensor)}


def _clone(batch: Batch) -> Batch:
    copies: dict[str, Any] = {name: tensor.clone() for name, tensor in _tensors(batch).items()}
    return replace(batch, **copies)


def _alike(one: Batch, other: Batch) -> bool:
    return all(
        (a.shape, a.dtype, a.device) == (b.shape, b.dtype, b.device)
        for a, b in zip(_tensors(one).values(), _tensors(other).values(), strict=True)
    )


def _refusal(what: str) -> ConfigError:
    return ConfigError(f"train.compile=graph cannot record {what}; set train.compile=none or default")
