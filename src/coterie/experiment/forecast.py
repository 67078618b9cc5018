"""What a run will take: its time and its memory at the peak, from a few steps of it that are thrown away.

The steps are those of training, from the loader to the optimiser, of whole batches where that is a matter of seconds
and fits into half of the free memory. Otherwise they are of smaller batches: time is then scaled by the number of
images, and memory grows by the maps that autograd keeps of each image that is missing.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import islice, pairwise

import torch

from coterie.config import Recipe
from coterie.core.allocator import release_freed_memory
from coterie.core.memory_use import free_bytes, peak_bytes
from coterie.core.method import Method
from coterie.core.types import Batch, Peers, Terms
from coterie.data import Loader
from coterie.engine import Clock, Interrupt, Meters, Run, capture, train_epoch
from coterie.experiment.build import Parts, images_per_batch, order_for
from coterie.experiment.experiment import Experiment
from coterie.experiment.phases import phases_of
from coterie.experiment.teacher_cache import blank_outputs

_FEWEST, _MOST = 4, 13  # batches of a trial; the first warms up
_TICK = 1e-9  # seconds of an image at the least, where a clock did not move
_EVALUATED = 256  # images of a batch of evaluation, where training batches are smaller


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """What the first cohort of a run takes; times are those of the clock that was used.

    Attributes:
        step: seconds of an optimiser step, with all batches that are accumulated for it.
        run: seconds of all epochs, evaluations on the validation split included.
        memory: bytes at the peak: of a CUDA device what torch allocates there, else the resident memory of the process,
            with the copy of the state from which checkpoints are written.
        free: bytes that were to be had when the trial began.
        images: in a batch of the trial.
        batches: of the trial that were timed.
        whole: whether these were batches as training has them.
    """

    step: float
    run: float
    memory: int
    free: int
    images: int
    batches: int
    whole: bool


def make_forecast(
    experiment: Experiment,
    parts: Parts,
    *,
    activations: int,
    budget: float = 20.0,
    clock: Callable[[], float] = time.perf_counter,
) -> Forecast:
    """Try a few steps and an evaluation, and say what the whole run takes.

    Args:
        experiment: what would be done; nothing is written to its folder.
        parts: of its first phase. They are trained a little: do not use them afterwards.
        activations: bytes that the cohort keeps of an image for the backward pass, see `activation_bytes`.
        budget: seconds that the trial may take, roughly; three steps of a few images are taken however long they last.
        clock: tells seconds.
    """
    recipe, free = experiment.recipe, free_bytes(parts.device)
    whole = images_per_batch(recipe, parts.method)
    if recipe.teacher.cache:
        parts.teachers.cached = blank_outputs(parts.teachers, len(parts.data.train.labels), parts.device)
    trial = _Trial(experiment, parts, clock)
    fitting = batch_like(parts.method, whole, free // 2 // max(activations, 1))
    images, count = trial.affordable(fitting, budget)
    times = trial.batches(images, count)
    batch = statistics.median(times) * whole / images
    evaluation = trial.evaluation(max(whole, _EVALUATED) if images == whole else images)
    return Forecast(
        step=batch * recipe.optim.accumulate,
        run=recipe.epochs * parts.order.batches_per_epoch * batch + _evaluations(recipe) * evaluation,
        memory=peak_bytes(parts.device) + activations * (whole - images) + trial.copied,
        free=free,
        images=images,
        batches=len(times),
        whole=images == whole,
    )


def batch_like(method: Method, images: int, most: int) -> int:
    """Find the size of a smaller batch that is made like one of `images`.

    Args:
        method: may ask for episodes, which have one size, or for several images of each class.
        images: of a whole batch.
        most: images wanted at most; where no batch is that small, the smallest there is.
    """
    needs = method.requirements()
    unit = images if needs.episode is not None else max(needs.samples_per_class, 1)
    smallest = unit * math.ceil(2 / unit)  # batch norm does not train on a single image
    return min(max(most // unit * unit, smallest), images)


@dataclass(slots=True)
class _Trial:
    """Steps and evaluations of a run, by a clock.

    Attributes:
        experiment: what would be done.
        parts: are trained by it.
        clock: tells seconds.
        copied: bytes of host memory that saving in the background takes besides, where that is the memory that counts.
    """

    experiment: Experiment
    parts: Parts
    clock: Callable[[], float]
    copied: int = 0

    def affordable(self, images: int, budget: float) -> tuple[int, int]:
        """Images of a batch, `images` at most, and batches: as few as there must be, or more within half the budget.

        On a CPU a few images tell. An accelerator is fast, and small batches say nothing about large ones there.
        """
        if self.parts.device.type != "cpu":
            return images, _MOST
        few = batch_like(self.parts.method, images, max(images // 8, 2))
        each = max(self.batches(few, 2)[-1] / few, _TICK)
        size = batch_like(self.parts.method, images, int(budget / (_FEWEST * each)))
        return size, min(max(int(budget / (2 * size * each)), _FEWEST), _MOST)

    def batches(self, images: int, count: int) -> list[float]:
        """Train on `count` batches or a few more, in whole groups of accumulated ones; seconds of all but the first."""
        recipe = replace(self.experiment.recipe, data=replace(self.experiment.recipe.data, batch_size=images))
        parts = replace(self.parts, order=order_for(recipe, self.parts.method, self.parts.data))
        group = recipe.optim.accumulate
        count = max(-(-count // group) * group, 2)
        release_freed_memory()  # of copies that were counted, and of the trial before: training begins without them
        stopwatch = _Stopwatch(self.clock, parts.device)
        experiment = Experiment(recipe, folder=self.experiment.folder.path, quiet=True)
        with experiment.session(parts, phases_of(recipe)[0], Interrupt()) as session:
            run = session.run
            run.keeper = _NoKeeper()
            meters = Meters(every=0, emit=_ignore, emit_timing=_ignore)
            run.watchers = (meters, stopwatch)
            run.loader = _Few(run.loader, count)
            while len(stopwatch.marks) < count:
                train_epoch(run)
                run.clock = Clock()
            if recipe.train.background_saves and self.parts.device.type == "cpu":
                self.copied = capture(run, meters).num_bytes
        return [after - before for before, after in pairwise(stopwatch.marks)]

    def evaluation(self, images: int) -> float:
        """Score so many held-out images and scale the seconds to all of them; 0 where none are held out."""
        split = self.parts.data.validation
        if split is None:
            return 0.0
        rows = torch.arange(min(images, len(split.labels)))
        score = self.experiment.embeddings if self.parts.data.unseen else self.experiment.score
        began = self.clock()
        score(self.parts, split.select(rows))
        return (self.clock() - began) * len(split.labels) / len(rows)


def _evaluations(recipe: Recipe) -> int:
    return -(-recipe.epochs // recipe.train.evaluate_every)


def _ignore(row: object) -> None:
    """Keep nothing of a trial."""


@dataclass(frozen=True, slots=True)
class _Few:
    """The first batches of each epoch of a loader."""

    loader: Loader
    count: int

    @property
    def batches_per_epoch(self) -> int:
        return min(self.count, self.loader.batches_per_epoch)

    def batches(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        return islice(self.loader.batches(epoch, start), self.count)

    def close(self) -> None:
        self.loader.close()


class _NoKeeper:
    """Keeps no checkpoint."""

    def on_step(self, run: Run) -> None: ...

    def on_epoch(self, run: Run) -> None: ...

    def save(self, run: Run) -> None: ...


class _Stopwatch:
    """Watcher that notes when each batch is done."""

    def __init__(self, clock: Callable[[], float], device: torch.device) -> None:
        self.marks: list[float] = []
        self._clock = clock
        self._device = device

    def on_step(self, run: Run, peers: Peers, terms: Terms, batch: Batch) -> None:
        if self._device.type != "cpu":
            torch.accelerator.synchronize(self._device)
        self.marks.append(self._clock())

    def on_epoch(self, run: Run) -> None: ...
