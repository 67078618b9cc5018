"""What every method must keep, as checks that any project can run on its own methods.

    from coterie.testing import check_method
    check_method("my_method")          # raises AssertionError and says what is wrong

Each check builds tiny networks and sixteen-pixel images of its own and takes a fraction of a second on a CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

import coterie.methods  # noqa: F401 (registers them)
from coterie.cohort import Cohort, Teachers
from coterie.cohort.facts import facts_of
from coterie.core import (
    METHODS,
    Batch,
    CoterieError,
    Episode,
    Facts,
    Method,
    Needs,
    Outer,
    PartnerOutput,
    PeerOutput,
    Terms,
)
from coterie.core.waiting import noted_waits
from coterie.engine import Objective
from coterie.nets.base import StagedNet, pooled

__all__ = ["CHECKS", "Scene", "check_method", "make_scene"]

_NUM_CLASSES, _NUM_TRAIN, _BATCH_SIZE, _IMAGE_SIZE = 4, 48, 8, 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """A method with a cohort it can teach and a batch to do it with.

    Attributes:
        method: freshly built.
        cohort: as many tiny peers as the method's facts say.
        batch: images for which the method's needs hold.
        teachers: one tiny teacher, where the method learns from one.
        precision: `float32`, or `bfloat16` for autocast.
    """

    method: Method
    cohort: Cohort
    batch: Batch
    teachers: Teachers = field(default_factory=lambda: Teachers(()))
    precision: str = "float32"

    @property
    def taught(self) -> Batch:
        """The batch with what the teachers say about it, and partners where the method learns from other jobs."""
        taught: Batch = self.teachers(self.batch)
        return _heard(taught, self.method.facts) if self.method.requirements().partners else taught

    def terms(self) -> Terms:
        """Losses of the batch."""
        return self.method.losses(self.cohort(self.batch.views), self.taught)

    def train(self, steps: int, optimizer: torch.optim.Optimizer) -> list[Tensor]:
        """Take training steps as the loop does, in the scene's precision, and return the totals."""
        totals, every = [], self.method.requirements().outer_every
        for _ in range(steps):
            with self.autocast():
                taught = self.taught
                peers = self.cohort(self.batch.views)
                total = self.method.losses(peers, taught).total()
            optimizer.zero_grad()
            total.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            with torch.no_grad():
                self.method.after_step(peers, taught)
            if every and (int(self.batch.step) + 1) % every == 0:
                self.method.outer_step(self.outer(optimizer))
            self.batch.step.add_(1)
            totals.append(total.detach())
        return totals

    def end_epoch(self) -> None:
        """Let the method re-estimate what it re-estimates after an epoch, from the batch as held-out images."""
        self.cohort.eval()
        with torch.no_grad():
            held_out = [([peer.logits for peer in self.cohort(self.batch.views)], self.batch.labels)]
            self.method.after_epoch(held_out if self.method.requirements().held_out else ())
        self.cohort.train()
        self.batch.epoch.add_(1)

    def autocast(self) -> torch.autocast:
        """Context of the forward pass."""
        return torch.autocast("cpu", torch.bfloat16, enabled=self.precision == "bfloat16")

    def outer(self, optimizer: torch.optim.Optimizer) -> Outer:
        """What an outer step after the last step works with; as in the loop, outer parameters have no gradient then."""
        for parameter in self.method.outer_parameters():
            parameter.grad = None
        return Outer(
            batch=self.taught, cohort=self.cohort, forward=lambda batch: self.cohort(batch.views), optimizer=optimizer
        )

    def optimizer(self) -> torch.optim.Optimizer:
        """SGD with momentum over what the loop trains: neither frozen peers nor what only an outer step changes."""
        return torch.optim.SGD(Objective(self.cohort, self.method).trainable().values(), lr=0.05, momentum=0.9)

    def tensors(self) -> dict[str, Tensor]:
        """Everything a checkpoint holds of cohort and method, copied."""
        found = _copies("cohort.", self.cohort.state_dict()) | _copies("method.", self.method.state_dict())
        for name, memory in self.method.memories.items():
            found |= _copies(f"memory.{name}.", memory.state())
        return found

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over what `tensors` returned."""
        self.cohort.load_state_dict(_below("cohort.", tensors))
        self.method.load_state_dict(_below("method.", tensors))
        for name, memory in self.method.memories.items():
            memory.load_state(_below(f"memory.{name}.", tensors))


def make_scene(
    name: str,
    config: Method.Config | None = None,
    *,
    widths: Sequence[int] = (),
    shared: int = 0,
    frozen: Sequence[int] = (),
    labels: Sequence[int] = (),
    precision: str = "float32",
    seed: int = 0,
) -> Scene:
    """Build a method together with peers and a batch that satisfy its needs.

    Args:
        name: a registered method.
        config: its knobs; the defaults when None.
        widths: channels of each peer; equal ones for three peers, or as many as the method needs, when empty. From 8
            channels on a peer has a third stage.
        shared: stages that all peers share, or as many as the method needs where these are more.
        frozen: peers that are not trained.
        labels: `[B]` classes of the batch below 4; such that each occurs as often as the method needs, or an episode,
            when empty.
        precision: `float32`, or `bfloat16` for autocast.
        seed: of weights, images and the method's draws.
    """
    kind = METHODS[name]
    config = kind.Config() if config is None else config
    widths = list(widths) or [6] * max(3, kind.needs.min_peers)
    episode = _episode(kind, config, len(widths))
    classes = episode.ways if episode else _NUM_CLASSES
    torch.manual_seed(seed)
    shared = max(shared, kind.needs.shared_stages)
    cohort = Cohort([_tiny_net(width, classes) for width in widths], shared=shared, frozen=frozen).train()
    teacher_width = widths[cohort.leader] if kind.needs.equal_channels else 8
    teachers = Teachers([_tiny_net(teacher_width, classes)] if kind.needs.teacher else [])
    method = kind(config, _facts(cohort, teachers, seed, episode))
    needs = method.requirements()
    cohort.stage_maps, cohort.rescale, cohort.peer_views = needs.stage_maps, needs.rescale_branches, needs.peer_views
    cohort.preactivations = teachers.preactivations = needs.preactivations
    teachers.stage_maps = needs.stage_maps
    method.attach(cohort)
    views = len(cohort) if needs.views == "per_peer" else needs.views
    batch = _make_batch(views, list(labels) or _labels_for(needs), classes)
    return Scene(method=method, cohort=cohort, batch=batch, teachers=teachers, precision=precision)


def check_method(name: str, config: Method.Config | None = None) -> None:
    """Run every check on a registered method.

    Args:
        name: its name in `METHODS`.
        config: the knobs to check it with; the defaults when None.

    Raises:
        AssertionError: a check failed; the message says which and how.
    """
    for check in CHECKS:
        check(name, config)


def check_terms(name: str, config: Method.Config | None = None) -> None:
    """Terms have names and finite values, and their total carries gradient."""
    terms = make_scene(name, config).terms()
    for term in terms:
        _require(bool(term.name) and bool(term.value.isfinite()), name, f"term {term.name!r} is {term.value}")
    _require(len(terms) > 0 and terms.total().requires_grad, name, "the total of the terms carries no gradient")


def check_every_peer_is_taught(name: str, config: Method.Config | None = None) -> None:
    """Gradient reaches logits, embedding or a map of every peer."""
    scene = make_scene(name, config)
    leaves = [_as_leaves(peer) for peer in scene.cohort(scene.batch.views)]
    scene.method.losses(leaves, scene.taught).total().backward()  # type: ignore[no-untyped-call]
    for m, peer in enumerate(leaves):
        taught = any(map(_has_gradient, (peer.logits, peer.embedding, *peer.stages, *peer.preactivations)))
        _require(taught, name, f"no gradient reaches peer {m}")


def check_precisions(name: str, config: Method.Config | None = None) -> None:
    """The total is finite, and not halved, in float32, float64 and bfloat16 autocast; the first two agree."""
    totals = [_total_in(make_scene(name, config), precision) for precision in ("float32", "float64", "bfloat16")]
    for total in totals:
        _require(bool(total.isfinite()) and total.dtype != torch.bfloat16, name, f"the total is {total}")
    gap = abs(float(totals[0]) - float(totals[1]))
    _require(gap <= 1e-4 * max(1.0, abs(float(totals[1]))), name, f"float32 and float64 differ by {gap:.2g}")


def check_layouts(name: str, config: Method.Config | None = None) -> None:
    """Separate, branched and, as far as the needs allow them, mixed cohorts all get finite gradients."""
    for widths, shared in _layouts(make_scene(name, config).method.requirements()):
        scene = make_scene(name, config, widths=widths, shared=shared)
        scene.terms().total().backward()  # type: ignore[no-untyped-call]
        episodic = scene.method.requirements().episode is not None  # may leave the classifiers alone
        for key, parameter in scene.cohort.named_parameters():
            if episodic and ".head." in key:
                continue
            fine = parameter.grad is not None and bool(parameter.grad.isfinite().all())
            _require(fine, name, f"widths {widths}, {shared} shared stages: no finite gradient for {key}")


def check_determinism(name: str, config: Method.Config | None = None) -> None:
    """Two runs from one seed take the same steps to the bit."""
    first, second = (make_scene(name, config) for _ in range(2))
    totals = [scene.train(3, scene.optimizer()) for scene in (first, second)]
    _require(_same(dict(enumerate(totals[0])), dict(enumerate(totals[1]))), name, "two runs of one seed differ")
    _require(_same(first.tensors(), second.tensors()), name, "two runs of one seed end in different states")


def check_resume(name: str, config: Method.Config | None = None) -> None:
    """State dict and memories are all there is to keep: a run continued from them takes the same steps to the bit.

    So it is in every layout, with a frozen peer and without one, in float32 and in bfloat16 autocast, after an epoch;
    frozen peers stay as they are and all others learn.
    """
    layouts = _layouts(make_scene(name, config).method.requirements())
    for (widths, shared), frozen, precision in product(layouts, ((), (0,)), ("float32", "bfloat16")):
        where = f"widths {widths}, {shared} shared stages, frozen peers {list(frozen)}, {precision}"
        make = partial(make_scene, name, config, widths=widths, shared=shared, frozen=frozen, precision=precision)
        _resumed_is_whole(name, where, make(seed=1), make(seed=1))


def _resumed_is_whole(name: str, where: str, old: Scene, new: Scene) -> None:
    begun, old_optimizer = old.tensors(), old.optimizer()
    old.train(2, old_optimizer)
    old.end_epoch()
    for m in range(len(old.cohort)):
        same = _same(*(_below(f"cohort.nets.{m}.", tensors) for tensors in (begun, old.tensors())))
        _require(same == (m in old.cohort.frozen), name, f"peer {m} {'does not learn' if same else 'changes'}; {where}")
    with torch.no_grad():
        for parameter in new.method.parameters():
            parameter.zero_()
    new.load(old.tensors())
    new_optimizer = new.optimizer()
    new_optimizer.load_state_dict(deepcopy(old_optimizer.state_dict()))
    new.batch.step.copy_(old.batch.step)
    new.batch.epoch.copy_(old.batch.epoch)
    totals = [dict(enumerate(each.train(2, by))) for each, by in ((old, old_optimizer), (new, new_optimizer))]
    _require(_all_finite(totals[0].values()), name, f"a total is not finite; {where}")
    _require(_same(*totals), name, f"a continued run differs; {where}")
    _require(_same(old.tensors(), new.tensors()), name, f"a continued run ends in another state; {where}")


def check_memories(name: str, config: Method.Config | None = None) -> None:
    """A memory refuses tensors of another shape with an error of this project, and moves with its method."""
    method = make_scene(name, config).method
    for key, memory in method.memories.items():
        if larger := _twice_as_long(memory.state()):
            _require(_refuses(memory.load_state, larger), name, f"memory {key!r} loads tensors of another shape")
    method.double()
    for key, memory in method.memories.items():
        wrong = [part for part, tensor in memory.state().items() if tensor.dtype == torch.float32]
        _require(not wrong, name, f"memory {key!r} leaves {wrong} behind when its method moves")


def check_no_waiting(name: str, config: Method.Config | None = None) -> None:
    """No step reads a number back to the host or has shapes that depend on values: an accelerator would wait."""
    scene = make_scene(name, config)
    peers, batch = scene.cohort(scene.batch.views), scene.taught
    with noted_waits() as found:
        scene.method.losses(peers, batch).total()
        with torch.no_grad():
            scene.method.after_step(peers, batch)
    called = ", ".join(f"{wait} with a mask" if wait.startswith("index") else wait for wait in dict.fromkeys(found))
    remedy = "keep numbers in tensors and use masked_fill or where"
    _require(not found, name, f"a step calls {called}, for which an accelerator must wait; {remedy}")


def check_lone_labels(name: str, config: Method.Config | None = None) -> None:
    """A batch in which no label occurs twice, and one with a single label, give finite losses and gradients."""
    episodic = make_scene(name, config).method.requirements().episode is not None  # has no such batches
    for labels in () if episodic else ([0, 1, 2, 3], [2] * 4):
        scene = make_scene(name, config, labels=labels)
        total = scene.terms().total()
        total.backward()  # type: ignore[no-untyped-call]
        grads = [parameter.grad for parameter in scene.cohort.parameters() if parameter.grad is not None]
        _require(_all_finite([total, *grads]), name, f"labels {labels} give a loss or gradient that is not finite")


def check_words(name: str, config: Method.Config | None = None) -> None:
    """The ensemble is `[B, K]`, the description is words, and the class and its losses say what they do."""
    scene = make_scene(name, config)
    ensemble = scene.method.ensemble(scene.cohort(scene.batch.views))
    fits = ensemble.shape == (scene.batch.size, scene.cohort.num_classes)
    _require(fits, name, f"the ensemble has shape {tuple(ensemble.shape)}")
    lines = scene.method.describe()
    _require(all(isinstance(part, str) for line in lines.items() for part in line), name, "describe() is not words")
    _require(bool(type(scene.method).__doc__), name, "the class has no docstring")


CHECKS: tuple[Callable[[str, Method.Config | None], None], ...] = (
    check_terms,
    check_every_peer_is_taught,
    check_precisions,
    check_layouts,
    check_determinism,
    check_resume,
    check_memories,
    check_no_waiting,
    check_lone_labels,
    check_words,
)


def _layouts(needs: Needs) -> Iterator[tuple[list[int], int]]:
    """Widths of the peers and number of shared stages of every cohort that a method must take."""
    peers = max(3, needs.min_peers)
    yield [6] * peers, 0
    yield [6] * peers, 1
    if needs.equal_embeddings == "auxiliary":
        yield [6] * (peers - 1) + [8], 0
    elif not (needs.equal_embeddings or needs.equal_channels or needs.shared_stages):
        yield [4 + 2 * m for m in range(peers)], 0


def _tiny_net(width: int, classes: int) -> StagedNet:
    num_stages = 3 if width >= 8 else 2

    def block(channels: int, stride: int) -> nn.Module:
        return nn.Sequential(nn.Conv2d(channels, width, 3, stride, 1), nn.BatchNorm2d(width), nn.Tanh())

    return StagedNet(
        stem=block(3, 1),
        stages=[block(width, 2) for _ in range(num_stages)],
        neck=pooled(),
        head=nn.Linear(width, classes),
        stage_channels=(width,) * num_stages,
    )


def _facts(cohort: Cohort, teachers: Teachers, seed: int, episode: Episode | None = None) -> Facts:
    shape = 3, _IMAGE_SIZE, _IMAGE_SIZE
    images = _NUM_TRAIN if episode is None else 2 * episode.images
    return Facts(
        num_peers=len(cohort),
        leader=cohort.leader,
        num_classes=cohort.num_classes,
        embedding_dims=cohort.embedding_dims,
        labels=torch.arange(images) % cohort.num_classes,
        num_epochs=100,
        seed=seed,
        stage_channels=tuple(net.stage_channels for net in cohort),
        shared=cohort.shared,
        frozen=tuple(sorted(cohort.frozen)),
        peers=tuple(facts_of(net, shape) for net in cohort.nets),
        teachers=tuple(facts_of(net, shape) for net in teachers.nets),
    )


def _make_batch(views: int, labels: list[int], classes: int) -> Batch:
    rows = [label + classes * (2 * labels[:b].count(label) + 1) for b, label in enumerate(labels)]
    images = torch.randn(views, len(labels), 3, _IMAGE_SIZE, _IMAGE_SIZE)
    zero = torch.zeros((), dtype=torch.int64)
    return Batch(views=images, labels=torch.tensor(labels), indices=torch.tensor(rows), epoch=zero, step=zero.clone())


def _heard(batch: Batch, facts: Facts) -> Batch:
    """Add what two partners say: one that is trusted fully, and one that does not know every image."""
    rows = torch.arange(batch.size)[:, None] + torch.arange(facts.num_classes)
    logits, known = rows.to(torch.float32).sin(), (rows[:, 0] % 2).to(torch.float32)
    said = [PartnerOutput(logits=part, trust=trust) for part, trust in ((logits, known * 0 + 1), (-logits, known / 2))]
    return replace(batch, partners=tuple(said))


def _repeated_labels(repeats: int) -> list[int]:
    return [k for k in range(max(1, min(_NUM_CLASSES, _BATCH_SIZE // repeats))) for _ in range(repeats)]


def _labels_for(needs: Needs) -> list[int]:
    """Labels of an episode, or as many of each class as a method needs in a batch."""
    if needs.episode is None:
        return _repeated_labels(needs.samples_per_class or 2)
    return [k for k in range(needs.episode.ways) for _ in range(needs.episode.per_class)]


def _episode(kind: type[Method], config: Method.Config, peers: int) -> Episode | None:
    """What a method's episodes are made of, which its configuration says; None for other methods."""
    if kind.needs.episode is None:
        return None
    cohort = Cohort([_tiny_net(6, _NUM_CLASSES) for _ in range(peers)])
    return kind(config, _facts(cohort, Teachers(()), 0)).requirements().episode


