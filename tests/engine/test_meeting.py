"""Processes that cannot meet say so in one line that names the place, in time."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from coterie.experiment import Experiment
from faults import Outcome, run_child
from launches import free_port
from tiny import tiny

SECONDS = 2.0


def join(folder: Path, rank: int, port: int, host: str = "127.0.0.1") -> Callable[[], None]:
    """Train as one of two processes that are to meet at a port."""

    def train() -> None:
        os.environ.update(MASTER_ADDR=host, MASTER_PORT=str(port), RANK=str(rank), WORLD_SIZE="2")
        Experiment(tiny("dml", train__timeout=SECONDS), folder=folder, quiet=True).train()

    return train


def refused(ended: Outcome, place: str, begun: float) -> None:
    assert (ended.code, ended.kind) == (6, "ParallelError"), ended.error
    assert place in ended.error and "\n" not in ended.error and "free port" in ended.error
    assert time.monotonic() - begun < 20 * SECONDS


@pytest.mark.case(37)
def test_a_port_that_is_taken_is_named(tmp_path: Path) -> None:
    begun = time.monotonic()
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        refused(run_child(join(tmp_path / "run", 0, port)), f"127.0.0.1:{port}", begun)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.case(38)
@pytest.mark.parametrize("rank", [0, 1])
def test_others_that_do_not_come_are_not_waited_for_long(tmp_path: Path, rank: int) -> None:
    begun, port = time.monotonic(), free_port()
    refused(run_child(join(tmp_path / "run", rank, port)), f"127.0.0.1:{port}", begun)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.case(38)
def test_a_host_that_has_no_address_is_named(tmp_path: Path) -> None:
    begun = time.monotonic()
    refused(run_child(join(tmp_path / "run", 1, free_port(), "nobody.invalid")), "nobody.invalid:", begun)


def test_variables_that_are_missing_are_named(tmp_path: Path) -> None:
    def train() -> None:
        os.environ.update(RANK="0", WORLD_SIZE="2")
        Experiment(tiny("dml"), folder=tmp_path / "run", quiet=True).train()

    ended = run_child(train)
    assert (ended.code, ended.kind) == (2, "ConfigError")
    assert "not all of the launcher's variables" in ended.error
