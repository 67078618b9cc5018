"""kill -9 of one process of two, or both, at any moment of a run that saves after every step, changes nothing of its
end."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from faults import memory_folder
from pairs import kill_ranks, left_behind, recipe, undisturbed
from tiny import trace


def torment(kills: int, first: int, say: bool = False) -> None:
    given = recipe(epochs=4)
    expected, done, attempt, begun = undisturbed(given), 0, first, time.monotonic()
    shared = set(Path("/dev/shm").glob("*"))
    while done < kills:
        with memory_folder() as folder:
            print(f"seed {attempt}")  # shown when something fails
            done += kill_ranks(given, folder / "run", seed=attempt, most=kills - done)
            assert trace(folder / "run") == expected, f"another end: seed {attempt}"
            assert left_behind(folder / "run") == [], f"seed {attempt}"
        attempt += 1
    assert set(Path("/dev/shm").glob("torch_*")) <= shared
    if say:
        digest = expected.result["digest"][:16]
        taken = time.monotonic() - begun
        print(f"\n{done} kills in {attempt - first} runs of two processes, {taken:.0f} s: every digest {digest}...")


@pytest.mark.case(1, 16, 40)
def test_a_few_kills_of_two_processes() -> None:
    torment(4, first=100)


@pytest.mark.slow
@pytest.mark.case(1, 16, 40)
def test_kills_of_two_processes(request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]) -> None:
    with capsys.disabled():
        torment(request.config.getoption("--kills"), first=request.config.getoption("--soak-seed"), say=True)


@pytest.mark.slow
@pytest.mark.case(48)
def test_four_processes_under_load_and_kills(request: pytest.FixtureRequest) -> None:
    if not request.config.getoption("--soak"):
        pytest.skip("needs --soak SECONDS, as make soak gives it")
    peers = {"cohort__nets": ("cnn4_w4",) * 4, "train__sync_batch_norm": False}
    given = recipe("dml", epochs=100, train__checkpoint_every=5, **peers)  # 500 steps
    expected = undisturbed(given, 4)
    with memory_folder() as folder:
        kills = kill_ranks(
            given, folder / "run", seed=48, most=request.config.getoption("--kills"), longest=6.0, size=4
        )
        assert kills > 2
        assert trace(folder / "run") == expected
        assert left_behind(folder / "run") == []
