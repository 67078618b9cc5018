"""From a loss to changed parameters: scale, backward, accumulate, clip, step, clear."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from coterie.config import OptimConfig
from coterie.engine.precision import Precision
from coterie.engine.schedule import learning_rate

_FUSED = ("cpu", "cuda")  # devices on which one kernel changes all parameters


def make_optimizer(
    parameters: Iterable[nn.Parameter], config: OptimConfig, *, recorded: bool = False
) -> torch.optim.Optimizer:
    """Build the optimiser that a configuration names, over all given parameters alike.

    One fused kernel changes all parameters where torch has one, which is on a CPU and on CUDA.

    Args:
        parameters: weights, biases, normalisation and heads, all on one device; weight decay applies to all, as in the
            papers' code.
        config: name, rate, momentum, decay.
        recorded: keep the learning rate and all counters as tensors beside the parameters, so that a step can be
            recorded once and repeated with other rates.
    """
    parameters = list(parameters)
    device = parameters[0].device
    rate = torch.tensor(config.lr, device=device) if recorded else config.lr
    common: dict[str, Any] = {"lr": rate, "weight_decay": config.weight_decay, "fused": device.type in _FUSED or None}
    if config.name != "sgd":
        kind: type[torch.optim.Adam] = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[config.name]
        return kind(parameters, capturable=recorded and device.type == "cuda", **common)
    nesterov = config.nesterov and config.momentum > 0
    sgd = torch.optim.SGD(parameters, momentum=config.momentum, nesterov=nesterov, **common)
    sgd.register_step_pre_hook(_start_momentum)
    return sgd


def _start_momentum(optimizer: torch.optim.Optimizer, args: object, kwargs: object) -> None:
    """Give parameters that take their first gradient a momentum of 0: a fused step wants it of all of them or none."""
    for group in optimizer.param_groups:
        for parameter in group["params"] if group["momentum"] else ():
            if parameter.grad is not None and optimizer.state[parameter].get("momentum_buffer") is None:
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)


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
        """Back-propagate, and step when enough batches were accumulated: `aim`, then `apply`.

        Args:
            loss: `[]`, with gradient.
            epoch: counted from 0.
            position: of the batch within the epoch.
        """
        self.aim(epoch, position)
        self.apply(loss)

    def aim(self, epoch: int, position: int) -> None:
        """Say which batch comes next: whether a step ends with it, and at which learning rate.

        Args:
            epoch: counted from 0.
            position: of the batch within the epoch.
        """
        number, place = divmod(position, self.config.accumulate)
        self.group = min(self.config.accumulate, self.batches_per_epoch - number * self.config.accumulate)
        self.idle = place == self.group - 1
        if self.idle:
            self._set_rate(epoch * self.steps_per_epoch + number)

    def apply(self, loss: Tensor) -> None:
        """Back-propagate the loss `[]` of the batch that was aimed at, and step when it ends a step."""
        self.precision.scaler.scale(loss / self.group).backward()  # type: ignore[no-untyped-call]
        if self.idle:
            self._step()

    def _set_rate(self, step: int) -> None:
        self.rate = learning_rate(self.config, step=step, steps_per_epoch=self.steps_per_epoch, epochs=self.epochs)
        for group in self.optimizer.param_groups:
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(self.rate)  # in its place, where a recorded step reads it
            else:
                group["lr"] = self.rate

    def _step(self) -> None:
        if self.config.clip:
            self.precision.scaler.unscale_(self.optimizer)
            parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
            nn.utils.clip_grad_norm_(parameters, self.config.clip)
        self.precision.scaler.step(self.optimizer)
        self.precision.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
