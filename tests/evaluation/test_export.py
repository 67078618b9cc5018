"""Exports of a leader: every file reloads with its logits, and nothing half-written or foreign is touched."""

from __future__ import annotations

import copy
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from coterie.core.errors import CheckpointError, ConfigError, NumericError, ShapeError
from coterie.data.base import Normalisation
from coterie.evaluation import export
from coterie.evaluation.export import ExportReport, ExportRow, export_leader, report_table
from coterie.evaluation.export_formats import Loaded
from coterie.evaluation.model_card import ModelCard
from coterie.nets import NETS
from coterie.nets.cost import count_parameters, multiply_adds

SHAPE = (1, 8, 8)
CLASSES = [f"digit {k}" for k in range(10)]
CARD = ModelCard(
    network="cnn4_w4",
    classes=CLASSES,
    normalisation=Normalisation(mean=[0.25], std=[0.5]),
    facts={"test accuracy": "94.4 %", "trained with": "dml, 3 peers", "data": "digits"},
)


def plain() -> nn.Module:
    return NETS["cnn4_w4"](num_classes=10, in_channels=1, image_size=8)


def trained(build: Callable[[], nn.Module] = plain) -> nn.Module:
    """A network whose batch norms have seen images."""
    torch.manual_seed(4)
    net = build().train()
    with torch.no_grad():
        net(2 * torch.randn(16, *SHAPE) + 1)
    return net


@pytest.fixture
def without_onnx(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, ExportReport]:
    net = trained()
    folder = tmp_path_factory.mktemp("runs") / "deep" / "export"
    return net, export_leader(net, image_shape=SHAPE, folder=folder, card=CARD, build=plain)