def _as_leaves(peer: PeerOutput) -> PeerOutput:
    logits, embedding = (tensor.detach().requires_grad_() for tensor in (peer.logits, peer.embedding))
    stages, inner = (
        tuple(part.detach().requires_grad_() for part in maps) for maps in (peer.stages, peer.preactivations)
    )
    return replace(peer, logits=logits, embedding=embedding, stages=stages, preactivations=inner)


def _has_gradient(tensor: Tensor) -> bool:
    return tensor.grad is not None and bool(tensor.grad.abs().sum() > 0)


def _all_finite(tensors: Iterable[Tensor]) -> bool:
    return all(bool(tensor.isfinite().all()) for tensor in tensors)


def _total_in(scene: Scene, precision: str) -> Tensor:
    if precision == "float64":
        scene.cohort.double()
        scene.method.double()
        scene.teachers.double()
        scene = replace(scene, batch=scene.batch.with_views(scene.batch.views.double()))
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
        total = scene.terms().total()
    total.backward()  # type: ignore[no-untyped-call]
    return total.detach()


def _copies(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: tensor.detach().clone() for name, tensor in tensors.items()}


def _below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _same(first: Mapping[Any, Tensor], second: Mapping[Any, Tensor]) -> bool:
    """Whether the same tensors have the same bits; nan counts as equal to itself."""
    return first.keys() == second.keys() and all(
        torch.equal(first[key].nan_to_num(nan=-7.0), second[key].nan_to_num(nan=-7.0)) for key in first
    )


def _twice_as_long(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: torch.cat([tensor, tensor]) for name, tensor in tensors.items() if tensor.dim()}


def _refuses(load: Callable[[Mapping[str, Tensor]], None], state: Mapping[str, Tensor]) -> bool:
    try:
        load(state)
    except CoterieError:
        return True
    return False


def _require(condition: bool, name: str, message: str) -> None:
    if not condition:
        raise AssertionError(f"method {name!r}: {message}")
