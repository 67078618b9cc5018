"""From a loss to changed parameters: scale, backward, accumulate, clip, step, clear."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from coterie.config import OptimConfig
from coterie.core.across import in_order
from coterie.core.shards import is_shard, whole_of
from coterie.core.world import world
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
    device = next((parameter.device for parameter in parameters), torch.device("cpu"))
    groups: list[dict[str, Any]] = [{"params": parameters}]  # which may hold none, on a rank whose peers only teach
    rate = torch.tensor(config.lr, device=device) if recorded else config.lr
    in_parts = any(map(is_shard, parameters))  # no one kernel takes both such and whole ones
    fused: dict[str, Any] = {"foreach": False} if in_parts else {"fused": device.type in _FUSED or None}
    common: dict[str, Any] = {"lr": rate, "weight_decay": config.weight_decay, **fused}
    if config.name == "sgd":
        return _sgd(groups, config, common)
    kind: type[torch.optim.Adam] = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[config.name]
    return kind(groups, capturable=recorded and device.type == "cuda", **common)


def _sgd(groups: list[dict[str, Any]], config: OptimConfig, common: dict[str, Any]) -> torch.optim.SGD:
    nesterov = config.nesterov and config.momentum > 0
    sgd = torch.optim.SGD(groups, momentum=config.momentum, nesterov=nesterov, **common)
    sgd.register_step_pre_hook(_start_momentum)
    return sgd


def _start_momentum(optimizer: torch.optim.Optimizer, args: object, kwargs: object) -> None:
    """Give parameters that take their first gradient a momentum of 0: a fused step wants it of all of them or none."""
    for group in optimizer.param_groups:
        for parameter in group["params"] if group["momentum"] else ():
            if parameter.grad is not None and optimizer.state[parameter].get("momentum_buffer") is None:
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)


def _norms(parameters: Iterable[nn.Parameter]) -> list[Tensor]:
    """Norms `[]` of the gradients that there are."""
    gradients = (parameter.grad for parameter in parameters)
    return [whole_of(torch.linalg.vector_norm(gradient)) for gradient in gradients if gradient is not None]


class Stepper:
    """Turns the loss of a batch into an optimiser step.

    Args:
        optimizer: over cohort and heads.
        config: schedule, clipping, accumulation.
        precision: the scaler.
        batches_per_epoch: batches of an epoch; a last, smaller group of accumulated batches still makes a step.
        epochs: length of the run.
        common: how many parameters, the last ones, every process has where peers live in several.

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
        common: int = 0,
    ) -> None:
        self.optimizer = optimizer
        self.common = common
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
        if self.config.clip or world().spread:
            self.precision.unscale(self.optimizer)
        if self.config.clip:
            self._clip([p for group in self.optimizer.param_groups for p in group["params"]])
        self.precision.scaler.step(self.optimizer)
        self.precision.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)

    def _clip(self, parameters: list[nn.Parameter]) -> None:
        """Shorten the gradient of all processes to the largest norm, summed in the order of one process."""
        if world().mesh is None:
            nn.utils.clip_grad_norm_(parameters, self.config.clip)
            return
        first = len(parameters) - self.common
        own, shared = _norms(parameters[:first]), _norms(parameters[first:])
        like = next(chain(own, shared), torch.zeros((), device=self.precision.device))
        total = torch.linalg.vector_norm(torch.stack([*in_order(own, like), *shared]))
        nn.utils.clip_grads_with_norm_(parameters, self.config.clip, total, foreach=False)
