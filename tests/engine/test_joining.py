"""A process that dies while the groups are made keeps nobody waiting, whichever group is being made."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch.distributed as dist

from coterie.engine import Interrupt, joined
from pairs import LIMIT, LOST, MEETINGS, ended, recipe, start, work

SECONDS = 3.0


def dying_before(number: int, victim: int, task: Callable[[int], None]) -> Callable[[int], None]:
    """A task in which one rank dies instead of making its `number`-th group."""
    made = dist.new_group

    def work_or_die(rank: int) -> None:
        left = iter(range(number))

        def make(*ranks: object, **options: object) -> object:
            if rank == victim and next(left, None) is None:
                os._exit(9)
            return made(*ranks, **options)

        dist.new_group = make  # in a forked child
        task(rank)

    return work_or_die


@pytest.mark.slow
@pytest.mark.case(16, 19)
@pytest.mark.parametrize("victim", [0, 1])
@pytest.mark.parametrize("number", [0, 1])
def test_groups_that_are_being_made(tmp_path: Path, number: int, victim: int) -> None:
    begun, task = time.monotonic(), work(recipe("dml", train__timeout=SECONDS), tmp_path / "run")
    codes = ended(start(dying_before(number, victim, task)), 8 * SECONDS)
    assert codes[victim] == 9 and codes[1 - victim] == LOST
    assert time.monotonic() - begun < 6 * SECONDS


@pytest.mark.slow
@pytest.mark.case(16)
def test_one_that_hangs_before_it_calls_costs_no_more_than_other_waits(tmp_path: Path) -> None:
    """Rank 1 says where it listens, and then neither calls nor answers.

    Which of two ranks calls the other is decided by their ports, so several pairs try.
    """
    goes_on, made = tmp_path / "goes_on", dist.init_process_group

    def make(*words: object, **options: object) -> None:
        if os.environ["RANK"] == "1":
            (tmp_path / f"begins{os.getpid()}").touch()
        while os.environ["RANK"] == "0" and not goes_on.exists():
            time.sleep(0.01)
        made(*words, **options)

    def task(rank: int) -> None:
        dist.init_process_group = make  # in a forked child
        with joined(recipe("dml", train__timeout=4 * SECONDS).train, Interrupt()):
            pass

    first, second = zip(*[start(task) for _ in range(MEETINGS)], strict=True)
    while len(list(tmp_path.glob("begins*"))) < MEETINGS:
        time.sleep(0.01)
    time.sleep(0.5)  # until they wait for where the others listen
    for rank in second:
        os.kill(rank, signal.SIGSTOP)
    goes_on.touch()
    try:
        assert ended(first, 8 * SECONDS) == [LOST] * MEETINGS
    finally:
        for rank in second:
            os.kill(rank, signal.SIGKILL)
        assert ended(second) == [-signal.SIGKILL] * MEETINGS


@pytest.mark.slow
@pytest.mark.case(19)
@pytest.mark.parametrize("told", [b"", b"SSH-2.0-another-service\r\n"])
def test_what_listens_there_and_is_no_store(told: bytes) -> None:
    with ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))

        def task(rank: int) -> None:
            os.environ["MASTER_PORT"] = str(listener.getsockname()[1])
            with joined(recipe("dml", train__timeout=0.5).train, Interrupt()):
                pass

        ranks = start(task)
        for _ in ranks if told else ():
            stack.enter_context(listener.accept()[0]).sendall(told)
        assert ended(ranks, LIMIT) == [LOST, LOST]


@pytest.mark.slow
def test_once_it_is_made_the_patient_group_waits_longer_than_the_others(tmp_path: Path) -> None:
    def task(rank: int) -> None:
        with joined(recipe("dml", train__timeout=SECONDS).train, Interrupt()) as together:
            if rank == 0:
                time.sleep(1.5 * SECONDS)
            assert together.tell("late") == "late"

    assert ended(start(task)) == [0, 0]
