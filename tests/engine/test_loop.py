"""The loop against one written by hand in plain PyTorch, and what it may not do."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from coterie.config import Recipe
from coterie.engine import CheckpointStore, Clock, Meters, Run, fit
from coterie.engine.loop import train_epoch
from coterie.experiment import Experiment
from coterie.experiment.build import build_nets
from tiny import BATCHES, build, loader_of, tiny


def parameters(run: Run) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in run.objective.cohort.parameters()]


def by_hand(recipe: Recipe) -> dict[str, Tensor]:
    """Plain training of one network: nothing of the engine, nothing of the methods."""
    net = build_nets(recipe, num_classes=4, channels=3, image_size=8)[0]
    optim = torch.optim.SGD(net.parameters(), lr=1.0, momentum=0.9, nesterov=True, weight_decay=5e-4, fused=True)
    loader = loader_of(recipe)
    for epoch in range(recipe.epochs):
        net.train()
        for batch in loader.batches(epoch):
            loss = F.cross_entropy(net(batch.views[0]), batch.labels)
            optim.zero_grad()
            loss.backward()
            if recipe.optim.clip:
                nn.utils.clip_grad_norm_(net.parameters(), recipe.optim.clip)
            for group in optim.param_groups:
                group["lr"] = 0.05 * (1 + math.cos(math.pi * epoch / recipe.epochs)) / 2
            optim.step()
    return net.state_dict()


@pytest.mark.parametrize("clip", [0.0, 0.5])
def test_one_independent_peer_is_plain_training(tmp_path: Path, clip: float) -> None:
    recipe = tiny(cohort__nets=("cnn4_w4",), epochs=3, optim__clip=clip)
    Experiment(recipe, folder=tmp_path / "run", quiet=True).train()
    found = CheckpointStore(tmp_path / "run" / "checkpoints").load_newest()
    expected = by_hand(recipe)
    assert found[0] == 3 * BATCHES
    assert all(torch.equal(found[1].section("peer0")[name], expected[name]) for name in expected)


def plain_nets(seed: int = 0) -> list[nn.Module]:
    torch.manual_seed(seed)
    return [nn.Sequential(nn.Flatten(), nn.Linear(192, 6), nn.Tanh(), nn.Linear(6, 4)) for _ in range(2)]


class Doubles:
    """A loader whose batches are in float64, two of the inner one's at a time if asked."""

    def __init__(self, inner: Any, group: int) -> None:
        self.inner = inner
        self.group = group
        self.batches_per_epoch = inner.batches_per_epoch // group

    def batches(self, epoch: int, start: int = 0) -> Iterator[Any]:
        waiting: list[Any] = []
        for batch in list(self.inner.batches(epoch))[: self.batches_per_epoch * self.group]:
            waiting.append(batch.with_views(batch.views.double()))
            if len(waiting) == self.group:
                yield self.joined(waiting)
                waiting = []

    @staticmethod
    def joined(batches: list[Any]) -> Any:
        first = batches[0]
        fields = {name: torch.cat([getattr(b, name) for b in batches]) for name in ("labels", "indices")}
        views = torch.cat([b.views for b in batches], dim=1)
        return type(first)(views=views, epoch=first.epoch, step=first.step, **fields)


