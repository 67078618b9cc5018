"""The examples run as they are, from another folder."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

EXAMPLES = Path(__file__).parents[2] / "examples"


def run(words: list[str], folder: Path, timeout: float = 120) -> str:
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *words], cwd=folder, env=env, capture_output=True, text=True, timeout=timeout
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


@pytest.mark.slow
def test_own_modules(tmp_path: Path) -> None:
    text = run([str(EXAMPLES / "own_modules.py")], tmp_path)
    found = re.search(r"leader: (\d+\.\d) %, kept in (\S+)", text)
    assert found, text
    assert float(found[1]) > 90
    weights = torch.load(tmp_path / found[2] / "mine.pt", weights_only=True)
    assert weights["4.weight"].shape == (2, 8)


@pytest.mark.slow
def test_new_method(tmp_path: Path) -> None:
    words = ["-m", "coterie", "train", "digits/mcl_okd", "--plugin", str(EXAMPLES / "new_method.py")]
    text = run([*words, "method=class_centres", "epochs=1"], tmp_path)
    assert "centre " in text
    assert (tmp_path / "runs" / "digits-mcl_okd" / "result.json").is_file()


@pytest.mark.slow
@pytest.mark.case(45)
def test_two_jobs_one_of_them_killed(tmp_path: Path) -> None:
    words = ["digits/mcl_okd", "cohort.nets=cnn4_w4", "epochs=6", "data.limit=500", "method.burn_in=0"]
    words += ["exchange.every=5", "exchange.max_age=2000", "train.checkpoint_every=5"]
    text = run([str(EXAMPLES / "two_jobs.py"), "--kills", "2", "--longest", "0.5", *words], tmp_path, 400)
    assert "job a was killed 2 times; exit statuses of a and b: 0 and 0" in text
    assert "  partner b: " in text
