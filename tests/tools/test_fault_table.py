"""The table of faults: no case is forgotten, no mark leads nowhere, and a stale page is found."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from doc_pages import ROOT

SCRIPT = ROOT / "tools" / "fault_table.py"


@pytest.fixture(scope="module")
def tool() -> dict[str, Any]:
    return runpy.run_path(str(SCRIPT))


def numbers(tool: dict[str, Any]) -> list[int]:
    return [int(number) for group in tool["read_cases"]()["group"] for number in group["cases"]]


def test_the_page_is_fresh() -> None:
    done = subprocess.run([sys.executable, SCRIPT, "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_there_are_88_cases_each_with_a_test_or_a_reason(tool: dict[str, Any]) -> None:
    assert numbers(tool) == list(range(1, 89))
    tests = tool["find_tests"](ROOT / "tests")
    shown = {case for test in tests for case in test.cases}
    assert shown <= set(numbers(tool))
    assert set(numbers(tool)) - shown <= {int(number) for number in tool["read_cases"]()["absent"]}


SOURCE = """
import pytest

@pytest.mark.slow
@pytest.mark.case(2, 1)
@pytest.mark.parametrize("x", [1, 2])
def test_one(x): assert x == 1

@pytest.mark.case(3)
def test_two(): pytest.skip("no")

def test_three(): pass
"""


def test_marks_are_found_and_their_results_counted(
    tool: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tests" / "inner").mkdir(parents=True)
    (tmp_path / "tests" / "inner" / "test_x.py").write_text(SOURCE)
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers =\n  slow: x\n  case(*numbers): x\n")
    tests = tool["find_tests"](tmp_path / "tests")
    assert [(test.key, test.cases, test.slow) for test in tests] == [
        ("tests/inner/test_x.py::test_one", (1, 2), True),
        ("tests/inner/test_x.py::test_two", (3,), False),
    ]
    names = tool["run_tests"].__globals__
    monkeypatch.setitem(names, "ROOT", tmp_path)
    monkeypatch.setitem(names, "RESULTS", tmp_path / "faults.json")
    assert tool["run_tests"](tests, ["-p", "no:cacheprovider"]) == 1

    results = json.loads((tmp_path / "faults.json").read_text())
    assert results["tests"] == {
        "tests/inner/test_x.py::test_one": {"failed": 1, "passed": 1},
        "tests/inner/test_x.py::test_two": {"skipped": 1},
    }
    cases = {"group": [{"name": "All", "cases": {n: ["fault", "end"] for n in "1234"}}], "absent": {"4": "why"}}
    rows = tool["make_tables"](cases, tests, results).splitlines()[7:11]
    one = "[test_x.py](../tests/inner/test_x.py): `test_one` (slow)"
    assert rows[0] == f"| 1 | fault | end | {one} | 1 failed, 1 passed |  |"
    assert rows[2].endswith("| 1 skipped |  |") and rows[3] == "| 4 | fault | end |  | why |  |"
    needed = tool["make_tables"](cases, tests, results, {4: ["a lock: `test_one` fails"]}).splitlines()[10]
    assert needed == "| 4 | fault | end |  | why | a lock: `test_one` fails |"


@pytest.mark.slow
def test_a_stale_page_is_found(tool: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "reliability.md"
    page.write_text("before\n<!-- faults -->\nstale words\n<!-- end of faults -->\nafter\n")
    monkeypatch.setitem(tool["main"].__globals__, "PAGE", page)
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), "--check"])
    assert tool["main"]() == 1 and "stale words" in page.read_text()
    monkeypatch.setattr(sys, "argv", [str(SCRIPT)])
    assert tool["main"]() == 0
    text = page.read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "stale words" not in text and "| 88 |" in text
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), "--check"])
    assert tool["main"]() == 0
