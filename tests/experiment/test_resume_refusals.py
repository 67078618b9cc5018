"""What may not differ between a run and its continuation is refused in one line, and the run is left as it was."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import coterie
from coterie.core import CheckpointError, ConfigError, CoterieError, DataError
from coterie.core.record import RunFolder
from coterie.data import from_dataset
from coterie.data.base import Source
from coterie.experiment import Experiment, continue_run, open_run
from coterie.experiment.changes import MAY_CHANGE, check_unchanged, differences
from faults import run_child
from tiny import run_in_pieces, stop_after, tiny, trace


def images(count: int = 40) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 3, 8, 8), dtype=torch.uint8, generator=draw), torch.arange(count) % 4


def source(change: Callable[[torch.Tensor, torch.Tensor], object] = lambda images, labels: None) -> Source:
    pixels, labels = images()
    change(pixels, labels)
    return from_dataset(TensorDataset(pixels, labels), TensorDataset(*images(8)))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of MCL-OKD on own data, stopped in its second epoch; to be copied."""
    run = tmp_path_factory.mktemp("stopped") / "run"
    stop_after(6, Experiment(tiny("mcl_okd"), folder=run, source=source(), quiet=True).train)
    return run


@pytest.fixture
def stopped(trained: Path, tmp_path: Path) -> Path:
    """A copy of that run."""
    return Path(shutil.copytree(trained, tmp_path / "run"))


def kept(run: Path) -> dict[str, bytes]:
    """All files of a run but signs of life, which also tell of a process that was refused."""
    files = [path for path in sorted(run.rglob("*")) if path.is_file() and path.parent.name != "heartbeats"]
    return {str(path): path.read_bytes() for path in files if path.name != ".lock"}


OTHER = {
    "architecture": ({"cohort__nets": ("cnn4_w6", "cnn4_w6")}, r"cohort\.nets \['cnn4_w4', 'cnn4_w4'\] -> \['cnn4_w6'"),
    "number of peers": ({"cohort__nets": ("cnn4_w4",) * 3}, r"cohort\.nets"),
    "layout": ({"cohort__shared": 1}, r"cohort\.shared 0 -> 1"),
    "leader": ({"cohort__leader": 0}, r"cohort\.leader -1 -> 0"),
    "knob of the method": ({"method__beta": 0.5}, r"method\.beta 0\.025 -> 0\.5"),
    "rate": ({"optim__lr": 0.1}, r"optim\.lr 0\.05 -> 0\.1"),
    "length": ({"epochs": 3}, r"epochs 2 -> 3"),
    "seed": ({"seed": 1}, r"seed 0 -> 1"),
    "optimiser": ({"optim__name": "adamw"}, r"optim\.name 'sgd' -> 'adamw'"),
    "precision": ({"train__precision": "bfloat16"}, r"train\.precision"),
    "batch size": ({"data__batch_size": 7}, r"data\.batch_size 8 -> 7"),
    "share held out": ({"data__validation": 0.2}, r"data\.validation"),
}


@pytest.mark.case(66, 67)
@pytest.mark.parametrize("name", OTHER)
def test_another_recipe(stopped: Path, name: str) -> None:
    settings, named = OTHER[name]
    before = kept(stopped)
    with pytest.raises(CheckpointError, match=rf"begun with another recipe \(.*{named}.*; resume without") as caught:
        Experiment(tiny("mcl_okd", **settings), folder=stopped, source=source(), quiet=True).train(resume=True)
    assert caught.value.exit_code == 4
    assert "\n" not in str(caught.value)
    assert kept(stopped) == before


@pytest.mark.case(66)
def test_another_method(stopped: Path) -> None:
    with pytest.raises(CheckpointError, match=r"method\.name 'mcl_okd' -> 'dml'"):
        Experiment(tiny("dml"), folder=stopped, source=source(), quiet=True).train(resume=True)


CHANGES = {
    "one label": lambda pixels, labels: labels.__setitem__(0, 1),
    "one pixel": lambda pixels, labels: pixels[:, 0, 0, 0].add_(1),
    "order": lambda pixels, labels: (pixels.copy_(pixels.flip(0)), labels.copy_(labels.flip(0))),
}


@pytest.mark.case(63, 65)
@pytest.mark.parametrize("name", CHANGES)
def test_changed_data(stopped: Path, name: str) -> None:
    before = kept(stopped)
    changed = source(CHANGES[name])
    with pytest.raises(CheckpointError, match="the training set has changed"):
        Experiment(tiny("mcl_okd"), folder=stopped, source=changed, quiet=True).train(resume=True)
    assert kept(stopped) == before


