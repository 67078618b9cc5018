from __future__ import annotations

import pytest

from coterie.cli import main

SCREENS = [
    ["list", "methods"],
    ["list", "nets"],
    ["list", "data"],
    ["list", "recipes"],
    ["check", "digits/mcl_okd"],
    ["check", "synthetic/mcl_okd"],
    ["doctor"],
]


def lines_of(words: list[str], capsys: pytest.CaptureFixture[str]) -> list[str]:
    assert main(words) == 0
    return [line.rstrip() for line in capsys.readouterr().out.splitlines()]


@pytest.mark.parametrize("words", SCREENS, ids=" ".join)
def test_80_columns_hold_every_line_and_no_tower(
    words: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    lines = lines_of(words, capsys)
    assert max(map(len, lines)) <= 80
    assert not any("…" in line for line in lines)
    rows = sum(not line.startswith(" ") for line in lines)
    assert len(lines) <= 4 * rows


@pytest.mark.slow
@pytest.mark.parametrize("words", SCREENS, ids=" ".join)
def test_a_file_gets_one_whole_line_per_row(
    words: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    assert not any(line.startswith(" ") for line in lines_of(words, capsys))


def test_asides_stand_below_unless_the_name_tells(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert any("paper: Zhang, Xiang" in line for line in lines_of(["list", "methods"], capsys))
    recipes = lines_of(["list", "recipes"], capsys)
    place = [line.split(" ")[0] for line in recipes].index("digits/alone")
    assert any("method: independent" in line for line in recipes[place : place + 4])
    assert not any(line.strip() == "method: mcl_okd" for line in recipes)


def test_numbers_in_names_keep_their_order(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    names = [line.split()[0] for line in lines_of(["list", "nets"], capsys)[1:]]
    assert names.index("resnet8") < names.index("resnet20") < names.index("resnet110_basic")
    assert len(set(names)) == len(names) >= 20
