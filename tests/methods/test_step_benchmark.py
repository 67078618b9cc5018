from __future__ import annotations

import json
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
