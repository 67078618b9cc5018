"""What strangers wrote does not run, does not drive the terminal, and secrets of the user are not written down."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from coterie.cli import main
from tiny import run_in_pieces, settings_of, tiny

SECRET = "hunter2-0123456789"
EVIL = "from pathlib import Path\nPath('marker').touch()\n"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every command runs in an empty folder."""
    place = tmp_path / "here"
    place.mkdir()
    monkeypatch.chdir(place)
    return place


@pytest.mark.case(76)
@pytest.mark.parametrize("key", ["plugin = 'evil.py'", "plugins = ['evil.py']", "[data]\nplugin = 'evil.py'"])
def test_a_recipe_cannot_name_code(key: str, elsewhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (elsewhere / "evil.py").write_text(EVIL)
    (elsewhere / "mine.toml").write_text(f"{key}\n")
    assert main(["check", "mine.toml"]) == 2
    assert "unknown option" in capsys.readouterr().err
    assert not (elsewhere / "marker").exists()


@pytest.mark.case(76)
@pytest.mark.parametrize("name", ["recipe.toml", "environment.json", "status.json"])
def test_a_run_folder_cannot_name_code(name: str, elsewhere: Path) -> None:
    run_in_pieces(tiny(), elsewhere / "run")
    path = elsewhere / "run" / name
    text = path.read_text()
    (elsewhere / "evil.py").write_text(EVIL)
    (elsewhere / "run" / "evil.py").write_text(EVIL)
    changed = f"plugin = 'evil.py'\n{text}" if name.endswith("toml") else text.replace("{", '{"plugin": "evil.py",', 1)
    path.write_text(changed)
    for words in (["evaluate", "run"], ["train", "--resume", "run"], ["report", "run"]):
        assert main(words) in (0, 2, 4)
    assert not list(elsewhere.rglob("marker"))


def test_code_that_the_user_names_does_run(elsewhere: Path) -> None:
    """Or the tests above could not fail."""
    (elsewhere / "evil.py").write_text(EVIL)
    assert main(["check", "digits/dml", "--plugin", "evil.py"]) == 0
    assert (elsewhere / "marker").exists()


@pytest.mark.slow
@pytest.mark.case(88)
def test_no_file_of_a_run_has_a_secret_of_the_environment(
    elsewhere: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("API_TOKEN", "AWS_SECRET_ACCESS_KEY", "HTTPS_PROXY", "PIP_EXTRA"):
        monkeypatch.setenv(name, f"https://user:{SECRET}@host.example/")
    words = ["train", "synthetic/mcl_okd", *settings_of("mcl_okd"), "--out", "run"]
    assert main(words) == 0
    assert main(["export", "run"]) == 0
    assert main(["doctor"]) == 0
    shown = capsys.readouterr()
    assert SECRET not in shown.out + shown.err
    files = [path for path in (elsewhere / "run").rglob("*") if path.is_file()]
    assert len(files) > 10
    assert [path for path in files if SECRET.encode() in path.read_bytes()] == []
    assert os.environ["API_TOKEN"].encode() not in b"".join(path.read_bytes() for path in files)


@pytest.mark.slow
@pytest.mark.case(83)
def test_class_names_do_not_drive_the_terminal(
    elsewhere: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    draw = np.random.default_rng(0)
    names = ["\x1b[31mred", "\u202eturned", "<script>alert(1)</script>", "$\\frac{1}$", "=cmd()"]
    names[2] = names[2].replace("/", "\u2215")  # no name of a folder has a slash
    for part, count in (("train", 6), ("val", 2)):
        for name in names:
            (tmp_path / "photos" / part / name).mkdir(parents=True)
            for number in range(count):
                pixels = draw.integers(0, 256, (8, 8, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / "photos" / part / name / f"{number}.png")
    folder = ["data.name=folder", f"data.root={tmp_path / 'photos'}", "data.image_size=8", "method.num_negatives=4"]
    settings = [*settings_of("mcl_okd"), *folder, "data.workers=0"]
    for words in (["check", "synthetic/mcl_okd", *settings], ["train", "synthetic/mcl_okd", *settings, "--out", "run"]):
        assert main(words) == 0
    for words in (
        ["evaluate", "run"],
        ["report", "run"],
        ["export", "run"],
        ["data", "check", str(tmp_path / "photos")],
    ):
        assert main(words) == 0
    shown = capsys.readouterr()
    assert "\x1b" not in shown.out + shown.err and "\u202e" not in shown.out + shown.err
    card = (elsewhere / "run" / "export" / "README.md").read_text()
    assert "\x1b" not in card and "\u202e" not in card and "<script>" not in card
