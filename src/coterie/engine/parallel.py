"""A training step of several processes: one `DistributedDataParallel` per rank over cohort and method."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from coterie.config import DataConfig, TrainConfig
from coterie.core.errors import ConfigError, ParallelError, one_line
from coterie.core.types import Batch, Peers, Terms
from coterie.core.world import World, averaged
from coterie.engine.loop import Done, Run
from coterie.engine.objective import Objective
from coterie.engine.together import Together

_BUFFERS = "forward_sync_buffers", "broadcast_buffers"
_LOST = ("gloo", "nccl", "timed out", "connection closed", "connection reset", "broken pipe", "process group")


class _Total(nn.Module):
    """The loss of a batch, which is all that `DistributedDataParallel` may see of a forward pass.

    It counts a parameter as used when an output depends on it; of peers' outputs that no term reads it would wait for
    gradients that never come.
    """

    def __init__(self, objective: Objective) -> None:
        super().__init__()
        self.objective = objective
        self.never_used = nn.Parameter(torch.zeros(1))  # torch warns when it looks for unused ones and finds none
        self.said: tuple[Peers, Terms] | None = None

    def forward(self, batch: Batch) -> Tensor:
        self.said = self.objective(batch)
        return self.said[1].total()


class ParallelStep:
    """Takes a step together with the other ranks; see `coterie.engine.loop.Step`.

    Each rank runs the peers on its share of the batch and the method on what all peers have said, and
    `DistributedDataParallel` averages the gradients. Parameters that no term reaches keep no gradient, as in one
    process. Of accumulated batches only the last one's backward pass exchanges gradients.

    Args:
        together: the ranks.
    """

    def __init__(self, together: Together) -> None:
        self.together = together
        self._total: DistributedDataParallel | None = None

    def __call__(self, run: Run, images: Batch) -> Done:
        """Take a step on this rank's share of a batch, at the learning rate the stepper was aimed at.

        Raises:
            ParallelError: the other ranks are gone or do not answer in time.
        """
        with self.together.phase("step", run.batches), _losses_of_contact(self.together):
            return self._step(run, images)

    def _step(self, run: Run, images: Batch) -> Done:
        if self._total is None:
            self._total = spread(run.objective, self.together.world)
        exchange = nullcontext() if run.stepper.idle else self._total.no_sync()
        with exchange:
            with run.precision.autocast():
                batch = run.objective.prepare(images)
                loss = self._total(batch)
            run.stepper.apply(loss)
        said, self._total.module.said = self._total.module.said, None
        peers, terms = said
        with torch.no_grad():
            if not self.together.world.global_norm:
                average_statistics(run.objective)
            run.objective.method.after_step(peers, batch)
        return Done(batch, peers, terms)


def spread(objective: Objective, world: World) -> DistributedDataParallel:
    """Wrap an objective, whose weights then become those of rank 0.

    Args:
        objective: the same on all ranks; nothing else may run its forward pass for a step.
        world: the ranks.
    """
    # running statistics are the same everywhere, or averaged; torch 2.13 has another word for leaving them alone
    words = signature(DistributedDataParallel).parameters
    no_buffers: dict[str, Any] = {next(word for word in _BUFFERS if word in words): False}
    total = _Total(objective).to(next(objective.parameters()).device)
    return DistributedDataParallel(total, process_group=world.group, find_unused_parameters=True, **no_buffers)


def average_statistics(objective: Objective) -> None:
    """Average the peers' running statistics over the ranks, where each normalises by its own images."""
    buffers = [buffer for buffer in objective.cohort.buffers() if buffer.is_floating_point()]
    for buffer, mean in zip(buffers, averaged(buffers), strict=True):
        buffer.copy_(mean)


def check_spreadable(data: DataConfig, train: TrainConfig, images: int, world: World) -> None:
    """Refuse what several processes cannot do alike.

    Args:
        data: names the batch size.
        train: names compilation.
        images: in a batch, of all ranks.
        world: the ranks.

    Raises:
        ConfigError: batches cannot be split evenly, or the step is compiled or recorded.
    """
    if world.alone:
        return
    if images % world.size:
        knob = f"data.batch_size={images}" if images == data.batch_size else f"an episode of {images} images"
        raise ConfigError(
            f"{knob} cannot be split evenly over {world.size} processes; give a multiple of {world.size}, it counts"
            " the images of all processes"
        )
    if train.compile != "none":
        raise ConfigError(
            f"train.compile={train.compile} is for one process and {world.size} train together; set train.compile=none"
        )


@contextmanager
def _losses_of_contact(together: Together) -> Iterator[None]:
    """Turn what torch raises when ranks are gone into one line that names them."""
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, torch.OutOfMemoryError) or not any(word in str(error).lower() for word in _LOST):
            raise
        raise ParallelError(f"{together.missing()} ({one_line(error)[:120]})") from error
