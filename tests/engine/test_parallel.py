"""Several processes train as one does, stop together, and say which of them is missing."""

from __future__ import annotations

import json
import os
import signal
import warnings
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from coterie.core import METHODS, DataError
from coterie.core.record import RunFolder, read_metrics
from coterie.core.types import Batch
from coterie.core.world import World
from coterie.data.loaders import ArrayLoader
from coterie.engine import CheckpointStore, Preempted
from coterie.experiment import Experiment
from ranks import Precise, difference, in_ranks, recipe_for, train
from tiny import BATCHES, EPOCHS, signal_after

SHIPPED = [name for name in METHODS if METHODS[name].__module__.startswith("coterie.")]
CLOSE = 1e-10

HANDFUL: dict[str, tuple[str, dict[str, object]]] = {
    "banks, frozen Z, tree": ("mcl_okd", {"cohort__shared": 1, "method__z": "frozen"}),
    "two differentiations": ("l_mcl", {}),
    "episodes": ("prototypes", {}),
    "averaged peers, a view for each": ("pcl", {"method__ramp_epochs": 2}),
    "queues and momentum copies": ("mcl_moco", {}),
    "held-out images": ("kdcl", {"method__target": "linear"}),
    "maps and a frozen peer": ("fsp", {}),
    "accumulated batches, clipped": ("dml", {"optim__accumulate": 2, "optim__clip": 0.5, "optim__name": "adamw"}),
    "grouped peers": ("dml", {"cohort__execution": "grouped", "train__sync_batch_norm": True}),
}


def recipe_named(name: str) -> Any:
    method, settings = HANDFUL[name]
    return recipe_for(method, **settings)


