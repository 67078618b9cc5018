"""What a run would do and take, found out without training it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch import Tensor

from coterie.config import ExchangeConfig, OptimConfig, Recipe
from coterie.core.draws import mix
from coterie.data import ViewPlan, make_loader
from coterie.engine import Objective, learning_rate
from coterie.experiment.build import Parts, images_per_batch, runtime, views_for
from coterie.experiment.experiment import Experiment
from coterie.experiment.forecast import Forecast, make_forecast
from coterie.experiment.phases import phases_of
from coterie.experiment.teacher_cache import cache_size
from coterie.nets.cost import activation_bytes, count_parameters, multiply_adds

_MIB = 2**20
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, slots=True)
class _AsTheyAre:
    """One batch of all rows in their order."""

    count: int
    batches_per_epoch: int = 1

    def rows(self, epoch: int, position: int) -> Tensor:
        return torch.arange(self.count)


@dataclass(frozen=True, slots=True)
class Plan:
    """Lines about a run, by title.

    Attributes:
        lines: title and text, in the order they are shown.
    """

    lines: tuple[tuple[str, str], ...]

    def show(self, console: Console) -> None:
        """Print the plan."""
        table = Table(box=None, show_header=False, pad_edge=False)
        table.add_column(style="bold", no_wrap=True)
        table.add_column()
        for title, text in self.lines:
            table.add_row(Text(title), Text(text))
        console.print(table)


def make_plan(recipe: Recipe, *, budget: float = 20.0) -> Plan:
    """Build everything a run needs, try a few steps that are thrown away, and describe it; nothing is written.

    Args:
        recipe: what would be done.
        budget: seconds that the trial may take, roughly; see `make_forecast`.

    Raises:
        CoterieError: whatever `coterie train` would refuse.
    """
    experiment = Experiment(recipe, folder=Path("runs"), quiet=True)
    with runtime(recipe.train, mix(recipe.seed, "globals")):
        parts = experiment.build_to_train()
        sections = (_peers, _data, _method, _budget)
        lines = [line for section in sections for line in section(recipe, parts)]
        return Plan((*lines, *_costs(experiment, parts, budget)))


def _peers(recipe: Recipe, parts: Parts) -> list[tuple[str, str]]:
    shape, cohort = parts.image_shape, parts.cohort
    lines = []
    for m, name in enumerate(parts.names):
        role = "  <- leader" if m == cohort.leader else ""
        macs = multiply_adds(cohort[m], shape)
        lines.append((f"peer {m}", f"{name}, {count_parameters(cohort[m]):,} parameters, {macs:,} multiply-adds{role}"))
    stages = "1 stage" if cohort.shared == 1 else f"{cohort.shared} stages"
    shared = f"stem and {stages}" if cohort.shared else "nothing: separate peers"
    return [
        *lines,
        ("shared", shared),
        *_changes(recipe),
        *_teachers(recipe, parts),
        *_exchange(recipe.exchange),
        (
            "trained",
            f"{count_parameters(cohort):,} parameters in the cohort, {count_parameters(parts.method):,} in heads",
        ),
    ]


def _teachers(recipe: Recipe, parts: Parts) -> list[tuple[str, str]]:
    """Who teaches from outside, and what keeping their answers would take."""
    teachers, images = parts.teachers, len(parts.data.train.labels)
    shape = ", ".join(f"{count_parameters(net):,} parameters" for net in teachers.nets)
    size = f"{cache_size(teachers, images):.1f} MiB for {images:,} images"
    kept = f"kept in {recipe.teacher.cache}" if recipe.teacher.cache else "not kept; see teacher.cache"
    return [("teachers", shape), ("their answers", f"{size}, {kept}")] if len(teachers) else []


def _exchange(config: ExchangeConfig) -> list[tuple[str, str]]:
    """Whom the run speaks to and hears; nothing without an exchange."""
    if not config.folder:
        return []
    others = ", ".join(config.partners) or f"up to {config.max_partners} jobs"
    return [
        (
            "exchange",
            f"{config.what} of the leader to {config.folder} as job {config.job}, every {config.every} batches",
        ),
        ("partners", f"{others}, up to {config.max_age} batches behind"),
    ]


def _changes(recipe: Recipe) -> list[tuple[str, str]]:
    """Who comes and goes; nothing when the cohort stays the same."""
    later = phases_of(recipe)[1:]
    return [(f"from epoch {phase.start + 1}", f"peers {list(phase.peers)}") for phase in later]


def _data(recipe: Recipe, parts: Parts) -> list[tuple[str, str]]:
    data = parts.data
    held = len(data.validation.labels) if data.validation is not None else 0
    size = data.train.image_size
    return [
        ("data", f"{data.name}: {len(data.train.labels):,} training images, {held:,} held out for validation"),
        ("images", f"{data.train.channels} x {size} x {size}, {len(data.classes)} classes"),
        ("views", f"{views_for(recipe, parts.method)} of each image"),
    ]


def _method(recipe: Recipe, parts: Parts) -> list[tuple[str, str]]:
    paper = parts.method.paper
    lines = [("method", f"{recipe.method}{': ' + paper.cite() if paper else ''}")]
    lines += [(title, text) for title, text in parts.method.describe().items()]
    terms = [f"{float(weight):g} x {name} (now {value:.3f})" for name, weight, value in _terms(recipe, parts)]
    return [*lines, ("loss", " + ".join(terms))]


def _terms(recipe: Recipe, parts: Parts) -> list[tuple[str, float, float]]:
    split = parts.data.train
    rows = torch.arange(min(len(split.labels), max(2, min(recipe.data.batch_size, 8))))
    if parts.method.requirements().episode is not None:
        rows = parts.order.rows(0, 0)
    plan = ViewPlan.of(recipe.data, parts.data.normalisation, seed=recipe.seed, views=views_for(recipe, parts.method))
    loader = make_loader(split.select(rows), order=_AsTheyAre(len(rows)), plan=plan, device=parts.device)
    with torch.no_grad():
        objective = Objective(parts.cohort, parts.method, teachers=parts.teachers, sight=parts.sight)
        _, terms = objective(objective.prepare(next(iter(loader.batches(0)))))
    return [(term.name, float(term.weight), float(term.value)) for term in terms]


def _budget(recipe: Recipe, parts: Parts) -> list[tuple[str, str]]:
    batches, images = parts.order.batches_per_epoch, images_per_batch(recipe, parts.method)
    steps = -(-batches // recipe.optim.accumulate)
    optim = recipe.optim
    return [
        ("optimiser", f"{optim.name}, weight decay {optim.weight_decay:g}"),
        ("learning rate", _rates(optim, steps, recipe.epochs)),
        ("steps", f"{recipe.epochs} epochs x {steps:,} = {recipe.epochs * steps:,} of {images} images"),
        ("device", f"{parts.device}, {recipe.train.precision}"),
    ]


def _costs(experiment: Experiment, parts: Parts, budget: float) -> list[tuple[str, str]]:
    """Time and memory; the last lines, because the trial behind them changes the parts."""
    recipe, images = experiment.recipe, images_per_batch(experiment.recipe, parts.method)
    shape = views_for(recipe, parts.method), *parts.image_shape
    activations = activation_bytes(parts.cohort, shape, _DTYPES[recipe.train.precision], batch_dim=1)
    forecast = make_forecast(experiment, parts, activations=activations, budget=budget)
    return [
        (
            "activations",
            f"about {activations * images / _MIB:.0f} MiB for a batch of {images}, kept for the backward pass",
        ),
        ("time", f"about {_duration(forecast.step)} a step, {_duration(forecast.run)} for the run{_basis(forecast)}"),
        ("memory", f"about {forecast.memory / _MIB:,.0f} MiB at the peak{_room(forecast, parts.device)}"),
    ]


def _basis(forecast: Forecast) -> str:
    scaled = "" if forecast.whole else ", scaled up"
    return f"; from {forecast.batches} trial batches of {forecast.images} images{scaled}"


def _room(forecast: Forecast, device: torch.device) -> str:
    where = "allocated by torch" if device.type == "cuda" else "of the process"
    over = forecast.memory > forecast.free
    return f", {where}" + (f"; more than the {forecast.free / _MIB:,.0f} MiB that are free" if over else "")


def _duration(seconds: float) -> str:
    """Two or three digits and a unit that suits them."""
    if seconds < 1:
        return f"{1000 * seconds:.3g} ms"
    if seconds < 600:
        return f"{seconds:.3g} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"


def _rates(optim: OptimConfig, steps: int, epochs: int) -> str:
    points = sorted({0, epochs // 4, epochs // 2, 3 * epochs // 4, epochs - 1})
    rates = (learning_rate(optim, step=epoch * steps, steps_per_epoch=steps, epochs=epochs) for epoch in points)
    shown = ", ".join(f"{rate:.2g} at epoch {epoch + 1}" for epoch, rate in zip(points, rates, strict=True))
    return f"{optim.schedule}: {shown}"
