from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from coterie.core import CheckpointError, DataError
from coterie.reports import compare_runs, curves_of, mean_interval, read_run


def scores(top1: float) -> dict[str, float]:
    return {"top1": top1, "top5": 99.0, "nll": 0.3, "ece": 0.02}


def result(recipe: str, seed: int, leader: float) -> dict[str, Any]:
    test = {"leader": scores(leader), "peers": [scores(leader - 2), scores(leader)], "ensemble": scores(leader + 1)}
    return {"recipe": recipe, "method": "dml", "seed": seed, "seconds": 3.5, "last": {"test": test}}


ROWS: list[dict[str, Any]] = [
    {"kind": "train", "epoch": 0, "step": 1, "loss": 2.0, "terms": {"task": 2.0}, "accuracy": [10.0], "lr": 0.1},
    {"kind": "train", "epoch": 0, "step": 2, "loss": 1.0, "terms": {"task": 1.0}, "accuracy": [20.0], "lr": 0.1},
    {"kind": "validation", "epoch": 0, "step": 2, "leader": scores(50.0), "peers": [], "ensemble": scores(50.0)},
    {"kind": "train", "epoch": 1, "step": 3, "loss": 0.5, "terms": {"task": 0.5}, "accuracy": [30.0], "lr": 0.1},
    {"kind": "validation", "epoch": 1, "step": 3, "leader": scores(60.0), "peers": [], "ensemble": scores(60.0)},
]


def write_run(folder: Path, content: dict[str, Any], rows: list[dict[str, Any]] | None = None, tail: str = "") -> Path:
    folder.mkdir(parents=True)
    (folder / "result.json").write_text(json.dumps(content))
    if rows is not None:
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + tail)
    return folder


def test_a_run_folder_is_read(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path / "run", result("alone", 3, 93.0), ROWS))
    assert (run.recipe, run.method, run.seed, run.seconds) == ("alone", "dml", 3, 3.5)
    assert (run.leader, run.peers, run.ensemble) == (93.0, (91.0, 93.0), 94.0)
    assert run.accuracy == {0: 50.0, 1: 60.0} and run.loss == {0: 1.5, 1: 0.5}


@pytest.mark.parametrize("tail", ['{"kind": "train", "epo', "", '{"kind": "other"}', '{"kind": "other"}\n\n'])
def test_a_row_that_was_cut_off_is_left_out(tmp_path: Path, tail: str) -> None:
    run = read_run(write_run(tmp_path / "run", result("alone", 0, 93.0), ROWS, tail))
    assert run.loss == {0: 1.5, 1: 0.5}


def test_a_run_without_a_log_has_no_curves(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path / "run", result("alone", 0, 93.0)))
    assert not run.accuracy and not run.loss


def drop(content: dict[str, Any], *keys: str) -> dict[str, Any]:
    inner = content
    for key in keys[:-1]:
        inner = inner[key]
    del inner[keys[-1]]
    return content


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        (("seed",), "result.json has no 'seed'"),
        (("last",), "result.json has no 'last'"),
        (("last", "test"), "result.json: last has no 'test'"),
        (("last", "test", "ensemble"), "last.test has no 'ensemble'"),
        (("last", "test", "leader", "top1"), "last.test.leader has no 'top1'"),
    ],
)
def test_a_missing_key_is_named(tmp_path: Path, keys: tuple[str, ...], words: str) -> None:
    folder = write_run(tmp_path / "run", drop(result("alone", 0, 93.0), *keys))
    with pytest.raises(CheckpointError, match="leave this run out") as caught:
        read_run(folder)
    assert words in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("value", ['"x"', "NaN", "null", "true", "[1]"])
def test_a_value_that_is_no_number_is_named(tmp_path: Path, value: str) -> None:
    folder = write_run(tmp_path / "run", result("alone", 0, 93.0))
    path = folder / "result.json"
    path.write_text(path.read_text().replace("3.5", value))
    with pytest.raises(CheckpointError, match=r"'seconds' is .* must be a finite number"):
        read_run(folder)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "[" * 100_000])
def test_a_damaged_result_is_named(tmp_path: Path, text: str) -> None:
    folder = write_run(tmp_path / "run", result("alone", 0, 93.0))
    (folder / "result.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"result\.json"):
        read_run(folder)


def test_peers_must_be_a_list_of_scores(tmp_path: Path) -> None:
    content = result("alone", 0, 93.0)
    content["last"]["test"]["peers"] = []
    with pytest.raises(CheckpointError, match="evaluate the run again"):
        read_run(write_run(tmp_path / "run", content))


def test_bytes_that_are_no_text_are_named(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", result("alone", 0, 93.0))
    (folder / "metrics.jsonl").write_bytes(b"\xff\xfe\n")
    with pytest.raises(CheckpointError, match=r"cannot read .*metrics\.jsonl"):
        read_run(folder)


def test_a_damaged_row_in_the_middle_is_named(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", result("alone", 0, 93.0), ROWS)
    path = folder / "metrics.jsonl"
    path.write_text(path.read_text().replace('{"kind": "validation", "epoch": 0', '{"kind": "valid', 1))
    with pytest.raises(CheckpointError, match=r"metrics\.jsonl, row 3"):
        read_run(folder)


def test_an_unfinished_run_is_named_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="coterie train --resume"):
        read_run(tmp_path)


def runs(tmp_path: Path, table: dict[str, dict[int, float]]) -> list[Any]:
    return [
        read_run(write_run(tmp_path / f"{recipe}-{seed}", result(recipe, seed, leader), ROWS))
        for recipe, seeds in table.items()
        for seed, leader in seeds.items()
    ]


def test_recipes_are_paired_by_seed_not_by_order(tmp_path: Path) -> None:
    found = runs(tmp_path, {"alone": {0: 90.0, 1: 80.0, 2: 85.0}, "dml": {2: 86.1, 0: 91.0, 1: 80.9, 7: 10.0}})
    first, second = compare_runs(found).rows
    assert first.recipe == "alone" and first.difference is None
    assert second.difference is not None and second.difference.count == 3
    assert second.difference.mean == pytest.approx(1.0) and second.difference.std == pytest.approx(0.1)
    assert first.leader == mean_interval([90.0, 80.0, 85.0])
    assert first.peers.mean == pytest.approx(84.0) and first.ensemble.mean == pytest.approx(86.0)


def test_recipes_without_a_common_seed_are_not_compared(tmp_path: Path) -> None:
    table = compare_runs(runs(tmp_path, {"alone": {0: 90.0}, "dml": {1: 91.0}}))
    assert table.rows[1].difference is None
    assert "no common seed" in table.to_markdown()


def test_two_runs_of_one_seed_are_refused(tmp_path: Path) -> None:
    one = runs(tmp_path, {"alone": {0: 90.0}})
    with pytest.raises(CheckpointError, match="two runs of seed 0"):
        compare_runs(one * 2)


def test_nothing_cannot_be_compared() -> None:
    with pytest.raises(DataError, match="nothing to compare"):
        compare_runs([])


def test_curves_are_collected_by_recipe(tmp_path: Path) -> None:
    series = curves_of(runs(tmp_path, {"alone": {1: 90.0, 0: 91.0}, "dml": {0: 90.0}}))
    assert [(one.name, len(one.accuracy), len(one.loss)) for one in series] == [("alone", 2, 2), ("dml", 1, 1)]
    assert series[0].accuracy[0] == {0: 50.0, 1: 60.0}
