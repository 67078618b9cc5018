"""`coterie data check`: one line per kind, an exit status, and all names in a file."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from coterie.cli import main


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Two classes of five images to train on and two to test, all of them different."""
    draw = np.random.default_rng(0)
    for part, count in (("train", 5), ("val", 2)):
        for name in ("cat", "dog"):
            (tmp_path / "my photos" / part / name).mkdir(parents=True)
            for number in range(count):
                pixels = draw.integers(0, 256, (12, 12, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / "my photos" / part / name / f"{number}.png")
    return tmp_path / "my photos"


def test_a_sound_folder(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "check", str(photos)]) == 0
    out = capsys.readouterr().out
    assert out == "checked 14 images of 2 classes: train 10, val 4\nnothing to mend\n"


def test_faults_are_a_line_for_each_kind_and_status_1(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(5):
        (photos / "train" / "cat" / f"{number}.png").write_text("no image")
    shutil.copy(photos / "val" / "dog" / "0.png", photos / "train" / "dog" / "copy.png")
    report = photos.parent / "report.json"
    assert main(["data", "check", str(photos), "--json", str(report)]) == 1
    counts, damaged, leaks = capsys.readouterr().out.splitlines()
    assert counts == "checked 15 images of 2 classes: train 11, val 4"
    assert damaged.startswith("damaged: 5 cannot be decoded; restore or remove them: train/cat/0.png (cannot be read")
    assert damaged.endswith(", and 2 more")
    assert leaks.endswith(": train/dog/copy.png = val/dog/0.png (train, val)")
    found = json.loads(report.read_text())
    assert not found["clean"] and list(found["findings"]) == ["damaged", "leaks"]
    assert [item["names"] for item in found["findings"]["damaged"]] == [[f"train/cat/{n}.png"] for n in range(5)]


def test_notes_alone_leave_status_0(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.effect_noise((12, 14), 90).save(photos / "train" / "cat" / "0.png")
    assert main(["data", "check", str(photos)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[:2] for line in lines[1:-1]] == [["note", " sizes"], ["note", " modes"]]
    assert lines[-1] == "nothing to mend"


def test_a_recipe_of_a_folder(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copy(photos / "train" / "dog" / "0.png", photos / "train" / "cat" / "copy.png")
    assert main(["data", "check", "folder/mcl_okd", f"data.root={photos}"]) == 1
    assert "mislabelled: 1 groups" in capsys.readouterr().out


def test_a_recipe_of_arrays(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "check", "synthetic/mcl_okd", "data.samples=64", "data.image_size=8"]) == 0
    assert "checked 80 images of 10 classes: train 64, test 16" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["gone/mcl"], "unknown recipe 'gone/mcl'"),
        (["."], "'.' has no classes"),
        (["folder/mcl_okd", "data.root=none"], "'none' is not a folder"),
        (["cifar100/dml", "data.root=none"], "none"),
        ([".", "--workers", "-1"], "--workers is -1"),
        ([".", "--json", "none/report.json"], "--json 'none/report.json' cannot be written"),
    ],
)
def test_bad_input_is_one_line_and_status_2(
    words: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["data", "check", *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("coterie: ") and said in line
    assert list(tmp_path.iterdir()) == []
