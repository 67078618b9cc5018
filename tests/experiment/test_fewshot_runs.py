"""Training and scoring by episodes, through the command line, on tiny classes."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import toy_classes
from coterie.cli import main
from coterie.config import Recipe, resolve
from coterie.core import ConfigError
from coterie.experiment import Experiment, evaluate_run, make_plan
from coterie.experiment.fewshot import fewshot_run
from tiny import run_in_pieces

DATA = {"name": "toy_classes", "batch_size": 16, "augment": "none"}
FEWSHOT = {"ways": 5, "queries": 3, "episodes": 30}
EPISODES = {"ways": 4, "queries": 3, "episodes": 5}
KNOBS: dict[str, dict[str, Any]] = {
    "mcl_okd": {"num_negatives": 16, "embedding_dim": 8},
    "kdcl": {"views": "shared"},
}
PAIRED = ["independent", "dml", "cl_ilr", "one", "okddip", "kdcl", "mcl", "mcl_okd"]


def recipe_of(*methods: str, **settings: object) -> Recipe:
    """A recipe of 2 epochs of 5 episodes; settings have `__` for the dot."""
    knobs = {name: {**(EPISODES if name in ("prototypes", "matching") else KNOBS.get(name, {}))} for name in methods}
    method = knobs if len(methods) > 1 else knobs[methods[0]]
    shared = 1 if "one" in methods else 0
    tree = {
        "epochs": 2,
        "method": {"name": list(methods) if len(methods) > 1 else methods[0], **method},
        "cohort": {"nets": ["cnn4_w4"] * 3, "shared": shared},
        "data": DATA,
        "fewshot": FEWSHOT,
    }
    return resolve(tree, [f"{key.replace('__', '.')}={value}" for key, value in settings.items()])


def score(result: dict[str, Any]) -> dict[str, Any]:
    scores: dict[str, Any] = result["last"]["test"]["leader"]
    return scores


@pytest.mark.slow
@pytest.mark.parametrize("first", PAIRED)
def test_every_online_method_trains_prototypical_networks(first: str, tmp_path: Path) -> None:
    recipe = recipe_of(first, "prototypes")
    result = Experiment(recipe, folder=tmp_path / "run", quiet=True).train()
    assert score(result).keys() == {"top1", "interval", "episodes"}
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    train = [row for row in rows if row["kind"] == "train"][-1]
    assert {"prototypes", "task"} <= train["terms"].keys()
    assert [row["step"] for row in rows if row["kind"] == "validation"] == [5, 10]
    assert result["best_on_validation"]["test"]["leader"]["episodes"] == 30


@pytest.mark.parametrize(
    "methods",
    [
        ("prototypes",),
        *(
            pytest.param(names, marks=pytest.mark.slow)
            for names in [("matching",), ("mcl_okd", "prototypes"), ("mcl", "matching")]
        ),
    ],
)
def test_a_stopped_run_ends_with_the_bits_of_a_whole_one(methods: tuple[str, ...], tmp_path: Path) -> None:
    recipe = recipe_of(*methods, optim__name="adam", optim__lr=0.001)
    whole = run_in_pieces(recipe, tmp_path / "whole")
    assert run_in_pieces(recipe, tmp_path / "pieces", (2, 7)) == whole


@pytest.mark.slow
def test_training_raises_the_accuracy_on_new_classes(tmp_path: Path) -> None:
    recipe = recipe_of("prototypes", epochs=1, optim__lr=1e-9)
    before = Experiment(recipe, folder=tmp_path / "a", quiet=True).train()
    recipe = recipe_of("prototypes", epochs=12, optim__name="adam", optim__lr=0.01)
    after = Experiment(recipe, folder=tmp_path / "b", quiet=True).train()
    assert score(after)["top1"] > score(before)["top1"] + 3


def test_relations_of_a_teacher_are_learnt_beside_episodes(tmp_path: Path) -> None:
    Experiment(recipe_of("prototypes"), folder=tmp_path / "teacher", quiet=True).train()
    recipe = recipe_of("prototypes", "rkd", teacher__weights=str(tmp_path / "teacher"))
    result = Experiment(recipe, folder=tmp_path / "run", quiet=True).train()
    assert result["method"] == "prototypes+rkd" and score(result)["top1"] > 20


def test_a_cohort_sees_one_episode_and_every_worker_count_the_same(tmp_path: Path) -> None:
    results = [
        Experiment(recipe_of("prototypes", data__workers=n), folder=tmp_path / str(n), quiet=True).train()
        for n in (0, 1, 2)
    ]
    assert results[0]["digest"] == results[1]["digest"] == results[2]["digest"]


def test_two_methods_must_want_the_same_episodes() -> None:
    recipe = recipe_of("prototypes", "matching")
    assert "4 ways" in dict(make_plan(recipe).lines)["matching: episodes"]
    with pytest.raises(ConfigError, match="different episodes"):
        make_plan(recipe_of("prototypes", "matching", method__matching__shots=2))
    with pytest.raises(ConfigError, match=r"mcl.prototypes needs 9 images of each class and an episode has 4"):
        make_plan(recipe_of("mcl", "prototypes", method__mcl__samples_per_class=9))


@pytest.mark.slow
def test_a_plan_counts_episodes() -> None:
    lines = dict(make_plan(recipe_of("mcl_okd", "prototypes")).lines)
    assert lines["steps"] == "2 epochs x 5 = 10 of 16 images"
    assert "prototypes" in lines["loss"]


@pytest.fixture(name="runs", scope="module")
def train_two(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of two finished runs: four peers with matching heads, and three prototypical networks."""
    root = tmp_path_factory.mktemp("runs")
    for name, methods in (("own", ("matching",)), ("other", ("independent", "prototypes"))):
        Experiment(recipe_of(*methods), folder=root / name, quiet=True).train()
    return {name: root / name for name in ("own", "other")}


