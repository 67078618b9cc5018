"""Probing the networks of a run on other data: which weights, which images, which figures, and what is refused."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from coterie.cli import main
from coterie.config.schema import DataConfig
from coterie.data import hold_out, limit_per_class, open_data
from coterie.engine import CheckpointStore
from coterie.evaluation import Features, embed, probe_features
from coterie.experiment import Experiment, open_run, transfer_run
from coterie.experiment.build import build_nets
from coterie.experiment.target import Target
from coterie.experiment.trained import load_trained
from coterie.nets import NETS
from tiny import run_in_pieces, stop_after, tiny

OTHER = ["data.name=synthetic", "data.samples=80", "data.classes=5", "data.image_size=12", "data.validation=0.2"]

REAL = Path(os.environ.get("COTERIE_DATA", ""))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of two unlike peers, the first of them the leader."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    run_in_pieces(tiny(cohort__nets=("cnn4_w4", "cnn4_w6"), cohort__leader=0, seed=3), folder)
    return folder


@pytest.fixture
def own(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the run in the current folder."""
    shutil.copytree(run, tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("COLUMNS", raising=False)
    return Path("run")


def scored(net: nn.Module, limit: int = 0) -> dict[str, Any]:
    """The figures of a network, gathered by hand."""
    data = open_data(DataConfig(name="synthetic", samples=80, classes=5, image_size=12, validation=0, batch_size=2), 3)
    train = data.train.select(limit_per_class(data.train.labels, limit, 3))

    def features(split: Any, rows: torch.Tensor) -> Features:
        images = split.images[rows] * torch.tensor(1 / (255 * 0.25)) - 0.5 / 0.25  # rounded as a loader rounds
        found, labels = embed(net, [(images, split.labels[rows])])
        return Features(found["embedding"], labels)

    fit, held_out = hold_out(train.labels, 0.2, 3)
    test = data.test()
    parts = features(train, fit), features(train, held_out), features(test, torch.arange(len(test.labels)))
    return probe_features(*parts, num_classes=5).as_dict()


def figures(row: dict[str, Any]) -> dict[str, Any]:
    return {key: row[key] for key in ("linear", "neighbours")}


def saved(folder: Path, peer: int, name: str) -> nn.Module:
    net = NETS[name](num_classes=4, in_channels=3, image_size=8)
    net.load_state_dict(
        dict(CheckpointStore(folder / "checkpoints").load_newest(read_only=True)[1].section(f"peer{peer}"))
    )
    return net


@pytest.mark.parametrize("limit", [0, 6])
def test_the_leader_beside_its_fresh_self(own: Path, limit: int) -> None:
    record = transfer_run(own, OTHER, limit=limit)
    trained, fresh = record["rows"]
    assert figures(trained) == scored(saved(own, 0, "cnn4_w4"), limit)
    first = build_nets(
        tiny(cohort__nets=("cnn4_w4", "cnn4_w6"), cohort__leader=0, seed=3), num_classes=4, channels=3, image_size=8
    )[0]
    assert figures(fresh) == scored(first, limit)
    assert [(row["peer"], row["leader"], row["weights"], row["features"]) for row in record["rows"]] == [
        (0, True, "trained", 8),
        (0, True, "fresh", 8),
    ]
    images = 5 * limit or 80
    assert (record["train_images"], record["held_out_images"], record["test_images"]) == (images, images // 5, 20)
    assert (record["data"], record["classes"], record["image_size"], record["seed"]) == ("synthetic", 5, 12, 3)
    assert record["state"] == "last_epoch"
    assert all(row["seconds"] > 0 for row in record["rows"])


@pytest.mark.slow
def test_peers_and_stages(own: Path) -> None:
    rows = transfer_run(own, OTHER, peers="all", stages=[0, 3])["rows"]
    assert [(row["peer"], row["weights"], row["layer"], row["features"]) for row in rows] == [
        *((0, "trained", "stage 0", 4), (0, "trained", "stage 3", 8)),
        *((1, "trained", "stage 0", 6), (1, "trained", "stage 3", 12)),
        *((0, "fresh", "stage 0", 4), (0, "fresh", "stage 3", 8)),
        *((1, "fresh", "stage 0", 6), (1, "fresh", "stage 3", 12)),
    ]
    (one, _) = transfer_run(own, OTHER, peers=[1])["rows"]
    assert figures(one) == scored(saved(own, 1, "cnn4_w6"))
    assert not one["leader"]
    last = transfer_run(own, OTHER, peers=[1], stages=[3])["rows"][0]  # the map that is averaged to the embedding
    assert figures(last) == figures(one)


def test_one_fresh_network_for_each_architecture(tmp_path: Path) -> None:
    run_in_pieces(tiny("dml"), tmp_path / "run")
    rows = transfer_run(tmp_path / "run", OTHER, peers="all")["rows"]
    assert [(row["peer"], row["weights"]) for row in rows] == [(0, "trained"), (1, "trained"), (0, "fresh")]


def test_measurements_are_added_to_a_file(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = transfer_run(own, OTHER)
    assert main(["transfer", "run", *OTHER, "--limit", "4", "--seed", "9", "--peer", "1", "--stage", "1"]) == 0
    out, err = capsys.readouterr()
    kept = json.loads((own / "transfer.json").read_text())
    assert kept[0] == first
    assert (kept[1]["limit_per_class"], kept[1]["seed"], kept[1]["train_images"]) == (4, 9, 20)
    assert err == ""
    about, _, *lines = out.splitlines()
    assert about.startswith("synthetic: 20 training images, 4 of them held out")
    assert len(lines) == len(kept[1]["rows"]) == 2
    for line, row, name in zip(lines, kept[1]["rows"], ("peer 1, cnn4_w6", "fresh cnn4_w6"), strict=True):
        assert line.startswith(f"{name}, stage 1 ")
        votes = [f"{row['neighbours']['top1'][count]:.2f}" for count in ("1", "5", "20")]
        shown = [f"{row['linear']['strength']:g}", f"{row['linear']['top1']:.2f}", f"{row['linear']['top5']:.2f}"]
        assert line.split()[-7:-1] == [*shown, *votes]


def test_the_test_images_are_those_that_the_run_did_not_train_on(tmp_path: Path) -> None:
    """Digits are split by seed: by default the run's, so that no training image of the run is a test image."""
    recipe = tiny(data__name="digits", data__image_size=0, cohort__nets=("cnn4_w4",), epochs=1, seed=5)
    run_in_pieces(recipe, tmp_path / "run")
    seed = transfer_run(tmp_path / "run", ["data.name=digits"], limit=8)["seed"]
    target = Target.open(DataConfig(name="digits"), limit=0, seed=seed, device=torch.device("cpu"))
    seen, tested = ({image.numpy().tobytes() for image in split.images} for split in (target.train, target.test))
    assert seen.isdisjoint(tested)
    assert {image.numpy().tobytes() for image in open_data(recipe.data, recipe.seed).train.images} <= seen


def test_networks_are_rebuilt_without_the_data_of_the_run(tmp_path: Path) -> None:
    """Classes, channels and, for a flattened map, the size of images come from the saved weights."""
    recipe = tiny(cohort__nets=("conv4",), data__image_size=28, data__classes=3)
    run_in_pieces(recipe, tmp_path / "run")
    text = (tmp_path / "run" / "recipe.toml").read_text()
    (tmp_path / "run" / "recipe.toml").write_text(
        text.replace("image_size = 28", "image_size = 0").replace('name = "synthetic"', 'name = "cifar100"')
    )
    run = load_trained(open_run(tmp_path / "run"))
    assert (run.channels, run.trained[0].num_classes, run.trained[0].embedding_dim) == (3, 3, 64)
    last = CheckpointStore(tmp_path / "run" / "checkpoints").load_newest(read_only=True)[1].section("peer0")
    assert all(torch.equal(tensor, last[name]) for name, tensor in run.trained[0].state_dict().items())


def test_a_stopped_run_is_marked(tmp_path: Path) -> None:
    stop_after(7, Experiment(tiny(), folder=tmp_path / "run", quiet=True).train)
    assert transfer_run(tmp_path / "run", OTHER)["state"] == "newest_checkpoint"


def test_training_helps(tmp_path: Path) -> None:
    """On the very patterns of the run, seen anew; with 40 images to fit on the features must carry the weight."""
    data = {"data__samples": 400, "data__classes": 10, "data__image_size": 8}
    run_in_pieces(tiny(**data, epochs=6, cohort__nets=("cnn4_w4",), data__batch_size=40), tmp_path / "run")
    words = ["data.name=synthetic", "data.samples=400", "data.classes=10", "data.image_size=8", "data.validation=0.5"]
    trained, fresh = transfer_run(tmp_path / "run", words, limit=4)["rows"]
    assert trained["linear"]["top1"] > fresh["linear"]["top1"] + 3
    assert fresh["linear"]["top1"] > 20


@pytest.mark.slow
@pytest.mark.data
@pytest.mark.skipif(not (REAL / "tiny-imagenet-200").is_dir(), reason="COTERIE_DATA has no tiny-imagenet-200")
def test_from_cifar100_to_tiny_imagenet(tmp_path: Path) -> None:
    data = {"data__name": "cifar100", "data__root": REAL, "data__image_size": 0, "data__limit": 2000}
    run_in_pieces(tiny(**data, data__batch_size=64, cohort__nets=("cnn4_w8",)), tmp_path / "run")
    words = ["data.name=tiny_imagenet", f"data.root={REAL}", "data.image_size=32"]
    record = transfer_run(tmp_path / "run", words, limit=10)
    classes = record["classes"]
    assert (record["train_images"], record["held_out_images"]) == (10 * classes, classes)
    assert record["test_images"] == 50 * classes
    for row in record["rows"]:
        assert 100 > row["linear"]["top5"] > row["linear"]["top1"] > 2 * 100 / classes


def complaint(words: list[str], capsys: pytest.CaptureFixture[str], status: int = 2) -> str:
    assert main(["transfer", *words]) == status, capsys.readouterr()
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    return lines[0].removeprefix("coterie: ")


BAD = {
    "no data": ([], "no data set to transfer to; name one, for instance data.name=tiny_imagenet data.root=DIR"),
    "unknown data": (["data.name=tiny_imagnet"], "unknown data set 'tiny_imagnet'; did you mean 'tiny_imagenet'?"),
    "missing data": (["data.name=tiny_imagenet", "data.root=gone"], "gone/tiny-imagenet-200/wnids.txt' is missing"),
    "unknown key": ([*OTHER, "data.rot=x"], "unknown option 'data.rot'; did you mean 'data.root'?"),
    "key of a recipe": ([*OTHER, "optim.lr=1"], "'optim.lr=1' does not apply to a transfer"),
    "peer": ([*OTHER, "--peer", "2"], "the run has 2 peers and no peer 2; give a number from 0 to 1"),
    "peer and all": ([*OTHER, "--peer", "1", "--all"], "leave --peer or --all out"),
    "stage": ([*OTHER, "--stage", "4"], "peer 0 (cnn4_w4) has no stage 4; give one of 0 (the stem) to 3"),
    "word for a stage": ([*OTHER, "--stage", "last"], "stage"),
    "limit": ([*OTHER, "--limit", "-3"], "a limit of -3 images per class is negative"),
    "limit of one": ([*OTHER, "--limit", "1"], "data.validation=0.2 of 5 training images holds none out"),
    "nothing held out": ([*OTHER, "data.validation=0"], "data.validation=0.0 of 80 training images holds none out"),
    "channels": (["data.name=digits"], "takes images of 3 channels and those of digits have 1"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_refused(name: str, own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words, expected = BAD[name]
    assert expected in complaint(["run", *words], capsys)
    assert not (own / "transfer.json").exists()


def test_images_that_a_network_cannot_take(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_in_pieces(tiny(cohort__nets=("conv4",), data__image_size=16), tmp_path / "run")
    words = [str(tmp_path / "run"), *OTHER, "data.image_size=40"]
    assert "peer 0 (conv4) cannot take images of 40 x 40 pixels" in complaint(words, capsys)


def test_what_is_no_run(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "is not the folder of a run (no recipe.toml)" in complaint(["gone", *OTHER], capsys)
    (own / "transfer.json").write_text("{}")
    assert "transfer.json is not a list of measurements; move it away" in complaint(["run", *OTHER], capsys, 4)
    (own / "transfer.json").unlink()
    for part in (own / "checkpoints").glob("*/peer0.safetensors"):
        part.write_bytes(b"")
    complaint(["run", *OTHER], capsys, 4)
    shutil.rmtree(own / "checkpoints")
    assert "run has no checkpoint yet; train it first" in complaint(["run", *OTHER], capsys)


def test_another_network_in_the_recipe(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = (own / "recipe.toml").read_text()
    (own / "recipe.toml").write_text(text.replace('"cnn4_w6"', '"cnn4_w8"'))
    assert "the checkpoint is not of the networks of its recipe" in complaint(["run", *OTHER], capsys, 4)
    (own / "recipe.toml").write_text(text.replace('"cnn4_w6"', '"cnn4_w5"'))
    assert "unknown network 'cnn4_w5'" in complaint(["run", *OTHER], capsys)
