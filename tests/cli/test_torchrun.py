"""`torchrun ... -m coterie`: real processes under the launcher that people use."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from coterie.core.record import RunFolder
from tiny import settings_of

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "coterie"]
ENV = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "80"}


def start(words: list[str], folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*TORCHRUN, *words], cwd=folder, env=ENV, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def ours(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("coterie: ")]


@pytest.mark.slow
def test_trains_and_speaks_with_one_voice(tmp_path: Path) -> None:
    process = start(["train", "synthetic/mcl_okd", *settings_of("mcl_okd"), "data.batch_size=8"], tmp_path)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert out.count("2 processes train together, each on 4 of the 8 images of a batch") == 1
    assert out.count("test set, last epoch") == 1
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["synthetic-mcl_okd"]
    environment = RunFolder(tmp_path / "runs" / "synthetic-mcl_okd").read_environment()
    assert environment["processes"] == 2


@pytest.mark.slow
def test_a_signal_to_the_launcher_leaves_one_checkpoint_to_go_on_from(tmp_path: Path) -> None:
    words = ["train", "synthetic/mcl_okd", *settings_of("mcl_okd"), "epochs=400", "--out", "run"]
    process = start(words, tmp_path)
    metrics = tmp_path / "run" / "metrics.jsonl"
    end = time.monotonic() + 60
    while not (metrics.exists() and metrics.stat().st_size) and time.monotonic() < end:
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1, err  # whatever its workers return
    assert len(ours(err)) == 1 and ours(err)[0].endswith("go on with: coterie train --resume run")
    status = RunFolder(tmp_path / "run").read_status()
    assert status is not None and (status.state, status.exit_code) == ("preempted", 75)
    left = [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()]
    assert f"step-{status.step:08d}" in left and not any(name.startswith(".") for name in left)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("setting", "code", "says"),
    [("data.batch_size=7", 2, "cannot be split evenly over 2"), ("optim.lr=1e30", 5, "the loss is not finite")],
)
def test_errors_are_said_once(tmp_path: Path, setting: str, code: int, says: str) -> None:
    process = start(["train", "synthetic/mcl_okd", *settings_of("mcl_okd"), setting, "--out", "run"], tmp_path)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert len(ours(err)) == 1 and says in ours(err)[0], err
    assert f"exitcode: {code}" in err or f"exitcode  : {code}" in err, err
    if code == 5:
        assert json.loads((tmp_path / "run" / "status.json").read_text())["exit_code"] == 5