@pytest.mark.case(66)
def test_networks_of_one_name_that_differ(tmp_path: Path) -> None:
    def nets(width: int) -> list[nn.Module]:
        layers = lambda: (nn.Flatten(), nn.Linear(192, width), nn.ReLU(), nn.Linear(width, 4))  # noqa: E731
        return [nn.Sequential(*layers()) for _ in range(2)]

    pixels, labels = images()
    train = TensorDataset(pixels, labels)
    common = {"method": "dml", "settings": {"epochs": 2, "data.batch_size": 8}, "out": tmp_path / "run"}
    stop_after(2, lambda: coterie.train(nets(5), train, train, **common))
    others = nets(6)
    before = [parameter.clone() for net in others for parameter in net.parameters()]
    with pytest.raises(CheckpointError, match=r"peer 0 does not fit the checkpoint: '1\.weight'"):
        coterie.train(others, train, train, resume=True, **common)
    after = [parameter for net in others for parameter in net.parameters()]
    assert all(torch.equal(old, new) for old, new in zip(before, after, strict=True))


def test_a_folder_that_holds_a_run(stopped: Path, tmp_path: Path) -> None:
    before = kept(stopped)
    with pytest.raises(ConfigError, match=r"holds a run already; go on with --resume .*run or give another --out"):
        Experiment(tiny("mcl_okd"), folder=stopped, source=source(), quiet=True).train()
    assert kept(stopped) == before
    run_in_pieces(tiny(), tmp_path / "done")
    with pytest.raises(ConfigError, match="holds a run already"):
        Experiment(tiny(), folder=tmp_path / "done", quiet=True).train()


@pytest.mark.case(10)
def test_a_second_process_in_one_folder(stopped: Path) -> None:
    with RunFolder(stopped).lock():
        ended = run_child(lambda: Experiment(tiny(), folder=stopped, quiet=True).train(resume=True))
    assert ended.code == 4
    assert f"in use by process {os.getpid()} on" in ended.error


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({"method": "mcl_okd", "method__num_negatives": 10_000}, ConfigError),
        ({"data__batch_size": 400}, DataError),
        ({"cohort__shared": 9}, ConfigError),
    ],
)
def test_a_refused_recipe_leaves_no_folder(tmp_path: Path, settings: dict, error: type[CoterieError]) -> None:
    with pytest.raises(error):
        Experiment(tiny(**settings), folder=tmp_path / "run", quiet=True).train()
    assert not (tmp_path / "run").exists()
    (tmp_path / "mine").mkdir()
    with pytest.raises(error):
        Experiment(tiny(**settings), folder=tmp_path / "mine", quiet=True).train()
    assert (tmp_path / "mine").exists()


def test_a_finished_run_is_reported_or_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = run_in_pieces(tiny(), tmp_path / "run")
    result = continue_run(open_run(tmp_path / "run"))
    assert "is finished" in capsys.readouterr().out
    assert result["digest"] == whole.result["digest"]
    with pytest.raises(CheckpointError, match="epochs 2 -> 5"):
        continue_run(open_run(tmp_path / "run", ["epochs=5"]))
    assert trace(tmp_path / "run") == whole


def test_fresh_takes_other_settings(tmp_path: Path) -> None:
    run_in_pieces(tiny(), tmp_path / "run")
    continue_run(open_run(tmp_path / "run", ["epochs=3"]), fresh=True)
    expected = run_in_pieces(tiny(epochs=3), tmp_path / "whole")
    assert trace(tmp_path / "run") == expected


def test_a_continued_run_keeps_its_name(tmp_path: Path) -> None:
    stop_after(3, Experiment(tiny(), folder=tmp_path / "run", name="mine/alone", quiet=True).train)
    assert continue_run(open_run(tmp_path / "run"))["recipe"] == "mine/alone"


def test_another_environment_is_told(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    stop_after(3, Experiment(tiny(), folder=run.path, quiet=True).train)
    run.environment.write_text('{"name": "x", "torch": "1.0", "threads": 1, "devices": []}')
    with pytest.warns(UserWarning, match=r"begun elsewhere \(torch '1\.0' -> .*may differ in the last bits"):
        Experiment(tiny(), folder=run.path, quiet=True).train(resume=True)
    run.environment.write_text("[]")
    with pytest.raises(CheckpointError, match=r"environment\.json is not a JSON object"):
        open_run(run.path)


def test_differences_are_dotted_and_sorted() -> None:
    before, now = "a = 1\n[b]\nc = 2\nd = [1]\n", "a = 1\n[b]\nc = 3\n[e]\nf = 4\n"
    assert differences(before, now) == {"b.c": (2, 3), "b.d": ([1], None), "e.f": (None, 4)}


@pytest.mark.case(67)
def test_only_settings_of_the_machine_may_change() -> None:
    facts = {"recipe": "[data]\nroot = 'a'\n[train]\ndevice = 'cpu'\n", "data": "x"}
    check_unchanged(facts, {"recipe": "[data]\nroot = 'b'\n[train]\ndevice = 'cuda'\n", "data": "x"})
    with pytest.raises(CheckpointError, match=r"train\.later None -> True\)"):
        check_unchanged(facts, {"recipe": facts["recipe"] + "later = true\n", "data": "x"})
    assert not any(key.startswith(("method", "optim", "net", "cohort")) for key in MAY_CHANGE)
