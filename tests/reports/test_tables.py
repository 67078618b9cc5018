from __future__ import annotations

import csv
import io
import re
from dataclasses import replace

import pytest
from rich.console import Console

from coterie.reports import ComparisonRow, ComparisonTable, mean_interval, paired_interval, plain

FIRST = [92.0, 93.0, 92.5]
HOSTILE = [
    "=cmd()",
    "+1",
    "-1",
    "@x",
    "a|b",
    "[red]x[/red]",
    "\x1b[31mred",
    "two\nlines",
    "\u202egnp",
    " =x",
    "<b>",
    "\t=x",
]


def row(recipe: str, values: list[float], *, first: bool = False) -> ComparisonRow:
    return ComparisonRow(
        recipe=recipe,
        method=f"{recipe}_method",
        leader=mean_interval(values),
        difference=None if first else paired_interval(values, FIRST[: len(values)]),
        ensemble=mean_interval([value + 1 for value in values]),
        peers=mean_interval([value - 1 for value in values]),
        seconds=mean_interval([3.25 for _ in values]),
    )


def table(*names: str) -> ComparisonTable:
    others = [row(name, [94.0, 95.1, 94.4]) for name in names]
    return ComparisonTable([row("alone", FIRST, first=True), *others])


def shown(made: ComparisonTable, width: int = 120) -> str:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(made.to_terminal())
    file = console.file
    assert isinstance(file, io.StringIO)
    return file.getvalue()


def test_terminal_shows_numbers_in_a_table_and_verdicts_below() -> None:
    text = shown(table("dml"), 80)
    assert re.search(r"alone +alone_method +92\.50 \+- 0\.50 +93\.50 +91\.50 +3\.2 *\n", text)
    assert re.search(r"dml +dml_method +94\.50 \+- 0\.56", text)
    assert "\ndml against alone: better by 2.00 +- 0.25 points (95 %, 3 paired seeds)\n" in text
    assert "alone against" not in text


def test_terminal_lines_stay_whole_at_80_columns() -> None:
    lines = shown(table("digits/mcl_okd", "digits/dml"), 80).splitlines()
    assert sum("94.50 +- 0.56" in line for line in lines) == 2
    verdicts = [line for line in lines if " against alone: " in line]
    assert len(verdicts) == 2 and all("better by 2.00 +- 0.25 points" in line for line in verdicts)


def test_terminal_leaves_out_methods_that_the_names_tell() -> None:
    named = [replace(row(f"digits/{name}", FIRST), method=name) for name in ("independent", "dml")]
    assert " method " not in shown(ComparisonTable(named))
    assert " method " in shown(ComparisonTable([named[0], replace(named[1], recipe="mine")]))


@pytest.mark.parametrize("width", [60, 80, 100, 200])
def test_terminal_table_fits_its_console(width: int) -> None:
    assert max(map(len, shown(table("x" * 500), width).splitlines())) <= width


def test_markdown_has_one_line_per_recipe() -> None:
    lines = [line for line in table("dml").to_markdown().splitlines() if line.startswith("|")]
    assert len(lines) == 4 and {line.count("|") for line in lines} == {8}
    assert lines[2].startswith("| alone | alone\\_method | 92.50 +- 0.50 | 93.50 | 91.50 | 3.2 | (first recipe) |")
    assert "better by 2.00 +- 0.25 points (95 %, 3 paired seeds)" in lines[3]


def test_csv_reads_back_as_numbers() -> None:
    first, second = csv.DictReader(io.StringIO(table("dml").to_csv()))
    assert first["recipe"] == "alone" and first["difference"] == "" and first["verdict"] == "(first recipe)"
    assert float(second["leader_top1_mean"]) == pytest.approx(94.5, abs=1e-4)
    assert float(second["difference"]) == pytest.approx(2.0, abs=1e-4)
    assert float(second["difference_half_width"]) == pytest.approx(0.2484, abs=1e-4)
    assert (second["seeds"], second["paired_seeds"]) == ("3", "3")
    assert second["verdict"] == "better by 2.00 +- 0.25 points (95 %, 3 paired seeds)"


def test_one_seed_shows_no_spread() -> None:
    one = ComparisonTable([row("alone", [92.0], first=True), row("dml", [94.0])])
    assert "nan" not in shown(one) + one.to_markdown() + one.to_csv()
    assert "one seed: no interval" in one.to_markdown() and "1 seed\n" in one.to_markdown()


@pytest.mark.case(83)
def test_formulas_are_disarmed_in_csv() -> None:
    for read in csv.DictReader(io.StringIO(table(*HOSTILE).to_csv())):
        for name in (read["recipe"], read["method"]):
            assert not name.lstrip().startswith(("=", "+", "-", "@"))
    assert "'=cmd()" in table("=cmd()").to_csv()


@pytest.mark.case(83)
def test_hostile_names_are_text_everywhere() -> None:
    made = table(*HOSTILE)
    for text in (shown(made), made.to_markdown(), made.to_csv()):
        assert "\x1b" not in text and "\u202e" not in text
    assert "[red]x[/red]" in shown(made)
    lines = [line for line in made.to_markdown().splitlines() if line.startswith("|")]
    assert len(lines) == 3 + len(HOSTILE)
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in lines} == {8}
    assert "<b>" not in made.to_markdown()


def test_long_names_are_shortened_in_their_middle() -> None:
    assert plain("a" * 50 + "b" * 50, length=11) == "aaaaa…bbbbb"
    assert plain("a" * 60) == "a" * 60
