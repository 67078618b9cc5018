"""Whole runs that take a tenth of a second: two networks of a thousand weights, 43 images of 8 x 8 pixels, 10 steps."""

from __future__ import annotations

import json
import os
import random
import re
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from coterie.cohort import Cohort
from coterie.config import Recipe, resolve
from coterie.core import METHODS
from coterie.core.draws import mix
from coterie.core.record import RunFolder
from coterie.data import ShuffledOrder, ViewPlan, make_loader, open_data
from coterie.engine import (
    CheckpointStore,
    Meters,
    Objective,
    Precision,
    Preempted,
    Run,
    Stepper,
    digest,
    load_from,
    make_optimizer,
)
from coterie.experiment import Experiment
from coterie.experiment.build import build_method, build_nets, views_for
from coterie.nets import NETS
from toy_classes import toy_classes

BATCHES = 5  # of an epoch
EPOCHS = 2

_BASE = {
    "epochs": EPOCHS,
    "method": {"name": "independent"},
    "cohort": {"nets": ["cnn4_w4", "cnn4_w4"]},
    "data": {"name": "synthetic", "samples": 48, "classes": 4, "image_size": 8, "batch_size": 8, "padding": 1},
}

METHOD_KNOBS = {
    "mcl_okd": {"num_negatives": 16, "embedding_dim": 8},
    **{name: {"initial_epochs": 1} for name in ("ab", "fsp", "ft")},
    **{name: {"ways": 3, "queries": 2, "episodes": BATCHES} for name in ("prototypes", "matching")},
}
"""Knobs that a method needs to fit 43 images and two epochs."""


def settings_of(method: str) -> list[str]:
    """The words of a command line that make any recipe a tiny one."""
    data = [f"data.{key}={value}" for key, value in _BASE["data"].items()]
    knobs = [f"method.{key}={value}" for key, value in METHOD_KNOBS.get(method, {}).items()]
    return [*data, "epochs=2", "cohort.nets=cnn4_w4,cnn4_w4", "cohort.shared=0", *knobs]


def tiny(method: str = "independent", **settings: object) -> Recipe:
    """A tiny recipe; settings are dotted names with `__` for the dot, such as `optim__lr=0.1`."""
    data = {**_BASE["data"], "name": toy_classes.__name__} if method in ("prototypes", "matching") else _BASE["data"]
    tree: dict[str, Any] = {**_BASE, "data": data, "method": {"name": method, **METHOD_KNOBS.get(method, {})}}
    if METHODS[method].needs.partners if method in METHODS else False:
        tree["exchange"] = {"folder": "memory://tiny", "job": "tiny"}
    tree["fewshot"] = {"ways": 3, "queries": 3, "episodes": 5}
    return resolve(tree, [f"{key.replace('__', '.')}={_text(value)}" for key, value in settings.items()])


def _text(value: object) -> str:
    if isinstance(value, tuple | list):
        return ",".join(map(str, value))
    return str(value).lower() if isinstance(value, bool) else str(value)


@contextmanager
def signal_after(batches: int, number: int = signal.SIGTERM) -> Iterator[None]:
    """Send this process a signal in the middle of the step that is the given one since the run began."""
    before = Meters.on_step

    def on_step(self: Meters, run: Any, *rest: Any) -> None:
        before(self, run, *rest)
        if run.batches == batches:
            os.kill(os.getpid(), number)

    Meters.on_step = on_step  # type: ignore[method-assign]
    try:
        yield
    finally:
        Meters.on_step = before  # type: ignore[method-assign]


def stop_after(batches: int, train: Callable[[], object]) -> None:
    """Run until SIGTERM arrives during a step; the run must end as a preempted one."""
    with signal_after(batches):
        try:
            train()
        except Preempted:
            return
    raise AssertionError(f"the run was not stopped after {batches} batches")


