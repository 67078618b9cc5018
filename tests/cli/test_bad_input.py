"""Whatever a user gets wrong is one line on standard error and an exit status, without a traceback."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils.data import TensorDataset

import coterie
from coterie.cli import main
from coterie.core import CoterieError
from coterie.experiment import Experiment
from tiny import run_in_pieces, settings_of, stop_after, tiny

RECIPE = "synthetic/mcl_okd"
TINY = settings_of("mcl_okd")


def complaint(words: list[str], capsys: pytest.CaptureFixture[str], status: int = 2) -> str:
    """Run a command that must fail; its only line on standard error, without the name of the program."""
    assert main(words) == status, capsys.readouterr()
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("coterie: ")
    assert "Traceback" not in lines[0]
    return lines[0].removeprefix("coterie: ")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every command runs in an empty folder."""
    place = tmp_path / "here"
    place.mkdir()
    monkeypatch.chdir(place)
    return place


NAMES = {
    "verb": (["trian", RECIPE], "train"),
    "option": (["train", RECIPE, "--plugins", "x.py"], "plugin"),
    "recipe": (["train", "digits/mcl_okdd"], "unknown recipe 'digits/mcl_okdd'; did you mean 'digits/mcl_okd'?"),
    "recipe file": (["train", "mine.toml"], "no recipe file mine.toml"),
    "recipe that is a folder": (["train", "."], "no recipe file ."),
    "no recipe": (["train"], "give a recipe, for instance digits/mcl_okd"),
    "method": (["train", RECIPE, "method=mcl_odk"], "unknown method 'mcl_odk'; did you mean 'mcl_okd'?"),
    "network": (["train", RECIPE, "net.name=resnet9"], "unknown network 'resnet9'; did you mean 'resnet"),
    "peer": (["train", RECIPE, "cohort.nets=resnet8,cnn4_w5"], "unknown network 'cnn4_w5'; did you mean 'cnn4_w"),
    "data": (["train", RECIPE, "data.name=cifar1000"], "unknown data set 'cifar1000'; did you mean 'cifar100'?"),
    "key": (["train", RECIPE, "optim.rl=0.1"], "unknown option 'optim.rl'; did you mean 'optim.lr'?"),
    "key of another method": (["train", RECIPE, "method=dml", "method.beta=1"], "unknown option 'method.beta'"),
    "key without value": (["train", RECIPE, "optim.lr"], "'optim.lr' is not a setting; write key=value"),
    "word for a number": (["train", RECIPE, "epochs=many"], "epochs is 'many'; give a whole number"),
    "choice": (["train", RECIPE, "optim.name=sdg"], "optim.name is 'sdg'; did you mean 'sgd'?"),
    "list of what": (["list", "nests"], "nets"),
    "seeds": (["compare", "digits/alone", "digits/dml", "--seeds", "none"], "seeds"),
    "one recipe to compare": (["compare", "digits/alone"], "compare needs two or more different recipes"),
    "no seeds": (["compare", "digits/alone", "digits/dml", "--seeds", "0"], "--seeds is 0"),
    "out of a resumed run": (["train", "--resume", "x", "--out", "y"], "a run goes on in its own folder, 'x'"),
    "fresh without a run": (["train", "--fresh"], "--resume RUN"),
}


@pytest.mark.case(68, 71)
@pytest.mark.parametrize("name", NAMES)
def test_names_and_words(name: str, capsys: pytest.CaptureFixture[str], elsewhere: Path) -> None:
    words, expected = NAMES[name]
    assert expected in complaint(words, capsys)
    assert [path for path in elsewhere.rglob("*") if path.is_file()] == []


