"""Runs with `train.mirror`: lost with their machine, they go on elsewhere to the same bits."""

from __future__ import annotations

import shutil
import signal
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from coterie.cli import main
from coterie.config import Recipe
from coterie.core import CheckpointError, ConfigError
from coterie.core.record import RunFolder
from coterie.engine.checkpoint import CheckpointWarning
from coterie.experiment import Experiment, fetch_run
from faults import memory_folder, names, run_child
from faulty_store import failing, slow, store_with
from tiny import Trace, run_in_pieces, stop_after, tiny, trace


@pytest.fixture
def place() -> Iterator[Path]:
    with memory_folder() as folder:
        yield folder


def recipe(place: Path, **settings: object) -> Recipe:
    return tiny(
        "mcl_okd", train__checkpoint_every=2, train__mirror=f"faulty://{place}/far", train__log_every=2, **settings
    )


def whole(place: Path) -> Trace:
    return run_in_pieces(tiny("mcl_okd", train__checkpoint_every=2, train__log_every=2), place / "whole")


def test_a_mirror_changes_nothing_and_holds_the_end(place: Path) -> None:
    expected = whole(place)
    assert run_in_pieces(recipe(place), place / "run") == expected
    assert names(place / "far") == [
        *("best", "checkpoints", "environment.json", "metrics.jsonl", "recipe.toml", "result.json", "timing.jsonl"),
    ]
    assert names(place / "far" / "checkpoints")[-1] == "step-00000010"
    status = RunFolder(place / "run").read_status()
    assert status is not None and (status.saved, status.mirrored, status.mirror_failures) == (10, 10, 0)
    assert names(place / "run" / "checkpoints") == ["step-00000008", "step-00000010"]


@pytest.mark.case(47)
@pytest.mark.parametrize("stop", [3, 7])
def test_a_machine_that_is_lost_after_a_polite_stop(place: Path, stop: int) -> None:
    expected = whole(place)
    stop_after(stop, Experiment(recipe(place), folder=place / "run", name="tiny", quiet=True).train)
    assert RunFolder(place / "run").read_status().mirrored == stop  # type: ignore[union-attr]
    shutil.rmtree(place / "run")
    Experiment(recipe(place), folder=place / "other", name="tiny", quiet=True).train(resume=True)
    assert trace(place / "other") == expected


@pytest.mark.case(47)
@pytest.mark.parametrize("point", ["mirror-file:9", "mirror-files:2", "mirror-manifest:3", "checkpoint-renamed:3"])
def test_a_machine_that_dies_while_it_copies(place: Path, point: str) -> None:
    expected = whole(place)

    def train() -> None:
        Experiment(recipe(place), folder=place / "run", name="tiny", quiet=True).train()

    assert run_child(train, crash_at=point).code == -signal.SIGKILL
    shutil.rmtree(place / "run")
    Experiment(recipe(place), folder=place / "other", name="tiny", quiet=True).train(resume=True)
    assert trace(place / "other") == expected


def test_by_the_command_line(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    expected = whole(place)
    stop_after(5, Experiment(recipe(place), folder=place / "run", name="tiny", quiet=True).train)
    shutil.rmtree(place / "run")
    assert main(["train", "--resume", f"faulty://{place}/far", "--out", str(place / "other")]) == 0
    assert trace(place / "other") == expected
    assert main(["train", "--resume", f"faulty://{place}/none", "--out", str(place / "third")]) == 2
    assert "holds no run (no recipe.toml)" in capsys.readouterr().err


def test_a_copy_at_another_address_goes_on_there(place: Path) -> None:
    stop_after(5, Experiment(recipe(place), folder=place / "run", name="tiny", quiet=True).train)
    (place / "far").rename(place / "moved")
    assert main(["train", "--resume", f"file://{place}/moved", "--out", str(place / "other")]) == 0
    assert names(place / "moved" / "checkpoints")[-1] == "step-00000010" and not (place / "far").exists()


def test_the_newer_of_two_places_is_used(place: Path) -> None:
    expected = whole(place)
    stop_after(4, Experiment(recipe(place), folder=place / "run", name="tiny", quiet=True).train)
    shutil.copytree(place / "run", place / "stale")
    stop_after(7, lambda: Experiment(recipe(place), folder=place / "run", quiet=True).train(resume=True))
    Experiment(recipe(place), folder=place / "stale", name="tiny", quiet=True).train(resume=True)
    assert trace(place / "stale") == expected
    with store_with() as done:  # here the machine has all there is
        Experiment(recipe(place), folder=place / "stale", name="tiny", quiet=True).train(resume=True)
    assert not [path for what, path in done if what == "get"]


def test_when_all_here_are_damaged_the_mirror_helps(place: Path) -> None:
    expected = whole(place)
    stop_after(6, Experiment(recipe(place), folder=place / "run", name="tiny", quiet=True).train)
    for path in (place / "run" / "checkpoints").glob("step-*/values.json"):
        path.unlink()
    Experiment(recipe(place), folder=place / "run", name="tiny", quiet=True).train(resume=True)
    assert trace(place / "run") == expected
    assert ".bad-step-00000006" in names(place / "run" / "checkpoints")


def test_a_store_that_fails_costs_a_warning_and_no_bit(place: Path) -> None:
    expected = whole(place)
    with store_with(failing(2)), pytest.warns(CheckpointWarning, match="could not be copied.*no route"):
        assert run_in_pieces(recipe(place), place / "run") == expected
    status = RunFolder(place / "run").read_status()
    assert status is not None and (status.mirrored, status.mirror_failures) == (10, 2)


@pytest.mark.slow
def test_training_does_not_wait_for_a_slow_store(place: Path) -> None:
    """One copy of 2 or 3 takes as long as the whole run."""
    with store_with(slow(0.05)) as done:
        run_in_pieces(recipe(place), place / "run")
    copied = {path.split("/")[-2] for what, path in done if what == "put" and "/checkpoints/" in path}
    assert len(copied) < 5 and "step-00000010" in copied


def test_a_new_run_does_not_mix_with_the_one_there(place: Path) -> None:
    run_in_pieces(recipe(place), place / "run")
    with pytest.raises(ConfigError, match="holds a run already"):
        Experiment(recipe(place), folder=place / "other", quiet=True).train()
    with pytest.raises(ConfigError, match="holds a run already"):
        Experiment(recipe(place), folder=place / "run", quiet=True).train(fresh=True)


def test_a_store_that_cannot_be_reached_is_found_before_training(place: Path) -> None:
    with store_with(failing(9, "ls")), pytest.raises(CheckpointError, match="cannot reach"):
        Experiment(recipe(place), folder=place / "run", quiet=True).train()
    with pytest.raises(ConfigError, match="no run"):
        fetch_run(f"faulty://{place}/none", place / "other")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ConfigError, match="Protocol not known"):
            bad = tiny("mcl_okd", train__mirror="nowhere://bucket")
            Experiment(bad, folder=place / "run", quiet=True).train()
