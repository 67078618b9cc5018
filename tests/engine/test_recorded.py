"""Recorded steps, with a recorder that calls the step again: fixed tensors, a warm-up without trace, refusals."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from coterie.config import OptimConfig, TrainConfig
from coterie.core.errors import ConfigError
from coterie.core.method import Needs
from coterie.core.types import Batch
from coterie.engine import CudaRecorder, Done, RecordedStep, Run, check_recordable, fit, make_optimizer, take_step
from coterie.engine.state import capture
from tiny import BATCHES, EPOCHS, build, loader_of, tiny

EXACT = {
    "optim__lr": 0.0625,
    "optim__schedule": "step",
    "optim__milestones": 1,
    "optim__gamma": 0.5,
}  # float32 has them


class Repeater:
    """Does what a CUDA graph does, by calling the step again; counts."""

    def __init__(self) -> None:
        self.warm_ups = 0
        self.recorded = 0
        self.replays = 0

    def warm_up(self, step: Callable[[], Done]) -> None:
        self.warm_ups += 1
        step()

    def record(self, step: Callable[[], Done]) -> Callable[[], Done]:
        self.recorded += 1

        def replay() -> Done:
            self.replays += 1
            return step()

        return replay


def recorded(recipe: object, **options: object) -> Run:
    """A run whose steps are repeated from a recording."""
    run = build(recipe, **options)
    run.stepper.optimizer = make_optimizer(run.objective.trainable().values(), recipe.optim, recorded=True)
    run.step = RecordedStep(Repeater())
    return run


class NoMeters:
    """No open row."""

    def state(self) -> tuple[dict[str, Tensor], list[str]]:
        return {}, []


def everything(run: Run) -> dict[str, Tensor]:
    """All tensors of a checkpoint but the generators'."""
    sections = capture(run, NoMeters()).tensors
    return {f"{stem}/{name}": value for stem, part in sections.items() if stem != "rng" for name, value in part.items()}


@pytest.mark.parametrize("optim", ["sgd", "adamw"])
@pytest.mark.parametrize("method", ["independent", "mcl_okd", "mcl_moco"])
def test_repeated_steps_end_as_plain_ones(method: str, optim: str) -> None:
    recipe = tiny(method, optim__name=optim, optim__clip=1.0, **EXACT)
    plain, other = build(recipe, dtype=torch.float64), recorded(recipe, dtype=torch.float64)
    views = plain.loader
    plain.loader, other.loader = Doubled(views), Doubled(views)
    fit(plain)
    fit(other)
    ours, theirs = everything(other), everything(plain)
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, rtol=1e-11, atol=1e-13, msg=name)
    recorder = other.step.recorder
    assert (recorder.recorded, recorder.replays, recorder.warm_ups) == (1, BATCHES * EPOCHS, 3)
    assert other.stepper.rate == plain.stepper.rate


class Doubled:
    """Gives the batches of a loader in float64, in new tensors every time."""

    def __init__(self, loader: object) -> None:
        self.loader = loader
        self.batches_per_epoch = loader.batches_per_epoch

    def batches(self, epoch: int, position: int = 0) -> object:
        return (batch.with_views(batch.views.double()) for batch in self.loader.batches(epoch, position))


def test_the_loop_alone_and_in_pieces_is_the_same_to_the_bit() -> None:
    recipe = tiny("mcl_okd", **EXACT)
    plain, other = build(recipe), recorded(recipe)
    fit(plain)
    fit(other)
    ours, theirs = everything(other), everything(plain)
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())


def test_a_warm_up_leaves_no_trace() -> None:
    run = recorded(tiny("mcl_okd"), nets=None)
    before = {name: tensor.clone() for name, tensor in everything(run).items()}
    draws = torch.get_rng_state()
    batch = next(iter(run.loader.batches(0)))
    run.stepper.aim(0, 0)
    run.step._record(run, batch)
    after = everything(run)
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert all(not after[name].any() for name in after.keys() - before.keys())  # the optimiser's fresh state
    assert any("momentum_buffer" in name for name in after.keys() - before.keys())
    assert torch.equal(torch.get_rng_state(), draws)
    assert all(parameter.grad is None for parameter in run.objective.parameters())


