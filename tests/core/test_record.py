"""The folder of a run: who may write, what is found there, and rows that are there exactly once."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from pathlib import Path

import pytest

from coterie.core import CheckpointError, ConfigError
from coterie.core.environment import describe_environment, exactness_lost
from coterie.core.files import RecordWarning
from coterie.core.record import MetricsLog, RunFolder, Status, read_metrics
from faults import as_nobody, fork, memory_folder, names, run_child, wait, with_file_limit


@pytest.mark.case(9)
def test_parents_are_made_and_nothing_else(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "a b" / "größe\n" / "run").create()
    assert names(run.path) == []
    assert run.create() is run


@pytest.mark.case(9)
def test_a_file_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    for path in (tmp_path / "taken", tmp_path / "taken" / "run"):
        with pytest.raises(ConfigError, match=r"cannot write in run folder .*taken") as caught:
            RunFolder(path).create()
        assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match=r"taken.n'"):
        RunFolder(tmp_path / "taken" / "taken\n").create()


@pytest.mark.case(9)
def test_a_folder_without_rights_is_named() -> None:
    with memory_folder() as folder:
        for path in (folder, folder / "run"):
            ended = run_child(as_nobody(lambda path=path: RunFolder(path).create() and None))
            assert (ended.code, ended.kind) == (2, "ConfigError")
            assert str(path) in ended.error and "Permission denied" in ended.error


@pytest.mark.case(87)
@pytest.mark.parametrize("name", ["checkpoints", "metrics.jsonl", "best", ".lock", "status.json"])
def test_links_in_the_folder_are_refused(tmp_path: Path, name: str) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / name).symlink_to(outside)
    with pytest.raises(ConfigError, match=f"{name}' is a symbolic link"):
        RunFolder(tmp_path / "run").create()


def test_the_folder_of_a_run_has_a_recipe(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    with pytest.raises(ConfigError, match="not the folder of a run"):
        run.existing()
    run.write_recipe("epochs = 3\n")
    assert run.existing().recipe.read_text() == "epochs = 3\n"


def test_status_comes_back(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    assert run.read_status() is None
    status = Status(state="preempted", step=12, epoch=1, exit_code=75, message="stopped")
    run.write_status(status)
    assert run.read_status() == status


@pytest.mark.parametrize("text", ["", "[]", "3", '{"state": "gone"}', '{"state": "done", "x": 1}', '{"state": []}'])
def test_a_damaged_status_is_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "status.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"status\.json"):
        RunFolder(tmp_path).read_status()


def test_environment_names_what_decides_the_bits(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.write_environment("toy")
    stored = json.loads(run.environment.read_text())
    assert exactness_lost(stored, describe_environment()) == []
    assert exactness_lost({**stored, "threads": 99, "python": "2"}, stored) == [f"threads 99 -> {stored['threads']}"]
    assert socket.gethostname() not in {str(value) for value in stored.values()}


@pytest.mark.case(10)
def test_a_second_run_is_refused_and_the_first_named(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    with run.lock():
        ended = run_child(lambda: run.lock().__enter__())
        assert ended.code == 4
        assert f"in use by process {os.getpid()} on {socket.gethostname()}" in ended.error
        with pytest.raises(CheckpointError, match="in use by"), run.lock():
            pass
    with run.lock():
        pass
    assert run.lock_file.read_text() == ""


@pytest.mark.case(11)
def test_the_lock_of_a_killed_run_is_taken_over_silently(tmp_path: Path) -> None:
    run, ready = RunFolder(tmp_path), tmp_path / "ready"

    def hold() -> None:
        with run.lock():
            ready.touch()
            time.sleep(60)

    child = fork(hold)
    while not ready.exists():
        time.sleep(0.001)
    os.kill(child, signal.SIGKILL)
    assert wait(child) == -9
    assert str(child) in run.lock_file.read_text()
    (tmp_path / ".tmp-status.json-1").write_text("left by the killed run")
    with run.lock():
        assert str(os.getpid()) in run.lock_file.read_text()
        assert not (tmp_path / ".tmp-status.json-1").exists()


@pytest.mark.case(11)
def test_a_worker_that_outlives_its_run_does_not_hold_the_lock(tmp_path: Path) -> None:
    run, note = RunFolder(tmp_path), tmp_path / "worker"

    def hold_with_worker() -> None:
        with run.lock():
            worker = fork(lambda: time.sleep(60))
            (tmp_path / "part").write_text(str(worker))
            (tmp_path / "part").rename(note)
            time.sleep(60)

    child = fork(hold_with_worker)
    while not note.exists():
        time.sleep(0.001)
    os.kill(child, signal.SIGKILL)
    wait(child)
    worker = int(note.read_text())
    os.kill(worker, 0)
    try:
        with run.lock():
            pass
    finally:
        os.kill(worker, signal.SIGKILL)


def test_a_child_does_not_free_its_parents_lock(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    with run.lock():
        assert run_child(lambda: None).code == 0
        assert run_child(lambda: run.lock().__enter__()).code == 4


def test_rows_come_back_with_every_number(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl")
    log.append({"step": 1, "loss": 0.1 + 0.2})
    log.append({"step": 2, "loss": float("nan"), "low": float("-inf"), "split": "val"})
    first, second = read_metrics(log.path)
    assert first == {"step": 1, "loss": 0.1 + 0.2}
    assert second["loss"] != second["loss"] and second["low"] == float("-inf") and second["split"] == "val"
    for line in log.path.read_text().splitlines():
        json.loads(line, parse_constant=lambda word: pytest.fail(word))


@pytest.mark.case(30)
def test_rows_after_a_checkpoint_are_cut(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl")
    assert log.offset() == 0
    log.append({"step": 1})
    offset = log.offset()
    log.append({"step": 2})
    resumed = MetricsLog(log.path)
    resumed.truncate(offset)
    resumed.append({"step": 2})
    assert read_metrics(log.path) == [{"step": 1}, {"step": 2}]
    resumed.truncate(0)
    assert read_metrics(log.path) == []


def test_a_log_that_lost_rows_says_so_and_goes_on(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl")
    log.path.write_text('{"step": 1}\n{"ste')
    with pytest.warns(RecordWarning, match="17 bytes where the checkpoint knew 30"):
        log.truncate(30)
    log.append({"step": 2})
    assert read_metrics(log.path) == [{"step": 1}, {"step": 2}]
    with pytest.warns(RecordWarning, match="0 bytes"):
        MetricsLog(tmp_path / "gone.jsonl").truncate(5)


def test_a_torn_last_line_is_left_out_and_a_bad_one_named(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    assert read_metrics(path) == []
    path.write_text('{"step": 1}\n{"step": 2')
    assert read_metrics(path) == [{"step": 1}]
    path.write_text('{"step": 1}\n3\n{"step": 2}\n')
    with pytest.raises(CheckpointError, match="line 2 is not a JSON object"):
        read_metrics(path)


@pytest.mark.case(8)
def test_a_full_disk_costs_one_warning_and_no_half_row(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl")

    def many_rows() -> None:
        for step in range(100):
            log.append({"step": step})

    ended = run_child(with_file_limit(100, many_rows))
    assert ended.code == 0
    assert len(ended.warned) == 1 and "training goes on" in ended.warned[0]
    rows = read_metrics(log.path)
    assert [row["step"] for row in rows] == list(range(len(rows))) and 0 < len(rows) < 10
    assert log.path.read_bytes().endswith(b"\n")


@pytest.mark.case(8)
def test_rows_that_did_not_fit_are_written_when_there_is_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl")
    write = os.write
    with monkeypatch.context() as full:
        full.setattr(os, "write", lambda descriptor, content: write(descriptor, content[:5]))
        with pytest.warns(RecordWarning, match="No space left"):
            log.append({"step": 0})
        log.append({"step": 1})
    assert read_metrics(log.path) == []
    log.append({"step": 2})
    assert [row["step"] for row in read_metrics(log.path)] == [0, 1, 2]


@pytest.mark.case(87)
def test_a_log_is_not_written_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "outside").write_text("precious")
    (tmp_path / "metrics.jsonl").symlink_to(tmp_path / "outside")
    with pytest.warns(RecordWarning, match="cannot write"):
        MetricsLog(tmp_path / "metrics.jsonl").append({"step": 1})
    assert (tmp_path / "outside").read_text() == "precious"
