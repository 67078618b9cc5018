"""A run that was stopped anywhere and resumed ends with the bits of one that was not."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset

from coterie.core import METHODS
from coterie.core.record import read_metrics
from coterie.data import from_dataset
from coterie.experiment import Experiment
from tiny import BATCHES, EPOCHS, run_in_pieces, stop_after, tiny, trace

SHIPPED = [name for name in METHODS if METHODS[name].__module__.startswith("coterie.")]


AT_ONCE = "dml", "kdcl", "l_mcl", "mcl_bank", "mcl_moco", "mcl_okd", "pcl", "wcord"


@pytest.mark.parametrize(
    ("method", "shared", "optim"),
    [
        pytest.param(*row, marks=() if row[0] in AT_ONCE and row[1:] == (0, "sgd") else pytest.mark.slow)
        for row in product(SHIPPED, (0, 1), ("sgd", "adamw"))
    ],
)
def test_every_method_layout_and_optimiser(tmp_path: Path, method: str, shared: int, optim: str) -> None:
    needs = METHODS[method].needs
    peers = ("cnn4_w4",) * max(2, needs.min_peers)
    shared, frozen = max(shared, needs.shared_stages), (0,) if needs.teacher else ()
    recipe = tiny(method, cohort__nets=peers, cohort__shared=shared, cohort__frozen=frozen, optim__name=optim)
    whole = run_in_pieces(recipe, tmp_path / "whole")
    pieces = run_in_pieces(recipe, tmp_path / "pieces", (3, 7))
    assert pieces == whole


@pytest.mark.case(28)
@pytest.mark.parametrize("stop", range(1, BATCHES * EPOCHS + 1))
def test_every_batch(tmp_path: Path, stop: int) -> None:
    recipe = tiny("mcl_okd", train__log_every=2)
    assert run_in_pieces(recipe, tmp_path / "pieces", (stop,)) == run_in_pieces(recipe, tmp_path / "whole")


SETTINGS = {
    "bfloat16": {"train__precision": "bfloat16"},
    "float16": {"train__precision": "float16", "optim__clip": 1.0},
    "accumulate": {"optim__accumulate": 2, "optim__clip": 0.5},
    "accumulate, three views": {"optim__accumulate": 3, "data__views": 3},
    "own networks that draw": {"cohort__nets": ("tiny_noisy", "cnn4_w4")},
    "frozen Z": {"method__z": "frozen", "method__negatives": "per_sample", "method__positives": "relax"},
    "channels last": {"train__channels_last": True},
    "checkpoint in mid-epoch": {"train__checkpoint_every": 3},
    "no validation": {"data__validation": 0.0, "data__limit": 40},
    "step and warm-up": {"optim__schedule": "step", "optim__milestones": (1,), "optim__warmup_epochs": 0.5},
}


@pytest.mark.slow
@pytest.mark.case(28)
@pytest.mark.parametrize("name", SETTINGS)
def test_every_setting(tmp_path: Path, name: str) -> None:
    recipe = tiny("mcl_okd", **SETTINGS[name])
    stops = (4, 8) if "accumulate" not in name else (5, 8)
    assert run_in_pieces(recipe, tmp_path / "pieces", stops) == run_in_pieces(recipe, tmp_path / "whole")


def test_the_state_of_a_float16_scaler_is_kept(tmp_path: Path) -> None:
    recipe = tiny(train__precision="float16")
    run_in_pieces(recipe, tmp_path / "run")
    values = (tmp_path / "run" / "checkpoints" / "step-00000010" / "values.json").read_text()
    assert '"_growth_tracker": 10' in values


@pytest.mark.case(28)
def test_a_stop_between_two_epochs_and_after_the_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = tiny()
    whole = run_in_pieces(recipe, tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr("coterie.experiment.session.Session.finish", lambda session: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run_in_pieces(recipe, tmp_path / "pieces")
    assert run_in_pieces(recipe, tmp_path / "pieces") == whole  # only the result was missing
    assert run_in_pieces(recipe, tmp_path / "pieces") == whole  # nothing was missing


@pytest.mark.case(29, 30)
def test_resuming_twice_without_a_step_between(tmp_path: Path) -> None:
    recipe = tiny("mcl_okd", train__checkpoint_every=1, train__log_every=1)
    whole = run_in_pieces(recipe, tmp_path / "whole")
    pieces = run_in_pieces(recipe, tmp_path / "pieces", (3, 4, 5, 6))
    assert pieces == whole
    rows = [row["step"] for row in read_metrics(tmp_path / "pieces" / "metrics.jsonl") if row["kind"] == "train"]
    assert rows == list(range(1, BATCHES * EPOCHS + 1))


@pytest.mark.case(3)
def test_no_checkpoint_yet_starts_from_the_beginning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = tiny()
    whole = run_in_pieces(recipe, tmp_path / "whole")
    Experiment(recipe, folder=tmp_path / "none", name="tiny").train(resume=True)
    assert "no checkpoint yet: starting from the beginning" in capsys.readouterr().out
    assert trace(tmp_path / "none") == whole


class Painted(Dataset):
    """Images with a random stroke from torch's global generator, so that a draw too many would show."""

    targets = tuple(number % 3 for number in range(40))

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, row: int) -> tuple[torch.Tensor, int]:
        image = torch.full((3, 8, 8), 40 * self.targets[row], dtype=torch.uint8)
        image[:, :, int(torch.randint(8, ()))] = int(np.random.randint(256))
        return image, self.targets[row]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    draw = np.random.default_rng(0)
    for part, count in (("train", 18), ("val", 3)):
        for name in ("cat", "dog"):
            (tmp_path / "photos" / part / name).mkdir(parents=True)
            for number in range(count):
                pixels = draw.integers(0, 256, (12, 14, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / "photos" / part / name / f"{number}.png")
    return tmp_path / "photos"


@pytest.mark.case(27)
@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_streamed_folder(tmp_path: Path, photos: Path, workers: int) -> None:
    common = {"data__name": "folder", "data__root": photos, "data__augment": "resized_crop", "data__batch_size": 7}
    recipe = tiny("mcl_okd", **common, data__workers=workers)
    whole = run_in_pieces(tiny("mcl_okd", **common, data__workers=0), tmp_path / "whole")
    pieces = run_in_pieces(recipe, tmp_path / "pieces", (2, 4, 5))
    assert pieces == whole


@pytest.mark.slow
@pytest.mark.case(27)
@pytest.mark.parametrize("workers", [0, 2])
def test_own_data_set(tmp_path: Path, workers: int) -> None:
    source = from_dataset(Painted(), Painted())
    nets = {"cohort__nets": ("tiny_noisy", "tiny_noisy")}
    whole = run_in_pieces(tiny("dml", **nets, data__workers=0), tmp_path / "whole", source=source)
    pieces = run_in_pieces(tiny("dml", **nets, data__workers=workers), tmp_path / "pieces", (1, 6), source=source)
    assert pieces == whole


@pytest.mark.case(67)
def test_settings_of_the_machine_may_change(tmp_path: Path) -> None:
    whole = run_in_pieces(tiny("dml"), tmp_path / "whole")
    stop_after(3, Experiment(tiny("dml"), folder=tmp_path / "moved", name="tiny", quiet=True).train)
    moved = tiny("dml", train__device="cpu", data__workers=1, train__checkpoint_every=4, data__root="elsewhere")
    pieces = run_in_pieces(moved, tmp_path / "moved")
    assert pieces == whole
