from __future__ import annotations

import warnings

import pytest

from coterie.cli import main
from coterie.cli.main import _plain_warnings
from coterie.cli.options import settings_from


@pytest.mark.parametrize(
    ("words", "settings"),
    [
        ([], []),
        (["a=1", "b.c=x y"], ["a=1", "b.c=x y"]),
        (["--a=1", "--b.c=--x"], ["a=1", "b.c=--x"]),
        (["--a", "1", "--b", "-2"], ["a=1", "b=-2"]),
        (["--a", "--b", "x", "--c"], ["a=true", "b=x", "c=true"]),
        (["a=1", "--b"], ["a=1", "b=true"]),
        (["--a", "b=1"], ["a=b=1"]),
    ],
)
def test_words_become_settings(words: list[str], settings: list[str]) -> None:
    assert settings_from(words) == settings


def test_warnings_are_one_line_without_a_place(capsys: pytest.CaptureFixture[str]) -> None:
    before = warnings.showwarning
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        with _plain_warnings():
            warnings.warn("the disk\nis full", UserWarning, stacklevel=1)
    assert capsys.readouterr().err == "coterie: warning: the disk is full\n"
    assert warnings.showwarning is before


def test_our_own_mistakes_are_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("coterie.experiment.diagnose", lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main(["doctor"])


def test_control_c_outside_training(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def stop() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("coterie.experiment.diagnose", stop)
    assert main(["doctor"]) == 130
    assert capsys.readouterr().err == "coterie: interrupted\n"
