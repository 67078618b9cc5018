"""What teachers say about all training images, kept on disk: computed once, read by every run that needs the same."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from coterie.cohort import Teachers
from coterie.config import Recipe
from coterie.core.errors import ConfigError
from coterie.core.files import reason
from coterie.core.method import Needs
from coterie.core.types import PeerOutput
from coterie.data import Opened
from coterie.experiment.teachers import digest_of

_MIB = 2**20


def check_taught(recipe: Recipe, needs: Needs, num_teachers: int) -> None:
    """Refuse teachers that nobody learns from, and a cache that would not say what they say.

    Args:
        recipe: names teachers and cache.
        needs: of the method.
        num_teachers: outside the cohort.

    Raises:
        ConfigError: with the remedy.
    """
    if num_teachers and not needs.teacher:
        raise ConfigError(
            f"teacher.weights is given and {recipe.method} learns from no teacher; leave it out, or add a method that"
            f" does, as in method={recipe.method}+kd"
        )
    if recipe.teacher.cache:
        _check_cache(recipe, needs)


def _check_cache(recipe: Recipe, needs: Needs) -> None:
    """Images must be the same in every epoch, and scores and embeddings be enough."""
    data = recipe.data
    if data.augment != "none" or data.flip:
        raise ConfigError(
            f"teacher.cache needs images that are the same in every epoch and got data.augment={data.augment!r},"
            f" data.flip={str(data.flip).lower()}; set data.augment=none data.flip=false, or leave teacher.cache empty"
        )
    if needs.stage_maps or needs.preactivations:
        raise ConfigError(
            f"teacher.cache keeps scores and embeddings, and {recipe.method} compares maps; leave teacher.cache empty"
        )


def cache_size(teachers: Teachers, num_images: int) -> float:
    """MiB that a cache takes for so many images."""
    return num_images * sum(net.num_classes + net.embedding_dim for net in teachers) * 4 / _MIB


def cached_outputs(
    teachers: Teachers, data: Opened, batches: Iterable[tuple[Tensor, Tensor]], folder: Path
) -> tuple[PeerOutput, ...]:
    """Read what every teacher says about every training image, or find it out and keep it.

    Args:
        teachers: on the device of the images.
        data: whose training images they look at.
        batches: these images as the data give them, in order; used when nothing is kept yet.
        folder: where it is kept, under a name that depends on teachers and data.

    Returns:
        `[N, K]` logits and `[N, D]` embeddings of each teacher, on the CPU.

    Raises:
        ConfigError: the folder cannot be written.
    """
    path = folder / f"teachers-{digest_of(teachers)[:16]}-{data.train.fingerprint()[:16]}.safetensors"
    found = _read(path, len(data.train.labels), len(teachers))
    if found is None:
        found = _look(teachers, batches)
        _write(path, found)
    return tuple(
        PeerOutput(logits=found[f"{number}.logits"], embedding=found[f"{number}.embedding"])
        for number in range(len(teachers))
    )


def blank_outputs(teachers: Teachers, num_images: int, device: torch.device) -> tuple[PeerOutput, ...]:
    """Zeros in the shape of `cached_outputs`, for a trial that is to take no longer than a run with a cache."""

    def blank(size: int) -> Tensor:
        return torch.zeros(num_images, size, device=device)

    return tuple(PeerOutput(logits=blank(net.num_classes), embedding=blank(net.embedding_dim)) for net in teachers)


def on_device(outputs: Iterable[PeerOutput], device: torch.device) -> tuple[PeerOutput, ...]:
    """Copy outputs to a device."""
    return tuple(
        replace(output, logits=output.logits.to(device), embedding=output.embedding.to(device)) for output in outputs
    )


def _look(teachers: Teachers, batches: Iterable[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    parts: dict[str, list[Tensor]] = {}
    for images, _ in batches:
        for number, output in enumerate(teachers.look(images)):
            parts.setdefault(f"{number}.logits", []).append(output.logits.cpu())
            parts.setdefault(f"{number}.embedding", []).append(output.embedding.cpu())
    return {name: torch.cat(rows) for name, rows in parts.items()}


def _read(path: Path, num_images: int, num_teachers: int) -> dict[str, Tensor] | None:
    """What is kept; None when nothing is, or when it is damaged."""
    try:
        found = load_file(path)
    except (OSError, SafetensorError):
        return None
    names = {f"{number}.{part}" for number in range(num_teachers) for part in ("logits", "embedding")}
    fits = found.keys() == names and all(len(rows) == num_images for rows in found.values())
    return found if fits else None


def _write(path: Path, tensors: dict[str, Tensor]) -> None:
    part = path.with_suffix(".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, part)
        part.replace(path)
    except (OSError, SafetensorError) as error:
        with suppress(OSError):
            part.unlink(missing_ok=True)
        raise ConfigError(
            f"cannot write teacher.cache={str(path.parent)!r}: {reason(error)}; give another folder"
        ) from None
