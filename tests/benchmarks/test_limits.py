from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


def table(tmp_path: Path, *words: str) -> dict[str, dict[str, Any]]:
    report = tmp_path / "table.json"
    command = [sys.executable, "-m", "benchmarks", *words, "--json", report]
    subprocess.run(command, cwd=ROOT, check=True)
    found = json.loads(report.read_text())
    assert found["environment"]["threads"] == 1 and not found["skipped"]
    return {row["key"]: row for row in found["rows"]}


@pytest.mark.slow
def test_a_full_step_costs_little_more_than_plain_steps(tmp_path: Path) -> None:
    rows = table(tmp_path, "--only", "full", "memory")
    assert rows["full.nchw.float32"]["measured"]["value"] <= 1.25  # some slack for other load on the machine
    assert rows["memory.batch"]["reached"] and rows["memory.large_batch"]["reached"]


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
    rows = table(tmp_path, "--method", *words.split(), "--rounds", "9")
    assert rows["method"]["measured"]["value"] <= most and rows["other.ms"]["measured"]["value"] > 0
