"""The command as a process of its own: how quick it is, what it loads, and how it ends."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tiny import run_in_pieces, settings_of, stop_after, tiny, trace

COTERIE = [sys.executable, "-m", "coterie"]
ENV = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "80"}


def run(words: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(words, cwd=folder, env=ENV, capture_output=True, text=True, timeout=120)


def test_help_is_quick_and_loads_nothing_heavy(tmp_path: Path) -> None:
    times = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = run([*COTERIE, "--help"], tmp_path)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        times.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        assert done.returncode == 0
        assert "train" in done.stdout
    assert min(times) < 0.5
    look = "import sys; from coterie.cli import main; main(['--help']); heavy = {'torch', 'numpy', 'matplotlib'}"
    done = run([sys.executable, "-c", f"{look}; print(sorted(heavy & set(sys.modules)), file=sys.stderr)"], tmp_path)
    assert done.stderr.strip() == "[]"


def test_version_and_bad_words(tmp_path: Path) -> None:
    assert run([*COTERIE, "--version"], tmp_path).stdout.strip().startswith("0.")
    done = run([*COTERIE, "trian"], tmp_path)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("coterie: ")


@pytest.mark.case(12)
def test_sigterm_saves_and_ends_with_75(tmp_path: Path) -> None:
    words = ["train", "synthetic/mcl_okd", *settings_of("mcl_okd"), "epochs=400", "--out", "run"]
    process = subprocess.Popen([*COTERIE, *words], cwd=tmp_path, env=ENV, stderr=subprocess.PIPE, text=True)
    metrics = tmp_path / "run" / "metrics.jsonl"
    end = time.monotonic() + 60
    while not (metrics.exists() and metrics.stat().st_size) and time.monotonic() < end:
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 75, err
    assert err.startswith("coterie: stopped after ")
    assert err.endswith("and saved; go on with: coterie train --resume run\n")
    assert '"preempted"' in (tmp_path / "run" / "status.json").read_text()


@pytest.mark.slow
def test_another_process_continues_to_the_bit(tmp_path: Path) -> None:
    recipe = tiny("mcl_okd", cohort__shared=1)
    expected = run_in_pieces(recipe, tmp_path / "whole")
    folder = tmp_path / "pieces ü"
    from coterie.experiment import Experiment

    stop_after(4, Experiment(recipe, folder=folder, name="tiny", quiet=True).train)
    done = run([*COTERIE, "train", "--resume", str(folder)], tmp_path)
    assert done.returncode == 0, done.stderr
    assert trace(folder) == expected
    assert "resumed after 4 batches" in done.stdout


@pytest.mark.slow
def test_a_closed_pipe_is_silent(tmp_path: Path) -> None:
    done = run(["bash", "-c", f"{' '.join(COTERIE)} list nets | true; exit ${{PIPESTATUS[0]}}"], tmp_path)
    assert done.returncode in (1, 141)  # the table of rich leaves with 1, our own lines with 141
    assert done.stderr == ""
