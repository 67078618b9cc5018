"""Cohorts that are ready for training steps, taken by the library's own loop, and plain steps of their networks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import nn

import coterie.methods  # noqa: F401 (registers them)
from benchmarks.sizes import Setting, Sizes
from benchmarks.timing import Step, repeated
from coterie.cohort import Cohort, Teachers
from coterie.cohort.facts import facts_of
from coterie.config import OptimConfig, resolve
from coterie.core import METHODS, Batch, Facts, Method, Needs
from coterie.core.combined import make_method
from coterie.core.world import ALONE, World
from coterie.data import ClassAwareOrder, Order, ShuffledOrder
from coterie.engine import Clock, Objective, Precision, Run, Stepper, make_optimizer, train_epoch
from coterie.engine.mesh import divide
from coterie.nets import NETS

_CONFIG = OptimConfig()


@dataclass(slots=True)
class OneBatch:
    """A loader whose epochs are very long and always give the same batch; only its clock goes on.

    Attributes:
        batch: what it gives.
    """

    batch: Batch
    batches_per_epoch: int = 10_000

    def batches(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Yield the batch once, its step one further than the last time."""
        self.batch.step.add_(1)
        yield self.batch

    def close(self) -> None:
        """Nothing to end."""


class NoKeeper:
    """Writes no checkpoints."""

    def on_step(self, run: Run) -> None:
        """Nothing to write."""

    def on_epoch(self, run: Run) -> None:
        """Nothing to write."""

    def save(self, run: Run) -> None:
        """Nothing to write."""


@dataclass(slots=True, kw_only=True)
class Learner:
    """A cohort with a method, ready for training steps.

    Attributes:
        run: what the loop works with.
        batch: the batch of every step.
        setting: sizes, device, precision.
        nets: name of the peers' networks.
        extra: forward passes that both sides make: those of teachers, or of copies of the peers.
    """

    run: Run
    batch: Batch
    setting: Setting
    nets: str
    extra: list[Step] = field(default_factory=list)

    @property
    def method(self) -> Method:
        """The method that teaches."""
        return self.run.objective.method

    def step(self) -> None:
        """A training step as the loop takes it, without an outer step unless each step has one."""
        self.run.clock.position = 0
        train_epoch(self.run)

    def outer(self) -> None:
        """A training step that an outer step follows, where the method has outer steps."""
        self.run.clock.position = max(1, self.method.requirements().outer_every) - 1
        train_epoch(self.run)

    def cost(self, steps: Sequence[float], outer: float) -> list[float]:
        """Mean cost of a step where one in `outer_every` has an outer step behind it."""
        every = max(1, self.method.requirements().outer_every)
        return [((every - 1) * one + outer) / every for one in steps]

    def plain(self) -> Step:
        """What the networks alone cost: M steps of one of them with labels only, and the extra forward passes."""
        trained = len(self.run.objective.cohort)
        step = repeated(plain_step(self.setting, self.batch, self.nets), trained)

        def steps() -> None:
            step()
            for look in self.extra:
                look()

        return steps


def make_learner(
    setting: Setting,
    name: str = "mcl_okd",
    knobs: Sequence[str] = (),
    *,
    peers: int = 0,
    channels_last: bool = False,
    bank: torch.dtype = torch.float32,
    world: World = ALONE,
) -> Learner:
    """Build networks, method and batch; a method that needs a teacher gets one, and a single student.

    Args:
        setting: sizes, device, precision.
        name: a registered method, or several with plus signs.
        knobs: `KNOB=VALUE` without the `method.` before it.
        peers: M; by default the setting's, or one where a teacher is needed.
        channels_last: layout of networks and images.
        bank: number format of memory banks.
        world: the processes that train together; each keeps its peers and its part of the images.

    Raises:
        CoterieError: the method or a knob is unknown, or they do not fit.
    """
    sizes = setting.sizes
    torch.manual_seed(0)
    needs = [METHODS[part].needs for part in name.split("+")]
    taught = any(need.teacher for need in needs)
    nets, count = (sizes.student, 1) if taught else (sizes.net, peers or sizes.peers)
    shared = max(need.shared_stages for need in needs)
    cohort = Cohort([build(nets, sizes) for _ in range(count)], shared=shared)
    divide(cohort, world)
    teachers = Teachers([build(sizes.teacher, sizes)] if taught else [])
    recipe = resolve({"method": {"name": name.split("+")}}, [f"method.{knob}" for knob in knobs])
    method = make_method(recipe.method, recipe.method_config, _facts(cohort, teachers, sizes))
    method.attach(cohort)
    _give(method.requirements(), cohort, teachers)
    objective = Objective(cohort, method, teachers=teachers).to(setting.device).train()
    if channels_last:
        objective.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    _store_banks(method, bank)
    batch = make_batch(setting, method.requirements(), len(cohort), channels_last=channels_last)
    batch = batch.with_views(batch.views[:, world.share(torch.arange(batch.size))])
    learner = Learner(run=_run(objective, batch, setting), batch=batch, setting=setting, nets=nets)
    learner.extra = [*_looks_of_teachers(teachers, batch), *_looks_of_copies(method, setting, batch, nets)]
    return learner


