"""Seeded, stratified choices of rows: a validation split, or fewer images."""

from __future__ import annotations

import torch
from torch import Tensor

from coterie.core import draws
from coterie.core.errors import ConfigError


def hold_out(labels: Tensor, share: float, seed: int) -> tuple[Tensor, Tensor]:
    """Divide a training set so that both parts have the classes in the same proportions.

    Args:
        labels: `[N]` int64 in `[0, K)`.
        share: part of the images to hold out, in `[0, 1)`.
        seed: key of the choice.

    Returns:
        Rows to train on and rows held out, int64, ascending. Every class keeps at least one image to train on.

    Raises:
        ConfigError: the share is not in `[0, 1)`.

    Example:
        >>> train, held = hold_out(torch.tensor([0, 0, 0, 1, 1, 1]), 1 / 3, seed=0)
        >>> len(train), len(held)
        (4, 2)
    """
    if not 0 <= share < 1:
        raise ConfigError(f"data.validation={share} is not a share; give a number from 0 to below 1")
    counts = torch.bincount(labels)
    total = max(1, round(share * len(labels))) if share else 0
    quota = torch.minimum(_apportion(counts, total), (counts - 1).clamp(min=0))
    held = _pick(labels, quota, draws.mix(seed, "validation"))
    return torch.nonzero(~held).flatten(), torch.nonzero(held).flatten()


def limit_rows(labels: Tensor, limit: int, seed: int) -> Tensor:
    """Choose rows so that the classes keep their proportions and each keeps at least one image.

    Args:
        labels: `[N]` int64 in `[0, K)`.
        limit: number of rows to keep; 0, or N and more, keeps all.
        seed: key of the choice.

    Returns:
        Rows, int64, ascending.

    Raises:
        ConfigError: the limit is negative, or smaller than the number of classes.
    """
    counts = torch.bincount(labels)
    present = int((counts > 0).sum())
    if limit < 0 or 0 < limit < present:
        raise ConfigError(f"data.limit={limit} is less than one image for each of {present} classes; raise it")
    if limit == 0 or limit >= len(labels):
        return torch.arange(len(labels))
    quota = counts.clamp(max=1) + _apportion((counts - 1).clamp(min=0), limit - present)
    return torch.nonzero(_pick(labels, quota, draws.mix(seed, "limit"))).flatten()


def limit_per_class(labels: Tensor, limit: int, seed: int) -> Tensor:
    """Choose at most so many rows of each class.

    Args:
        labels: `[N]` int64 in `[0, K)`.
        limit: number of rows to keep of each class; 0 keeps all.
        seed: key of the choice.

    Returns:
        Rows, int64, ascending.

    Raises:
        ConfigError: the limit is negative.

    Example:
        >>> labels = torch.tensor([0, 0, 0, 1, 2, 2])
        >>> labels[limit_per_class(labels, 2, seed=0)].tolist()
        [0, 0, 1, 2, 2]
    """
    if limit < 0:
        raise ConfigError(f"a limit of {limit} images per class is negative; give 0 for all of them, or more")
    if not limit:
        return torch.arange(len(labels))
    return torch.nonzero(_pick(labels, torch.bincount(labels).clamp(max=limit), draws.mix(seed, "limit"))).flatten()


def _apportion(counts: Tensor, total: int) -> Tensor:
    """Divide `total` among classes in proportion to `counts` `[K]`, by largest remainders."""
    exact = counts.to(torch.float64) * total / max(1, int(counts.sum()))
    quota = exact.floor().to(torch.int64)
    rest = total - int(quota.sum())
    quota[torch.argsort(quota - exact, stable=True)[:rest]] += 1
    return quota


def _pick(labels: Tensor, quota: Tensor, key: int) -> Tensor:
    """Mark, in each class, as many random rows as its quota `[K]` says: `[N]` bool."""
    shuffled = draws.permutation(key, len(labels))
    by_class = shuffled[torch.argsort(labels[shuffled], stable=True)]
    counts = torch.bincount(labels, minlength=len(quota))
    starts = torch.cumsum(counts, 0) - counts
    rank = torch.arange(len(labels)) - starts[labels[by_class]]
    chosen = torch.zeros(len(labels), dtype=torch.bool)
    chosen[by_class[rank < quota[labels[by_class]]]] = True
    return chosen
