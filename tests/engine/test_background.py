"""Checkpoints that a thread writes: exact, one at a time, acknowledged once whole, and waited for at the end."""

from __future__ import annotations

import os
import signal
import threading
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from coterie.core import CheckpointError
from coterie.core.record import RunFolder
from coterie.engine import CheckpointStore
from coterie.engine.background import BackgroundWriter
from coterie.engine.checkpoint import CheckpointWarning
from coterie.engine.keeper import CheckpointKeeper
from coterie.engine.snapshot import Snapshot, digest
from coterie.experiment import Experiment
from faults import memory_folder, names, run_child, with_file_limit
from saves import held_up, saving
from tiny import run_in_pieces, stop_after, tiny


@pytest.fixture
def memory() -> Iterator[Path]:
    with memory_folder() as folder:
        yield folder


def test_what_a_slow_thread_writes_is_the_state_at_its_step(memory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three steps are taken while each checkpoint waits to be written."""
    recipe = tiny("mcl_okd", train__checkpoint_every=4, train__keep=5)
    run_in_pieces(
        tiny("mcl_okd", train__checkpoint_every=4, train__keep=5, train__background_saves=False), memory / "a"
    )
    with monkeypatch.context() as patch:
        before = held_up(CheckpointKeeper, patch)
        run_in_pieces(recipe, memory / "b")
    assert [step for step, _ in before] == [4, 8, 10]
    assert all(later >= step + 2 for step, later in before[:2])  # training had gone on
    stores = [CheckpointStore(memory / name / "checkpoints") for name in "ab"]
    assert stores[0].steps() == stores[1].steps() == [4, 8, 10]
    for step in (4, 8, 10):
        states = [store.load(step) for store in stores]
        for state in states:
            assert isinstance(state.values, dict)
            state.values.pop("facts")
        assert digest(states[0]) == digest(states[1])


def test_one_at_a_time_and_each_is_exact(memory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every save is due before the one before is written."""
    settings = {"train__checkpoint_every": 1, "train__keep": 20}
    run_in_pieces(tiny("mcl_okd", train__background_saves=False, **settings), memory / "inline")
    inside = [0, 0]

    def enter(step: int) -> None:
        inside[0] += 1
        inside[1] = max(inside)
        time.sleep(0.05)
        inside[0] -= 1

    whole = saving(enter, monkeypatch)
    run_in_pieces(tiny("mcl_okd", **settings), memory / "run")
    assert inside == [0, 1] and whole == [*range(1, 11), 10]
    stores = [CheckpointStore(memory / name / "checkpoints") for name in ("inline", "run")]
    for step in range(1, 11):
        one, two = (store.load(step).tensors for store in stores)
        assert digest(Snapshot(tensors=one)) == digest(Snapshot(tensors=two))


def test_status_tells_only_what_is_whole(memory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[int, int]] = []
    folder = RunFolder(memory / "run")

    def look(step: int) -> None:
        status = folder.read_status()
        assert status is not None
        told.append((step, status.saved))
        assert status.saved == 0 or folder.checkpoints.joinpath(f"step-{status.saved:08d}").is_dir()

    saving(look, monkeypatch)
    run_in_pieces(tiny(train__checkpoint_every=2), memory / "run")
    assert told == [(2, 0), (4, 2), (6, 4), (8, 6), (10, 8), (10, 10)]
    assert folder.read_status().saved == 10  # type: ignore[union-attr]


@pytest.mark.case(7)
def test_a_thread_that_meets_a_full_disk_is_heard_of_at_the_next_step(memory: Path) -> None:
    def train() -> None:
        Experiment(tiny(train__checkpoint_every=2, data__validation=0.0), folder=memory / "run", quiet=True).train()

    run_in_pieces(tiny(), memory / "warm")
    ended = run_child(with_file_limit(4_000, train))
    assert (ended.code, ended.kind) == (4, "CheckpointError")
    assert len([word for word in ended.warned if "training goes on" in word]) == 2
    status = RunFolder(memory / "run").read_status()
    assert status is not None and (status.state, status.exit_code, status.saved) == ("failed", 4, 0)
    assert names(memory / "run" / "checkpoints") == []


def test_an_error_of_ours_in_the_thread_ends_the_run(memory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(step: int) -> None:
        raise ZeroDivisionError("a mistake")

    saving(fail, monkeypatch)
    with pytest.raises(ZeroDivisionError):
        run_in_pieces(tiny(train__checkpoint_every=2), memory / "run")
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("checkpoints")]


@pytest.mark.case(14)
def test_a_stop_waits_for_the_save_under_way_and_for_its_own(memory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = saving(lambda step: time.sleep(0.2), monkeypatch)
    stop_after(4, Experiment(tiny(train__checkpoint_every=3), folder=memory / "run", quiet=True).train)
    assert whole == [3, 4] and names(memory / "run" / "checkpoints") == ["step-00000003", "step-00000004"]


@pytest.mark.case(14)
def test_a_stop_after_the_step_that_is_being_saved(memory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saving(lambda step: time.sleep(0.1), monkeypatch)
    inodes: list[int] = []
    manifest = memory / "run" / "checkpoints" / "step-00000003" / "MANIFEST.json"
    monkeypatch.setattr(CheckpointStore, "retire", lambda self, step: inodes.append(manifest.stat().st_ino))
    stop_after(3, Experiment(tiny(train__checkpoint_every=3), folder=memory / "run", quiet=True).train)
    assert len(inodes) == 2 and len(set(inodes)) == 1


@pytest.mark.case(13)
def test_a_second_signal_leaves_at_once_though_a_save_hangs(memory: Path) -> None:
    def train() -> None:
        save = CheckpointStore.save

        def hang(self: CheckpointStore, step: int, snapshot: Snapshot, **options: Any) -> Path:
            if step == 4:
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(0.3)  # the run is asked to stop and waits for this save
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(60)
            return save(self, step, snapshot, **options)

        CheckpointStore.save = hang  # type: ignore[method-assign] # in a child
        Experiment(tiny(epochs=500, train__checkpoint_every=2), folder=memory / "run", quiet=True).train()

    began = time.monotonic()
    assert run_child(train).code == 130 and time.monotonic() - began < 20
    assert CheckpointStore(memory / "run" / "checkpoints").load_newest()[0] == 2  # type: ignore[index]


def test_an_error_of_the_run_lets_the_save_finish(memory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = saving(lambda step: time.sleep(0.1), monkeypatch)
    with pytest.raises(CheckpointError, match="no space"), monkeypatch.context() as patch:

        def refuse(self: CheckpointKeeper, run: Any) -> Snapshot:
            raise CheckpointError("no space")

        snapshot = CheckpointKeeper.snapshot
        patch.setattr(
            CheckpointKeeper,
            "snapshot",
            lambda self, run: refuse(self, run) if run.batches > 2 else snapshot(self, run),
        )
        run_in_pieces(tiny(train__checkpoint_every=2), memory / "run")
    assert whole == [2]
    assert RunFolder(memory / "run").read_status().saved == 2  # type: ignore[union-attr]


@pytest.mark.parametrize("error", [CheckpointError("no space"), ZeroDivisionError("no space")])
def test_a_failure_that_nobody_waits_for_is_a_warning(error: Exception) -> None:
    keeper = CheckpointKeeper(store=None, meters=None, log=None, every=1, facts={}, background=True)  # type: ignore[arg-type]

    def fail(snapshot: Snapshot) -> None:
        raise error

    keeper._writer.begin(Snapshot(), fail)
    with pytest.warns(CheckpointWarning, match="no space"):
        keeper.close()
    keeper.close()


@pytest.mark.slow
@pytest.mark.case(43)
def test_five_hundred_saves_in_the_background(memory: Path) -> None:
    store, writer = CheckpointStore(memory / "checkpoints"), BackgroundWriter()
    weight = torch.zeros(100_000)
    snapshot = Snapshot(tensors={"peer0": {"w": weight}}, values={"epoch": 0})

    def save(step: int) -> None:
        writer.result()
        writer.begin(snapshot, lambda taken: (store.save(step, taken), None)[1])
        weight.add_(1)

    for step in range(5):
        save(step)
    writer.result()
    before = (len(names(Path("/proc/self/fd"))), threading.active_count())
    tracemalloc.start()
    for step in range(5, 505):
        save(step)
    writer.result()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (len(names(Path("/proc/self/fd"))), threading.active_count()) == before
    assert peak < 2_000_000
    assert float(store.load(504).section("peer0")["w"][0]) == 504.0
    writer.close()
    assert threading.active_count() == before[1] - 1
