"""The test set is opened once, after the last epoch, and chooses nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from coterie.config import Recipe
from coterie.core.record import read_metrics
from coterie.data import DATA, open_data
from coterie.data.base import Source, Split
from coterie.engine import CheckpointStore, load_from
from coterie.engine.loop import train_epoch
from coterie.experiment import Experiment, evaluate_run
from coterie.experiment.build import build_nets
from tiny import run_in_pieces, stop_after, tiny, trace


def counted(recipe: Recipe, opened: list[int], steps: list[int]) -> Source:
    """The synthetic set, which notes when its test split is opened."""
    source = DATA["synthetic"](recipe.data, recipe.seed)

    def test() -> Split:
        opened.append(len(steps))
        return source.test()

    return replace(source, test=test)


@pytest.fixture
def epochs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry per epoch that was begun."""
    begun: list[int] = []

    def count(run: object) -> None:
        begun.append(1)
        train_epoch(run)

    monkeypatch.setattr("coterie.engine.loop.train_epoch", count)
    return begun


def test_opened_once_and_after_the_last_epoch(tmp_path: Path, epochs: list[int]) -> None:
    recipe, opened = tiny(epochs=3), []
    run_in_pieces(recipe, tmp_path / "run", source=counted(recipe, opened, epochs))
    assert opened == [3]


def test_not_opened_by_a_run_that_stops(tmp_path: Path, epochs: list[int]) -> None:
    recipe, opened = tiny(), []
    source = counted(recipe, opened, epochs)
    stop_after(7, Experiment(recipe, folder=tmp_path / "run", source=source, quiet=True).train)
    assert opened == []


def test_other_test_images_change_scores_and_nothing_else(tmp_path: Path) -> None:
    recipe = tiny("mcl_okd")
    source = DATA["synthetic"](recipe.data, recipe.seed)
    odd = replace(source, test=lambda: source.train.select(torch.arange(9)))
    first = run_in_pieces(recipe, tmp_path / "first", source=source)
    second = run_in_pieces(recipe, tmp_path / "second", source=odd)
    assert (first.best, first.metrics) == (second.best, second.metrics)
    assert first.result["digest"] == second.result["digest"]
    assert first.result["last"]["test"] != second.result["last"]["test"]


def test_the_validation_split_is_disjoint_and_of_the_training_set() -> None:
    recipe = tiny(data__validation=0.25)
    source = DATA["synthetic"](recipe.data, recipe.seed)
    data = open_data(recipe.data, recipe.seed, source)
    rows = {image.numpy().tobytes(): row for row, image in enumerate(source.train.images)}
    assert len(rows) == 48
    train, held = ({rows[image.numpy().tobytes()] for image in split.images} for split in (data.train, data.validation))
    assert len(train) == 36
    assert len(held) == 12
    assert train | held == set(range(48))
    test = {image.numpy().tobytes() for image in data.test().images}
    assert test.isdisjoint(rows)


def test_best_on_validation_is_marked_and_is_the_best(tmp_path: Path) -> None:
    run = tmp_path / "run"
    done = run_in_pieces(tiny(epochs=5, seed=3), run)
    rows = [row for row in read_metrics(run / "metrics.jsonl") if row["kind"] == "validation"]
    top1 = [row["leader"]["top1"] for row in rows]
    best = done.result["best_on_validation"]
    assert [row["epoch"] for row in rows] == list(range(5))
    assert best["epoch"] == top1.index(max(top1)) + 1 < 5
    assert best["validation"]["leader"]["top1"] == max(top1)
    assert done.result["last"]["epoch"] == 5
    assert done.result["last"]["validation"]["leader"]["top1"] == top1[-1]

    scores = evaluate_run(run)
    assert set(scores) == {"last_epoch", "best_on_validation"}
    assert scores["last_epoch"] == done.result["last"]["test"]
    assert scores["best_on_validation"] == best["test"] != scores["last_epoch"]
    assert trace(run) == done


def test_without_a_validation_split_there_is_no_best(tmp_path: Path) -> None:
    done = run_in_pieces(tiny(data__validation=0.0), tmp_path / "run")
    assert "best_on_validation" not in done.result
    assert not (tmp_path / "run" / "best").exists()
    assert set(evaluate_run(tmp_path / "run")) == {"last_epoch"}


def test_scores_every_so_many_epochs_and_after_the_last(tmp_path: Path) -> None:
    run_in_pieces(tiny(epochs=5, train__evaluate_every=2), tmp_path / "run")
    rows = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert [row["epoch"] for row in rows if row["kind"] == "validation"] == [1, 3, 4]


def state_of(folder: Path, peer: int) -> dict[str, torch.Tensor]:
    found = CheckpointStore(folder / "checkpoints").load_newest(read_only=True)
    return dict(found[1].section(f"peer{peer}"))


@pytest.mark.parametrize("leader", [0, 1, -1])
def test_a_leader_alone_and_among_independent_peers_is_one_network(tmp_path: Path, leader: int) -> None:
    nets = ["cnn4_w6", "cnn4_w6", "cnn4_w6"]
    nets[leader] = "cnn4_w4"
    cohort, alone = tiny(cohort__nets=nets, cohort__leader=leader), tiny(cohort__nets=("cnn4_w4",))
    fresh = [build_nets(recipe, num_classes=4, channels=3, image_size=8) for recipe in (cohort, alone)]
    assert all(map(torch.equal, fresh[0][leader].state_dict().values(), fresh[1][0].state_dict().values()))
    assert not torch.equal(fresh[0][leader - 1].head.weight, fresh[0][leader - 2].head.weight)

    first, second = run_in_pieces(cohort, tmp_path / "cohort"), run_in_pieces(alone, tmp_path / "alone")
    among, lone = state_of(tmp_path / "cohort", leader % 3), state_of(tmp_path / "alone", 0)
    assert among.keys() == lone.keys()
    assert all(torch.equal(among[key], lone[key]) for key in lone)
    for part in (("last", "test"), ("best_on_validation", "test")):
        scores = [done.result[part[0]][part[1]]["leader"] for done in (first, second)]
        assert scores[0] == scores[1]
    assert load_from(tmp_path / "alone" / "best")[1].value("epoch") == first.result["best_on_validation"]["epoch"]


def test_an_unfinished_run_is_not_scored_as_a_finished_one(tmp_path: Path) -> None:
    stop_after(7, Experiment(tiny(), folder=tmp_path / "run", quiet=True).train)
    assert set(evaluate_run(tmp_path / "run")) == {"newest_checkpoint", "best_on_validation"}
