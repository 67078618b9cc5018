"""The training loop, top to bottom: batch, objective, step, memories, watchers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol, TypeAlias

import torch
from torch import Tensor

from coterie.core.method import Outer
from coterie.core.types import Batch, Peers, Terms
from coterie.data import Loader
from coterie.engine.interrupt import Interrupt, Preempted
from coterie.engine.objective import Objective
from coterie.engine.precision import Precision
from coterie.engine.stepper import Stepper


@dataclass(slots=True)
class Clock:
    """Where a run stands: between two batches.

    Attributes:
        epoch: finished epochs.
        position: batches done in the current epoch.
    """

    epoch: int = 0
    position: int = 0


class Watcher(Protocol):
    """Looks at a run without changing it."""

    def on_step(self, run: Run, peers: Peers, terms: Terms, batch: Batch) -> None:
        """Called after every batch, without gradient; the clock already counts the batch."""

    def on_epoch(self, run: Run) -> None:
        """Called when the last batch of an epoch is done, before the clock moves to the next epoch."""


class Keeper(Protocol):
    """Writes checkpoints; told apart from watchers because its moments decide what a restart repeats."""

    def on_step(self, run: Run) -> None:
        """Called after every batch, after the watchers, when no gradients are waiting."""

    def on_epoch(self, run: Run) -> None:
        """Called after every epoch, when the clock stands at the start of the next."""

    def save(self, run: Run) -> None:
        """Write a checkpoint of this moment."""


class Stop(Protocol):
    """Whether the run was asked to stop after the step it is at: `asked`."""

    asked: bool


class Done(NamedTuple):
    """What a step leaves for watchers; its tensors may be overwritten by the next step."""

    batch: Batch
    peers: Peers
    terms: Terms


Step: TypeAlias = Callable[["Run", Batch], Done]


def take_step(run: Run, images: Batch) -> Done:
    """Turn a batch into changed weights and memories: everything of a step that happens on the device."""
    with run.precision.autocast():
        batch = run.objective.prepare(images)
        peers, terms = run.objective(batch)
        loss = terms.total()
    run.stepper.apply(loss)
    with torch.no_grad():
        run.objective.method.after_step(peers, batch)
    return Done(batch, peers, terms)


@dataclass(slots=True)
class Run:
    """Everything a loop touches.

    Attributes:
        objective: cohort and method.
        stepper: loss to changed parameters.
        loader: batches by epoch and position.
        precision: autocast of the forward pass.
        epochs: length of the run.
        keeper: writes checkpoints.
        watchers: logs, displays, evaluation; in the order they are called.
        interrupt: the flag that signals raise, in this process or another one of the run.
        clock: where the run stands.
        held_out: the peers' logits and the labels of the validation split, for methods that ask for them.
        step: takes a step; `take_step`, or a recording of it.
    """

    objective: Objective
    stepper: Stepper
    loader: Loader
    precision: Precision
    epochs: int
    keeper: Keeper
    watchers: Sequence[Watcher] = ()
    interrupt: Stop = field(default_factory=Interrupt)
    clock: Clock = field(default_factory=Clock)
    held_out: Callable[[], Iterable[tuple[Sequence[Tensor], Tensor]]] = tuple
    step: Step = take_step

    @property
    def batches(self) -> int:
        """Batches done since the run began."""
        return self.clock.epoch * self.loader.batches_per_epoch + self.clock.position

    def passed(self, every: int) -> bool:
        """Whether an optimiser step was just taken with whose batches the count reached a multiple of `every`."""
        return self.stepper.idle and self.batches % every < self.stepper.group


def fit(run: Run) -> None:
    """Train from where the clock stands to the last epoch.

    Raises:
        Preempted: a signal asked for a stop; a checkpoint was written first.
    """
    while run.clock.epoch < run.epochs:
        train_epoch(run)
        with torch.no_grad():
            run.objective.method.after_epoch(run.held_out())
        for watcher in run.watchers:
            watcher.on_epoch(run)
        run.clock = Clock(epoch=run.clock.epoch + 1)
        run.keeper.on_epoch(run)


def train_epoch(run: Run) -> None:
    """Go through the rest of the current epoch; with `take_step`, the whole algorithm."""
    run.objective.train()
    method = run.objective.method
    outer_every = method.requirements().outer_every
    for images in run.loader.batches(run.clock.epoch, run.clock.position):
        run.stepper.aim(run.clock.epoch, run.clock.position)
        batch, peers, terms = run.step(run, images)
        run.clock.position += 1
        if outer_every and run.passed(outer_every):
            method.outer_step(_outer(run, batch))
        with torch.no_grad():
            for watcher in run.watchers:
                watcher.on_step(run, peers, terms, batch)
        if run.stepper.idle:
            run.keeper.on_step(run)
            _stop_if_asked(run)


def _outer(run: Run, batch: Batch) -> Outer:
    for parameter in run.objective.method.outer_parameters():
        parameter.grad = None  # the main loss has left its gradient here, which the main optimiser does not clear
    objective = run.objective
    return Outer(batch=batch, cohort=objective.cohort, forward=objective.peers, optimizer=run.stepper.optimizer)


def _stop_if_asked(run: Run) -> None:
    if run.interrupt.asked:
        run.keeper.save(run)
        raise Preempted(f"stopped after {run.batches} batches and saved")