def run_in_pieces(recipe: Recipe, folder: Path, stops: tuple[int, ...] = (), **parts: Any) -> Trace:
    """Train to the end, stopped and resumed after each of the given batches."""
    for stop in stops:
        begun = RunFolder(folder).recipe.exists()
        stop_after(stop, lambda begun=begun: Experiment(recipe, folder=folder, quiet=True, **parts).train(resume=begun))
    begun = RunFolder(folder).recipe.exists()
    Experiment(recipe, folder=folder, quiet=True, **{"name": "tiny", **parts}).train(resume=begun)
    return trace(folder)


@dataclass(frozen=True)
class Trace:
    """What equal runs have in common to the bit."""

    best: str
    metrics: bytes
    result: Mapping[str, Any]


OF_A_RANK = re.compile(r"rng\d")  # generators of ranks above 0


def trace(folder: Path) -> Trace:
    """Read the trace of a finished run."""
    run = RunFolder(folder)
    result = json.loads(run.result.read_text())
    result.pop("seconds")
    _, last = CheckpointStore(run.checkpoints).load_newest(read_only=True)
    left_out = ("facts", "exchange", "log_bytes") if "exchange" in last.values else ("facts",)
    values = {key: value for key, value in last.values.items() if key not in left_out and not OF_A_RANK.match(key)}
    tensors = {stem: section for stem, section in last.tensors.items() if not OF_A_RANK.match(stem)}
    assert digest(replace(last, values=values, tensors=tensors)) == result["digest"]
    best = digest(load_from(run.best)[1]) if run.best.exists() else ""
    return Trace(best, run.metrics.read_bytes(), result)


class NoKeeper:
    """Keeps nothing and notes when it was asked to."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, int]] = []

    def on_step(self, run: Run) -> None:
        self.asked.append(("step", run.batches))

    def on_epoch(self, run: Run) -> None:
        self.asked.append(("epoch", run.batches))

    def save(self, run: Run) -> None:
        self.asked.append(("save", run.batches))


def loader_of(recipe: Recipe, views: int = 1) -> Any:
    data = open_data(recipe.data, recipe.seed)
    order = ShuffledOrder(len(data.train.labels), recipe.data.batch_size, mix(recipe.seed, "order"))
    seed = mix(recipe.seed, "augmentation")
    return make_loader(
        data.train, order=order, plan=ViewPlan.of(recipe.data, data.normalisation, seed=seed, views=views)
    )


def build(recipe: Recipe, *, nets: list[nn.Module] | None = None, dtype: torch.dtype = torch.float32) -> Run:
    """A run without a folder."""
    nets = nets or build_nets(recipe, num_classes=4, channels=3, image_size=8)
    cohort = Cohort(nets, shared=recipe.cohort.shared).to(dtype)
    method = build_method(recipe, cohort, open_data(recipe.data, recipe.seed)).to(dtype)
    loader = loader_of(recipe, views_for(recipe, method))
    precision = Precision(recipe.train.precision, torch.device("cpu"))
    objective = Objective(cohort, method)
    stepper = Stepper(
        make_optimizer(objective.trainable().values(), recipe.optim),
        recipe.optim,
        precision,
        batches_per_epoch=loader.batches_per_epoch,
        epochs=recipe.epochs,
    )
    return Run(objective, stepper, loader, precision, recipe.epochs, NoKeeper())


class Noisy(nn.Module):
    """Draws from every global generator: dropout, numpy and Python."""

    def __init__(self, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(in_channels, 4, 3, 2), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten())
        self.head = nn.Linear(36, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        noise = numpy.random.normal() + random.gauss(0, 1) if self.training else 0.0
        return self.head(F.dropout(self.body(images + 0.1 * noise), 0.3, self.training))


def _noisy(*, num_classes: int, in_channels: int = 3, image_size: int = 8) -> nn.Module:
    return Noisy(num_classes, in_channels)


NETS.add("tiny_noisy", _noisy)