def test_a_run_is_scored_for_all_ways_and_shots(runs: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fewshot", str(runs["own"]), "--ways", "2,5", "--shots", "1,3", "--queries", "2"]) == 0
    out = capsys.readouterr().out
    assert "best on validation" in out and "30 episodes of 2 queries" in out
    record = json.loads((runs["own"] / "fewshot.json").read_text())
    rows = [row for row in record["rows"] if row["state"] == "last_epoch"]
    assert [(row["ways"], row["shots"]) for row in rows] == list(product((2, 5), (1, 3)))
    assert {row["head"] for row in rows} == {"matching"}
    assert all(len(row["peers"]) == 3 and row["leader"] == row["peers"][-1] for row in rows)


def test_the_figure_is_that_of_result_json(runs: dict[str, Path]) -> None:
    result = json.loads((runs["own"] / "result.json").read_text())
    first = fewshot_run(runs["own"])["rows"][0]
    assert {key: first[key] for key in ("leader", "peers", "ensemble")} == result["last"]["test"]


def test_two_runs_are_compared_episode_by_episode(runs: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    own, other = (fewshot_run(runs[name])["rows"][0] for name in ("own", "other"))
    record = fewshot_run(runs["own"], against=runs["other"])
    (row,) = record["differences"]
    for who in ("leader", "ensemble"):
        assert row[who]["mean"] == pytest.approx(own[who]["top1"] - other[who]["top1"])
        assert "30 paired episodes" in row[who]["verdict"]
    apart = (own["leader"]["interval"] ** 2 + other["leader"]["interval"] ** 2) ** 0.5
    assert row["leader"]["interval"] != pytest.approx(apart)
    same = fewshot_run(runs["own"], against=runs["own"])["differences"][0]["leader"]
    assert (same["mean"], same["interval"]) == (0.0, 0.0)
    assert main(["fewshot", str(runs["own"]), "--against", str(runs["other"])]) == 0
    assert "leader of" in capsys.readouterr().out


def test_a_recipe_is_trained_and_scored(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = [f"data.{key}={value}" for key, value in DATA.items()]
    knobs = [f"method.prototypes.{key}={value}" for key, value in EPISODES.items()]
    words = ["net.name=cnn4_w4", "method.mcl_okd.num_negatives=16", "epochs=1", *data, *knobs]
    words += [f"fewshot.{key}={value}" for key, value in FEWSHOT.items()]
    run = tmp_path / "run"
    assert main(["fewshot", "omniglot/mcl_okd", *words, "--out", str(run), "--episodes", "20"]) == 0
    assert json.loads((run / "fewshot.json").read_text())["episodes"] == 20
    assert json.loads((run / "result.json").read_text())["last"]["test"]["leader"]["episodes"] == 30
    assert main(["evaluate", str(run)]) == 0
    out = capsys.readouterr().out
    assert "95 % +-" in out and "top-5" not in out


@pytest.mark.slow
def test_comparisons_know_such_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = [f"data.{key}={value}" for key, value in DATA.items()]
    words = ["net.name=cnn4_w4", "epochs=1", *data, *(f"fewshot.{key}={value}" for key, value in FEWSHOT.items())]
    files = []
    for name, methods in (("alone", '"prototypes"'), ("pair", '["dml", "prototypes"]')):
        table = "method.prototypes" if "[" in methods else "method"
        knobs = "\n".join(f"{key} = {value}" for key, value in EPISODES.items())
        header = f"[method]\nname = {methods}\n" + (f"[{table}]\n" if "." in table else "")
        (tmp_path / f"{name}.toml").write_text(f"{header}{knobs}\n[cohort]\npeers = 2\n")
        files.append(str(tmp_path / f"{name}.toml"))
    assert main(["compare", *files, *words, "--seeds", "2", "--out", str(tmp_path / "out")]) == 0
    assert "leader" in (tmp_path / "out" / "comparison.md").read_text()


BAD = {
    "more ways than classes to train on": (["method.ways=13"], "13 ways and the training set 12 classes"),
    "more images than there are": (["method.queries=9"], "1 shots and 9 queries of each of 4 classes"),
    "more ways than classes to validate on": (["fewshot.ways=7"], "7 ways and the validation set 6 classes"),
    "one way": (["method.ways=1"], "method.ways=1; give a whole number of at least 2"),
    "more ways than classes to test on": (["data.validation=0", "fewshot.ways=8"], "8 ways and the test set 7 classes"),
    "more images than test classes have": (
        ["data.validation=0", "fewshot.shots=6"],
        "7 classes of the test set have 9 images",
    ),
    "no such head": (["fewshot.head=nearest"], "fewshot.head"),
    "one episode": (["fewshot.episodes=1"], "give at least 2"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line(case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words, message = BAD[case]
    data = [f"data.{key}={value}" for key, value in DATA.items()]
    knobs = [f"method.{key}={value}" for key, value in EPISODES.items()]
    fewshot = [f"fewshot.{key}={value}" for key, value in FEWSHOT.items()]
    out = tmp_path / "run"
    command = ["train", "omniglot/prototypes", *data, *knobs, *fewshot, *words, "--out", str(out)]
    assert main(command) == 2
    err = capsys.readouterr().err
    assert message in err and len(err.splitlines()) == 1 and not out.exists()


def test_bad_requests_of_a_finished_run(runs: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    for words, message in (
        (["--ways", "8"], "8 ways and the test set 7 classes"),
        (["--shots", "6"], "6 shots and 3 queries"),
        (["--head", "nearest"], "fewshot.head is 'nearest'; known: auto"),
        (["--ways", "five"], "--ways is 'five'; give whole numbers"),
    ):
        assert main(["fewshot", str(runs["own"]), *words]) == 2
        err = capsys.readouterr().err
        assert message in err and len(err.splitlines()) == 1


def toy_words(**settings: object) -> list[str]:
    """The words of a command line that make an Omniglot recipe one of a single epoch on toy classes."""
    tables = {"data": DATA, "method": EPISODES, "fewshot": FEWSHOT, "net": {"name": "cnn4_w4"}}
    words = [f"{table}.{key}={value}" for table, knobs in tables.items() for key, value in knobs.items()]
    return [*words, "epochs=1", *(f"{key.replace('__', '.')}={value}" for key, value in settings.items())]


EARLY = {
    "more ways than test classes": (["--ways", "5,8"], "8 ways and the test set 7 classes"),
    "more shots than test images": (["--shots", "6"], "an episode takes 6 shots and 3 queries of each of 5 classes"),
    "more queries than test images": (["--queries", "8"], "0 of the 7 classes of the test set have 9 images"),
    "unknown head": (["--head", "nearest"], "fewshot.head is 'nearest'; known: auto, centroid"),
    "one episode": (["--episodes", "1"], "give at least 2, an interval needs two"),
    "no run to compare with": (["--against", "gone"], "'gone' is not the folder of a run"),
    "data of known classes": (
        ["data.name=synthetic", "method=independent"],
        "test classes of synthetic are those of training",
    ),
}


@pytest.mark.parametrize("case", EARLY)
def test_a_recipe_is_not_trained_for_a_request_that_must_fail(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("coterie.engine.Stepper.__call__", lambda *_: 1 / 0)
    words, message = EARLY[case]
    plain = [word for word in toy_words() if not (word.startswith("method.") and "method=independent" in words)]
    assert main(["fewshot", "omniglot/prototypes", *plain, "--out", str(tmp_path / "run"), *words]) == 2
    err = capsys.readouterr().err
    assert message in err and len(err.splitlines()) == 1 and not (tmp_path / "run").exists()


def test_a_split_that_names_a_missing_class(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number, name in enumerate(("cat", "dog", "owl")):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for image in range(3):
            pixels = np.full((16, 16, 3), 60 * number + image, dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{image}.png")
    split = {"train": ["cat", "dog"], "test": ["owl", "fox"]}
    (tmp_path / "photos" / "split.json").write_text(json.dumps(split))
    words = [*toy_words(), "data.name=folder_classes", f"data.root={tmp_path}/photos", "data.validation=0"]
    assert main(["fewshot", "omniglot/prototypes", *words, "--out", str(tmp_path / "run")]) == 2
    err = capsys.readouterr().err
    assert "split.json' names the class 'fox' and" in err and len(err.splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_episodes_alone_teach_no_classifier_that_known_classes_could_be_scored_by(tmp_path: Path) -> None:
    known = {"name": "synthetic", "samples": 64, "classes": 8, "image_size": 16, "batch_size": 16, "augment": "none"}
    tree = {"epochs": 1, "cohort": {"nets": ["cnn4_w4"]}, "data": known}
    alone = resolve({**tree, "method": {"name": "prototypes", **EPISODES}}, [])
    for refused in (Experiment(alone, folder=tmp_path / "run", quiet=True).train, lambda: make_plan(alone)):
        with pytest.raises(ConfigError, match="prototypes alone trains no classifier"):
            refused()
    both = {"name": ["independent", "prototypes"], "independent": {}, "prototypes": EPISODES}
    result = Experiment(resolve({**tree, "method": both}, []), folder=tmp_path / "run", quiet=True).train()
    assert "nll" in score(result)


def test_new_classes_cannot_be_probed(runs: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["transfer", str(runs["own"]), "data.name=toy_classes"]) == 2
    err = capsys.readouterr().err
    assert "test classes of toy_classes are not those of training" in err and "coterie fewshot" in err
    assert len(err.splitlines()) == 1


def test_equal_states_are_embedded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    embedded: list[int] = []

    def embeddings(self: Experiment, parts: Any, split: Any) -> Any:
        embedded.append(len(split.labels))
        return before(self, parts, split)

    before = Experiment.embeddings
    monkeypatch.setattr(Experiment, "embeddings", embeddings)
    tests, held = 7 * toy_classes.PER_CLASS, 6 * toy_classes.PER_CLASS
    run = tmp_path / "run"
    result = Experiment(recipe_of("prototypes", epochs=1), folder=run, quiet=True).train()
    assert embedded == [held, tests, held]
    assert result["best_on_validation"]["test"] == result["last"]["test"]
    for read in (fewshot_run, evaluate_run):
        embedded.clear()
        read(run)
        assert embedded == [tests]
    rows = fewshot_run(run)["rows"]
    assert [row["state"] for row in rows] == ["last_epoch", "best_on_validation"]
    assert rows[0]["peers"] == rows[1]["peers"]


def test_a_run_on_known_classes_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = resolve({"epochs": 1, "cohort": {"nets": ["cnn4_w4"]}, "data": {"name": "synthetic", "batch_size": 16}})
    Experiment(recipe, folder=tmp_path / "run", quiet=True).train()
    assert main(["fewshot", str(tmp_path / "run")]) == 2
    err = capsys.readouterr().err
    assert "test classes of synthetic are those of training" in err and "coterie evaluate" in err
    assert len(err.splitlines()) == 1


def test_the_toy_classes_are_what_they_say() -> None:
    assert torch.bincount(toy_classes.patterns(0, 12).labels).tolist() == [toy_classes.PER_CLASS] * 12
