from __future__ import annotations

import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "step.py"


@pytest.mark.slow
def test_full_step_costs_little_more_than_plain_steps(tmp_path: Path) -> None:
    subprocess.run([sys.executable, SCRIPT, "--rounds", "5", "--json", tmp_path / "step.json"], check=True)
    numbers = json.loads((tmp_path / "step.json").read_text())
    assert numbers["full_step_ratio"] <= 1.25
    assert numbers["contrastive_peak_mb"] <= 200
    assert numbers["rounds"] == 5 and numbers["threads"] == 1 and numbers["plain_step_ms"] > 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "most"),
    [
        ("crd", 1.15),
        ("crd negatives=per_sample", 1.5),
        ("wcord", 1.15),
        ("wcord negatives=batch", 1.15),
        ("wcord negatives=bank_per_sample", 1.5),
    ],
)
def test_a_step_with_a_teacher_costs_little_more_than_one_of_kd(tmp_path: Path, words: str, most: float) -> None:
    report = tmp_path / "step.json"
    command = [sys.executable, SCRIPT, "--method", *words.split(), "--rounds", "9", "--json", report]
    subprocess.run(command, check=True)
    numbers = json.loads(report.read_text())
    assert numbers["method"] == words and numbers["ratio_to_kd"] <= most
    assert numbers["rounds"] == 9 and numbers["threads"] == 1 and numbers["kd_step_ms"] > 0


@pytest.mark.parametrize("words", ["--method crd z=never", "--method nothing", "z=batch"])
def test_unknown_names_are_one_line(
    words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["step.py", *words.split()])
    with pytest.raises(SystemExit, match="2"):
        runpy.run_path(str(SCRIPT))["main"]()
    assert "step.py: error: " in capsys.readouterr().err
