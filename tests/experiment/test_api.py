"""Training from Python: your own networks, your own data."""

from __future__ import annotations

import random
from pathlib import Path

import numpy
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import coterie
from coterie.cli import main
from coterie.data import Normalisation
from coterie.engine.checkpoint import CheckpointStore
from coterie.experiment.api import recipe_for
from tiny import stop_after

SETTINGS = {"epochs": 2, "data.batch_size": 8, "data.padding": 1, "method.num_negatives": 8, "method.embedding_dim": 4}


def nets(count: int = 2, width: int = 5) -> list[nn.Module]:
    torch.manual_seed(0)
    return [nn.Sequential(nn.Flatten(), nn.Linear(192, width), nn.ReLU(), nn.Linear(width, 4)) for _ in range(count)]


def items(count: int = 40, *, floats: bool = False) -> TensorDataset:
    draw = torch.Generator().manual_seed(count)
    images = torch.randint(0, 256, (count, 3, 8, 8), dtype=torch.uint8, generator=draw)
    return TensorDataset(images.float() / 255 if floats else images, torch.arange(count) % 4)


def weights(modules: tuple[nn.Module, ...] | list[nn.Module]) -> list[torch.Tensor]:
    return [parameter.detach().clone() for module in modules for parameter in module.parameters()]


@pytest.mark.parametrize("floats", [False, True])
def test_the_given_modules_are_trained_in_place(tmp_path: Path, floats: bool) -> None:
    given = nets(3)
    before = weights(given)
    outcome = coterie.train(given, items(floats=floats), items(12), settings=SETTINGS, out=tmp_path / "run")
    assert outcome.leader is given[2]
    assert all(net is mine for net, mine in zip(outcome.nets, given, strict=True))
    assert not any(torch.equal(old, new) for old, new in zip(before, weights(given), strict=True))
    assert outcome.folder == tmp_path / "run"
    assert set(outcome.result["last"]["test"]) == {"leader", "peers", "ensemble"}
    last = CheckpointStore(outcome.folder / "checkpoints").load_newest()[1].section("peer2")
    assert all(torch.equal(tensor, last[name]) for name, tensor in outcome.leader.state_dict().items())


def test_a_wrapped_network_comes_back_plain(tmp_path: Path) -> None:
    plain = nets(2)
    given = [coterie.TappedNet(plain[0], head="1"), plain[1]]
    settings = {"epochs": 1, "data.batch_size": 8, "cohort.leader": 0}
    with pytest.raises(coterie.CoterieError, match=r"heads of \[5, 4\] classes"):
        coterie.train(given, items(), items(8), method="dml", settings=settings, out=tmp_path / "run")
    given = [coterie.TappedNet(plain[0], head="3"), plain[1]]
    outcome = coterie.train(given, items(), items(8), method="dml", settings=settings, out=tmp_path / "run")
    assert outcome.leader is plain[0]
    assert not plain[0][3]._forward_pre_hooks


@pytest.mark.slow
def test_stopped_and_resumed_from_python(tmp_path: Path) -> None:
    common = {"train_set": items(), "test_set": items(12), "settings": SETTINGS}
    whole = coterie.train(nets(), **common, out=tmp_path / "whole")
    stop_after(6, lambda: coterie.train(nets(), **common, out=tmp_path / "pieces"))
    pieces = coterie.train(nets(), **common, out=tmp_path / "pieces", resume=True)
    assert pieces.result["digest"] == whole.result["digest"]
    assert all(map(torch.equal, weights(pieces.nets), weights(whole.nets)))
    again = coterie.train(nets(), **common, out=tmp_path / "pieces", resume=True)
    assert again.result["last"] == whole.result["last"]


@pytest.mark.slow
def test_own_data_are_normalised_as_asked(tmp_path: Path) -> None:
    class Looking(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(192, 4)
            self.extremes: list[float] = []

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            self.extremes += [float(images.min()), float(images.max())]
            return self.head(images.flatten(1))

    seen = []
    for normalisation in (None, Normalisation(mean=(0.0,) * 3, std=(0.5,) * 3)):
        net = Looking()
        settings = {"epochs": 1, "data.batch_size": 8, "data.augment": "none"}
        out = tmp_path / f"run-{len(seen)}"
        coterie.train([net], items(), items(8), method="independent", settings=settings, out=out,
                      normalisation=normalisation)  # fmt: skip
        seen.append((round(min(net.extremes), 2), round(max(net.extremes), 2)))
    assert seen == [(-1.0, 1.0), (0.0, 2.0)]


def test_what_the_process_had_is_put_back(tmp_path: Path) -> None:
    torch.manual_seed(11)
    numpy.random.seed(11)
    random.seed(11)
    expected = torch.rand(1), numpy.random.rand(), random.random()
    torch.manual_seed(11)
    numpy.random.seed(11)
    random.seed(11)
    threads = torch.get_num_threads()
    given = [nn.Sequential(nn.Flatten(), nn.Linear(192, 4)).train() for _ in range(2)]
    torch.manual_seed(11)
    settings = {"epochs": 1, "data.batch_size": 8, "train.threads": 1}
    coterie.train(given, items(), items(8), method="dml", settings=settings, out=tmp_path / "run")
    assert (torch.rand(1), numpy.random.rand(), random.random()) == expected
    assert torch.get_num_threads() == threads
    assert not torch.are_deterministic_algorithms_enabled()


def test_knobs_of_the_method_and_of_the_rest() -> None:
    recipe = recipe_for(nets(), "mcl_okd", {"method.beta": 0.5, "optim.lr": 0.2, "optim.milestones": [3, 4]})
    assert recipe.method_config.beta == 0.5
    assert (recipe.optim.lr, recipe.optim.milestones) == (0.2, (3, 4))
    assert recipe.cohort.nets == ("Sequential", "Sequential")


def test_a_folder_of_its_own_by_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    settings = {"epochs": 1, "data.batch_size": 8}
    for name in ("dml", "dml-2"):
        outcome = coterie.train(nets(), items(), items(8), method="dml", settings=settings)
        assert outcome.folder == Path("runs", name)


def test_the_command_line_sends_its_runs_back_to_python(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = {"epochs": 1, "data.batch_size": 8}
    coterie.train(nets(), items(), items(8), method="dml", settings=settings, out=tmp_path / "run")
    for words in (["evaluate"], ["export"], ["train", "--resume"]):
        assert main([*words, str(tmp_path / "run")]) == 2
        assert "was trained from Python on networks and data of its own" in capsys.readouterr().err
