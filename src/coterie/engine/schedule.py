"""The learning rate as a function of the step: nothing to save, nothing to restore."""

from __future__ import annotations

import math

from coterie.config import OptimConfig

_RISE = 0.3  # share of the steps over which `one_cycle` rises


def learning_rate(config: OptimConfig, *, step: int, steps_per_epoch: int, epochs: int) -> float:
    """Learning rate of an optimiser step.

    Args:
        config: schedule, peak, warm-up, milestones.
        step: optimiser steps taken before this one.
        steps_per_epoch: optimiser steps in an epoch.
        epochs: length of the run.

    Returns:
        `lr * f(t)` with t the finished share of the run, counted in whole epochs when `config.per` is `epoch`:
        cosine `(1 + cos(pi t)) / 2` (Loshchilov and Hutter, arXiv:1608.03983, without restarts), step
        `gamma ** passed milestones`, one_cycle a linear rise and a cosine fall.

    Example:
        >>> config = OptimConfig(lr=0.1)
        >>> round(learning_rate(config, step=150, steps_per_epoch=1, epochs=300), 6)
        0.05
    """
    warmup = config.warmup_epochs * steps_per_epoch
    if step < warmup:
        return config.lr * (step + 1) / (math.ceil(warmup) + 1)
    epoch = step / steps_per_epoch if config.per == "step" else step // steps_per_epoch
    return config.lr * _factor(config, epoch, epochs)


def _factor(config: OptimConfig, epoch: float, epochs: int) -> float:
    if config.schedule == "step":
        passed = sum(epoch >= milestone for milestone in config.milestones)
        return config.gamma ** (int(epoch // config.every) if config.every else passed)
    if config.schedule == "cosine":
        return _cosine((epoch - config.warmup_epochs) / max(epochs - config.warmup_epochs, 1e-9))
    if config.schedule == "one_cycle":
        done = epoch / epochs
        return max(done / _RISE, 0.01) if done < _RISE else _cosine((done - _RISE) / (1 - _RISE))
    return 1.0


def _cosine(done: float) -> float:
    return 0.5 * (1.0 + math.cos(math.pi * min(max(done, 0.0), 1.0)))
