"""Faults of runs of two processes that are no kills: a full disk, a flipped bit, a network of a user's that raises."""

from __future__ import annotations

import signal
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
from torch import Tensor, nn

from coterie.core.record import RunFolder
from coterie.engine import CheckpointStore
from coterie.experiment import Experiment
from coterie.nets import NETS
from faults import memory_folder, names, with_file_limit
from pairs import ended, left_behind, recipe, start, undisturbed, work
from tiny import run_in_pieces, signal_after, tiny, trace


def end_with(codes: list[int], task: Callable[[int], None]) -> None:
    """Run a task in two ranks, whose warnings are not what is tested here."""

    def warned(rank: int) -> None:
        warnings.simplefilter("ignore")  # in a forked child
        task(rank)

    assert ended(start(warned)) == codes


@pytest.mark.slow
@pytest.mark.case(26)
def test_the_same_run_twice_by_two_processes(tmp_path: Path) -> None:
    given = recipe()
    end_with([0, 0], work(given, tmp_path / "run"))
    assert trace(tmp_path / "run") == undisturbed(given)


@pytest.mark.case(7)
def test_a_disk_that_is_full_ends_both_and_costs_nothing_else() -> None:
    given = recipe()
    expected = undisturbed(given)
    with memory_folder() as folder:

        def task(rank: int) -> None:
            train = lambda: work(given, folder / "run")(rank)  # noqa: E731
            (with_file_limit(4_000, train) if rank == 0 else train)()

        end_with([4, 4], task)
        status = RunFolder(folder / "run").read_status()
        assert status is not None and (status.state, status.exit_code) == ("failed", 4)
        assert names(folder / "run" / "checkpoints") == []
        end_with([0, 0], work(given, folder / "run"))
        assert trace(folder / "run") == expected
        assert left_behind(folder / "run") == []


@pytest.mark.case(4)
def test_a_flipped_bit_costs_a_step_and_no_bit(tmp_path: Path) -> None:
    given = recipe()
    expected = undisturbed(given)

    def stopped(rank: int) -> None:
        with signal_after(7, signal.SIGTERM):
            work(given, tmp_path / "run")(rank)

    end_with([75, 75], stopped)
    newest = CheckpointStore(tmp_path / "run" / "checkpoints").steps()[-1]
    path = tmp_path / "run" / "checkpoints" / f"step-{newest:08d}" / "peer1.safetensors"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    end_with([0, 0], work(given, tmp_path / "run"))
    assert trace(tmp_path / "run") == expected
    assert f".bad-step-{newest:08d}" in names(tmp_path / "run" / "checkpoints")


class Failing(nn.Module):
    """Raises in its fourth training step."""

    def __init__(self, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(in_channels * 64, num_classes))
        self.steps = 0

    def forward(self, images: Tensor) -> Tensor:
        self.steps += self.training
        if self.steps > 3:
            raise ValueError("no fourth step")
        return self.body(images)


def _failing(*, num_classes: int, in_channels: int = 3, image_size: int = 8) -> nn.Module:
    return Failing(num_classes, in_channels)


NETS.add("tiny_failing", _failing)


@pytest.mark.case(41)
def test_a_peer_that_raises_is_named_and_costs_no_checkpoint(tmp_path: Path) -> None:
    given = tiny("dml", cohort__nets=("cnn4_w4", "tiny_failing"), train__checkpoint_every=1)
    with pytest.raises(ValueError, match="no fourth step") as caught:
        Experiment(given, folder=tmp_path / "run", quiet=True).train()
    assert [note for note in caught.value.__notes__ if note.startswith("raised by peer 1")]
    status = RunFolder(tmp_path / "run").read_status()
    assert status is not None and status.state == "failed" and "no fourth step (raised by peer 1" in status.message
    found = CheckpointStore(tmp_path / "run" / "checkpoints").load_newest(read_only=True)
    assert found is not None and found[0] == 3
    assert not [name for name in names(tmp_path / "run" / "checkpoints") if name.startswith(".")]


@pytest.mark.case(41)
def test_a_peer_that_raises_in_one_of_two_processes_ends_both(tmp_path: Path) -> None:
    run_in_pieces(tiny(), tmp_path / "warm")
    given = tiny("dml", cohort__nets=("cnn4_w4", "tiny_failing"), train__checkpoint_every=1, train__timeout=5)

    def task(rank: int) -> None:
        if rank == 1:
            Failing.forward = _raises_at_once  # type: ignore[method-assign]
        work(given, tmp_path / "run")(rank)

    end_with([6, 1], task)
    status = RunFolder(tmp_path / "run").read_status()
    assert status is not None and "last heard of rank 1" in status.message


def _raises_at_once(self: Failing, images: Tensor) -> Tensor:
    if self.training:
        raise ValueError("not even one")
    return self.body(images)
