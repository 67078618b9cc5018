"""`coterie status`: how a run stands, whoever looks and whenever."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest

from coterie.cli import main
from coterie.core.record import RunFolder, Status
from coterie.experiment import Experiment
from coterie.experiment.standing import standing_of
from faults import fork, wait
from pairs import ended, recipe, start, work
from tiny import run_in_pieces, stop_after, tiny


def test_a_finished_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_in_pieces(tiny(), tmp_path / "run")
    found = standing_of(tmp_path / "run")
    assert (found.state, found.exit_code, found.epoch, found.step, found.checkpoint) == ("done", 0, 2, 10, 10)
    assert found.next == "" and found.message == ""
    assert main(["status", str(tmp_path / "run")]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"{tmp_path / 'run'}: done, exit status 0, epoch 2, 10 batches done",
        "newest checkpoint: after 10 batches",
    ]


def test_a_stopped_run_says_how_to_go_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    stop_after(4, Experiment(tiny(), folder=run, quiet=True).train)
    assert main(["status", str(run)]) == 0
    out = capsys.readouterr().out
    assert "preempted, exit status 75" in out and "because: stopped after 4 batches and saved" in out
    assert out.splitlines()[-1] == f"go on with: coterie train --resume {run}"


def test_a_running_run_and_one_that_was_killed(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run_in_pieces(tiny(), tmp_path / "warm")
    child = fork(lambda: Experiment(tiny(epochs=4000, train__log_every=1), folder=run, quiet=True).train())
    end = time.monotonic() + 60
    while not ((run / "metrics.jsonl").exists() and standing_of(run).step > 3):
        assert time.monotonic() < end
        time.sleep(0.02)
    alive = standing_of(run)
    assert alive.state == "running" and alive.next == ""
    assert [(sign.rank, sign.process) for sign in alive.signs] == [(0, child)] and alive.ages[0] < 30
    os.kill(child, signal.SIGKILL)
    assert wait(child) == -signal.SIGKILL
    gone = standing_of(run)
    assert gone.state == "gone" and gone.step >= alive.step and gone.next.startswith("coterie train --resume")


@pytest.mark.slow
def test_each_process_has_its_sign(tmp_path: Path) -> None:
    children = start(work(recipe(), tmp_path / "run"))
    assert ended(children) == [0, 0]
    assert [(sign.rank, sign.process) for sign in standing_of(tmp_path / "run").signs] == list(enumerate(children))


def test_for_programs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_in_pieces(tiny(), tmp_path / "run")
    assert main(["status", str(tmp_path / "run"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["state"], found["step"], found["signs"][0]["rank"]) == ("done", 10, 0)


def test_a_lock_of_another_host_is_left_to_its_signs(tmp_path: Path) -> None:
    run_in_pieces(tiny(), tmp_path / "run")
    folder = RunFolder(tmp_path / "run")
    folder.write_status(Status(state="running", step=3))
    assert standing_of(folder.path).state == "gone"
    folder.lock_file.write_text("process 1 on another-host")
    assert standing_of(folder.path).state == "running"


def test_what_is_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", str(tmp_path)]) == 2
    assert "is not the folder of a run" in capsys.readouterr().err