NUMBERS = {
    "rate": (["optim.lr=0"], "optim.lr is 0.0; give a number above 0"),
    "rate that is none": (["optim.lr=nan"], "optim.lr is nan; give a finite number"),
    "epochs": (["epochs=0"], "epochs is 0; give at least 1"),
    "no peers": (["cohort.nets=", "cohort.peers=0"], "cohort.peers is 0"),
    "one peer": (["cohort.nets=cnn4_w4"], "MultiViewContrast needs at least 2 peers and got 1; raise cohort.peers"),
    "leader": (["cohort.leader=2"], "cohort.leader is 2 and there are 2 peers"),
    "leader from the end": (["cohort.leader=-3"], "cohort.leader is -3 and there are 2 peers"),
    "shared too deep": (["cohort.shared=4"], "2 peers of 3 stages cannot have their first 4 in [1, 1, 1, 1] copies"),
    "shared but unlike": (["cohort.nets=cnn4_w4,cnn4_w6", "cohort.shared=1"], "lower cohort.shared"),
    "S too large": (["method.num_negatives=5000"], "leaves 32 images of other classes; give a number from 1 to 32"),
    "S of none": (["method.num_negatives=0"], "num_negatives is 0; give at least 1"),
    "temperature": (["method.temperature=0"], "method.temperature is 0.0; give a number above 0"),
    "batch larger than the data": (["data.batch_size=44"], "43 training images do not fill one batch of 44"),
    "batch of one": (["data.batch_size=1"], "data.batch_size is 1; give at least 2"),
    "classes": (["data.samples=4"], "twice as many samples as classes"),
    "limit": (["data.limit=3"], "data.limit=3 is less than one image for each of 4 classes"),
    "all held out": (["data.validation=1.0"], "data.validation is 1.0; give a share"),
    "cut of arrays": (["data.augment=resized_crop"], "synthetic has none; use 'crop', or a folder"),
    "device": (["train.device=abacus"], "train.device is 'abacus':"),
    "device that is not here": (["train.device=cuda:99"], "try train.device=auto"),
    "image too small": (["cohort.nets=conv4,conv4", "data.image_size=8"], "conv4"),
    "keep": (["train.keep=1"], "train.keep is 1; give at least 2"),
}


@pytest.mark.case(55, 57, 59, 70)
@pytest.mark.parametrize("verb", ["train", "check"])
@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_that_do_not_fit(name: str, verb: str, capsys: pytest.CaptureFixture[str], elsewhere: Path) -> None:
    words, expected = NUMBERS[name]
    assert expected in complaint([verb, RECIPE, *TINY, *words], capsys)
    assert [path for path in elsewhere.rglob("*") if path.is_file()] == []