@pytest.fixture(scope="module")
def two_as_one(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Every run of the handful, trained by one process and by two that were started once."""
    folder = tmp_path_factory.mktemp("handful")
    for number, name in enumerate(HANDFUL):
        train(recipe_named(name), folder / f"{number}-1")

    def work(rank: int) -> None:
        for number, name in enumerate(HANDFUL):
            train(recipe_named(name), folder / f"{number}-2")

    assert in_ranks(2, work) == [("ok", None)] * 2
    yield folder


@pytest.mark.slow
@pytest.mark.case(58)
@pytest.mark.parametrize("name", HANDFUL)
def test_two_processes_train_as_one(two_as_one: Path, name: str) -> None:
    number = list(HANDFUL).index(name)
    assert difference(two_as_one / f"{number}-1", two_as_one / f"{number}-2") < CLOSE


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 4])
def test_every_method(tmp_path: Path, size: int) -> None:
    for method in SHIPPED:
        train(recipe_for(method), tmp_path / f"{method}-1")

    def work(rank: int) -> None:
        for method in SHIPPED:
            train(recipe_for(method), tmp_path / f"{method}-{size}")

    assert in_ranks(size, work) == [("ok", None)] * size
    gaps = {method: difference(tmp_path / f"{method}-1", tmp_path / f"{method}-{size}") for method in SHIPPED}
    assert {method: gap for method, gap in gaps.items() if gap >= CLOSE} == {}


@pytest.mark.case(24)
def test_resume_by_other_numbers_of_processes(tmp_path: Path) -> None:
    recipe = recipe_for("mcl_okd", cohort__shared=1)
    train(recipe, tmp_path / "whole")
    with signal_after(3), pytest.raises(Preempted):
        train(recipe, tmp_path / "pieces")

    def second(rank: int) -> list[str]:
        with warnings.catch_warnings(record=True) as warned, signal_after(6), suppress(Preempted):
            warnings.simplefilter("always")
            train(recipe, tmp_path / "pieces", resume=True)
        return [str(warning.message) for warning in warned]

    (_, first_warned), (_, second_warned) = in_ranks(2, second, tidy=False)
    assert len(first_warned) == 1 and "processes that share a batch 1 -> 2" in first_warned[0]
    assert second_warned == []
    assert CheckpointStore(tmp_path / "pieces" / "checkpoints").steps()[-1] == 7  # ranks met before the seventh batch
    train(recipe, tmp_path / "pieces", resume=True)
    assert difference(tmp_path / "whole", tmp_path / "pieces") < CLOSE


@pytest.mark.slow
def test_a_peer_that_joins(tmp_path: Path) -> None:
    recipe = recipe_for("dml", cohort__nets=("cnn4_w4",) * 3, cohort__joins=(1,))
    Experiment(recipe, folder=tmp_path / "one", name="tiny", quiet=True).train()

    def work(rank: int) -> None:
        Experiment(recipe, folder=tmp_path / "two", name="tiny", quiet=True).train()

    assert in_ranks(2, work) == [("ok", None)] * 2
    assert difference(tmp_path / "one", tmp_path / "two") < 1e-4  # in float32


@pytest.mark.case(12)
def test_a_signal_to_one_stops_all_after_one_step(tmp_path: Path) -> None:
    def work(rank: int) -> None:
        if rank == 1:
            with signal_after(3):
                train(recipe_for("dml"), tmp_path / "run")
        train(recipe_for("dml"), tmp_path / "run")

    found = in_ranks(2, work)
    assert [kind for kind, _ in found] == ["Preempted"] * 2
    assert CheckpointStore(tmp_path / "run" / "checkpoints").steps() == [4]  # the ranks met before the fourth batch
    status = RunFolder(tmp_path / "run").read_status()
    assert status is not None and (status.state, status.step, status.exit_code) == ("preempted", 4, 75)


@pytest.mark.slow
@pytest.mark.case(24, 26)
def test_what_each_process_draws_goes_on_where_it_was(tmp_path: Path) -> None:
    recipe = recipe_for("dml", cohort__nets=("tiny_noisy", "cnn4_w4"))

    def whole(rank: int) -> None:
        train(recipe, tmp_path / "whole")

    def first(rank: int) -> None:
        with signal_after(4), suppress(Preempted):
            train(recipe, tmp_path / "pieces")

    def second(rank: int) -> None:
        train(recipe, tmp_path / "pieces", resume=True)

    for work in (whole, first, second):
        assert in_ranks(2, work, tidy=False) == [("ok", None)] * 2
    assert difference(tmp_path / "whole", tmp_path / "pieces") == 0


def hurt(rank: int, at: int, change: Any) -> Any:
    """A context-free patch: from its batch `at` on, one rank's batches are changed."""
    batches = ArrayLoader.batches

    def patched(self: ArrayLoader, epoch: int, start: int = 0) -> Iterator[Batch]:
        for batch in batches(self, epoch, start):
            yield change(batch) if int(batch.step) == at else batch

    if rank == 1:
        ArrayLoader.batches = patched  # type: ignore[method-assign] # in a forked child


@pytest.mark.case(34)
def test_a_loss_that_is_not_finite_on_one_ends_all(tmp_path: Path) -> None:
    def work(rank: int) -> None:
        hurt(rank, 2, lambda batch: batch.with_views(batch.views * float("nan")))
        train(recipe_for("dml", train__checkpoint_every=2), tmp_path / "run")

    found = in_ranks(2, work)
    assert found[0][0] == "NumericError" and "the loss is not finite" in found[0][1]
    assert found[1][0] == "FailedElsewhere" and "rank 0: the loss is not finite" in found[1][1]
    status = RunFolder(tmp_path / "run").read_status()
    assert status is not None and (status.state, status.exit_code) == ("failed", 5)
    assert CheckpointStore(tmp_path / "run" / "checkpoints").steps() == [2]


@pytest.mark.case(17)
def test_an_image_that_one_cannot_read_ends_all(tmp_path: Path) -> None:
    def fail(batch: Batch) -> Batch:
        raise DataError("image 17 is damaged; remove it")

    def work(rank: int) -> None:
        hurt(rank, 2, fail)
        train(recipe_for("dml"), tmp_path / "run")

    expected = [("FailedElsewhere", "rank 1: image 17 is damaged; remove it")]
    assert in_ranks(2, work) == [*expected, ("DataError", "image 17 is damaged; remove it")]
    status = RunFolder(tmp_path / "run").read_status()
    assert status is not None and (status.exit_code, status.message) == (2, expected[0][1])


def test_a_folder_that_holds_a_run_ends_all(tmp_path: Path) -> None:
    train(recipe_for("dml"), tmp_path / "run")
    found = in_ranks(2, lambda rank: train(recipe_for("dml"), tmp_path / "run"))
    assert found[0][0] == "ConfigError" and "holds a run already" in found[0][1]
    assert found[1][0] == "FailedElsewhere"


@pytest.mark.case(16, 19)
@pytest.mark.parametrize(("number", "what"), [(signal.SIGKILL, "rank 1"), (signal.SIGSTOP, "rank 1 in phase 'data'")])
def test_one_that_is_gone_or_hangs_is_named(tmp_path: Path, number: int, what: str) -> None:
    def end(batch: Batch) -> Batch:
        os.kill(os.getppid(), 0)
        Path(tmp_path / "pid").write_text(str(os.getpid()))
        os.kill(os.getpid(), number)
        return batch

    def work(rank: int) -> None:
        hurt(rank, 2, end)
        try:
            train(recipe_for("dml", train__timeout=2), tmp_path / "run")
        finally:
            if number == signal.SIGSTOP:
                os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)

    found = in_ranks(2, work)
    assert found[0][0] == "ParallelError" and what in found[0][1] and "of step 2" in found[0][1], found
    status = RunFolder(tmp_path / "run").read_status()
    assert status is not None and (status.state, status.exit_code) == ("failed", 6)


