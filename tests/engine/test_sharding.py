"""Peers that are cut into parts train as whole ones do, and no process holds more than its part of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from coterie.config import Recipe, TrainConfig
from coterie.core import ConfigError
from coterie.core.shards import cut_as, is_shard, part_here, whole_of
from coterie.engine import Meters, Preempted
from coterie.engine.mesh import check_mesh
from coterie.experiment import Experiment
from ranks import difference, in_ranks, on_mesh, recipe_for, train
from tiny import signal_after

CLOSE = 1e-10

HANDFUL: dict[str, Recipe] = {
    "banks": recipe_for("mcl_okd"),
    "banks of heads": recipe_for("mcl_bank"),
    "a view for each": recipe_for("kdcl"),
    "accumulated, clipped": recipe_for("dml", optim__accumulate=2, optim__clip=0.5, optim__name="adamw"),
}


def in_parts(recipe: Recipe) -> Recipe:
    """The same recipe with its peers cut into parts."""
    return replace(recipe, train=replace(recipe.train, shard=True))


@pytest.fixture(scope="module")
def two_as_one(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Every run of the handful in one process and in two with halves of peers, and one begun by one, ended by two."""
    folder = tmp_path_factory.mktemp("handful")
    for name, recipe in HANDFUL.items():
        train(recipe, folder / f"{name}-1")
    with signal_after(4), suppress(Preempted):
        train(HANDFUL["accumulated, clipped"], folder / "resumed")

    def work(rank: int) -> None:
        for name, recipe in HANDFUL.items():
            train(in_parts(recipe), folder / f"{name}-2")
        train(in_parts(HANDFUL["accumulated, clipped"]), folder / "resumed", resume=True)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("coterie.experiment.session.exactness_lost", lambda *given: [])
        assert in_ranks(2, work) == [("ok", None)] * 2
    yield folder


@pytest.mark.slow
@pytest.mark.parametrize("name", HANDFUL)
def test_two_processes_train_as_one(two_as_one: Path, name: str) -> None:
    assert difference(two_as_one / f"{name}-1", two_as_one / f"{name}-2") < CLOSE


@pytest.mark.slow
def test_resumed_from_whole_peers(two_as_one: Path) -> None:
    assert difference(two_as_one / "accumulated, clipped-1", two_as_one / "resumed") < CLOSE


@pytest.mark.slow
def test_what_a_process_holds(tmp_path: Path) -> None:
    def work(rank: int) -> tuple[int, int, int]:
        found: list[tuple[int, int, int]] = []
        before = Meters.on_step

        def on_step(self: Meters, run: Any, *rest: Any) -> None:
            before(self, run, *rest)
            own, state = list(run.objective.cohort.parameters()), run.stepper.optimizer.state
            kept = [part_here(state[parameter]["momentum_buffer"]).nbytes for parameter in own]
            found.append((sum(part_here(p).nbytes for p in own), sum(kept), sum(p.numel() * 8 for p in own)))

        Meters.on_step = on_step  # type: ignore[method-assign] # in a forked child
        train(in_parts(recipe_for("dml")), tmp_path / "run")
        return found[-1]

    for kind, (weights, momentum, whole) in in_ranks(2, work):
        assert kind == "ok" and weights == momentum and 0.45 < weights / whole < 0.55


@pytest.mark.slow
def test_peers_apart_and_in_parts(tmp_path: Path) -> None:
    runs = {name: recipe_for(name) for name in ("dml", "fsp", "kd")}
    for name, recipe in runs.items():
        train(recipe, tmp_path / f"{name}-1")

    def work(rank: int) -> None:
        for name, recipe in runs.items():
            train(on_mesh(in_parts(recipe), 2), tmp_path / name)

    assert in_ranks(4, work) == [("ok", None)] * 4
    assert all(difference(tmp_path / f"{name}-1", tmp_path / name) < CLOSE for name in runs)


@pytest.mark.slow
def test_what_cannot_be_cut(tmp_path: Path) -> None:
    refused = {
        "peers that share stages": recipe_for("dml", cohort__shared=1),
        "keeps copies of the peers": recipe_for("pcl"),
        "steps through their weights": recipe_for("l_mcl"),
        "maps before activations": recipe_for("ab"),
        "cohort.execution=grouped": recipe_for("dml", cohort__execution="grouped"),
        "train.precision=float16": recipe_for("dml", train__precision="float16"),
        "networks that a program gave": recipe_for("dml", cohort__nets=("a", "b")),
    }
    nets = [nn.Sequential(nn.Flatten(), nn.Linear(192, 4)) for _ in range(2)]

    def work(rank: int) -> list[str]:
        found = []
        for text, recipe in refused.items():
            given = nets if recipe.cohort.nets == ("a", "b") else None
            with pytest.raises(Exception, match=r"train\.shard|rank 0") as raised:
                Experiment(in_parts(recipe), folder=tmp_path / text, nets=given, quiet=True).train()
            found.append(str(raised.value))
        return found

    (kind, found), _ = in_ranks(2, work)
    assert kind == "ok" and all(text in line for text, line in zip(refused, found, strict=True)), found
    for size, ranks in ((1, 1), (4, 4)):
        with pytest.raises(ConfigError, match="one process for all of them"):
            check_mesh(TrainConfig(peer_ranks=ranks, shard=True), size)


def test_whole_tensors_pass_unchanged() -> None:
    tensor = torch.arange(4.0)
    assert not is_shard(tensor)
    assert whole_of(tensor) is tensor and part_here(tensor) is tensor and cut_as(tensor, torch.zeros(4)) is tensor
