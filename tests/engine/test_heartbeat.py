"""Signs of life: rewritten between phases, at most once a second, harmless when they cannot be."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from coterie.core.world import ALONE
from coterie.engine import Heartbeat, Interrupt, Together, read_signs


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "recipe.toml").touch()
    return tmp_path / "heartbeats"


def test_a_sign_says_who_where_what_and_when(run: Path) -> None:
    before = time.time()
    Heartbeat(run, 3).beat("saving", 17)
    (sign,) = read_signs(run)
    assert (sign.rank, sign.phase, sign.step, sign.process) == (3, "saving", 17, os.getpid())
    assert sign.host and before <= sign.time <= time.time()


def test_frequent_phases_are_written_once_a_second_and_rare_ones_always(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr("coterie.engine.heartbeat.time.monotonic", lambda: now[0])
    heart, seen = Heartbeat(run), []
    for seconds, phase in [(0.0, "data"), (0.1, "step"), (0.2, "validation"), (0.3, "step"), (1.3, "waiting")]:
        now[0] = 100 + seconds
        heart.beat(phase, 5)
        seen.append(read_signs(run)[0].phase)
    assert seen == ["data", "data", "validation", "validation", "waiting"]


def test_where_there_is_no_run_nothing_is_made(tmp_path: Path) -> None:
    Heartbeat(tmp_path / "elsewhere" / "heartbeats").beat("step", 1)
    Heartbeat(tmp_path / "heartbeats").beat("step", 1)
    assert list(tmp_path.iterdir()) == []


def test_a_link_in_the_way_is_not_followed(run: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    run.symlink_to(tmp_path / "other")
    Heartbeat(run).beat("step", 1)
    assert list((tmp_path / "other").iterdir()) == []


def test_a_file_in_the_way_costs_the_sign_only(run: Path) -> None:
    run.write_text("in the way")
    Heartbeat(run).beat("step", 1)
    assert run.read_text() == "in the way"


def test_a_run_that_begins_removes_the_signs_of_before(run: Path) -> None:
    for rank in range(3):
        Heartbeat(run, rank).beat("step", 1)
    (run / "else").touch()
    Heartbeat(run).clear()
    assert [path.name for path in run.iterdir()] == ["else"]


GOOD = {"rank": 1, "step": 2, "phase": "data", "time": 3.0, "process": 4, "host": "a"}


@pytest.mark.parametrize(
    "content",
    ["", "[]", "{}", "null", json.dumps({**GOOD, "step": "x"}), json.dumps({**GOOD, "more": 1}), "\0" * 20_000],
)
def test_damaged_signs_are_passed_over(run: Path, content: str) -> None:
    Heartbeat(run, 0).beat("step", 1)
    (run / "rank1.json").write_text(content)
    assert [sign.rank for sign in read_signs(run)] == [0]


def test_ranks_come_in_order(run: Path) -> None:
    for rank in (10, 2, 0):
        Heartbeat(run, rank).beat("step", 1)
    assert [sign.rank for sign in read_signs(run)] == [0, 2, 10]


def test_phases_are_shown_and_what_follows_the_first_step_is_training(run: Path) -> None:
    together = Together(ALONE, Interrupt())
    together.heart = Heartbeat(run)
    shown = []
    for what, step in (("setup", 0), ("reading a checkpoint", 0), ("validation", 4)):
        with together.phase(what, step):
            shown.append(read_signs(run)[0].phase)
    assert shown == ["setup", "reading a checkpoint", "validation"]
    together.heart._next = 0.0
    with together.phase("data", 5):
        pass
    assert together._doing == ("training", 5)
