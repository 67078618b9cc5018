"""Faults of one process that no other file is about: full disks, clocks that jump, what is left open or lying about."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import coterie
from coterie.core.record import read_metrics
from coterie.engine.checkpoint import CheckpointStore
from coterie.engine.snapshot import Snapshot
from coterie.experiment import Experiment
from faults import fork, memory_folder, names, run_child, wait, with_file_limit
from tiny import run_in_pieces, tiny


@pytest.fixture
def memory() -> Iterator[Path]:
    with memory_folder() as folder:
        yield folder


@pytest.mark.case(7)
def test_a_disk_that_is_full_from_some_step_on(memory: Path) -> None:
    """No file may grow beyond 4 kB: checkpoints fail, rows of metrics do not."""
    expected = run_in_pieces(tiny(train__checkpoint_every=1), memory / "whole")
    run_in_pieces(tiny(train__checkpoint_every=1), memory / "warm")

    def train() -> None:
        Experiment(tiny(train__checkpoint_every=1), folder=memory / "run", quiet=True).train()

    ended = run_child(with_file_limit(4_000, train))
    assert (ended.code, ended.kind) == (4, "CheckpointError")
    assert str(memory / "run") in ended.error and "free" in ended.error and "\n" not in ended.error
    assert [word for word in ended.warned if "training goes on" in word]
    assert names(memory / "run" / "checkpoints") == []
    assert run_in_pieces(tiny(train__checkpoint_every=1), memory / "run") == expected


@pytest.mark.case(44)
def test_a_clock_that_runs_backwards_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = run_in_pieces(tiny(train__checkpoint_every=1), tmp_path / "whole")
    now = iter(range(2_000_000_000, 0, -86_400))
    monkeypatch.setattr(time, "time", lambda: float(next(now)))
    assert run_in_pieces(tiny(train__checkpoint_every=1), tmp_path / "run", (4,)) == expected
    assert next(now) < 2_000_000_000 - 86_400, "the clock was asked"
    assert names(tmp_path / "run" / "checkpoints") == ["step-00000009", "step-00000010"]


@pytest.mark.case(43)
def test_five_hundred_saves_leave_no_file_open_and_no_thread(memory: Path) -> None:
    store = CheckpointStore(memory / "checkpoints")
    snapshot = Snapshot(tensors={"peer0": {"w": torch.ones(3)}}, values={"epoch": 0})
    store.save(0, snapshot)
    before = (len(names(Path("/proc/self/fd"))), threading.active_count())
    for step in range(1, 501):
        store.save(step, snapshot)
        if not step % 100:
            store.load_newest()
    assert (len(names(Path("/proc/self/fd"))), threading.active_count()) == before
    assert names(store.folder) == ["step-00000499", "step-00000500"]


def photos(root: Path) -> Path:
    draw = np.random.default_rng(0)
    for part, count in (("train", 18), ("val", 3)):
        for name in ("cat", "dog"):
            (root / part / name).mkdir(parents=True)
            for number in range(count):
                pixels = draw.integers(0, 256, (12, 14, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / part / name / f"{number}.png")
    return root


def children_of(group: int) -> list[int]:
    """Processes of a group that have not ended."""
    alive = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, of = path.read_text().rpartition(") ")[2].split()[:3]
        except OSError:
            continue
        if int(of) == group and state != "Z":
            alive.append(int(path.parent.name))
    return alive


def wait_until(fulfilled: Callable[[], bool], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not fulfilled():
        assert time.monotonic() < end, f"not within {seconds} s"
        time.sleep(0.01)


@pytest.mark.slow
@pytest.mark.case(40)
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGKILL, -9)])
def test_no_process_and_no_shared_memory_is_left(tmp_path: Path, number: int, code: int) -> None:
    folder = {"data__name": "folder", "data__root": photos(tmp_path / "photos"), "data__augment": "resized_crop"}
    recipe = tiny("dml", epochs=5_000, data__workers=2, data__batch_size=7, train__log_every=1, **folder)
    run_in_pieces(tiny(), tmp_path / "warm")

    def train() -> None:
        os.setpgid(0, 0)
        Experiment(recipe, folder=tmp_path / "run", quiet=True).train()

    child = fork(train)
    wait_until(lambda: len(children_of(child)) >= 3, 60)  # the run and two workers
    processes = children_of(child)
    wait_until((tmp_path / "run" / "metrics.jsonl").exists, 60)
    os.kill(child, number)
    assert wait(child) == code
    wait_until(lambda: not children_of(child), 30)
    assert [name for name in names(Path("/dev/shm")) if any(f"_{process}_" in name for process in processes)] == []
    left = [name for name in names(tmp_path / "run") if name.startswith((".tmp-", ".del-"))]
    assert left == [] or number == signal.SIGKILL


class Flat(nn.Module):
    """A network whose embeddings are all zero, or all huge."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(192, 6))
        self.head = nn.Linear(6, 4)
        with torch.no_grad():
            self.body[1].weight.mul_(factor)
            self.body[1].bias.zero_()
            self.head.weight.mul_(1e-12 if factor else 1.0)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.body(images))


@pytest.mark.case(61)
@pytest.mark.parametrize("factor", [0.0, 1e12])
@pytest.mark.parametrize("method", ["mcl", "mcl_okd"])
def test_zero_and_huge_embeddings_give_finite_losses(tmp_path: Path, method: str, factor: float) -> None:
    draw = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (40, 3, 8, 8), dtype=torch.uint8, generator=draw)
    train = TensorDataset(images, torch.arange(40) % 4)
    settings = {"epochs": 1, "data.batch_size": 8, "data.workers": 0, "optim.lr": 1e-9, "train.log_every": 1}
    knobs = {"method.num_negatives": 8} if method == "mcl_okd" else {}
    coterie.train(
        [Flat(factor), Flat(factor)], train, train, method=method, settings={**settings, **knobs}, out=tmp_path
    )
    rows = [row for row in read_metrics(tmp_path / "metrics.jsonl") if row["kind"] == "train"]
    assert len(rows) >= 4
    assert all(np.isfinite(value) for row in rows for value in (row["loss"], *row["terms"].values()))