def build(name: str, sizes: Sizes) -> nn.Module:
    """A registered network for the setting's images."""
    return NETS[name](num_classes=sizes.classes, in_channels=3, image_size=sizes.image)


def make_batch(setting: Setting, needs: Needs, peers: int, *, channels_last: bool = False) -> Batch:
    """A batch of noise, with rows and labels as the loop would choose them for a method."""
    sizes, device = setting.sizes, setting.device
    per_class = needs.samples_per_class
    order: Order = ShuffledOrder(sizes.num_train, sizes.batch, 0)
    if per_class:
        order = ClassAwareOrder(sizes.labels, sizes.batch, per_class, 0)
    rows = order.rows(0, 0)
    views = peers if needs.views == "per_peer" else needs.views
    images = torch.randn(views, sizes.batch, sizes.image, sizes.image, 3).permute(0, 1, 4, 2, 3)
    images = images if channels_last else images.contiguous()
    zero = torch.zeros((), dtype=torch.int64)
    batch = Batch(views=images, labels=sizes.labels[rows], indices=rows, epoch=zero, step=zero.clone())
    return batch.on(device)


def plain_step(setting: Setting, batch: Batch, name: str) -> Step:
    """A training step of one network with labels only, in NCHW: the unit of every comparison."""
    net = build(name, setting.sizes).to(setting.device).train()
    optimizer = make_optimizer(net.parameters(), _CONFIG)
    precision = Precision(setting.precision, setting.device)
    images = batch.views[0].contiguous()

    def step() -> None:
        with precision.autocast():
            loss = F.cross_entropy(net(images), batch.labels)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()

    return step


def _run(objective: Objective, batch: Batch, setting: Setting) -> Run:
    loader = OneBatch(batch)
    precision = Precision(setting.precision, setting.device)
    optimizer = make_optimizer(objective.trainable().values(), _CONFIG)
    stepper = Stepper(optimizer, _CONFIG, precision, batches_per_epoch=loader.batches_per_epoch, epochs=300)
    keeper = NoKeeper()
    return Run(
        objective=objective,
        stepper=stepper,
        loader=loader,
        precision=precision,
        epochs=300,
        keeper=keeper,
        clock=Clock(),
    )


def _facts(cohort: Cohort, teachers: Teachers, sizes: Sizes) -> Facts:
    shape = 3, sizes.image, sizes.image
    return Facts(
        num_peers=len(cohort),
        leader=cohort.leader,
        num_classes=sizes.classes,
        embedding_dims=cohort.embedding_dims,
        labels=sizes.labels,
        num_epochs=300,
        stage_channels=tuple(net.stage_channels for net in cohort),
        shared=cohort.shared,
        peers=tuple(facts_of(net, shape) for net in cohort.nets),
        teachers=tuple(facts_of(net, shape) for net in teachers.nets),
    )


def _give(needs: Needs, cohort: Cohort, teachers: Teachers) -> None:
    cohort.stage_maps = teachers.stage_maps = needs.stage_maps
    cohort.preactivations = teachers.preactivations = needs.preactivations
    cohort.rescale, cohort.peer_views = needs.rescale_branches, needs.peer_views


def _store_banks(method: Method, dtype: torch.dtype) -> None:
    """Bring memory banks to a number format."""
    memory = method.memories.get("bank")
    if memory is not None and dtype is not torch.float32:
        memory.move(lambda rows: rows.to(dtype))


def _looks_of_teachers(teachers: Teachers, batch: Batch) -> list[Step]:
    return [lambda: teachers(batch)] if len(teachers) else []


def _looks_of_copies(method: Method, setting: Setting, batch: Batch, name: str) -> list[Step]:
    """Forward passes without gradient of as many networks as the method keeps copies of."""
    if "copies" not in method.memories and "averages" not in method.memories:
        return []
    net = build(name, setting.sizes).to(setting.device).train()
    images = batch.views[0].contiguous()
    precision = Precision(setting.precision, setting.device)

    def look() -> None:
        with torch.no_grad(), precision.autocast():
            net(images)

    return [look] * method.facts.num_peers
