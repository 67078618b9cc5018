"""What a snapshot lists, and that each part of it is put back."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from coterie.core import CheckpointError
from coterie.engine import Clock, Meters, Run, Snapshot, capture, digest, fit, restore
from coterie.engine.loop import train_epoch
from tiny import build, tiny

CPU = torch.device("cpu")


def meters_of(run: Run) -> Meters:
    meters = Meters(every=0, emit=lambda row: None, emit_timing=lambda row: None)
    run.watchers = [meters]
    return meters


def halfway(method: str = "mcl_okd", **settings: Any) -> tuple[Run, Meters, Snapshot]:
    run = build(tiny(method, **settings))
    meters = meters_of(run)
    inner = run.loader.batches
    run.loader.batches = lambda epoch, start: list(inner(epoch, start))[:3]
    train_epoch(run)
    run.loader.batches = inner
    return run, meters, copied(capture(run, meters))


def copied(snapshot: Snapshot) -> Snapshot:
    tensors = {stem: {name: t.clone() for name, t in section.items()} for stem, section in snapshot.tensors.items()}
    return replace(snapshot, tensors=tensors)


def test_sections_and_values() -> None:
    _, _, snapshot = halfway(optim__name="adamw")
    assert set(snapshot.tensors) == {
        *("peer0", "peer1", "peer0.optim", "peer1.optim", "method", "method.optim", "memory", "meters", "rng")
    }
    assert {name.split("/")[0] for name in snapshot.section("memory")} == {"bank"}
    weights = {name.rpartition("/")[0] for name in snapshot.section("peer1.optim")}
    assert "head.weight" in weights
    keys = {name.rpartition("/")[2] for name in snapshot.section("peer1.optim")}
    assert keys == {"step", "exp_avg", "exp_avg_sq"}
    assert (snapshot.value("epoch"), snapshot.value("position")) == (0, 3)


def test_a_shared_stage_is_stepped_once_and_kept_whole_in_every_peer() -> None:
    _, _, snapshot = halfway(cohort__shared=1)
    shared = {name for name in snapshot.section("peer0") if name.startswith(("stem.", "stages.0."))}
    assert shared
    assert all(torch.equal(snapshot.section("peer0")[name], snapshot.section("peer1")[name]) for name in shared)
    assert not any(name.startswith(("stem.", "stages.0.")) for name in snapshot.section("peer1.optim"))


@pytest.mark.parametrize("settings", [{}, {"optim__name": "adamw"}, {"train__precision": "float16"}])
def test_a_restored_run_goes_on_like_the_old_one(settings: dict[str, Any]) -> None:
    old, old_meters, snapshot = halfway(**settings)
    new = build(tiny("mcl_okd", **settings, seed=0))
    new_meters = meters_of(new)
    for parameter in new.objective.parameters():
        torch.nn.init.zeros_(parameter)
    restore(new, new_meters, snapshot, CPU)
    assert digest(capture(new, new_meters)) == digest(snapshot)
    assert new.clock == Clock(epoch=0, position=3)
    fit(old)
    fit(new)
    assert digest(capture(new, new_meters)) == digest(capture(old, old_meters))


WRONG = {
    "peers": (lambda s: {**s.tensors, "peer2": s.section("peer1")}, "3 peers and the recipe 2"),
    "bank": (lambda s: {**s.tensors, "memory": {"bank/rows": torch.zeros(2, 9, 8)}}, "memory"),
    "heads": (lambda s: {**s.tensors, "method": {}}, "the method does not fit"),
    "optimiser": (lambda s: {**s.tensors, "peer0.optim": {"gone/step": torch.tensor(1.0)}}, "gone"),
    "generators": (lambda s: {**s.tensors, "rng": {}}, "random generators"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_does_not_fit_is_refused(name: str) -> None:
    run, meters, snapshot = halfway()
    change, message = WRONG[name]
    with pytest.raises(CheckpointError, match=message):
        restore(run, meters, replace(snapshot, tensors=change(snapshot)), CPU)


@pytest.mark.parametrize("key", ["epoch", "position", "rate"])
@pytest.mark.parametrize("value", [None, "3", True, [1]])
def test_a_number_that_is_none_is_refused(key: str, value: Any) -> None:
    run, meters, snapshot = halfway()
    with pytest.raises(CheckpointError, match="where a number must stand"):
        restore(run, meters, replace(snapshot, values={**snapshot.values, key: value}), CPU)
