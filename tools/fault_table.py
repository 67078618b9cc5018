"""Write the table of fault cases in docs/reliability.md: what goes wrong, the tests that show it, how they ended.

    python tools/fault_table.py [--check | --run [WORDS...]]

Tests carry `@pytest.mark.case(NUMBER, ...)`; the cases are in `tools/fault_cases.toml`. `--run` runs all tests so
marked, slow ones too, with WORDS for pytest, and keeps how they ended in `results/faults.json`; the table says what is
kept there, and in `results/protections.json`, by `tools/protections.py`, of tests that were run without their
protection. With `--check` nothing is written, and a stale page costs exit status 1.
"""

from __future__ import annotations

import argparse
import ast
import json
import platform
import re
import subprocess
import sys
import tempfile
import tomllib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from types import MappingProxyType
from typing import Any
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parents[1]
CASES = ROOT / "tools" / "fault_cases.toml"
PAGE = ROOT / "docs" / "reliability.md"
RESULTS = ROOT / "results" / "faults.json"
WITHOUT = ROOT / "results" / "protections.json"
PROTECTIONS = ROOT / "tools" / "protections.toml"

_SLOT = re.compile(r"(?<=<!-- faults -->\n).*?(?=<!-- end of faults -->)", re.DOTALL)
_ORDER = ("failed", "skipped", "passed")


@dataclass(frozen=True)
class MarkedTest:
    """A test function that shows cases.

    Attributes:
        file: relative to the root, with `/`.
        name: of the function.
        cases: numbers.
        slow: whether it belongs to the slow tests.
    """

    file: str
    name: str
    cases: tuple[int, ...]
    slow: bool = False

    @property
    def key(self) -> str:
        """What it is called in the results."""
        return f"{self.file}::{self.name}"


def main() -> int:
    """Write or check the page, or run the tests; exit status 1 for a stale page, that of pytest when tests fail."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; fail when the page is stale")
    parser.add_argument("--run", nargs=argparse.REMAINDER, help="run the tests first, with these words for pytest")
    options = parser.parse_args()
    tests = find_tests(ROOT / "tests")
    status = 0 if options.run is None else run_tests(tests, options.run)
    text = PAGE.read_text(encoding="utf-8")
    fresh = _SLOT.sub(lambda _: make_tables(read_cases(), tests, read_results(), read_needed()), text)
    if options.check:
        print("reliability.md is stale; run: python tools/fault_table.py" * (fresh != text), end="\n" * (fresh != text))
        return int(fresh != text)
    PAGE.write_text(fresh, encoding="utf-8")
    return status


def read_cases() -> dict[str, Any]:
    """Groups of cases and the reasons of those without a test."""
    return tomllib.loads(CASES.read_text(encoding="utf-8"))


def read_results() -> dict[str, Any]:
    """How the tests ended when they were last run, and where; empty when they never were."""
    found: dict[str, Any] = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.is_file() else {}
    return found


def read_needed() -> dict[int, list[str]]:
    """By case, the protections without which a test of it was seen to fail."""
    tried = json.loads(WITHOUT.read_text(encoding="utf-8")) if WITHOUT.is_file() else {}
    needed: dict[int, list[str]] = {}
    for name, row in tomllib.loads(PROTECTIONS.read_text(encoding="utf-8")).items():
        ended = tried.get(name, {}).get("ended")
        if ended in ("failed", "did not end"):
            test = row["test"].partition("::")[2].partition("[")[0]
            for case in row["cases"]:
                needed.setdefault(case, []).append(f"{row['what']}: `{test}` {ended.replace('did', 'does')}")
    return needed


def find_tests(folder: Path) -> list[MarkedTest]:
    """Find marked test functions by reading the source; nothing is imported."""
    found: list[MarkedTest] = []
    for path in sorted(folder.rglob("test_*.py")):
        file = path.relative_to(folder.parent).as_posix()
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef):
                found += _marked(node, file)
    return found


def _marked(node: ast.FunctionDef, file: str) -> Iterator[MarkedTest]:
    marks = [ast.unparse(decorator) for decorator in node.decorator_list]
    cases = [int(case) for mark in marks if mark.startswith("pytest.mark.case(") for case in re.findall(r"\d+", mark)]
    if cases:
        yield MarkedTest(file, node.name, tuple(sorted(cases)), "pytest.mark.slow" in marks)


def run_tests(tests: Sequence[MarkedTest], words: Sequence[str]) -> int:
    """Run the marked tests that the words choose and keep how they ended; the exit status of pytest."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-q", f"--junitxml={report}", *words, *(test.key for test in tests)]
        status = subprocess.run(command, cwd=ROOT).returncode
        outcomes = read_outcomes(report) if report.is_file() else {}
    marked = {test.key for test in tests}
    kept = {key: count for key, count in read_results().get("tests", {}).items() if key in marked}
    where = {"python": platform.python_version(), "torch": metadata.version("torch"), "system": platform.system()}
    RESULTS.write_text(
        json.dumps({"where": where, "tests": {**kept, **outcomes}}, indent=1, sort_keys=True) + "\n", "utf-8"
    )
    return status


