"""`coterie launch`: processes that fail are started again, those that were asked to stop are not, and the exit status
is the run's."""

from __future__ import annotations

import signal
import socket
from functools import cache
from pathlib import Path

import pytest

from coterie.cli import main
from coterie.cli.options import open_recipe
from coterie.core.files import read_json
from coterie.engine import CheckpointStore
from coterie.experiment import Experiment
from coterie.experiment.launching import plan_launch
from faults import memory_folder
from launches import (
    COTERIE,
    EVERY_STEP,
    TRAINED,
    finish,
    free_port,
    launched,
    leftovers,
    saved,
    start,
    status,
    wait_for,
    words,
)
from pairs import ended
from pairs import start as start_ranks
from tiny import Trace, run_in_pieces, tiny, trace

OPTIONS: dict[str, object] = {
    "processes": 2, "nodes": "1", "rendezvous": "", "job": "", "restarts": 3, "timeout": None, "grace": 30
}  # fmt: skip


@cache
def undisturbed() -> Trace:
    """The trace of the run that nobody hurts, by two forked ranks."""
    _, name, *settings = [*TRAINED, *EVERY_STEP]
    given = open_recipe(name, settings)
    with memory_folder() as folder:
        run_in_pieces(tiny(), folder / "warm")
        ranks = start_ranks(lambda rank: Experiment(given, folder=folder / "run", name=name, quiet=True).train())
        assert ended(ranks) == [0, 0]
        return trace(folder / "run")


@pytest.mark.slow
@pytest.mark.case(16, 40)
def test_a_killed_process_is_started_again_and_the_end_is_the_same(tmp_path: Path) -> None:
    done = launched(words(), tmp_path, "kill:1:6:1")
    assert done.code == 0, done.err
    assert len(done.said) == 1 and "rank 0 waited in phase" in done.said[0] and "last heard of rank 1" in done.said[0]
    assert trace(tmp_path / "run") == undisturbed()
    assert "resumed after 6 batches" in done.out


@pytest.mark.slow
def test_another_launch_does_not_go_on_by_itself(tmp_path: Path) -> None:
    assert launched(words(), tmp_path).code == 0
    assert trace(tmp_path / "run") == undisturbed()
    again = launched(words(), tmp_path)
    assert again.code == 2 and len(again.said) == 1 and "holds a run already; go on with --resume" in again.said[0]


@pytest.mark.slow
def test_a_killed_launcher_takes_its_processes_along(tmp_path: Path) -> None:
    process = start(words("epochs=400"), tmp_path)
    wait_for(lambda: saved(tmp_path / "run", 3))
    process.kill()
    process.communicate()
    wait_for(lambda: not [found for found in leftovers(tmp_path) if "COTERIE_LAUNCH=" in found], 20)
    assert status(tmp_path / "run") == {"state": "preempted", "exit_code": 75}


@pytest.mark.slow
@pytest.mark.case(12, 16)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_polite_stop_ends_all_and_starts_none_again(tmp_path: Path, number: int) -> None:
    process = start(words("epochs=400"), tmp_path)
    wait_for(lambda: saved(tmp_path / "run", 3))
    process.send_signal(number)
    done = finish(process)
    assert done.code == 75, done.err
    assert len(done.said) == 1 and done.said[0].endswith("go on with: coterie train --resume run")
    assert status(tmp_path / "run") == {"state": "preempted", "exit_code": 75}
    assert leftovers(tmp_path) == []


@pytest.mark.slow
@pytest.mark.case(17)
def test_a_mistake_of_ours_is_shown_with_its_process(tmp_path: Path) -> None:
    done = launched(words(options=["--restarts", "0"]), tmp_path, "raise:1:6:99")
    assert done.code == 1
    assert "RuntimeError: a mistake of ours" in done.err
    assert status(tmp_path / "run") == {"state": "failed", "exit_code": 1}
    assert read_json(tmp_path / "run" / "status.json")["message"] == "rank 1: a mistake of ours"
    assert done.seconds < 40


@pytest.mark.slow
@pytest.mark.case(18)
def test_a_process_that_leaves_early_with_status_0_has_failed(tmp_path: Path) -> None:
    done = launched(words(), tmp_path, "exit:1:6:1")
    assert done.code == 0, done.err
    assert len(done.said) == 1 and "last heard of rank 1 in phase 'data' of step 6" in done.said[0]
    assert trace(tmp_path / "run") == undisturbed()


@pytest.mark.slow
@pytest.mark.case(18)
def test_when_all_leave_early_with_status_0_the_launch_has_failed(tmp_path: Path) -> None:
    done = launched(words(processes=1), tmp_path, "exit:0:6:99")
    assert done.code == 6
    assert "a process has left before the run was done, with status 0; go on with" in done.said[-1]
    assert status(tmp_path / "run") == {"state": "failed", "exit_code": 6}


