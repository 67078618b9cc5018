"""The table of protections: each is in the source once, its test is there, and a test that needs none is found."""

from __future__ import annotations

import ast
import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from doc_pages import ROOT


def _load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("protections_tool", ROOT / "tools" / "protections.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


TOOL = _load()
KNOWN = TOOL.read_protections()


@pytest.mark.parametrize("name", KNOWN)
def test_a_protection_is_in_the_source_once(name: str) -> None:
    protection = KNOWN[name]
    source = protection.path.read_text(encoding="utf-8")
    assert source.count(protection.text) == 1
    ast.parse(source.replace(protection.text, protection.instead))
    file, _, test = protection.test.partition("::")
    assert f"def {test.partition('[')[0]}(" in (ROOT / file).read_text(encoding="utf-8")


def test_most_cases_have_one() -> None:
    assert len({case for protection in KNOWN.values() for case in protection.cases}) >= 60


def test_every_protection_was_tried_and_is_needed() -> None:
    results = TOOL.read_results()
    tried = {name: results.get(name, {}).get("ended") for name in KNOWN}
    assert {name: ended for name, ended in tried.items() if ended not in ("failed", "did not end")} == {}
    assert {name: row["test"] for name, row in results.items()} == {name: KNOWN[name].test for name in results}


def without(name: str, code: str) -> str:
    folders = [ROOT / "tests" / "without", ROOT / "src"]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, folders)), "COTERIE_WITHOUT": name}
    return subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True).stdout


@pytest.mark.slow
def test_it_is_gone_in_every_process_and_the_file_is_left_alone() -> None:
    code = "from coterie.core.errors import suggestion; print(suggestion('dmll', ['dml']))"
    before = (ROOT / "src" / "coterie" / "core" / "errors.py").read_bytes()
    assert without("names_suggested", code).strip() == "known: dml"
    assert without("", code).strip() == "did you mean 'dml'?"
    assert (ROOT / "src" / "coterie" / "core" / "errors.py").read_bytes() == before


@pytest.mark.slow
@pytest.mark.parametrize(("body", "ended"), [("assert False", "failed"), ("pass", "passed"), ("None", "no such test")])
def test_how_tests_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str, ended: str) -> None:
    (tmp_path / "test_x.py").write_text(f"def test_one() -> None: {body}\n")
    name = "test_two" if ended == "no such test" else "test_one"
    monkeypatch.setattr(TOOL, "ROOT", tmp_path)
    row = TOOL.Protection(
        name="", cases=[1], what="", module="x", text="", instead="", test=f"{tmp_path / 'test_x.py'}::{name}"
    )
    assert TOOL.try_without(row)["ended"] == ended


def test_a_test_that_waits_for_ever_does_not_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "test_x.py").write_text("import time\ndef test_one() -> None: time.sleep(1000)\n")
    monkeypatch.setattr(TOOL, "ROOT", tmp_path)
    test = f"{tmp_path / 'test_x.py'}::test_one"
    row = TOOL.Protection(name="", cases=[1], what="", module="x", text="", instead="", test=test, limit=1.0)
    assert TOOL.try_without(row)["ended"] == "did not end"
