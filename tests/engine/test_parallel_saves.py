"""Checkpoints in the background of several processes: rank 0 writes, nobody waits, all fail together."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import pytest

from coterie.core import CheckpointError
from coterie.core.crash import VARIABLE
from coterie.core.files import RecordWarning
from coterie.core.record import RunFolder
from coterie.engine import CheckpointStore, SharedKeeper
from ranks import difference, in_ranks, recipe_for, train
from saves import held_up, saving

SETTINGS: dict[str, object] = {"train__checkpoint_every": 2, "train__keep": 9}


@pytest.mark.slow
def test_steps_are_taken_while_the_first_rank_writes(tmp_path: Path) -> None:
    """Each checkpoint is written only when two more steps have been taken, and holds the state of its own step."""
    settings = {**SETTINGS, "train__checkpoint_every": 3}

    def inline(rank: int) -> None:
        train(recipe_for("mcl_okd", train__background_saves=False, **settings), tmp_path / "inline")

    def behind(rank: int) -> list[tuple[int, int]]:
        before = held_up(SharedKeeper, pytest.MonkeyPatch())  # in a forked rank; only the first one writes
        train(recipe_for("mcl_okd", **settings), tmp_path / "behind")
        return before

    assert in_ranks(2, inline) == [("ok", None)] * 2
    (kind, before), (other, _) = in_ranks(2, behind)
    assert kind == other == "ok"
    assert [step for step, _ in before] == [3, 6, 9, 10]
    assert all(later >= step + 2 for step, later in before[:2])
    assert difference(tmp_path / "inline", tmp_path / "behind") == 0
    stores = [CheckpointStore(RunFolder(tmp_path / name).checkpoints) for name in ("inline", "behind")]
    assert stores[0].steps() == stores[1].steps() == [3, 6, 9, 10]
    for step in stores[0].steps():
        one, two = (store.load(step) for store in stores)
        for stem in one.tensors:
            assert all(tensor.equal(two.section(stem)[name]) for name, tensor in one.section(stem).items())


@pytest.mark.case(7)
@pytest.mark.parametrize("background", [True, False])
@pytest.mark.parametrize("first", [2, 6])
def test_a_disk_that_refuses_the_first_rank_ends_all(tmp_path: Path, background: bool, first: int) -> None:
    def work(rank: int) -> None:
        def refuse(step: int) -> None:
            if step >= first:
                raise CheckpointError("cannot save: no space")

        saving(refuse, pytest.MonkeyPatch())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            recipe = recipe_for("dml", epochs=4, train__background_saves=background, **SETTINGS)
            train(recipe, tmp_path / "run")

    found = in_ranks(2, work)
    assert found[0] == ("CheckpointError", "cannot save: no space")
    assert found[1] == ("FailedElsewhere", "rank 0: cannot save: no space")
    status = RunFolder(tmp_path / "run").read_status()
    assert status is not None and (status.state, status.exit_code, status.saved) == ("failed", 4, first - 2)


@pytest.mark.slow
@pytest.mark.case(2)
@pytest.mark.parametrize("point", ["manifest-written:2", "tensors-written:4", "checkpoint-renamed:2"])
def test_a_first_rank_that_dies_while_it_writes(tmp_path: Path, point: str) -> None:
    def whole(rank: int) -> None:
        train(recipe_for("dml", **SETTINGS), tmp_path / "whole")

    def dying(rank: int) -> None:
        if rank == 0:
            os.environ[VARIABLE] = point
        train(recipe_for("dml", **SETTINGS), tmp_path / "run")

    def resumed(rank: int) -> None:
        begun = RunFolder(tmp_path / "run").recipe.exists()
        train(recipe_for("dml", **SETTINGS), tmp_path / "run", resume=begun)

    assert in_ranks(2, whole) == [("ok", None)] * 2
    found = in_ranks(2, dying)
    assert found[0] == ("died", -9) and found[1][0] == "ParallelError"
    assert in_ranks(2, resumed) == [("ok", None)] * 2
    assert difference(tmp_path / "whole", tmp_path / "run") == 0


@pytest.mark.slow
def test_a_mirror_is_the_first_ranks(tmp_path: Path) -> None:
    mirror = f"file://{tmp_path}/far"

    def first(rank: int) -> None:
        train(recipe_for("dml", train__mirror=mirror, **SETTINGS), tmp_path / "run")

    assert in_ranks(2, first) == [("ok", None)] * 2
    steps = CheckpointStore(tmp_path / "far" / "checkpoints", keep=2).steps()
    assert steps[-1] == 10
    with pytest.warns(RecordWarning, match="processes that share a batch 2 -> 1"):
        train(recipe_for("dml", train__mirror=mirror, **SETTINGS), tmp_path / "other", resume=True)
    assert difference(tmp_path / "run", tmp_path / "other") == 0