@pytest.mark.slow
@pytest.mark.case(19, 20)
@pytest.mark.parametrize("kind", ["stop", "stuck"])
def test_one_that_hangs_is_named_in_time_and_started_again(tmp_path: Path, kind: str) -> None:
    done = launched(words(options=["--timeout", "4"]), tmp_path, f"{kind}:1:6:1")
    assert done.code == 0, done.err
    assert len(done.said) == 1 and "last heard of rank 1 in phase 'data' of step 6" in done.said[0]
    assert trace(tmp_path / "run") == undisturbed()
    assert done.seconds < 90


@pytest.mark.slow
@pytest.mark.case(21)
def test_more_failures_than_restarts(tmp_path: Path) -> None:
    done = launched(words(options=["--restarts", "1"]), tmp_path, "kill:1:6:99")
    assert done.code == 6
    assert "1 restarts were not enough; go on with: coterie train --resume run" in done.said[-1]
    assert status(tmp_path / "run") == {"state": "failed", "exit_code": 6}
    found = CheckpointStore(tmp_path / "run" / "checkpoints").load_newest(read_only=True)
    assert found is not None and found[0] >= 6
    again = launched([*COTERIE, "launch", "--processes", "2", "train", "--resume", "run"], tmp_path)
    assert again.code == 0, again.err
    assert trace(tmp_path / "run") == undisturbed()


@pytest.mark.slow
@pytest.mark.case(34)
def test_a_loss_that_is_no_number_is_no_reason_to_start_again(tmp_path: Path) -> None:
    done = launched(words(), tmp_path, "nan:1:6:99")
    assert done.code == 5, done.err
    assert len(done.said) == 1 and "the loss is not finite" in done.said[0]
    assert len(list((tmp_path / "lives").iterdir())) == 1


@pytest.mark.slow
@pytest.mark.case(37)
def test_a_port_of_hosts_that_is_taken_is_named_in_one_line(tmp_path: Path) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        place = f"127.0.0.1:{holder.getsockname()[1]}"
        done = launched(words(options=["--rendezvous", place, "--job", "one", "--timeout", "3"]), tmp_path)
    assert done.code == 6 and done.err.count("\n") == 1
    assert f"the hosts have not met at {place}" in done.err


@pytest.mark.slow
@pytest.mark.case(38)
def test_a_host_that_does_not_answer_is_named_in_one_line(tmp_path: Path) -> None:
    options = ["--nodes", "2", "--rendezvous", "192.0.2.77:29500", "--job", "one", "--timeout", "3"]
    done = launched(words(options=options), tmp_path)
    assert done.code == 6 and done.err.count("\n") == 1, done.err
    assert "192.0.2.77" in done.err and done.seconds < 90


@pytest.mark.slow
@pytest.mark.case(39)
def test_thirty_clean_ends(tmp_path: Path) -> None:
    given = [*COTERIE, *TRAINED, "epochs=1"]
    for number in range(30):
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2"}
        pair = [start([*given, "--out", f"{number}"], tmp_path, RANK=str(rank), **place) for rank in range(2)]
        ends = [finish(process) for process in pair]
        assert [done.code for done in ends] == [0, 0], (number, ends)


def wrong(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["launch", *arguments]) == 2
    found = capsys.readouterr().err
    assert found.count("\n") == 1
    return found


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "coterie launch starts coterie train"),
        (["evaluate", "run"], "coterie launch starts coterie train, not 'evaluate'"),
        (["train"], "give a recipe"),
        (["train", "digits/mcl_okdd"], "mcl_okd"),
        (["train", "digits/mcl_okd", "optim.lrr=1"], "optim.lr"),
        (["--nodes", "2", "train", "digits/mcl_okd"], "give --rendezvous HOST:PORT"),
        (["--nodes", "2:1", "train", "digits/mcl_okd"], "--nodes '2:1' must be a number of hosts, or MIN:MAX"),
        (["--nodes", "x", "train", "digits/mcl_okd"], "must be a number of hosts"),
        (["--rendezvous", "here", "train", "digits/mcl_okd"], "must be HOST:PORT"),
        (["--rendezvous", "here:99999", "train", "digits/mcl_okd"], "must be HOST:PORT"),
        (["--rendezvous", "127.0.0.1:2950", "train", "digits/mcl_okd"], "give --job NAME"),
        (["--processes", "-1", "train", "digits/mcl_okd"], "must be at least 0"),
        (["--processes", "two", "train", "digits/mcl_okd"], "two"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_started(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, arguments: list[str], says: str
) -> None:
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    assert says in wrong(capsys, *arguments)


def test_print_config_starts_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["launch", "--processes", "2", "train", "digits/mcl_okd", "--print-config"]) == 0
    assert "[cohort]" in capsys.readouterr().out


def test_one_host_meets_by_itself_under_a_name_of_its_own() -> None:
    one, other = (plan_launch(**OPTIONS) for _ in range(2))  # type: ignore[arg-type]
    assert one.host == "" and one.nodes == (1, 1) and one.job != other.job


def test_several_hosts() -> None:
    given = {**OPTIONS, "nodes": "1:4", "rendezvous": "[::1]:2950", "job": "7"}
    plan = plan_launch(**given)  # type: ignore[arg-type]
    assert (plan.nodes, plan.host, plan.port, plan.job) == ((1, 4), "[::1]", 2950, "7")