def listing(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def rows(report: ExportReport) -> dict[str, ExportRow]:
    return {row.file: row for row in report.rows}


@pytest.mark.slow
def test_report_tells_what_was_written(exported: tuple[nn.Module, ExportReport]) -> None:
    net, report = exported
    assert report.parameters == count_parameters(plain()) == 1182
    assert report.multiply_adds == multiply_adds(net, SHAPE)
    assert sorted(path.name for path in report.folder.iterdir()) == sorted(row.file for row in report.rows if row.bytes)
    for row in report.rows:
        assert row.bytes == (report.folder / row.file).stat().st_size
    assert listing(report.folder.parent) == ["export"]


@pytest.mark.slow
def test_weights_load_into_the_plain_network(exported: tuple[nn.Module, ExportReport]) -> None:
    net, report = exported
    row = rows(report)["leader.safetensors"]
    assert (row.max_difference, row.parameters) == (0.0, 1182)
    assert row.latency_ms is not None and row.latency_ms > 0
    again = plain().eval()
    again.load_state_dict(load_file(report.folder / row.file), strict=True)
    images = torch.randn(5, *SHAPE)
    assert torch.equal(again(images), copy.deepcopy(net).eval()(images))
    with safe_open(report.folder / row.file, "pt") as file:
        assert file.metadata()["network"] == "cnn4_w4"


def test_program_runs_for_any_batch(exported: tuple[nn.Module, ExportReport]) -> None:
    net, report = exported
    assert rows(report)["leader.pt2"].max_difference == pytest.approx(0, abs=1e-6)
    program = torch.export.load(report.folder / "leader.pt2").module()
    for batch in (1, 2, 7):
        images = torch.randn(batch, *SHAPE)
        assert torch.allclose(program(images), copy.deepcopy(net).eval()(images), atol=1e-5)


def test_onnx_runs_for_any_batch(exported: tuple[nn.Module, ExportReport]) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    net, report = exported
    row = rows(report)["leader.onnx"]
    assert row.max_difference is not None and row.max_difference < 1e-5
    session = onnxruntime.InferenceSession(report.folder / row.file)
    for batch in (1, 6):
        images = torch.randn(batch, *SHAPE)
        (logits,) = session.run(["logits"], {"images": images.numpy()})
        assert torch.allclose(torch.from_numpy(logits), copy.deepcopy(net).eval()(images), atol=1e-5)


def test_model_card_tells_the_story(exported: tuple[nn.Module, ExportReport]) -> None:
    _, report = exported
    text = (report.folder / "README.md").read_text()
    for words in ("# cnn4_w4, 10 classes", "1,182 parameters", "25,424 multiply-adds", "| test accuracy | 94.4 % |"):
        assert words in text
    for words in ("dml, 3 peers", "1 x 8 x 8", "| mean | 0.25 |", "9: digit 9", "leader.pt2", "| data | digits |"):
        assert words in text


@pytest.mark.slow
@pytest.mark.case(83)
def test_names_of_strangers_are_text_in_the_card(tmp_path: Path) -> None:
    hostile = ["<script>alert(1)</script>", "a|b", "[x](http://y)", "\x1b[31mred", "\u202eleft", "```\nimport os"]
    card = replace(
        CARD, classes=[*hostile, *CLASSES[len(hostile) :]], facts={"data": "<b>|\x1b[2J", "recipe": "a\n# b"}
    )
    report = export_leader(trained(), image_shape=SHAPE, folder=tmp_path / "out", card=card, build=plain)
    text = (report.folder / "README.md").read_text()
    assert "<script>" not in text and "<b>" not in text and "[x](" not in text
    assert all(line.isprintable() for line in text.splitlines())
    assert "0: &lt;script>alert(1)&lt;/script>" in text and "| data | &lt;b>\\|" in text
    assert text.count("```") == 2 and "\n# b" not in text


@pytest.mark.slow
def test_script_of_the_card_needs_torch_alone(exported: tuple[nn.Module, ExportReport]) -> None:
    net, report = exported
    (script,) = re.findall(r"```python\n(.*?)```", (report.folder / "README.md").read_text(), re.S)
    assert len(script.splitlines()) <= 12
    blocked = "import sys\nsys.modules.update(dict.fromkeys(['coterie', 'safetensors', 'onnx']))\n"
    seeded = script.replace("images =", "torch.manual_seed(0)\nimages =")
    run = [sys.executable, "-W", "ignore", "-c", blocked + seeded]
    said = subprocess.run(run, cwd=report.folder, capture_output=True, text=True, check=True, timeout=60).stdout
    torch.manual_seed(0)
    with torch.no_grad():
        logits = copy.deepcopy(net).eval()((torch.rand(1, *SHAPE) - 0.25) / 0.5)
    share, label = logits[0].softmax(dim=0).max(dim=0)
    assert said == f"class {int(label)}, confidence {float(share):.3f}\n"


def test_network_is_left_as_it_was(tmp_path: Path, without_onnx: None) -> None:
    net = trained().to(memory_format=torch.channels_last)
    net.head.eval()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    generator = torch.get_rng_state()
    report = export_leader(net, image_shape=SHAPE, folder=tmp_path / "out", card=CARD)
    assert rows(report)["leader.safetensors"].max_difference == 0.0
    assert net.training and not net.head.training
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert net.stages[0][0].weight.is_contiguous(memory_format=torch.channels_last)
    assert not net.stages[0][0].weight.is_contiguous()
    assert torch.equal(torch.get_rng_state(), generator)


def test_missing_onnx_is_a_row_with_its_remedy(tmp_path: Path, without_onnx: None) -> None:
    report = export_leader(trained(), image_shape=SHAPE, folder=tmp_path / "out", card=CARD)
    row = rows(report)["leader.onnx"]
    assert row == ExportRow(
        file="leader.onnx", note="not written: onnx is not installed; run: pip install 'coterie[onnx]'"
    )
    assert not (tmp_path / "out" / "leader.onnx").exists()
    assert ["leader.onnx", "-", "-", "-", "-", row.note] in report_table(report.rows)


@pytest.mark.slow
def test_missing_onnxruntime_leaves_the_file_uncompared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxscript")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    row = rows(export_leader(trained(), image_shape=SHAPE, folder=tmp_path / "out", card=CARD))["leader.onnx"]
    assert row.bytes > 0 and row.max_difference is None and "onnxruntime is not installed" in row.note


class Deciding(nn.Module):
    """Cannot be traced: it looks at the values of its images. Two layers share one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.twin, self.head = nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 10)
        self.twin.weight = self.inner.weight

    def forward(self, images: Tensor) -> Tensor:
        flat = images.flatten(1)
        return self.head(self.inner(flat) if float(flat.sum()) > 1e6 else self.twin(flat))


def test_foreign_network_that_cannot_be_traced_ships_as_weights(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    report = rows(export_leader(trained(Deciding), image_shape=SHAPE, folder=tmp_path / "out", card=CARD))
    assert report["leader.safetensors"].max_difference == 0.0
    assert report["leader.safetensors"].parameters == 64 * 64 + 2 * 64 + 650
    assert report["leader.pt2"].note.startswith("not written: ")
    assert report["leader.onnx"].note.startswith("not written: ")
    assert all("\n" not in row.note for row in report.values())
    assert listing(tmp_path / "out") == ["README.md", "leader.safetensors"]
    assert capfd.readouterr() == ("", "")


def test_earlier_export_is_replaced_as_a_whole(tmp_path: Path, without_onnx: None) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "leader.onnx").write_text("of an earlier run")
    report = export_leader(trained(), image_shape=SHAPE, folder=folder, card=CARD)
    assert listing(folder) == ["README.md", "leader.pt2", "leader.safetensors"]
    assert report.folder == folder and listing(tmp_path) == ["out"]


def test_folders_with_other_files_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ConfigError, match=r"holds 'thesis.tex', which is no export"):
        export_leader(trained(), image_shape=SHAPE, folder=tmp_path, card=CARD)
    with pytest.raises(ConfigError, match="is a file"):
        export_leader(trained(), image_shape=SHAPE, folder=tmp_path / "thesis.tex", card=CARD)
    assert listing(tmp_path) == ["thesis.tex"]


def wrong(net: nn.Module, path: Path, **_: Any) -> Loaded:
    path.write_text("other weights")
    return Loaded("", lambda images: net(images) + 0.01, count_parameters(net))


def shrunk(net: nn.Module, path: Path, **_: Any) -> Loaded:
    path.write_text("fewer weights")
    return Loaded("", net, count_parameters(net) - 1)


def full_disk(net: nn.Module, path: Path, **_: Any) -> Loaded:
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize(
    ("writer", "message"),
    [
        (wrong, "leader.pt2 gives other logits than the leader when it is loaded again"),
        (shrunk, "leader.pt2 holds 1181 parameters and the leader 1182"),
        (full_disk, "cannot write leader.pt2: .*No space left"),
    ],
)
def test_failed_export_leaves_the_earlier_one(
    writer: Callable[..., Loaded], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "leader.safetensors").write_text("of an earlier run")
    monkeypatch.setattr(export, "write_program", writer)
    with pytest.raises(CheckpointError, match=message) as error:
        export_leader(trained(), image_shape=SHAPE, folder=folder, card=CARD)
    assert "\n" not in str(error.value)
    assert listing(tmp_path) == ["out"]
    assert (folder / "leader.safetensors").read_text() == "of an earlier run"


def test_weights_that_do_not_fit_the_plain_network_are_an_error(tmp_path: Path) -> None:
    def wider() -> nn.Module:
        return NETS["cnn4_w6"](num_classes=10, in_channels=1, image_size=8)

    with pytest.raises(CheckpointError, match="does not fit the plain network") as error:
        export_leader(trained(), image_shape=SHAPE, folder=tmp_path / "out", card=CARD, build=wider)
    assert "\n" not in str(error.value) and listing(tmp_path) == []


def test_leaders_that_cannot_ship_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    with pytest.raises(ConfigError, match="the card names 9 classes"):
        export_leader(trained(), image_shape=SHAPE, folder=folder, card=replace(CARD, classes=CLASSES[:9]))
    with pytest.raises(ShapeError, match="does not take images of shape"):
        export_leader(trained(), image_shape=(3, 8, 8), folder=folder, card=CARD)
    sick = trained()
    with torch.no_grad():
        sick.head.bias[0] = torch.nan
    with pytest.raises(NumericError, match="not finite"):
        export_leader(sick, image_shape=SHAPE, folder=folder, card=CARD)
    assert listing(tmp_path) == []
