"""From a loss to changed parameters: scale, backward, accumulate, clip, step, clear."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from coterie.config import OptimConfig
from coterie.engine.precision import Precision
from coterie.engine.schedule import learning_rate


def make_optimizer(parameters: Iterable[nn.Parameter], config: OptimConfig) -> torch.optim.Optimizer:
    """Build the optimiser that a configuration names, over all given parameters alike.

    Args:
        parameters: weights, biases, normalisation and heads; weight decay applies to all, as in the papers' code.
        config: name, rate, momentum, decay.
    """
    if config.name != "sgd":
        kind: type[torch.optim.Adam] = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[config.name]
        return kind(parameters, lr=config.lr, weight_decay=config.weight_decay)
    return torch.optim.SGD(
        parameters,
        lr=config.lr,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
        nesterov=config.nesterov and config.momentum > 0,
    )


class Stepper:
    """Turns the loss of a batch into an optimiser step.

    Args:
        optimizer: over cohort and heads.
        config: schedule, clipping, accumulation.
        precision: the scaler.
        batches_per_epoch: batches of an epoch; a last, smaller group of accumulated batches still makes a step.
        epochs: length of the run.

    Attributes:
        rate: learning rate of the last step.
        idle: whether no gradients are waiting for further batches; only then may a checkpoint be written.
        group: batches of the step that the last batch belongs to.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        config: OptimConfig,
        precision: Precision,
        *,
        batches_per_epoch: int,
        epochs: int,
    ) -> None:
        self.optimizer = optimizer
        self.config = config
        self.precision = precision
        self.batches_per_epoch = batches_per_epoch
        self.steps_per_epoch = -(-batches_per_epoch // config.accumulate)
        self.epochs = epochs
        self.rate = 0.0
        self.idle = True
        self.group = 1

    def __call__(self, loss: Tensor, epoch: int, position: int) -> None:
        """Back-propagate, and step when enough batches were accumulated.

        Args:
            loss: `[]`, with gradient.
            epoch: counted from 0.
            position: of the batch within the epoch.
        """
        number, place = divmod(position, self.config.accumulate)
        self.group = min(self.config.accumulate, self.batches_per_epoch - number * self.config.accumulate)
        self.precision.scaler.scale(loss / self.group).backward()  # type: ignore[no-untyped-call]
        self.idle = place == self.group - 1
        if self.idle:
            self._step(epoch * self.steps_per_epoch + number)

    def _step(self, step: int) -> None:
        self.rate = learning_rate(self.config, step=step, steps_per_epoch=self.steps_per_epoch, epochs=self.epochs)
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate
        if self.config.clip:
            self.precision.scaler.unscale_(self.optimizer)
            parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
            nn.utils.clip_grad_norm_(parameters, self.config.clip)
        self.precision.scaler.step(self.optimizer)
        self.precision.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