@pytest.mark.case(26)
def test_one_that_drifts_is_found_before_it_is_saved(tmp_path: Path) -> None:
    class Drifting(Precise):
        def build(self, *given: Any) -> Any:
            self.parts = super().build(*given)
            return self.parts

    def work(rank: int) -> None:
        run = Drifting(recipe_for("dml"), folder=tmp_path / "run", quiet=True)

        def drift(batch: Batch) -> Batch:
            next(run.parts.cohort.parameters()).data.mul_(1.01)
            return batch

        hurt(rank, 3, drift)
        run.train()

    found = in_ranks(2, work)
    assert {kind for kind, _ in found} <= {"ParallelError", "FailedElsewhere"}, found
    assert "holds another peer0" in found[0][1]
    assert CheckpointStore(tmp_path / "run" / "checkpoints").steps() == []


def test_only_the_first_writes_and_all_are_told(tmp_path: Path) -> None:
    found = in_ranks(2, lambda rank: train(recipe_for("dml"), tmp_path / "run"))
    written = json.loads((tmp_path / "run" / "result.json").read_text())
    assert [result for _, result in found] == [written, written]
    rows = [row["step"] for row in read_metrics(RunFolder(tmp_path / "run").metrics) if row["kind"] == "train"]
    assert rows == sorted(set(rows)) and rows[-1] == BATCHES * EPOCHS


@pytest.mark.slow
def test_statistics_of_each_rank_are_averaged(tmp_path: Path) -> None:
    recipe = recipe_for("independent", train__sync_batch_norm=False, cohort__nets=("cnn4_w4",))
    assert [kind for kind, _ in in_ranks(2, lambda rank: train(recipe, tmp_path / "two"))] == ["ok", "ok"]
    train(recipe, tmp_path / "one")
    assert difference(tmp_path / "one", tmp_path / "two") > 1e-3  # another batch norm: another run


def test_batches_that_cannot_be_split(tmp_path: Path) -> None:
    found = in_ranks(3, lambda rank: train(recipe_for("dml"), tmp_path / "run"))
    assert found[0][0] == "ConfigError" and "data.batch_size=8 cannot be split evenly over 3" in found[0][1]
    assert not (tmp_path / "run").exists()


def test_shares_are_blocks_in_order_of_ranks() -> None:
    rows = torch.arange(12)
    shares = [World(rank=rank, size=3).share(rows) for rank in range(3)]
    assert torch.equal(torch.cat(shares), rows) and {len(share) for share in shares} == {4}