def test_a_limit_lowers_the_negatives_instead(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["check", RECIPE, *TINY, "method.num_negatives=5000", "data.limit=40"]
    assert main(words) == 0
    assert "27 per anchor" in capsys.readouterr().out


@pytest.mark.case(70)
def test_all_that_is_wrong_is_told_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", RECIPE, "epochs=0", "optim.lr=-1", "nets.name=x"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3
    assert all(line.startswith("coterie: command line: ") for line in lines)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Two classes of five images to train on and two to test."""
    root = tmp_path / "my photos (日本語)"
    for part, count in (("train", 6), ("val", 2)):
        for name in ("cat", "dog"):
            (root / part / name).mkdir(parents=True)
            for number in range(count):
                pixels = np.full((8, 8, 3), 20 * number, dtype=np.uint8)
                Image.fromarray(pixels).save(root / part / name / f"{number}.png")
    return root


FOLDER = ["data.name=folder", "data.batch_size=4", "data.image_size=8", "method.num_negatives=4"]


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-30])


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "cut image": (lambda root: truncate(root / "train" / "dog" / "3.png"), "train/dog/3.png"),
    "empty image": (lambda root: (root / "train" / "cat" / "1.png").write_bytes(b""), "train/cat/1.png"),
    "text for an image": (lambda root: (root / "train" / "cat" / "1.png").write_text("no"), "train/cat/1.png"),
    "other file": (lambda root: (root / "train" / "cat" / "notes.txt").write_text("no"), "notes.txt' is not an image"),
    "dangling link": (lambda root: (root / "train" / "cat" / "9.png").symlink_to("gone.png"), "train/cat/9.png"),
    "no training folder": (lambda root: shutil.rmtree(root / "train"), "/train' is missing"),
    "no test folder": (lambda root: shutil.rmtree(root / "val"), "has neither 'test' nor 'val'"),
    "empty class": (lambda root: (root / "train" / "cow").mkdir(), "train/cow' is empty"),
    "unknown class": (lambda root: (root / "val" / "cow").mkdir(), "val/cow' is not a class"),
    "one image": (lambda root: [p.unlink() for p in (root / "train/dog").glob("[1-9].png")], "'dog' has one"),
    "one class": (lambda root: [shutil.rmtree(root / part / "dog") for part in ("train", "val")], "at least 2 classes"),
}


@pytest.mark.case(49, 54)
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("name", DAMAGE)
def test_damaged_folders(photos: Path, name: str, stream: bool, capsys: pytest.CaptureFixture[str]) -> None:
    hurt, named = DAMAGE[name]
    hurt(photos)
    words = ["train", RECIPE, *TINY, *FOLDER, f"data.root={photos}", "data.workers=0", "data.validation=0.0"]
    assert named in complaint([*words, *(["data.augment=resized_crop"] if stream else [])], capsys)


@pytest.mark.case(31)
def test_a_damaged_image_met_by_a_worker(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    truncate(photos / "train" / "cat" / "4.png")
    words = ["train", RECIPE, *TINY, *FOLDER, f"data.root={photos}", "data.augment=resized_crop", "data.workers=2"]
    assert "train/cat/4.png" in complaint([*words, "data.validation=0.0"], capsys)


def test_a_damaged_test_image_is_met_after_training_and_costs_no_training(
    photos: Path, elsewhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = (photos / "val" / "cat" / "1.png").read_bytes()
    truncate(photos / "val" / "cat" / "1.png")
    words = ["train", RECIPE, *TINY, *FOLDER, f"data.root={photos}", "--out", "run"]
    assert "val/cat/1.png" in complaint(words, capsys)
    (photos / "val" / "cat" / "1.png").write_bytes(whole)
    assert main(["train", "--resume", "run"]) == 0
    assert (elsewhere / "run" / "result.json").is_file()


@pytest.mark.case(71)
def test_missing_data(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    words = ["train", "cifar100/mcl_okd", f"data.root={tmp_path}/none"]
    assert f"{tmp_path}/none" in complaint(words, capsys)
    (tmp_path / "file").write_text("")
    assert str(tmp_path / "file") in complaint(["train", RECIPE, *TINY, *FOLDER, f"data.root={tmp_path}/file"], capsys)


PLUGINS = {
    "missing": ("", "no plug-in"),
    "not Python": ("def", "SyntaxError"),
    "failing": ("1 / 0", "ZeroDivisionError: division by zero"),
    "importing what is not there": ("import nothing_of_this_name", "ModuleNotFoundError"),
    "taking a name": ("from coterie import METHODS, Method\nMETHODS.add('dml', Method)", "registered twice"),
    "leaving": ("raise SystemExit(3)", "SystemExit"),
}


@pytest.mark.parametrize("name", PLUGINS)
def test_plugins(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text, named = PLUGINS[name]
    path = tmp_path / f"plugin {name}.py"
    if text:
        path.write_text(text)
    assert named in complaint(["check", RECIPE, "--plugin", str(path)], capsys)


FOLDERS = {
    "missing": (lambda here: None, "recipe.toml"),
    "a file": (lambda here: (here / "run").write_text(""), "recipe.toml"),
    "empty": (lambda here: (here / "run").mkdir(), "is not the folder of a run (no recipe.toml)"),
}


@pytest.mark.case(71)
@pytest.mark.parametrize("words", [["train", "--resume", "run"], ["evaluate", "run"], ["export", "run"]], ids=" ".join)
@pytest.mark.parametrize("name", FOLDERS)
def test_what_is_not_a_run(name: str, words: list[str], elsewhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prepare, named = FOLDERS[name]
    prepare(elsewhere)
    assert named in complaint(words, capsys)


@pytest.mark.case(9)
def test_out_that_is_a_file(elsewhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (elsewhere / "run").write_text("mine")
    assert "cannot write in run folder 'run'" in complaint(["train", RECIPE, *TINY, "--out", "run"], capsys)
    assert (elsewhere / "run").read_text() == "mine"


@pytest.mark.parametrize("verb", ["evaluate", "export"])
def test_a_run_without_a_checkpoint(verb: str, elsewhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_in_pieces(tiny(), elsewhere / "run")
    shutil.rmtree(elsewhere / "run" / "checkpoints")
    assert "run has no checkpoint yet" in complaint([verb, "run"], capsys, status=4)


@pytest.mark.case(66)
def test_a_stopped_run(elsewhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stop_after(6, Experiment(tiny("mcl_okd"), folder=elsewhere / "run", quiet=True).train)
    changed = complaint(["train", "--resume", "run", "epochs=3"], capsys, status=4)
    assert "epochs 2 -> 3" in changed
    assert "num_negatives" in complaint(["train", "--resume", "run", "method.num_negatives=9000"], capsys)
    assert "holds a run already" in complaint(["train", RECIPE, *TINY, "--out", "run"], capsys)
    for part in (elsewhere / "run" / "checkpoints").glob("*/peer0.safetensors"):
        part.write_bytes(b"")
    assert "--fresh" in complaint(["train", "--resume", "run"], capsys, status=4)
    assert main(["train", "--resume", "run", "--fresh"]) == 0


@pytest.mark.case(35)
def test_a_huge_rate(elsewhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["train", RECIPE, *TINY, "optim.lr=1e20", "--out", "run"]
    assert "not finite" in complaint(words, capsys, status=5)


@pytest.mark.case(69)
@pytest.mark.parametrize("text", ["epochs = ", "epochs = 1\nepochs = 2", "[optim]\nlr = '0.1'", "x", "\0", "é"])
def test_recipe_files(text: str, elsewhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (elsewhere / "mine.toml").write_text(text, encoding="latin-1")
    assert "mine.toml" in complaint(["check", "mine.toml"], capsys)


def net(classes: int = 4) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(192, classes))


def items(labels: list[int], side: int = 8) -> TensorDataset:
    return TensorDataset(torch.zeros(len(labels), 3, side, side, dtype=torch.uint8), torch.tensor(labels))


LABELS = [number % 4 for number in range(40)]
PYTHON = {
    "head of other classes": ([net(7)], items(LABELS), {}, r"heads have 7 classes and the data 4"),
    "heads that differ": ([net(4), net(5)], items(LABELS), {}, r"peers have heads of \[4, 5\] classes"),
    "no head": ([nn.Flatten()], items(LABELS), {}, r"no nn\.Linear found in Flatten"),
    "no networks": ([], items(LABELS), {}, r"at least one network"),
    "label below 0": ([net()], items([-100, *LABELS]), {}, r"label -100 of row 0 of the training set is not in 0\.\."),
    "class with one image": ([net(5)], items([*LABELS, 4]), {}, r"class '4' has one training image \(row 40\)"),
    "data smaller than a batch": ([net()], items(LABELS), {"data.batch_size": 400}, r"do not fill one batch of 400"),
    "knob": ([net()], items(LABELS), {"optim.rl": 1}, r"unknown option 'optim\.rl'; did you mean 'optim\.lr'"),
    "value": ([net()], items(LABELS), {"epochs": "many"}, r"epochs is 'many'; give a whole number"),
    "leader": ([net()], items(LABELS), {"cohort.leader": 4}, r"leader"),
    "not a data set": ([net()], 3, {}, r"int has no random access"),
}


@pytest.mark.case(52, 53)
@pytest.mark.parametrize("name", PYTHON)
def test_from_python(name: str, elsewhere: Path) -> None:
    nets, train_set, settings, message = PYTHON[name]
    with pytest.raises(CoterieError, match=message) as caught:
        coterie.train(nets, train_set, items(LABELS), method="independent", settings={"data.batch_size": 8, **settings})
    assert "\n" not in str(caught.value)
    assert list(elsewhere.rglob("*.toml")) == []


def test_resuming_from_python_needs_the_folder() -> None:
    with pytest.raises(CoterieError, match="resume=True needs the folder of the run"):
        coterie.train([net()], items(LABELS), items(LABELS), resume=True)
