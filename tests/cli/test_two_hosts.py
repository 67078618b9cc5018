"""Two hosts, as two network namespaces with a cable between them: one dies and comes back, or is cut off for good."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

from launches import COTERIE, EVERY_STEP, PLUGIN, TRAINED, finish, launched, saved, start, status, wait_for, words
from tiny import trace

PLACE = "10.77.31.1:29517"


@cache
def namespaces_work() -> bool:
    """Whether this user may make network namespaces and cables here."""
    if os.getuid() or not shutil.which("ip"):
        return False
    name = f"coterie-try-{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True).returncode == 0
    subprocess.run(["ip", "netns", "del", name], capture_output=True)
    return made


pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not namespaces_work(), reason="needs root and network namespaces (ip netns)"),
]


def ip(*arguments: str) -> str:
    return subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True).stdout


@dataclass(frozen=True)
class Host:
    """A network namespace."""

    name: str

    def start(self, command: Sequence[str], folder: Path, fault: str = "") -> subprocess.Popen[str]:
        """Start a program on this host."""
        return start(["ip", "netns", "exec", self.name, *command], folder, fault)

    def kill_all(self) -> None:
        """Lose power."""
        for process in ip("netns", "pids", self.name).split():
            with suppress(ProcessLookupError):
                os.kill(int(process), signal.SIGKILL)

    def cut(self) -> None:
        """Pull the cable."""
        ip("-n", self.name, "link", "set", "cable", "down")


@pytest.fixture
def hosts() -> Iterator[tuple[Host, Host]]:
    first, second = (Host(f"coterie-{os.getpid()}-{number}") for number in (1, 2))
    try:
        for host in (first, second):
            ip("netns", "add", host.name)
            ip("-n", host.name, "link", "set", "lo", "up")
        ip("-n", first.name, "link", "add", "cable", "type", "veth", "peer", "name", "cable", "netns", second.name)
        for number, host in enumerate((first, second), start=1):
            ip("-n", host.name, "address", "add", f"10.77.31.{number}/24", "dev", "cable")
            ip("-n", host.name, "link", "set", "cable", "up")
        yield first, second
    finally:
        for host in (first, second):
            with suppress(subprocess.CalledProcessError):
                host.kill_all()
            subprocess.run(["ip", "netns", "del", host.name], capture_output=True)


def command(nodes: str, *settings: str) -> list[str]:
    options = ["--nodes", nodes, "--rendezvous", PLACE, "--job", "hosts", "--processes", "1", "--timeout", "8"]
    given = ["--plugin", str(PLUGIN), "--out", "run"]
    return [*COTERIE, "launch", *options, *TRAINED, *EVERY_STEP, *settings, *given]


@pytest.mark.case(22)
def test_a_host_that_comes_back_costs_no_bit(tmp_path: Path, hosts: tuple[Host, Host]) -> None:
    first, second = hosts
    (tmp_path / "alone").mkdir()
    assert launched(words("epochs=60"), tmp_path / "alone").code == 0
    one = first.start(command("2", "epochs=60"), tmp_path)
    other = second.start(command("2", "epochs=60"), tmp_path)
    wait_for(lambda: saved(tmp_path / "run", 30), 90)
    second.kill_all()
    other.communicate()
    back = second.start(command("2", "epochs=60"), tmp_path)
    ended = [finish(process, 240) for process in (one, back)]
    assert [end.code for end in ended] == [0, 0], ended
    assert "rank 0 waited in phase" in ended[0].err or "rank 1 waited in phase" in ended[0].err
    assert trace(tmp_path / "run") == trace(tmp_path / "alone" / "run")


@pytest.mark.case(23)
def test_a_host_that_is_cut_off_for_good_costs_its_share_only(tmp_path: Path, hosts: tuple[Host, Host]) -> None:
    first, second = hosts
    one = first.start(command("1:2", "epochs=60"), tmp_path)
    other = second.start(command("1:2", "epochs=60"), tmp_path)
    wait_for(lambda: saved(tmp_path / "run", 30), 120)
    second.cut()
    left, lost = finish(one, 200), finish(other, 200)
    assert left.code == 0, left.err
    assert "processes that share a batch 2 -> 1" in left.err and "may differ in the last bits" in left.err
    assert status(tmp_path / "run") == {"state": "done", "exit_code": 0}
    assert lost.code == 6, lost.err
    assert "the hosts have not met" in lost.err.splitlines()[-1]
