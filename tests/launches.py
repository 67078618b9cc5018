"""`coterie launch` as people start it: real processes, a plug-in that hurts one of them, and what they leave behind."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coterie.core.record import RunFolder
from tiny import settings_of

COTERIE = [sys.executable, "-m", "coterie"]
PLUGIN = Path(__file__).parent / "faulty_plugin.py"
ENV = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "80"}
TRAINED = ["train", "synthetic/mcl_okd", *settings_of("mcl_okd"), "seed=3", "train.threads=1"]
EVERY_STEP = ["train.checkpoint_every=1", "train.log_every=1"]


@dataclass(frozen=True)
class Ended:
    """How a launch ended: exit status, its two streams, and seconds."""

    code: int
    out: str
    err: str
    seconds: float

    @property
    def said(self) -> list[str]:
        """What it said of errors, one to a line, without what torch's launcher noticed."""
        return [
            line for line in self.err.splitlines() if line.startswith("coterie: ") and "coterie: launcher" not in line
        ]


def words(*settings: str, out: str = "run", processes: int = 2, options: Sequence[str] = ()) -> list[str]:
    """The command line of a launch of a tiny run with a checkpoint after every step."""
    given = ["--plugin", str(PLUGIN), "--out", out]
    return [*COTERIE, "launch", "--processes", str(processes), *options, *TRAINED, *EVERY_STEP, *settings, *given]


def start(command: Sequence[str], folder: Path, fault: str = "", **extra: str) -> subprocess.Popen[str]:
    """Start a launch in a folder, its temporary files in one of its own."""
    scratch, lives = folder / "scratch", folder / "lives"
    scratch.mkdir(exist_ok=True)
    lives.mkdir(exist_ok=True)
    env = {**ENV, "TMPDIR": str(scratch), "COTERIE_TEST_FAULT": fault, "COTERIE_TEST_LIVES": str(lives), **extra}
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # inherited: under nohup it would be ignored
    try:
        return subprocess.Popen(command, cwd=folder, env=env, start_new_session=True, **pipes)
    finally:
        signal.signal(signal.SIGHUP, before)


def finish(process: subprocess.Popen[str], limit: float = 120.0) -> Ended:
    """Wait for a launch to end by itself."""
    begun = time.monotonic()
    try:
        out, err = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        raise
    return Ended(process.returncode, out, err, time.monotonic() - begun)


def launched(command: Sequence[str], folder: Path, fault: str = "", **extra: str) -> Ended:
    """Start a launch, wait for its end, and see that it leaves nothing behind but its run."""
    ended = finish(start(command, folder, fault, **extra))
    assert leftovers(folder) == [], ended.err
    return ended


def leftovers(folder: Path) -> list[str]:
    """Temporary files, but for torch's own cache, and processes of launches in a folder."""
    files = [path.name for path in (folder / "scratch").iterdir() if not path.name.startswith("torchinductor_")]
    return files + [line for line in _processes() if str(folder) in line]


def _processes() -> list[str]:
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            found.append(path.read_bytes().decode(errors="replace"))
        except OSError:
            continue
    return [text for text in found if "COTERIE_LAUNCH=" in text]


def wait_for(condition: Callable[[], bool], limit: float = 60.0) -> None:
    """Wait until something is so."""
    end = time.monotonic() + limit
    while not condition():
        assert time.monotonic() < end, "it did not come in time"
        time.sleep(0.02)


def saved(folder: Path, step: int) -> bool:
    """Whether a run has saved a step, or a later one."""
    path = RunFolder(folder).checkpoints
    steps = [int(found.name.removeprefix("step-")) for found in path.glob("step-*")] if path.is_dir() else []
    return max(steps, default=0) >= step


def status(folder: Path) -> Mapping[str, object]:
    """State and exit status of a run."""
    found = RunFolder(folder).read_status()
    assert found is not None
    return {"state": found.state, "exit_code": found.exit_code}


def free_port() -> int:
    """A port of this host that nobody listens to."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
