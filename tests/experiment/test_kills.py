"""kill -9 at any moment of a real run, and damage to what it left, change nothing of its end."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from coterie.config import Recipe
from coterie.core import CheckpointError
from coterie.core.crash import points_passed
from coterie.core.files import RecordWarning
from coterie.core.record import RunFolder
from coterie.engine.checkpoint import CheckpointWarning
from coterie.experiment import Experiment
from faults import kill_until_done, memory_folder, names, run_child
from tiny import Trace, run_in_pieces, signal_after, stop_after, tiny, trace

BOTH_WAYS = [True, pytest.param(False, marks=pytest.mark.slow)]


def recipe(epochs: int, background: bool = True) -> Recipe:
    settings = {"train__checkpoint_every": 1, "train__log_every": 1, "train__threads": 1}
    return tiny("mcl_okd", epochs=epochs, seed=3, train__background_saves=background, **settings)


def work(folder: Path, epochs: int = 2, background: bool = True) -> Callable[[], object]:
    def train() -> None:
        begun = RunFolder(folder).recipe.exists()
        Experiment(recipe(epochs, background), folder=folder, name="tiny", quiet=True).train(resume=begun)

    return train


@cache
def undisturbed(epochs: int = 2) -> Trace:
    """Also the first optimiser step of this process, so that children need not import what it needs."""
    with memory_folder() as folder:
        return run_in_pieces(recipe(epochs), folder / "run")


def odd(folder: Path) -> list[str]:
    """Hidden files that an interrupted writer left behind."""
    found = [*names(folder), *names(folder / "checkpoints")]
    return [name for name in found if name.startswith(".") and name != ".lock"]


@pytest.mark.case(1, 40)
@pytest.mark.parametrize(
    ("enough", "background"), [(10, True), *(pytest.param(50, way, marks=pytest.mark.slow) for way in (True, False))]
)
def test_kills_at_random_moments(enough: int, background: bool) -> None:
    expected, kills = undisturbed(epochs=6), 0
    with memory_folder() as folder:
        for attempt in range(20):
            run = folder / f"run-{attempt}"
            kills += kill_until_done(work(run, 6, background), seed=attempt, shortest=0.01, longest=0.15)
            assert trace(run) == expected
            assert odd(run) == []
            if kills >= enough:
                return
    raise AssertionError(f"only {kills} kills")


@pytest.mark.slow
@pytest.mark.case(2)
@pytest.mark.parametrize("background", BOTH_WAYS)
def test_a_kill_at_a_dozen_points_of_the_writers(background: bool) -> None:
    expected = undisturbed()
    with memory_folder() as folder:

        def count() -> int:
            work(folder / "count", background=background)()
            return points_passed()

        points = run_child(count, crash_at="never:1").value
        assert points > 100
        for point in range(1, points, points // 12):
            run = folder / f"run-{point}"
            again = work(run, background=background)
            assert run_child(again, crash_at=f"*:{point}").code == -signal.SIGKILL
            assert run_child(again).code == 0
            assert trace(run) == expected, f"killed at point {point}"


@pytest.mark.case(14)
def test_a_kill_during_a_step_and_during_a_polite_stop() -> None:
    expected = undisturbed()

    def killed(run: Path, number: int, again: int = 0) -> int:
        def train() -> None:
            with signal_after(7, number):
                work(run)()

        return run_child(train, crash_at=f"manifest-written:{again}" if again else "").code

    with memory_folder() as folder:
        assert killed(folder / "step", signal.SIGKILL) == -signal.SIGKILL
        assert killed(folder / "stop", signal.SIGTERM, again=8) == -signal.SIGKILL  # 7 steps and 1 best so far
        for name in ("step", "stop"):
            assert run_child(work(folder / name)).code == 0
            assert trace(folder / name) == expected


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "flipped bit": lambda folder: flip(folder / "peer1.safetensors"),
    "cut memory bank": lambda folder: (folder / "memory.safetensors").write_bytes(b"12345678"),
    "no manifest": lambda folder: (folder / "MANIFEST.json").unlink(),
    "other values": lambda folder: (folder / "values.json").write_text("{}"),
}


@pytest.mark.case(4)
@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_newest_checkpoint_falls_back(tmp_path: Path, name: str) -> None:
    expected = undisturbed()
    stop_after(8, work(tmp_path / "run"))
    DAMAGE[name](tmp_path / "run" / "checkpoints" / "step-00000008")
    with pytest.warns(CheckpointWarning, match="checkpoint of step 8 is damaged"):
        work(tmp_path / "run")()
    assert trace(tmp_path / "run") == expected
    assert ".bad-step-00000008" in names(tmp_path / "run" / "checkpoints")


def damaged_run(folder: Path) -> Path:
    stop_after(8, work(folder / "run"))
    for step in (7, 8):
        flip(folder / "run" / "checkpoints" / f"step-{step:08d}" / "method.safetensors")
    return folder / "run"


@pytest.mark.case(5)
def test_all_checkpoints_damaged_is_refused_and_nothing_touched(tmp_path: Path) -> None:
    run = damaged_run(tmp_path)
    files = (path for path in run.rglob("*") if path.is_file() and path.parent.name != "heartbeats")
    before = {path: path.read_bytes() for path in files if path.name != ".lock"}
    with pytest.raises(CheckpointError, match=r"no checkpoint in .*run.* is whole.*--fresh"):
        work(run)()
    assert {path: path.read_bytes() for path in before} == before


@pytest.mark.case(5)
def test_fresh_begins_again_and_deletes_nothing(tmp_path: Path) -> None:
    expected, run = undisturbed(), damaged_run(tmp_path)
    Experiment(recipe(2), folder=run, name="tiny", quiet=True).train(fresh=True)
    assert trace(run) == expected
    assert {".aside-metrics.jsonl", ".aside-best"} <= set(names(run))
    assert {".aside-step-00000007", ".aside-step-00000008"} <= set(names(run / "checkpoints"))


@pytest.mark.case(4)
def test_damaged_best_weights_do_not_cost_the_result(tmp_path: Path) -> None:
    expected = undisturbed()
    assert expected.result["best_on_validation"]["epoch"] == 1
    stop_after(8, work(tmp_path / "run"))
    (tmp_path / "run" / "best" / "MANIFEST.json").write_text("[]")
    with pytest.warns(RecordWarning, match="best on validation cannot be read"):
        work(tmp_path / "run")()
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert "best_on_validation" not in result
    assert result["last"] == expected.result["last"]
