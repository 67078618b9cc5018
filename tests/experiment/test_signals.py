"""Signals before the first step, during validation and a second time; and what a run shows while it lives."""

from __future__ import annotations

import io
import os
import signal
import threading
import time
from pathlib import Path

import pytest
from rich.console import Console

from coterie.core.record import RunFolder
from coterie.engine import Preempted
from coterie.experiment import Experiment
from coterie.experiment.tensorboard import TensorBoard
from coterie.experiment.validation import Validation
from faults import fork, run_child, wait
from tiny import run_in_pieces, signal_after, stop_after, tiny, trace


@pytest.fixture(scope="module")
def warm(tmp_path_factory: pytest.TempPathFactory) -> None:
    """The first optimiser step of this process, so that children need not import what it needs."""
    run_in_pieces(tiny(), tmp_path_factory.mktemp("warm") / "run")


@pytest.mark.case(15)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_while_data_are_read_stops_after_the_first_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    build = Experiment.build

    def building(self: Experiment, *given: object) -> object:
        os.kill(os.getpid(), number)
        return build(self, *given)

    with monkeypatch.context() as patch:
        patch.setattr(Experiment, "build", building)
        with pytest.raises(Preempted, match="after 1 batches"):
            run_in_pieces(tiny(), tmp_path / "run")
    assert run_in_pieces(tiny(), tmp_path / "run") == run_in_pieces(tiny(), tmp_path / "whole")


@pytest.mark.case(15)
def test_a_signal_during_validation_stops_after_the_next_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    on_epoch = Validation.on_epoch

    def scoring(self: Validation, run: object) -> None:
        on_epoch(self, run)
        os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(Validation, "on_epoch", scoring)
        with pytest.raises(Preempted, match="after 6 batches"):
            run_in_pieces(tiny(), tmp_path / "run")
        run_in_pieces(tiny(), tmp_path / "run")  # the signal after the last epoch finds nothing left to stop
    assert trace(tmp_path / "run") == run_in_pieces(tiny(), tmp_path / "whole")


@pytest.mark.case(13)
def test_the_second_signal_leaves_at_once_and_checkpoints_stay_sound(tmp_path: Path, warm: None) -> None:
    def train() -> None:
        with signal_after(7), signal_after(7):
            Experiment(tiny(train__checkpoint_every=1), folder=tmp_path / "run", quiet=True).train()

    assert run_child(train).code == 130
    whole = run_in_pieces(tiny(train__checkpoint_every=1), tmp_path / "whole")
    assert run_in_pieces(tiny(train__checkpoint_every=1), tmp_path / "run") == whole


@pytest.mark.case(14)
@pytest.mark.parametrize("background", [False, True])
def test_a_signal_while_a_checkpoint_is_written_finishes_it(tmp_path: Path, warm: None, background: bool) -> None:
    recipe = tiny(train__checkpoint_every=1, train__background_saves=background)

    def train() -> None:
        Experiment(recipe, folder=tmp_path / "run", name="tiny", quiet=True).train()

    assert run_child(train, crash_at="manifest-written:3:SIGTERM").code == 75
    kept = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    stopped = RunFolder(tmp_path / "run").read_status().step  # another step may be under way while a thread writes
    assert kept == [f"step-{step:08d}" for step in (stopped - 1, stopped)] and stopped - 3 in range(1 + background)
    assert run_in_pieces(recipe, tmp_path / "run") == run_in_pieces(recipe, tmp_path / "whole")


@pytest.mark.case(12)
def test_a_signal_from_outside(tmp_path: Path, warm: None) -> None:
    child = fork(lambda: Experiment(tiny(epochs=500), folder=tmp_path / "run", quiet=True).train())
    while not (tmp_path / "run" / "metrics.jsonl").exists():
        time.sleep(0.005)
    os.kill(child, signal.SIGTERM)
    assert wait(child) == 75
    status = RunFolder(tmp_path / "run").read_status()
    assert (status.state, status.exit_code) == ("preempted", 75)
    assert (tmp_path / "run" / "checkpoints" / f"step-{status.step:08d}").is_dir()


def test_handlers_are_put_back(tmp_path: Path) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)]
    run_in_pieces(tiny(), tmp_path / "run")
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)] == before


def test_a_run_in_a_thread_needs_no_signals(tmp_path: Path) -> None:
    thread = threading.Thread(target=run_in_pieces, args=(tiny(), tmp_path / "run"))
    thread.start()
    thread.join()
    assert trace(tmp_path / "run") == run_in_pieces(tiny(), tmp_path / "whole")


def test_a_terminal_shows_terms_accuracy_speed_and_time_left(tmp_path: Path) -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=220, color_system=None)
    Experiment(tiny("mcl_okd", train__log_every=1), folder=tmp_path / "run", console=console).train()
    text = out.getvalue()
    for part in ("epoch 2/2", "10/10", "task ", "leader_kl ", "contrast ", "peers ", "images/s", "validation: leader"):
        assert part in text


def test_tensorboard_gets_every_number_of_the_log(tmp_path: Path) -> None:
    reading = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    run_in_pieces(tiny("dml", train__log_every=5), tmp_path / "run", (6,))
    events = reading.EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    tags = events.Tags()["scalars"]
    assert {"train/loss", "train/terms/task", "train/terms/mutual", "train/accuracy/1", "train/lr"} <= set(tags)
    assert {"validation/leader/top1", "validation/peers/0/nll", "validation/ensemble/ece"} <= set(tags)
    assert [event.step for event in events.Scalars("train/loss")] == [5, 10]


def test_without_tensorboard_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("coterie.experiment.tensorboard.importlib.util.find_spec", lambda name: None)
    with TensorBoard(tmp_path / "board") as board:
        board.on_row({"kind": "train", "step": 1, "loss": 1.0})
    assert not (tmp_path / "board").exists()


def test_a_mistake_of_ours_is_recorded_and_not_hidden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("coterie.engine.loop.train_epoch", lambda run: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run_in_pieces(tiny(), tmp_path / "run")
    status = RunFolder(tmp_path / "run").read_status()
    assert (status.state, status.exit_code, status.message) == ("failed", 1, "division by zero")


def test_a_row_of_times_that_lost_its_end_does_not_stop_a_run(tmp_path: Path) -> None:
    whole = run_in_pieces(tiny(train__log_every=1), tmp_path / "whole")
    stop_after(4, Experiment(tiny(train__log_every=1), folder=tmp_path / "run", quiet=True).train)
    with (tmp_path / "run" / "timing.jsonl").open("a") as file:
        file.write('{"step": 5, "sec')
    assert run_in_pieces(tiny(train__log_every=1), tmp_path / "run") == whole
    assert len((tmp_path / "run" / "timing.jsonl").read_text().splitlines()) == 10
