"""Runs that die anywhere end with the same bits as a run that did not."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from coterie.core.crash import points_passed
from coterie.core.files import remove_tree
from coterie.core.record import read_metrics
from coterie.engine.checkpoint import CheckpointStore, CheckpointWarning, load_from, save_to
from coterie.engine.snapshot import Snapshot, digest
from faults import kill_until_done, lose_power, memory_folder, names, run_child
from toy_run import STEPS, Toy, proof, train

POINTS = 82
"""Points that the first four saves of the toy run pass; `test_the_number_of_points` keeps it right."""


@pytest.fixture(scope="module", autouse=True)
def reference() -> Iterator[tuple[str, list[int], list[str]]]:
    with memory_folder() as folder:
        Toy().step(0)  # what torch imports at the first step is then there in every child
        assert run_child(lambda: train(folder / "run")).code == 0
        undisturbed = proof(folder / "run")
        assert undisturbed[1:] == (list(range(1, STEPS + 1)), [])
        yield undisturbed


@pytest.fixture
def run() -> Iterator[Path]:
    with memory_folder() as folder:
        yield folder / "run"


@pytest.mark.case(26)
def test_the_same_run_twice_is_the_same(run: Path, reference: object) -> None:
    run_child(lambda: train(run))
    assert proof(run) == reference


@pytest.mark.slow
@pytest.mark.case(1)
@pytest.mark.parametrize("background", [False, True])
def test_fifty_kills_at_random_moments(run: Path, reference: object, background: bool) -> None:
    kills = rounds = 0
    while kills < 50:
        path = run.with_name(f"run{rounds}")
        kills += kill_until_done(lambda path=path: train(path, background=background), seed=rounds, longest=0.06)
        assert proof(path) == reference
        rounds += 1


def test_the_number_of_points(run: Path) -> None:
    def count() -> int:
        train(run, steps=4)
        return points_passed()

    assert run_child(count, crash_at="*:0").value == POINTS


def dies_and_resumes(run: Path, point: str, background: bool = False) -> None:
    first = run_child(lambda: train(run, background=background), crash_at=point)
    assert first.code == -signal.SIGKILL, first.error
    second = run_child(lambda: train(run, background=background))
    assert (second.code, second.warned) == (0, ()), second.error


@pytest.mark.case(2, 3)
@pytest.mark.parametrize("point", range(1, POINTS + 1, 4))
def test_a_crash_at_every_fourth_point(run: Path, reference: object, point: int) -> None:
    dies_and_resumes(run, f"*:{point}")
    assert proof(run) == reference


@pytest.mark.case(2, 3)
@pytest.mark.parametrize("point", range(3, POINTS + 1, 6))
def test_a_crash_at_a_point_of_the_thread(run: Path, reference: object, point: int) -> None:
    dies_and_resumes(run, f"*:{point}", background=True)
    assert proof(run) == reference


@pytest.mark.case(2, 3)
@pytest.mark.slow
@pytest.mark.parametrize("background", [False, True])
@pytest.mark.parametrize("point", [p for p in range(1, POINTS + 1) if p % 4 != 1])
def test_a_crash_at_every_point(run: Path, reference: object, point: int, background: bool) -> None:
    dies_and_resumes(run, f"*:{point}", background)
    assert proof(run) == reference


@pytest.mark.slow
@pytest.mark.case(6)
@pytest.mark.parametrize("background", [False, True])
@pytest.mark.parametrize("point", range(2, POINTS + 1, 6))
def test_a_loss_of_power(run: Path, reference: object, point: int, background: bool) -> None:
    first = run_child(lose_power(run, lambda: train(run, background=background)), crash_at=f"*:{point}")
    assert first.code == -signal.SIGKILL, first.error
    second = run_child(lambda: train(run))
    assert (second.code, second.warned) == (0, ()), second.error
    assert proof(run) == reference


@pytest.mark.case(6)
def test_a_loss_of_power_does_hurt_what_was_not_synced(run: Path) -> None:
    first = run_child(lose_power(run, lambda: train(run)), crash_at="tensors-unsynced:1")
    assert first.code == -signal.SIGKILL
    (torn,) = run.glob("checkpoints/.tmp-*/peer0.safetensors")
    size = torn.stat().st_size
    assert run_child(lambda: train(run)).code == 0
    assert size == (run / "checkpoints" / f"step-{STEPS:08d}" / "peer0.safetensors").stat().st_size // 2


@pytest.mark.case(2)
@pytest.mark.parametrize("point", ["manifest-written:3", "tensors-unsynced:13", "row-written:2", "retired:1"])
def test_crashes_in_a_row(run: Path, reference: object, point: str) -> None:
    for _ in range(3):
        assert run_child(lambda: train(run), crash_at=point).code == -signal.SIGKILL
    run_child(lambda: train(run))
    assert proof(run) == reference


def test_resuming_a_finished_run_changes_nothing(run: Path, reference: object) -> None:
    for _ in range(3):
        assert run_child(lambda: train(run)).code == 0
        assert proof(run) == reference


@pytest.mark.case(29, 30)
def test_resuming_twice_without_a_step_between(run: Path, reference: object) -> None:
    for _ in range(2):
        run_child(lambda: train(run, steps=7))
        assert [row["step"] for row in read_metrics(run / "metrics.jsonl")] == list(range(1, 8))
    run_child(lambda: train(run))
    assert proof(run) == reference


@pytest.mark.case(4)
@pytest.mark.parametrize("file", ["peer0.safetensors", "MANIFEST.json", "values.json"])
def test_a_damaged_newest_checkpoint_costs_a_step_and_no_bit(run: Path, reference: object, file: str) -> None:
    run_child(lambda: train(run, steps=9))
    path = run / "checkpoints" / "step-00000009" / file
    path.write_bytes(path.read_bytes()[:-1] + b"\x00")
    ended = run_child(lambda: train(run))
    assert ended.code == 0 and len(ended.warned) == 1
    assert ended.warned[0].startswith(CheckpointWarning.__name__) and file in ended.warned[0]
    assert proof(run)[:2] == reference[:2]
    assert ".bad-step-00000009" in names(run / "checkpoints")


@pytest.mark.case(5)
def test_all_damaged_ends_with_code_four(run: Path) -> None:
    run_child(lambda: train(run, steps=9))
    for path in run.glob("checkpoints/*/MANIFEST.json"):
        path.unlink()
    ended = run_child(lambda: train(run))
    assert ended.code == 4 and "step-00000008" in ended.error and "step-00000009" in ended.error
    assert len(read_metrics(run / "metrics.jsonl")) == 9


def test_sgd_resumes_to_the_bit(run: Path) -> None:
    straight = run_child(lambda: train(run, optimizer="sgd")).value
    again = run.with_name("again")
    run_child(lambda: train(again, optimizer="sgd"), crash_at="row-written:11")
    assert run_child(lambda: train(again, optimizer="sgd")).value == straight != ""


@pytest.mark.case(14)
@pytest.mark.parametrize("point", ["tensors-written:2", "manifest-written:1", "checkpoint-renamed:1"])
def test_a_polite_stop_in_mid_save_finishes_that_save(run: Path, point: str) -> None:
    def save_once() -> bool:
        asked: list[int] = []
        signal.signal(signal.SIGTERM, lambda number, frame: asked.append(number))
        CheckpointStore(run).save(5, Toy().snapshot(5))
        return asked == [signal.SIGTERM]

    run.mkdir()
    ended = run_child(save_once, crash_at=f"{point}:SIGTERM")
    assert (ended.code, ended.value) == (0, True)
    assert CheckpointStore(run).load_newest()[0] == 5
    assert names(run) == ["step-00000005"]


def test_an_error_in_mid_save_leaves_nothing(run: Path) -> None:
    def interrupted() -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        CheckpointStore(run).save(5, Toy().snapshot(5))

    run.mkdir()
    assert run_child(interrupted, crash_at="tensors-written:2:SIGINT").kind == "KeyboardInterrupt"
    assert names(run) == []


@pytest.mark.slow
@pytest.mark.case(2)
def test_replacing_the_best_may_die_anywhere(run: Path) -> None:
    run.mkdir()
    old, new = (Snapshot(tensors={"peer0": {"w": torch.full((3,), value)}}) for value in (1.0, 2.0))
    both = {digest(old): 1, digest(new): 2}

    def replace() -> int:
        save_to(run / "best", 2, new)
        return points_passed()

    save_to(run / "best", 1, old)
    points = run_child(replace, crash_at="*:0").value
    seen = set()
    for point in range(1, points + 1):
        for path in list(run.iterdir()):
            remove_tree(path)
        save_to(run / "best", 1, old)
        for _ in range(2):
            assert run_child(replace, crash_at=f"*:{point}").code == -signal.SIGKILL
            step, snapshot = load_from(run / "best")
            assert both[digest(snapshot)] == step
            seen.add(step)
    assert seen == {1, 2}


@pytest.mark.slow
@pytest.mark.case(2)
def test_replacing_a_step_may_die_anywhere(run: Path) -> None:
    store = CheckpointStore(run)
    old, new = (Snapshot(tensors={"peer0": {"w": torch.full((3,), value)}}) for value in (1.0, 2.0))

    def replace() -> int:
        store.save(1, new)
        return points_passed()

    for point in range(1, 13):
        store.clean()
        store.save(1, old)
        ended = run_child(replace, crash_at=f"*:{point}")
        step, snapshot = store.load_newest()
        assert step == 1 and digest(snapshot) in (digest(old), digest(new))
        assert ended.code in (0, -signal.SIGKILL)
    assert ended.code == 0 and digest(snapshot) == digest(new)
