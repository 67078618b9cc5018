"""Long tests: random kills for as long as is asked for (`make soak`), and memory over two thousand steps."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from coterie.config import Recipe
from coterie.core.record import RunFolder
from coterie.engine import Meters
from coterie.experiment import Experiment
from faults import kill_until_done, memory_folder, names, run_child
from tiny import run_in_pieces, tiny, trace

METHODS = ("independent", "dml", "mcl_okd", "mcl", "l_mcl", "kdcl", "mcl_moco", "codistillation")


def drawn(draw: random.Random) -> Recipe:
    settings: dict[str, Any] = {
        "optim__name": draw.choice(("sgd", "adam", "adamw")),
        "cohort__shared": draw.choice((0, 1)),
        "train__checkpoint_every": draw.choice((1, 2, 3)),
        "data__views": draw.choice((1, 2)),
    }
    common = {"epochs": 4, "seed": draw.randrange(1000), "train__log_every": 1, "train__threads": 1}
    return tiny(draw.choice(METHODS), **settings, **common)


def work(recipe: Recipe, folder: Path) -> Callable[[], None]:
    def train() -> None:
        Experiment(recipe, folder=folder, name="tiny", quiet=True).train(resume=RunFolder(folder).recipe.exists())

    return train


@pytest.mark.slow
def test_random_kills_of_random_runs(request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]) -> None:
    seconds = request.config.getoption("--soak")
    if not seconds:
        pytest.skip("needs --soak SECONDS, as make soak gives it")
    end, runs, kills, first = time.monotonic() + seconds, 0, 0, request.config.getoption("--soak-seed")
    while time.monotonic() < end:
        seed = first + runs
        draw = random.Random(seed)
        recipe = drawn(draw)
        with memory_folder() as folder:
            expected = run_in_pieces(recipe, folder / "whole")
            torment = {"shortest": 0.01, "longest": draw.uniform(0.05, 0.4)}
            kills += kill_until_done(work(recipe, folder / "run"), seed=seed, **torment)
            assert trace(folder / "run") == expected, f"repeat it with --soak-seed {seed}"
            left = [*names(folder / "run"), *names(folder / "run" / "checkpoints")]
            assert [name for name in left if name.startswith((".tmp-", ".del-", ".bad-"))] == [], f"seed {seed}"
        runs += 1
    with capsys.disabled():
        print(f"\n{runs} runs, {kills} kills, every end state that of the undisturbed run")


@pytest.mark.slow
@pytest.mark.case(42)
def test_two_thousand_steps_with_saves_keep_their_memory() -> None:
    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def train() -> list[int]:
        seen: list[int] = []
        before = Meters.on_step

        def on_step(self: Meters, run: Any, *rest: Any) -> None:
            before(self, run, *rest)
            if run.batches in (500, 2000):
                seen.append(resident())

        Meters.on_step = on_step  # type: ignore[method-assign]
        Experiment(tiny("mcl_okd", epochs=400, train__checkpoint_every=4), folder=folder / "run", quiet=True).train()
        return seen

    with memory_folder() as folder:
        run_in_pieces(tiny("mcl_okd"), folder / "warm")
        ended = run_child(train)
    assert ended.code == 0, ended.error
    early, late = ended.value
    assert late < 1.02 * early