def read_outcomes(report: Path) -> dict[str, dict[str, int]]:
    """Count how the cases of each test function ended, from a report in JUnit's form."""
    counts: dict[str, Counter[str]] = {}
    for case in ElementTree.parse(report).getroot().iter("testcase"):
        key = f"{case.get('classname', '').replace('.', '/')}.py::{case.get('name', '').partition('[')[0]}"
        kinds = {child.tag for child in case}
        ended = "failed" if kinds & {"failure", "error"} else "skipped" if "skipped" in kinds else "passed"
        counts.setdefault(key, Counter())[ended] += 1
    return {key: dict(count) for key, count in counts.items()}


def make_tables(
    cases: Mapping[str, Any],
    tests: Sequence[MarkedTest],
    results: Mapping[str, Any],
    needed: Mapping[int, Sequence[str]] = MappingProxyType({}),
) -> str:
    """Write a table for each group of cases, after a line on where the tests ran.

    Args:
        cases: what `read_cases` returned.
        tests: those that show them.
        results: how they ended.
        needed: by case, what was taken out of the source to see a test fail.
    """
    absent = {int(number): why for number, why in cases["absent"].items()}
    outcomes = results.get("tests", {})
    lines = ["", _where(results.get("where", {})), ""]
    for group in cases["group"]:
        lines += [
            f"### {group['name']}",
            "",
            "| case | what goes wrong | what comes of it | tests | result | without |",
        ]
        lines.append("| ---: | --- | --- | --- | --- | --- |")
        for number, (fault, expected) in group["cases"].items():
            shown = [test for test in tests if int(number) in test.cases]
            result = _result(shown, outcomes, absent.get(int(number), ""))
            without = "; ".join(needed.get(int(number), ()))
            lines.append(f"| {number} | {fault} | {expected} | {_list(shown)} | {result} | {without} |")
        lines.append("")
    return "\n".join(lines) + "\n"


def _where(where: Mapping[str, str]) -> str:
    if not where:
        return "The tests have not been run for this table yet."
    return f"Results of Python {where['python']} and torch {where['torch']} on {where['system']}."


def _list(tests: Sequence[MarkedTest]) -> str:
    """Names of tests, by file."""
    files: dict[str, list[str]] = {}
    for test in tests:
        files.setdefault(test.file, []).append(f"`{test.name}`" + " (slow)" * test.slow)
    return "; ".join(f"[{Path(file).name}](../{file}): {', '.join(names)}" for file, names in files.items())


def _result(tests: Sequence[MarkedTest], outcomes: Mapping[str, Mapping[str, int]], why: str) -> str:
    total = sum((Counter(outcomes.get(test.key, {})) for test in tests), Counter[str]())
    total["not run"] = sum(test.key not in outcomes for test in tests)
    words = [f"{total[kind]} {kind}" for kind in (*_ORDER, "not run") if total[kind]]
    return "; ".join([*([", ".join(words)] if words else []), *([why] if why else [])])


if __name__ == "__main__":
    sys.exit(main())
