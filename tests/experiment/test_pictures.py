"""Pictures of few-shot runs through the command line: which are made, from what, and what is refused."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import coterie.experiment.pictures as pictures
from coterie.cli import main
from coterie.config import resolve
from coterie.core.errors import ConfigError
from coterie.evaluation.fewshot import draw_episodes, score_episodes
from coterie.experiment import Experiment, fewshot_pictures, open_run
from coterie.experiment.fewshot import _embedded
from coterie.reports import EpisodePicture
from tiny import run_in_pieces, stop_after, tiny
from toy_classes import toy_classes

PICTURES = ["report-embeddings.png", "report-episode.png", "report.png"]


@pytest.fixture(name="runs", scope="module")
def train_two(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of two finished runs on new classes."""
    root = tmp_path_factory.mktemp("runs")
    for name, method in (("own", "matching"), ("other", "prototypes")):
        run_in_pieces(tiny(method), root / name)
    return {name: root / name for name in ("own", "other")}


@pytest.fixture
def own(runs: dict[str, Path], tmp_path: Path) -> Path:
    shutil.copytree(runs["own"], tmp_path / "run")
    return tmp_path / "run"


def drawn(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*.png"))


@pytest.mark.slow
def test_a_fewshot_run_has_three_pictures(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(own)]) == 0
    out = capsys.readouterr().out
    assert drawn(own) == PICTURES and all(str(own / name) in out for name in PICTURES)
    assert "beside the same network before training" in out
    before = {name: (own / name).read_bytes() for name in PICTURES}
    assert main(["report", str(own)]) == 0
    assert before == {name: (own / name).read_bytes() for name in PICTURES}


@pytest.mark.slow
def test_a_baseline_is_drawn_beside_the_leader(
    own: Path, runs: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["report", str(own), "fewshot.ways=4", "--against", str(runs["other"]), "--out", str(own / "new" / "x.png")]
    assert main(words) == 0
    assert "leader of run (tiny) beside leader of other (tiny)" in capsys.readouterr().out
    assert drawn(own / "new") == ["x-embeddings.png", "x-episode.png", "x.png"] and drawn(own) == []


@pytest.mark.slow
def test_the_episode_is_the_first_that_is_scored(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[EpisodePicture] = []
    monkeypatch.setattr(pictures, "episode_page", lambda episode, path: seen.append(episode))
    (line, _) = fewshot_pictures(own)
    (episode,) = seen
    state, config = next(_embedded(open_run(own))), open_run(own).recipe.fewshot
    rows = draw_episodes(state.labels, config, "x")[:1]
    expected = score_episodes(state.embeddings, rows, shots=config.shots, head="matching", leader=state.leader)
    right = int(episode.right.sum())
    assert 100 * right / episode.right.numel() == pytest.approx(float(expected.values[state.leader, 0]), abs=1e-4)
    assert f"{right} of 9 queries right" in line
    raw = toy_classes(tiny("matching").data, 0).test().images[rows[0]] / 255
    torch.testing.assert_close(torch.cat([episode.support, episode.queries], dim=1), raw)


@pytest.mark.slow
def test_the_map_has_the_same_images_in_both_panels(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(pictures, "embedding_map", lambda *given, **_: seen.append(given))
    fewshot_pictures(own, against=own)
    panels, labels, examples, _ = seen[0]
    assert torch.equal(panels[0].points, panels[1].points) and panels[0].note == panels[1].note
    assert torch.bincount(labels).tolist() == [8] * 7 and len(examples) == 7
    fewshot_pictures(own)
    fresh, trained = seen[1][0]
    assert torch.equal(trained.points, panels[1].points) and not torch.equal(fresh.points, trained.points)


@pytest.mark.slow
def test_an_ordinary_or_unfinished_run_has_one_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_in_pieces(tiny(), tmp_path / "ordinary")
    stop_after(7, Experiment(tiny("prototypes", train__log_every=1), folder=tmp_path / "begun", quiet=True).train)
    for name in ("ordinary", "begun"):
        assert main(["report", str(tmp_path / name)]) == 0
        assert drawn(tmp_path / name) == ["report.png"]
    capsys.readouterr()
    for name, message in (
        ("ordinary", "test classes of synthetic are those of training"),
        ("begun", "is not finished"),
    ):
        assert main(["report", str(tmp_path / name), "--against", str(tmp_path / name)]) == 2
        err = capsys.readouterr().err
        assert message in err and len(err.splitlines()) == 1


@pytest.mark.parametrize("content", ["[]", "{}", '{"last": 3}'])
def test_a_result_without_scores_gives_no_pictures(own: Path, content: str) -> None:
    (own / "result.json").write_text(content)
    assert fewshot_pictures(own) == []
    assert json.loads((own / "result.json").read_text()) == json.loads(content)


def test_runs_on_other_images_are_not_put_side_by_side(
    own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = {"epochs": 1, "method": {"name": "prototypes", "ways": 3, "queries": 2, "episodes": 2}}
    data = {"name": "toy_classes", "batch_size": 8}
    other = resolve({**tree, "data": data, "fewshot": {"ways": 3, "queries": 3}, "cohort": {"nets": ["cnn4_w4"]}}, [])
    source = toy_classes(other.data, 0)
    fewer = {"test": lambda: source.test().select(torch.arange(40)), "test_labels": None}
    Experiment(other, folder=tmp_path / "other", source=replace(source, **fewer), quiet=True).train()
    monkeypatch.setattr(
        pictures,
        "open_run",
        lambda path, *_: Experiment(
            open_run(path).recipe, folder=path, source=replace(source, **fewer) if path.name == "other" else None
        ),
    )
    with pytest.raises(ConfigError, match="the runs are tested on other images"):
        fewshot_pictures(own, against=tmp_path / "other")
