"""Several recipes, several seeds: equal whatever the number of processes, and continued after an interruption."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from coterie.cli import main
from coterie.core import ConfigError, CoterieError
from coterie.core.record import RunFolder
from coterie.experiment import Comparison
from coterie.reports import read_run
from faults import names
from tiny import settings_of

ALONE = '[method]\nname = "independent"\n[cohort]\nnets = ["cnn4_w4"]\n'
DML = '[method]\nname = "dml"\n[cohort]\nnets = ["cnn4_w6", "cnn4_w4"]\n'
TINY = [word for word in settings_of("dml") if word.startswith(("data.", "epochs"))]
DATA = [*TINY, "data.name=synthetic", "train.threads=1"]


@pytest.fixture
def recipes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, str]:
    monkeypatch.chdir(tmp_path)
    Path("alone.toml").write_text(ALONE)
    Path("dml.toml").write_text(DML)
    return "alone.toml", "dml.toml"


def make(recipes: tuple[str, ...], out: str, *, seeds: int = 2, jobs: int = 1, **more: object) -> Comparison:
    return Comparison(recipes=recipes, settings=tuple(DATA), seeds=seeds, jobs=jobs, out=Path(out), **more)


def results(out: str) -> dict[str, object]:
    found = {}
    for path in sorted(Path(out).rglob("result.json")):
        result = json.loads(path.read_text())
        result.pop("seconds")
        found[str(path.parent.relative_to(out))] = result
    return found


@pytest.mark.slow
def test_one_process_and_two_give_equal_results(recipes: tuple[str, str]) -> None:
    tables = [make(recipes, out, jobs=jobs).run() for out, jobs in (("one", 1), ("two", 2))]
    assert results("one") == results("two")
    assert list(results("one")) == ["alone/seed-0", "alone/seed-1", "dml/seed-0", "dml/seed-1"]
    strip = [[line for line in table.to_markdown().splitlines() if "|" in line] for table in tables]
    assert len(strip[0]) == len(strip[1]) >= 4
    for out in ("one", "two"):
        assert {"comparison.md", "comparison.csv", "curves.png"} <= set(names(Path(out)))
        assert Path(out, "curves.png").read_bytes()[:4] == b"\x89PNG"
        rows = list(csv.DictReader(Path(out, "comparison.csv").read_text().splitlines()))
        assert {"alone.toml", "dml.toml"} <= {value for row in rows for value in row.values()}
    assert "Measured with coterie" in Path("one", "comparison.md").read_text()


def test_the_leaders_of_a_pair_begin_equal_and_see_equal_data(recipes: tuple[str, str]) -> None:
    make(recipes, "out", seeds=1).run()
    runs = [read_run(Path("out", name, "seed-0")) for name in ("alone", "dml")]
    assert runs[0].seed == runs[1].seed == 0
    counts = [json.loads(Path("out", name, "seed-0", "result.json").read_text()) for name in ("alone", "dml")]
    assert counts[0]["train_images"] == counts[1]["train_images"] == 43


@pytest.mark.slow
def test_an_interrupted_comparison_goes_on(recipes: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    make(recipes, "whole").run()
    trained: list[str] = []
    from coterie.experiment.experiment import Experiment

    train = Experiment.train

    def counting(self: Experiment, **options: object) -> object:
        if len(trained) == 2:
            raise KeyboardInterrupt
        trained.append(str(self.folder.path))
        return train(self, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Experiment, "train", counting)
        with pytest.raises(KeyboardInterrupt):
            make(recipes, "out").run()
    assert len(results("out")) == 2
    times = {path: path.stat().st_mtime_ns for path in Path("out").rglob("result.json")}
    make(recipes, "out").run()
    assert results("out") == results("whole")
    assert {path: path.stat().st_mtime_ns for path in times} == times
    make(recipes, "out", seeds=3).run()
    assert len(results("out")) == 6
    assert {path: path.stat().st_mtime_ns for path in times} == times


def test_other_settings_in_the_same_folder_are_refused(recipes: tuple[str, str]) -> None:
    make(recipes, "out", seeds=1).run()
    before = results("out")
    other = Comparison(recipes=recipes, settings=(*DATA, "optim.lr=0.3"), seeds=1, out=Path("out"))
    with pytest.raises(CoterieError, match=r"alone\.toml, seed 0: .*optim\.lr 0\.05 -> 0\.3"):
        other.run()
    assert results("out") == before


@pytest.mark.parametrize(
    ("text", "named"),
    [
        (DML + "[optim]\nlr = 0.5\n", r"optim\.lr 0\.05 and 0\.5"),
        ("seed = 4\n" + DML, "seed 0 and 4"),
        (DML + "[data]\nflip = false\n", r"data\.flip"),
    ],
)
def test_unequal_recipes_are_refused_unless_asked_for(recipes: tuple[str, str], text: str, named: str) -> None:
    Path("other.toml").write_text(text)
    with pytest.raises(ConfigError, match=rf"alone\.toml and other\.toml differ in more than the method \(.*{named}"):
        make(("alone.toml", "other.toml"), "out").run()
    assert not Path("out").exists()
    if "seed" not in text:
        make(("alone.toml", "other.toml"), "out", seeds=1, unequal=True).run()
        assert len(results("out")) == 2


@pytest.mark.parametrize("jobs", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_run_that_fails_is_named_and_the_others_are_kept(recipes: tuple[str, str], jobs: int) -> None:
    Path("bad.toml").write_text(DML.replace("cnn4_w6", "conv4"))  # too deep for images of 8 x 8 pixels
    with pytest.raises(CoterieError, match=r"bad\.toml, seed 0: .*conv4") as caught:
        make(("alone.toml", "bad.toml"), "out", seeds=1, jobs=jobs).run()
    assert caught.value.exit_code == 2
    assert "alone/seed-0" in results("out")


@pytest.mark.slow
def test_from_the_command_line(recipes: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", *recipes, *DATA, "--seeds", "2", "--out", "my out"]) == 0
    text = capsys.readouterr().out
    assert "[4/4]" in text
    assert "alone.toml" in text
    assert len(results("my out")) == 4


@pytest.mark.slow
def test_going_on_with_other_jobs_trains_nothing_again(recipes: tuple[str, str]) -> None:
    settings = tuple(word for word in DATA if not word.startswith("train.threads"))
    first = Comparison(recipes=recipes, settings=settings, seeds=1, jobs=1, out=Path("out"))
    first.run()
    stamps = {path: path.stat().st_mtime_ns for path in sorted(Path("out").rglob("result.json"))}
    assert len(stamps) == 2
    Comparison(recipes=recipes, settings=settings, seeds=1, jobs=2, out=Path("out")).run()
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps


@pytest.mark.slow
def test_runs_stop_politely_when_the_comparison_is_killed(recipes: tuple[str, str]) -> None:
    settings = [word for word in DATA if not word.startswith("epochs")]
    command = [sys.executable, "-m", "coterie", "compare", *recipes, *settings, "epochs=100000", "--jobs", "2"]
    silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "start_new_session": True}
    process = subprocess.Popen([*command, "--out", "out"], **silent)
    folders = [Path("out/alone/seed-0"), Path("out/dml/seed-0")]
    try:
        wait_until(lambda: all((folder / "metrics.jsonl").exists() for folder in folders))
        process.kill()
        process.wait()
        wait_until(lambda: all(state_of(folder) == "preempted" for folder in folders))
        wait_until(lambda: not group_exists(process.pid))
    finally:
        if group_exists(process.pid):
            os.killpg(process.pid, signal.SIGKILL)


def group_exists(leader: int) -> bool:
    try:
        os.killpg(leader, 0)
    except ProcessLookupError:
        return False
    return True


def wait_until(done: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.1)


def state_of(folder: Path) -> str:
    status = RunFolder(folder).read_status()
    return "" if status is None else status.state