def test_a_step_reads_the_tensors_it_was_recorded_on() -> None:
    run = recorded(tiny())
    first, second, *_ = run.loader.batches(0)
    run.objective.train()
    run.stepper.aim(0, 0)
    seen = run.step(run, first).batch
    assert seen.views.data_ptr() != first.views.data_ptr()
    again = run.step(run, second).batch
    assert again.views.data_ptr() == seen.views.data_ptr()
    assert torch.equal(again.views, second.views) and torch.equal(again.indices, second.indices)


def test_a_batch_of_another_shape_is_stepped_without_the_recording() -> None:
    run = recorded(tiny())
    run.objective.train()
    run.stepper.aim(0, 0)
    first, second, *_ = run.loader.batches(0)
    run.step(run, first)
    views, labels, rows = second.views[:, :4], second.labels[:4], second.indices[:4]
    part = Batch(views=views, labels=labels, indices=rows, epoch=second.epoch, step=second.step)
    assert run.step(run, part).batch is part
    assert run.step.recorder.replays == 1


def test_memories_that_move_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    run = recorded(tiny("mcl_okd"))
    (name, bank), *_ = run.objective.method.memories.items()
    update = type(bank).update

    def moving(self: object, *rest: object) -> None:
        update(self, *rest)
        self.rows = self.rows.clone()

    monkeypatch.setattr(type(bank), "update", moving)
    run.stepper.aim(0, 0)
    with pytest.raises(ConfigError, match=rf"cannot record a step that puts memory {name}/rows somewhere else"):
        run.step(run, next(iter(run.loader.batches(0))))


class Outward:
    """A method that takes outer steps."""

    def requirements(self) -> Needs:
        return Needs(outer_every=3)


@pytest.mark.parametrize(
    ("optim", "train", "device", "line"),
    [
        ({}, {}, "cpu", "on cpu, only on CUDA"),
        ({}, {"precision": "float16"}, "cuda", r"gradient scaling of train\.precision=float16"),
        ({"accumulate": 2}, {}, "cuda", r"optim\.accumulate=2"),
        ({}, {}, "cuda", "the outer steps of Outward"),
    ],
)
def test_what_cannot_be_recorded_is_refused(optim: dict, train: dict, device: str, line: str) -> None:
    with pytest.raises(ConfigError, match=rf"^train\.compile=graph cannot record .*{line}; set train\.compile=none"):
        check_recordable(Outward(), OptimConfig(**optim), TrainConfig(**train), torch.device(device))


def test_the_rate_is_changed_in_its_place() -> None:
    run = recorded(tiny(**EXACT))
    (group,) = run.stepper.optimizer.param_groups
    rate = group["lr"]
    assert isinstance(rate, Tensor)
    run.stepper.aim(0, 0)
    assert float(rate) == 0.0625
    run.stepper.aim(1, 0)
    assert group["lr"] is rate and float(rate) == 0.03125


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("method", ["independent", "mcl_okd"])
def test_a_cuda_graph_ends_as_the_loop(method: str) -> None:
    device, recipe = torch.device("cuda"), tiny(method, **EXACT)
    runs = []
    for step in (take_step, RecordedStep(CudaRecorder(device))):
        run = build(recipe)
        run.objective.to(device)
        run.stepper.optimizer = make_optimizer(run.objective.trainable().values(), recipe.optim, recorded=True)
        run.loader, run.step = Moved(loader_of(recipe), device), step
        fit(run)
        runs.append(everything(run))
    for name, tensor in runs[0].items():
        torch.testing.assert_close(runs[1][name], tensor, rtol=1e-4, atol=1e-6, msg=name)


class Moved(Doubled):
    """Gives the batches of a loader on a device."""

    def __init__(self, loader: object, device: torch.device) -> None:
        super().__init__(loader)
        self.device = device

    def batches(self, epoch: int, position: int = 0) -> object:
        return (batch.on(self.device) for batch in self.loader.batches(epoch, position))
