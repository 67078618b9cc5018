"""Every verb through the command line, in this process, on tiny runs."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from coterie.cli import main
from coterie.config import find_recipe, load_recipe, recipe_names, to_toml
from coterie.core.record import RunFolder
from coterie.engine import CheckpointStore
from coterie.nets import NETS
from faults import names
from tiny import run_in_pieces, settings_of, tiny, trace

RECIPE = "synthetic/mcl_okd"
TINY = settings_of("mcl_okd")


def said(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Run a command that must succeed without a word on standard error; what it printed."""
    assert main(words) == 0, capsys.readouterr().err
    out, err = capsys.readouterr()
    assert err == ""
    return out


def files(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    return tmp_path


def test_train_writes_a_run(elsewhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = said(["train", RECIPE, *TINY], capsys)
    run = elsewhere / "runs" / "synthetic-mcl_okd"
    assert {"recipe.toml", "environment.json", "status.json", "metrics.jsonl", "result.json", "best"} <= set(names(run))
    assert re.search(r"^epoch 2/2  loss .*task .*leader_kl .*contrast .*images/s  validation: leader", text, re.M)
    assert f"coterie evaluate {run.relative_to(elsewhere)}" in text
    environment = json.loads((run / "environment.json").read_text())
    assert environment["torch"] == torch.__version__
    assert environment["name"] == RECIPE
    status = RunFolder(run).read_status()
    assert (status.state, status.step, status.exit_code) == ("done", 10, 0)
    result = json.loads((run / "result.json").read_text())
    assert (result["recipe"], result["method"], result["peers"]) == (RECIPE, "mcl_okd", 2)
    said(["train", RECIPE, *TINY], capsys)
    assert (elsewhere / "runs" / "synthetic-mcl_okd-2").is_dir()


@pytest.mark.parametrize(
    "words",
    [
        ["optim.lr=0.2", "data.flip=false", "epochs=3"],
        ["--optim.lr=0.2", "--data.flip=false", "--epochs=3"],
        ["--optim.lr", "0.2", "--data.flip", "false", "--epochs", "3"],
        ["epochs=9", "--optim.lr", "0.2", "data.flip=false", "epochs=3"],
        ["optim.lr = 0.2", "data.flip=  false", "--epochs=3"],
    ],
)
def test_three_ways_to_set_a_knob(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    config = tomllib.loads(said(["train", RECIPE, *words, "--print-config"], capsys))
    assert (config["optim"]["lr"], config["data"]["flip"], config["epochs"]) == (0.2, False, 3)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", recipe_names())
def test_a_printed_recipe_is_that_recipe(recipe: str, elsewhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = said(["train", recipe, "seed=7", "--print-config"], capsys)
    (elsewhere / "whole.toml").write_text(text)
    assert said(["train", "whole.toml", "--print-config"], capsys) == text
    assert load_recipe(elsewhere / "whole.toml") == load_recipe(find_recipe(recipe), ["seed=7"])
    assert names(elsewhere) == ["whole.toml"]


def test_a_run_prints_its_recipe(elsewhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_in_pieces(tiny("dml"), elsewhere / "run")
    assert said(["train", "--resume", "run", "--print-config"], capsys) == to_toml(tiny("dml"))


def test_train_and_resume_give_one_result(elsewhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said(["train", RECIPE, *TINY, "--out", "one two"], capsys)
    (elsewhere / "one two" / "result.json").unlink()
    text = said(["train", "--resume", "one two"], capsys)
    assert "resumed after 10 batches" in text
    assert trace(elsewhere / "one two") == run_in_pieces(tiny("mcl_okd"), elsewhere / "x", name=RECIPE)
    assert "is finished" in said(["train", "--resume", "one two"], capsys)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", [name for name in recipe_names() if name.startswith(("digits", "synthetic"))])
def test_check_prints_a_plan_and_leaves_nothing_behind(
    recipe: str, elsewhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = torch.get_rng_state()
    text = said(["check", recipe], capsys)
    for title in ("peer 0", "<- leader", "shared", "trained", "data", "views", "method", "loss"):
        assert title in text
    for title in ("optimiser", "learning rate", "steps", "device", "activations", "time", "memory"):
        assert title in text
    assert files(elsewhere) == {}
    assert torch.equal(before, torch.get_rng_state())


def test_check_counts_steps_and_memory(capsys: pytest.CaptureFixture[str]) -> None:
    text = said(["check", RECIPE, *TINY, "optim.accumulate=2", "epochs=7", "cohort.shared=2"], capsys)
    assert "7 epochs x 3 = 21 of 8 images" in text
    assert "2 x 43 x 8" in text
    assert "43 training images, 5 held out" in text
    plain = sum(p.numel() for p in NETS["cnn4_w4"](num_classes=4).parameters())
    assert f"cnn4_w4, {plain:,} parameters" in text


def test_evaluate_prints_leader_peers_and_ensemble(elsewhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done = run_in_pieces(tiny("dml"), elsewhere / "run")
    before = files(elsewhere / "run")
    text = said(["evaluate", "run"], capsys)
    assert files(elsewhere / "run") == before
    for title, part in (("last epoch", done.result["last"]), ("best on validation", done.result["best_on_validation"])):
        rows = [line for line in text.splitlines() if line.startswith(title)]
        assert len(rows) == 4
        scores = [part["test"]["leader"], *part["test"]["peers"], part["test"]["ensemble"]]
        for row, score in zip(rows, scores, strict=True):
            figures = f"{score['top1']:.2f} {score['top5']:.2f} {score['nll']:.4f} {score['ece']:.4f}"
            figures += "".join(f" {score[name]:.3f}" for name in ("intra", "inter") if name in score)
            assert row.split()[-len(figures.split()) :] == figures.split()
            assert ("intra" in score) == (score is not scores[-1])  # an ensemble has no embedding


@pytest.mark.slow
def test_export_reloads_without_us(elsewhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_in_pieces(tiny("mcl_okd", cohort__shared=1), elsewhere / "run")
    text = said(["export", "run", "--out", "ship it"], capsys)
    assert "as many as the plain network" in text
    assert {"leader.safetensors", "leader.pt2"} <= set(names(elsewhere / "ship it"))
    images = torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(0))

    plain = NETS["cnn4_w4"](num_classes=4, in_channels=3, image_size=8).eval()
    plain.load_state_dict(load_file(elsewhere / "ship it" / "leader.safetensors"))
    last = CheckpointStore(elsewhere / "run" / "checkpoints").load_newest()[1].section("peer1")
    assert all(torch.equal(tensor, last[name]) for name, tensor in plain.state_dict().items())
    program = torch.export.load(elsewhere / "ship it" / "leader.pt2").module()
    with torch.no_grad():
        torch.testing.assert_close(program(images), plain(images), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("what", ["methods", "nets", "data", "recipes"])
def test_list_names_everything_registered(what: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = said(["list", what], capsys)
    known = {"methods": ["dml", "mcl_okd", "independent"], "nets": list(NETS), "recipes": recipe_names()}
    for name in known.get(what, ["cifar10", "cifar100", "digits", "folder", "synthetic"]):
        assert name.startswith("tiny_") or re.search(rf"^{re.escape(name)}\s", text, re.M), name


def test_doctor_reports_what_is_installed(capsys: pytest.CaptureFixture[str]) -> None:
    text = said(["doctor"], capsys)
    for part in ("python", "torch", "numpy", "safetensors", "cyclopts", "onnx", "tensorboard", "cpu", "accelerator"):
        assert re.search(rf"^{part}\s", text, re.M), part
    assert torch.__version__ in text


def test_doctor_says_what_to_do_about_what_is_missing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from importlib import metadata

    version = metadata.version

    def without(name: str) -> str:
        if name in ("safetensors", "onnx"):
            raise metadata.PackageNotFoundError(name)
        return "2.4.1+cpu" if name == "torch" else version(name)

    monkeypatch.setattr("coterie.experiment.doctor.metadata.version", without)
    monkeypatch.delenv("COLUMNS", raising=False)  # whole lines; pytest-xdist sets it
    text = said(["doctor"], capsys)
    assert re.search(r"safetensors +missing +run: pip install safetensors", text)
    assert re.search(r"onnx +not installed +optional, for export to ONNX: pip install 'coterie\[onnx\]'", text)
    assert re.search(r"torch +2\.4\.1\+cpu +too old; run: pip install --upgrade 'torch>=2\.11'", text)
