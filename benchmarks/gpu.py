"""Figures that only a GPU asks for: images a second, the share of its limits, and ways to run a cohort side by side."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import torch

from benchmarks.learners import build, make_learner
from benchmarks.sizes import Setting, Sizes
from benchmarks.table import Line, Row, Skipped
from benchmarks.timing import ratio, spread_of, take_turns, timer_for
from coterie.config import CohortConfig, Recipe, resolve
from coterie.core import CoterieError
from coterie.core.record import RunFolder, read_metrics
from coterie.data import DATA, Source
from coterie.experiment import Experiment
from coterie.nets.cost import activation_bytes, multiply_adds

MODES: Mapping[str, tuple[str, ...]] = {
    "eager": (),
    "compile": ("train.compile=default",),
    "graph": ("train.compile=graph",),
    "grouped": ("cohort.execution=grouped",),
    "grouped and graph": ("cohort.execution=grouped", "train.compile=graph"),
    "streams": ("cohort.execution=streams",),
    "auto": ("cohort.execution=auto",),
}
_CHOICE = any(field.name == "execution" for field in fields(CohortConfig))
_LOOP = ("cohort.execution=loop",) if _CHOICE else ()  # unless a mode says otherwise: not what a short trial finds
_STEPS = 60  # of an epoch of a short run, of which there are two
_SIDE, _COPIED = 8192, 1 << 30  # of the matrix product, and bytes of the copy that find the limits of the device


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """One of the two cohorts of the GPU table.

    Attributes:
        name: how rows call it.
        sizes: of networks, batch and images.
        step_limit: most milliseconds that a cohort step may take; None where none is set.
        ratio_limit: most that it may cost next to the networks alone; None where none is set.
    """

    name: str
    sizes: Sizes
    step_limit: float | None = None
    ratio_limit: float | None = None


CIFAR = Place(name="cifar", sizes=Sizes(batch=128), step_limit=4.0)
IMAGENET = Place(
    name="imagenet",
    sizes=Sizes(net="resnet34", batch=256, image=224, classes=1000, num_train=1_280_000),
    ratio_limit=1.10,
)
PLACES = (CIFAR, IMAGENET)


@dataclass(frozen=True, slots=True)
class Limits:
    """What the device can do, measured.

    Attributes:
        flops: floating point operations a second of a bfloat16 matrix product.
        bytes: read and written in a second by a copy.
    """

    flops: float
    bytes: float


def device_limits(device: torch.device, *, side: int, copied: int, rounds: int) -> Limits:
    """Measure the limits that shares are told against.

    Args:
        device: where.
        side: of the square matrices.
        copied: bytes that the copy reads, and writes again.
        rounds: measurements of each.
    """
    matrix = torch.randn(side, side, device=device).bfloat16()
    source = torch.empty(copied, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    sides = {"product": lambda: matrix @ matrix, "copy": lambda: target.copy_(source)}
    times = take_turns(sides, rounds=rounds, timer=timer_for(device), warm_up=2)
    product, copy = (median(times[name]) / 1e3 for name in sides)
    return Limits(flops=2 * side**3 / product, bytes=2 * copied / copy)


def throughput(
    setting: Setting, places: Sequence[Place] = PLACES, *, side: int = _SIDE, copied: int = _COPIED
) -> Iterator[Line]:
    """Time full MCL-OKD steps in bfloat16 next to the networks alone, as images a second and shares of the limits.

    Args:
        setting: device and rounds.
        places: sizes.
        side: of the matrices whose product is a limit.
        copied: bytes whose copy is the other one.
    """
    limits = device_limits(setting.device, side=side, copied=copied, rounds=setting.rounds)
    for key, value, unit in (("matmul", limits.flops / 1e12, "TFLOP/s"), ("copy", limits.bytes / 1e12, "TB/s")):
        yield Row(key=f"gpu.{key}", title=f"limit of the device: {key}", measured=spread_of([value]), unit=unit)
    for place in places:
        for layout in ("nchw", "channels_last"):
            yield from _place(replace(setting, sizes=place.sizes, precision="bfloat16"), place, layout, limits)


def modes(setting: Setting, places: Sequence[Place] = PLACES) -> Iterator[Line]:
    """Train with each way of running a cohort, with MCL-OKD and with labels only, and tell images a second.

    Rates are those that a run itself logs, by the clock, its data path included; the first half of its rows is left
    out. A way that this version of the library does not know, or that cannot serve a cohort, is skipped.
    """
    for place in places:
        source = _source(setting, place)
        for mode, knobs in MODES.items():
            yield from _mode(setting, place, mode, knobs, source)


def training_rates(recipe: Recipe, source: Source | None = None) -> list[float]:
    """Train in a folder that is removed, and give the images a second of the later rows of its log.

    Args:
        recipe: what to train.
        source: opened data in place of those the recipe names.

    Raises:
        CoterieError: the recipe cannot be trained.
    """
    with TemporaryDirectory() as folder:
        path = Path(folder) / "run"
        Experiment(recipe, folder=path, source=source, quiet=True).train()
        rates = [float(str(row["images_per_second"])) for row in read_metrics(RunFolder(path).timing)]
    return rates[len(rates) // 2 :]


def recipe_of(setting: Setting, place: Place, method: str, knobs: Sequence[str]) -> Recipe:
    """Write the recipe of a short run on made-up images, two epochs long.

    Args:
        setting: device, precision.
        place: sizes.
        method: its name.
        knobs: `KEY=VALUE` besides these.

    Raises:
        ConfigError: this version of the library does not know one of the knobs.
    """
    sizes = place.sizes
    data = {"name": "synthetic", "batch_size": sizes.batch, "validation": 0.0, "classes": sizes.classes}
    data |= {"samples": max(_STEPS * sizes.batch, 2 * sizes.classes), "image_size": sizes.image, "padding": 4}
    train = {"device": str(setting.device), "precision": "bfloat16", "channels_last": True, "deterministic": False}
    train |= {"log_every": max(1, _STEPS // 6)}
    tree: dict[str, object] = {"method": {"name": [method]}, "epochs": 2, "data": data, "train": train}
    tree |= {"net": {"name": sizes.net}, "cohort": {"peers": sizes.peers}}
    return resolve(tree, [*_LOOP, *knobs])


def _mode(setting: Setting, place: Place, mode: str, knobs: Sequence[str], source: Source) -> Iterator[Line]:
    key, count = f"modes.{place.name}.{mode.replace(' ', '_')}", place.sizes.peers
    try:
        own = training_rates(recipe_of(setting, place, "mcl_okd", knobs), source)
        alone = training_rates(recipe_of(setting, place, "independent", knobs), source)
    except CoterieError as error:
        yield Skipped(key, str(error))
        return
    kept = min(len(own), len(alone))
    title = f"{place.name}, {mode}: MCL-OKD"
    yield Row(key=f"{key}.rate", title=title, measured=spread_of(own), unit="images/s", note=_note(alone))
    step = [1e3 * place.sizes.batch / rate for rate in own]
    title = f"{place.name}, {mode}: cohort step"
    yield Row(key=f"{key}.step", title=title, measured=spread_of(step), unit="ms", limit=place.step_limit)
    title = f"{place.name}, {mode}: step / {count} networks alone"
    measured = ratio(alone[:kept], own[:kept])
    yield Row(key=f"{key}.ratio", title=title, measured=measured, limit=place.ratio_limit)


def _note(rates: list[float]) -> str:
    return f"the networks alone: {median(rates):.0f} images/s"


def _source(setting: Setting, place: Place) -> Source:
    return DATA["synthetic"](recipe_of(setting, place, "independent", ()).data, 0)


def _place(setting: Setting, place: Place, layout: str, limits: Limits) -> Iterator[Row]:
    learner = make_learner(setting, channels_last=layout == "channels_last", bank=torch.bfloat16)
    sides = {"alone": learner.plain(), "full": learner.step}
    times = take_turns(sides, rounds=setting.rounds, timer=timer_for(setting.device), warm_up=3)
    sizes, key = setting.sizes, f"gpu.{place.name}.{layout}"
    title = f"{place.name}, {layout.replace('_', ' ')}, bfloat16"
    cost = times["full"]
    yield Row(key=f"{key}.step", title=f"{title}: step", measured=spread_of(cost), unit="ms", limit=place.step_limit)
    measured, alone = ratio(cost, times["alone"]), f"{title}: step / {sizes.peers} plain steps"
    yield Row(key=f"{key}.ratio", title=alone, measured=measured, limit=place.ratio_limit)
    rates = [1e3 * sizes.batch / value for value in cost]
    yield Row(key=f"{key}.rate", title=f"{title}: cohort", measured=spread_of(rates), unit="images/s")
    for name, least in _least_seconds(sizes, limits).items():
        shares = [100 * least * 1e3 / value for value in cost]
        yield Row(key=f"{key}.{name}", title=f"{title}: share of {name}", measured=spread_of(shares), unit="%")


def _least_seconds(sizes: Sizes, limits: Limits) -> dict[str, float]:
    """Seconds that the arithmetic of the networks, or a write and a read of every map they keep, would take alone."""
    net, shape = build(sizes.net, sizes), (3, sizes.image, sizes.image)
    images = sizes.peers * sizes.batch
    flops = 3 * 2 * multiply_adds(net, shape) * images
    kept = 2 * activation_bytes(net, shape, torch.bfloat16) * images
    return {"matmul": flops / limits.flops, "copy": kept / limits.bytes}