def trained(accumulate: int, group: int, optim: str) -> list[Tensor]:
    recipe = tiny(data__validation=0.0, optim__accumulate=accumulate, optim__name=optim)
    run = build(recipe, nets=plain_nets(), dtype=torch.float64)
    run.loader = Doubles(run.loader, group)
    run.stepper.batches_per_epoch = run.loader.batches_per_epoch
    run.stepper.steps_per_epoch = -(-run.loader.batches_per_epoch // accumulate)
    fit(run)
    return parameters(run)


@pytest.mark.parametrize("optim", ["sgd", "adamw"])
def test_accumulating_two_batches_is_one_of_twice_the_size(optim: str) -> None:
    torch.testing.assert_close(trained(2, 1, optim), trained(1, 2, optim), rtol=0, atol=1e-12)


def test_a_group_cut_short_by_the_end_of_an_epoch_is_averaged_over_what_it_has() -> None:
    run = build(tiny(optim__accumulate=BATCHES - 1), nets=plain_nets(), dtype=torch.float64)
    run.loader = Doubles(run.loader, 1)
    alone = build(tiny(), nets=plain_nets(), dtype=torch.float64)
    *_, last = run.loader.batches(0)
    run.clock = Clock(position=BATCHES - 1)
    train_tail = list(run.loader.batches(0))[BATCHES - 1 :]
    run.loader.batches = lambda epoch, start: iter(train_tail)
    train_epoch(run)
    alone.objective.train()
    alone.objective(last)[1].total().backward()
    optim = torch.optim.SGD(alone.objective.parameters(), lr=0.05, momentum=0.9, nesterov=True, weight_decay=5e-4)
    optim.step()
    torch.testing.assert_close(parameters(run), parameters(alone), rtol=0, atol=1e-15)


@pytest.mark.parametrize(
    ("accumulate", "steps"), [(1, range(1, 11)), (2, (2, 4, 5, 7, 9, 10)), (3, (3, 5, 8, 10)), (9, (5, 10))]
)
def test_the_keeper_is_asked_only_when_no_gradients_wait(accumulate: int, steps: Any) -> None:
    run = build(tiny(optim__accumulate=accumulate))
    fit(run)
    expected = [("step", step) for step in steps]
    assert [asked for asked in run.keeper.asked if asked[0] == "step"] == expected
    assert [asked for asked in run.keeper.asked if asked[0] == "epoch"] == [("epoch", 5), ("epoch", 10)]


def test_watchers_are_called_in_order_with_the_batch_counted() -> None:
    seen: list[tuple[str, int, int]] = []

    class Watcher:
        def on_step(self, run: Run, peers: Any, terms: Any, batch: Any) -> None:
            assert not torch.is_grad_enabled()
            assert int(batch.step) == run.batches - 1
            seen.append(("step", run.clock.epoch, run.clock.position))

        def on_epoch(self, run: Run) -> None:
            seen.append(("epoch", run.clock.epoch, run.clock.position))

    run = build(tiny())
    run.watchers = [Watcher()]
    run.clock = Clock(epoch=1, position=3)
    fit(run)
    assert seen == [("step", 1, 4), ("step", 1, 5), ("epoch", 1, 5)]
    assert (run.clock.epoch, run.clock.position) == (2, 0)


SYNCS = ("item", "tolist", "numpy", "cpu", "__bool__", "__float__", "__int__", "__index__", "nonzero")


@contextmanager
def no_reading() -> Iterator[list[str]]:
    """Refuse whatever makes the host wait for a tensor on a device."""
    kept = {name: getattr(Tensor, name) for name in SYNCS}
    read: list[str] = []

    def refusing(name: str) -> Callable[..., Any]:
        def refuse(self: Tensor, *rest: Any, **options: Any) -> Any:
            read.append(name)
            raise AssertionError(f"a step calls Tensor.{name}")

        return refuse

    try:
        for name in kept:
            setattr(Tensor, name, refusing(name))
        yield read
    finally:
        for name, original in kept.items():
            setattr(Tensor, name, original)


@pytest.mark.parametrize("method", ["independent", "dml", "mcl_okd"])
def test_nothing_is_read_from_the_device_between_rows(method: str) -> None:
    run = build(tiny(method, optim__clip=1.0, train__precision="bfloat16"))
    rows: list[Any] = []
    run.watchers = [Meters(every=0, emit=rows.append, emit_timing=rows.append)]
    with no_reading() as read:
        train_epoch(run)
        assert read == []
        with pytest.raises(AssertionError, match="tolist"):
            run.watchers[0].on_epoch(run)
    assert rows == []


def test_channels_last_reaches_images_and_weights(tmp_path: Path) -> None:
    recipe = tiny("mcl_okd", train__channels_last=True)
    experiment = Experiment(recipe, folder=tmp_path / "run", quiet=True)
    parts = experiment.build()
    weights = [parameter for parameter in parts.cohort.parameters() if parameter.dim() == 4 and parameter.shape[1] > 1]
    assert all(weight.is_contiguous(memory_format=torch.channels_last) for weight in weights)
    result = experiment.train()
    other = Experiment(tiny("mcl_okd"), folder=tmp_path / "other", quiet=True).train()
    nll = [found["last"]["test"]["leader"]["nll"] for found in (result, other)]
    assert nll[0] == pytest.approx(nll[1], rel=1e-4)
