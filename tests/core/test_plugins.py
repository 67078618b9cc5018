from __future__ import annotations

import sys
from pathlib import Path

import pytest

from coterie.core import ConfigError
from coterie.core.plugins import load_plugins

COUNTING = "import sys\nsys.plugin_count = getattr(sys, 'plugin_count', 0) + 1\n"


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "modules", dict(sys.modules))
    monkeypatch.setattr(sys, "plugin_count", 0, raising=False)


def test_a_file_is_run_once_per_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "mine.py"
    path.write_text(COUNTING)
    monkeypatch.chdir(tmp_path)
    load_plugins([path, Path("mine.py")])
    load_plugins([tmp_path / "." / "mine.py"])
    assert sys.plugin_count == 1


def test_two_files_of_one_name_are_both_run(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine.py").write_text(COUNTING)
    load_plugins([tmp_path / "a" / "mine.py", tmp_path / "b" / "mine.py"])
    assert sys.plugin_count == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1 / 0", r"plug-in .*mine\.py fails: ZeroDivisionError: division by zero"),
        ("def", r"fails: SyntaxError"),
        ("import sys; sys.exit(3)", r"fails: SystemExit: 3"),
        ("from coterie import CoterieError\nraise CoterieError('mine')", "^mine$"),
    ],
)
def test_a_file_that_failed_is_run_again(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "mine.py"
    path.write_text(text)
    for _ in range(2):
        with pytest.raises(Exception, match=message):
            load_plugins([path])
    assert "coterie_plugin_mine" not in sys.modules
    path.write_text(COUNTING + "# longer, so that no stale bytecode is taken for it\n")
    load_plugins([path])
    assert sys.plugin_count == 1


@pytest.mark.parametrize("name", ["gone.py", "folder.py", "words.txt"])
def test_what_is_no_python_file(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder.py").mkdir()
    (tmp_path / "words.txt").write_text("x = 1")
    with pytest.raises(ConfigError, match=rf"no plug-in .*{name}; give a Python file"):
        load_plugins([tmp_path / name])
