"""Processes of one machine share its cores, and the threads that carry messages wait for a free one."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from coterie.engine import Interrupt, joined
from coterie.engine.cores import own_cores
from pairs import ended, recipe, start

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="other systems do not let processes choose cores")
ALL = {0, 1, 2, 3, 4}


@pytest.fixture
def cores(monkeypatch: pytest.MonkeyPatch) -> set[int]:
    """The cores this process may use, of a machine with five."""
    chosen = set(ALL)

    def choose(process: int, asked: list[int]) -> None:
        chosen.clear()
        chosen.update(asked)

    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(chosen))
    monkeypatch.setattr(os, "sched_setaffinity", choose)
    monkeypatch.setattr(os, "cpu_count", lambda: len(ALL))
    return chosen


def test_each_process_has_as_many_cores_and_gives_them_back(cores: set[int]) -> None:
    with own_cores(0, 2):
        assert cores == {0, 1}
    assert cores == ALL
    with pytest.raises(ValueError, match="in between"), own_cores(1, 2):
        assert cores == {2, 3}
        raise ValueError("in between")
    assert cores == ALL


@pytest.mark.parametrize("count", [1, 6])
def test_one_process_and_too_many_use_all(cores: set[int], count: int) -> None:
    with own_cores(count - 1, count):
        assert cores == ALL


def test_cores_that_were_chosen_stay(cores: set[int]) -> None:
    cores -= {0}
    with own_cores(0, 2):
        assert cores == {1, 2, 3, 4}


@pytest.mark.slow
def test_two_ranks_compute_apart(tmp_path: Path) -> None:
    before = os.sched_getaffinity(0)
    if len(before) < 2 or len(before) != os.cpu_count():
        pytest.skip("this process may not use two cores, and all of its machine")

    def task(rank: int) -> None:
        with joined(recipe("dml").train, Interrupt()):
            assert len(os.sched_getaffinity(0)) == len(before) // 2
            (tmp_path / f"{rank}").write_text(" ".join(map(str, os.sched_getaffinity(0))))
            tasks = [path for path in Path("/proc/self/task").glob("*") if "gloo" in (path / "comm").read_text()]
            assert tasks and all(os.sched_getscheduler(int(task.name)) == os.SCHED_BATCH for task in tasks)
        assert os.sched_getaffinity(0) == before

    assert ended(start(task)) == [0, 0]
    first, second = ({*(tmp_path / f"{rank}").read_text().split()} for rank in range(2))
    assert first and second and not first & second
