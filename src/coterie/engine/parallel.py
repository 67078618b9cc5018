"""A training step of several processes: one `DistributedDataParallel` per rank over cohort and method."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from inspect import signature
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from coterie.cohort import Cohort
from coterie.config import DataConfig, TrainConfig
from coterie.core.errors import ConfigError
from coterie.core.shards import is_shard
from coterie.core.types import Batch, Peers, Terms
from coterie.core.world import World, averaged
from coterie.engine.loop import Done, Run
from coterie.engine.objective import Objective
from coterie.engine.together import Together

_BUFFERS = "forward_sync_buffers", "broadcast_buffers"


class _Total(nn.Module):
    """The loss of a batch, which is all that `DistributedDataParallel` may see of a forward pass.

    It counts a parameter as used when an output depends on it; of peers' outputs that no term reads it would wait for
    gradients that never come.
    """

    def __init__(self, objective: Objective) -> None:
        super().__init__()
        self.objective = objective
        self.never_used = nn.Parameter(torch.zeros(1))  # torch warns when it looks for unused ones and finds none
        self.nothing = nn.Parameter(torch.zeros(1))
        self.said: tuple[Peers, Terms] | None = None

    def forward(self, batch: Batch) -> Tensor:
        self.said = self.objective(batch)
        total = self.said[1].total()
        return total if total.requires_grad else total + 0 * self.nothing.sum()  # only peers that teach live here

    def take(self) -> tuple[Peers, Terms]:
        """What was said in the last forward pass, which is kept no longer."""
        said, self.said = self.said, None
        assert said is not None
        return said


class ParallelStep:
    """Takes a step together with the other ranks; see `coterie.engine.loop.Step`.

    Each rank runs its peers on its share of the batch and the method on what all peers have said, and
    `DistributedDataParallel` averages the gradients over the ranks that hold the same peers, if there are several.
    Parameters that no term reaches keep no gradient, as in one process. Of accumulated batches only the last one's
    backward pass exchanges gradients.

    Args:
        together: the ranks.
    """

    def __init__(self, together: Together) -> None:
        self.together = together
        self._total: nn.Module | None = None

    def __call__(self, run: Run, images: Batch) -> Done:
        """Take a step on this rank's share of a batch, at the learning rate the stepper was aimed at.

        Raises:
            ParallelError: the other ranks are gone or do not answer in time.
        """
        with self.together.phase("step", run.batches), self.together.contact():
            return self._step(run, images)

    def _step(self, run: Run, images: Batch) -> Done:
        total = self._spread(run.objective)
        with _exchange_of(total, wanted=run.stepper.idle):
            with run.precision.autocast():
                batch = run.objective.prepare(images)
                loss = total(batch)
            run.stepper.apply(loss)
        peers, terms = _inner(total).take()
        with torch.no_grad():
            if not self.together.world.global_norm:
                average_statistics(run.objective)
            run.objective.method.after_step(peers, batch)
        return Done(batch, peers, terms)

    def _spread(self, objective: Objective) -> nn.Module:
        if self._total is None:
            self._total = spread(objective, self.together.world)
        return self._total


def _exchange_of(total: nn.Module, *, wanted: bool) -> AbstractContextManager[None]:
    """Context whose backward pass exchanges gradients, where several ranks hold the same peers, if it is wanted."""
    shared = isinstance(total, DistributedDataParallel)
    return total.no_sync() if shared and not wanted else nullcontext()  # type: ignore[operator]


def _inner(total: nn.Module) -> _Total:
    inner = total.module if isinstance(total, DistributedDataParallel) else total
    assert isinstance(inner, _Total)
    return inner


def spread(objective: Objective, world: World) -> nn.Module:
    """Wrap an objective, whose weights then become those of the first rank that holds the same peers.

    Args:
        objective: the same on all of these ranks; nothing else may run its forward pass for a step.
        world: the ranks.

    Returns:
        What gives the loss of a batch, and exchanges gradients where several ranks hold the same peers.
    """
    total = _Total(objective).to(next(objective.method.parameters(), next(objective.cohort.parameters())).device)
    if world.data.size == 1:
        return total
    # running statistics are the same everywhere, or averaged; torch 2.13 has another word for leaving them alone
    words = signature(DistributedDataParallel).parameters
    no_buffers: dict[str, Any] = {next(word for word in _BUFFERS if word in words): False}
    ignored = _ignored(total, objective.cohort)
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(total, ignored)  # type: ignore[no-untyped-call]
    return DistributedDataParallel(total, process_group=world.data.group, find_unused_parameters=True, **no_buffers)


def _ignored(total: nn.Module, cohort: Cohort) -> list[str]:
    """Names of what is not to be exchanged: what lives elsewhere, and parts, which see to it themselves."""
    away = set(map(id, cohort.elsewhere()))
    named = (*total.named_parameters(), *total.named_buffers())
    return [name for name, tensor in named if id(tensor) in away or is_shard(tensor)]


def average_statistics(objective: Objective) -> None:
    """Average the peers' running statistics over the ranks, where each normalises by its own images."""
    buffers = _statistics_here(objective.cohort)
    for buffer, mean in zip(buffers, averaged(buffers), strict=True):
        buffer.copy_(mean)


def _statistics_here(cohort: Cohort) -> list[Tensor]:
    """Running statistics of the peers that live here, shared ones once."""
    own = chain.from_iterable(cohort.nets[m].buffers() for m in cohort.here)
    return list({id(buffer): buffer for buffer in own if buffer.is_floating_point()}.values())


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
    ranks = world.data.size
    if images % ranks:
        knob = f"data.batch_size={images}" if images == data.batch_size else f"an episode of {images} images"
        raise ConfigError(
            f"{knob} cannot be split evenly over {ranks} processes; give a multiple of {ranks}, it counts"
            " the images of all processes"
        )
    if train.compile != "none":
        raise ConfigError(
            f"train.compile={train.compile} is for one process and {world.size} train together; set train.compile=none"
        )
