"""When checkpoints are written on a real run, and that none holds what is not finite."""

from __future__ import annotations

import json
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch

from coterie.core import CheckpointError, NumericError
from coterie.core.record import RunFolder
from coterie.engine import CheckpointStore, Preempted, Stepper, load_from
from coterie.engine.checkpoint import CheckpointWarning
from coterie.experiment import Experiment
from faults import names
from tiny import BATCHES, run_in_pieces, stop_after, tiny


@pytest.fixture
def saves(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Steps that were saved, in order."""
    found: list[int] = []
    save = CheckpointStore.save

    def noting(self: CheckpointStore, step: int, snapshot: Any, **options: Any) -> Path:
        found.append(step)
        return save(self, step, snapshot, **options)

    monkeypatch.setattr(CheckpointStore, "save", noting)
    return found


@pytest.mark.parametrize(
    ("every", "accumulate", "expected"),
    [
        (0, 1, [5, 10]),
        (1, 1, [*range(1, 11), 10]),
        (3, 1, [3, 6, 9, 10]),
        (3, 2, [4, 7, 9, 10]),  # 3 and 6 lie within the steps that end with 4 and 7
        (100, 1, [10]),
    ],
)
def test_every_so_many_batches(tmp_path: Path, saves: list[int], every: int, accumulate: int, expected: Any) -> None:
    run_in_pieces(tiny(train__checkpoint_every=every, optim__accumulate=accumulate), tmp_path / "run")
    assert saves == expected


@pytest.mark.parametrize("keep", [2, 4])
def test_the_newest_are_kept(tmp_path: Path, keep: int) -> None:
    run_in_pieces(tiny(train__checkpoint_every=1, train__keep=keep), tmp_path / "run")
    assert names(tmp_path / "run" / "checkpoints") == [f"step-{step:08d}" for step in range(11 - keep, 11)]


def test_every_so_many_are_kept_for_good(tmp_path: Path) -> None:
    run_in_pieces(tiny(train__checkpoint_every=1, train__keep_every=4), tmp_path / "run", (6,))
    assert names(tmp_path / "run" / "checkpoints") == [f"step-{step:08d}" for step in (4, 8, 9, 10)]


def fails(monkeypatch: pytest.MonkeyPatch, steps: set[int]) -> None:
    """Let the disk refuse the checkpoints of these steps."""
    save = CheckpointStore.save

    def refusing(self: CheckpointStore, step: int, snapshot: Any, **options: Any) -> Path:
        if step in steps:
            raise CheckpointError("cannot save: no space")
        return save(self, step, snapshot, **options)

    monkeypatch.setattr(CheckpointStore, "save", refusing)


@pytest.mark.case(7)
def test_two_refusals_in_a_row_are_warnings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = run_in_pieces(tiny(train__checkpoint_every=1), tmp_path / "whole")
    fails(monkeypatch, {2, 3, 5, 6})
    with pytest.warns(CheckpointWarning, match="no space; training goes on") as caught:
        assert run_in_pieces(tiny(train__checkpoint_every=1), tmp_path / "run") == expected
    assert len(caught) == 4


@pytest.mark.case(7)
def test_the_third_refusal_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fails(monkeypatch, {3, 4, 5})
    with pytest.warns(CheckpointWarning), pytest.raises(CheckpointError, match="no space"):
        run_in_pieces(tiny(train__checkpoint_every=1), tmp_path / "run")
    status = RunFolder(tmp_path / "run").read_status()
    assert (status.state, status.exit_code) == ("failed", 4)
    assert names(tmp_path / "run" / "checkpoints") == ["step-00000001", "step-00000002"]


def test_the_last_checkpoint_must_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = run_in_pieces(tiny(), tmp_path / "whole")
    with monkeypatch.context() as patch:
        fails(patch, {10})
        with pytest.raises(CheckpointError, match="no space"):
            run_in_pieces(tiny(), tmp_path / "run")
    assert not (tmp_path / "run" / "result.json").exists()
    assert run_in_pieces(tiny(), tmp_path / "run") == expected


@pytest.mark.case(7)
def test_a_stop_that_cannot_be_saved_does_not_claim_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fails(monkeypatch, {3})
    with pytest.raises(CheckpointError, match="no space"):
        stop_after(3, Experiment(tiny(), folder=tmp_path / "run", quiet=True).train)
    assert RunFolder(tmp_path / "run").read_status().exit_code == 4


def finite(folder: Path) -> bool:
    _, snapshot = load_from(folder)
    tensors = [tensor for section in snapshot.tensors.values() for tensor in section.values()]
    return all(bool(tensor.isfinite().all()) for tensor in tensors if tensor.is_floating_point())


@pytest.mark.case(35)
@pytest.mark.parametrize("every", [0, 1, 2])
@pytest.mark.parametrize("settings", [{}, {"optim__accumulate": 2}, {"optim__name": "adamw"}])
def test_a_huge_rate_ends_with_exit_5_and_no_checkpoint_of_it(tmp_path: Path, every: int, settings: dict) -> None:
    recipe = tiny("dml", optim__lr=1e20, train__checkpoint_every=every, **settings)
    with pytest.raises(NumericError, match=r"not finite.*optim\.lr") as caught:
        run_in_pieces(recipe, tmp_path / "run")
    status = RunFolder(tmp_path / "run").read_status()
    assert (status.state, status.exit_code, status.message) == ("failed", 5, str(caught.value))
    saved = list((tmp_path / "run").glob("checkpoints/step-*"))
    assert all(finite(folder) for folder in saved)
    assert not (tmp_path / "run" / "best").exists()


@pytest.mark.case(34)
@pytest.mark.parametrize("batches", [7, 2 * BATCHES])
@pytest.mark.parametrize("every", [0, 1])
def test_weights_that_break_in_a_step_are_not_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batches: int, every: int
) -> None:
    step = Stepper._step

    taken = count()

    def breaking(self: Stepper) -> None:
        step(self)
        if next(taken) == batches - 1:  # the loss of this batch was finite
            with torch.no_grad():
                self.optimizer.param_groups[0]["params"][3].view(-1)[0] = float("nan")

    monkeypatch.setattr(Stepper, "_step", breaking)
    with pytest.raises(NumericError, match="not finite"):
        run_in_pieces(tiny("mcl_okd", train__checkpoint_every=every, train__evaluate_every=1), tmp_path / "run")
    saved = sorted((tmp_path / "run").glob("checkpoints/step-*"))
    assert saved[-1].name == ("step-00000005" if every == 0 else f"step-{batches - 1:08d}")
    assert all(finite(folder) for folder in [*saved, tmp_path / "run" / "best"])
    rows = (tmp_path / "run" / "metrics.jsonl").read_text()
    assert "nan" not in rows


def test_a_stop_names_the_run_to_resume(tmp_path: Path) -> None:
    run = tmp_path / "run"

    def train() -> None:
        try:
            Experiment(tiny(), folder=run, quiet=True).train()
        except Preempted as error:
            assert str(error) == f"stopped after 3 batches and saved; go on with: coterie train --resume {run}"
            assert error.exit_code == 75
            raise

    stop_after(3, train)
    status = json.loads((run / "status.json").read_text())
    assert (status["state"], status["step"], status["exit_code"]) == ("preempted", 3, 75)
