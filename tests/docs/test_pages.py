from __future__ import annotations

import re
import runpy
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from coterie.core import METHODS, CoterieError
from coterie.core.errors import CheckpointError, NumericError, ParallelError
from coterie.data import DATA
from doc_pages import PAGES, ROOT

TABLES = ROOT / "tools" / "make_tables.py"
LINK = re.compile(r"\[[^\]]*\]\((?!https?:)(?P<path>[^)#\s]*)(?:#(?P<part>[^)\s]+))?\)")
LINKED = [*PAGES, *(ROOT / name for name in ("ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md"))]
MACHINE_PATH = re.compile(r"(?<![\w.-])/(?:work|tmp|home|root|Users)\b")
REGISTRY = re.compile("|".join((r"py" r"pi\.org", r"python" r"hosted", r"download\." r"pytorch", r"index" r"-url")))


def committed() -> list[Path]:
    """Every file that git tracks or would track, or every page where there is no git."""
    git = shutil.which("git")
    listed = [git, "-C", ROOT, "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    if git is None or not (ROOT / ".git").exists():
        return LINKED
    names = subprocess.run(map(str, listed), capture_output=True, text=True, check=True).stdout.split("\0")
    return [path for name in names if name and (path := ROOT / name).is_file()]


def links(page: Path) -> Iterator[re.Match[str]]:
    """Links inside the project, those in code left out."""
    prose = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    return LINK.finditer(prose)


def anchors(page: Path) -> set[str]:
    heads = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", LINKED, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_inside_the_project_lead_somewhere(page: Path) -> None:
    for link in links(page):
        target = (page.parent / link["path"]).resolve() if link["path"] else page
        assert target.exists(), link[0]
        assert link["part"] is None or link["part"] in anchors(target), link[0]


def test_every_page_is_reached_from_the_index() -> None:
    index = ROOT / "docs" / "index.md"
    reached = {(index.parent / link["path"]).resolve() for link in links(index)}
    assert set(PAGES) - {index} <= reached


def test_no_file_knows_this_machine_or_a_registry() -> None:
    for path in committed():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        found = [*MACHINE_PATH.findall(text), *REGISTRY.findall(text)]
        if path != Path(__file__):
            assert not found, f"{path.relative_to(ROOT)} has {found}"


def test_the_patterns_above_find_what_they_are_for() -> None:
    assert MACHINE_PATH.search("see /home/me") and MACHINE_PATH.search("(/tmp/x)")
    assert not MACHINE_PATH.search("runs/work and mktemp ${TMPDIR:-/tmp}")
    assert REGISTRY.search("https://pypi.org/simple")


@pytest.mark.slow
def test_tables_are_fresh() -> None:
    done = subprocess.run([sys.executable, TABLES, "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_stale_table_is_found_and_mended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    main = runpy.run_path(str(TABLES))["main"]
    page = tmp_path / "page.md"
    page.write_text("before\n\n<!-- table: knobs of dml -->\nold\n<!-- end of table -->\n\nafter\n")
    command = [str(TABLES), "--docs", str(tmp_path)]
    monkeypatch.setattr("sys.argv", [*command, "--check"])
    assert main() == 1 and "old" in page.read_text()
    monkeypatch.setattr("sys.argv", command)
    assert main() == 0
    text = page.read_text()
    assert "| `method.weight` | `1.0` | factor of the mutual term |" in text and "old" not in text
    assert text.startswith("before\n") and text.endswith("\nafter\n")
    monkeypatch.setattr("sys.argv", [*command, "--check"])
    assert main() == 0


def test_every_method_has_a_section_and_a_table_of_its_knobs() -> None:
    pages = [(ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8") for page in ("methods", "teachers")]
    page = "".join(pages)
    for name, method in METHODS.items():
        if not method.__module__.startswith("coterie."):
            continue
        assert f"\n## {name}\n" in page
        assert not method.Config.__annotations__ or f"<!-- table: knobs of {name} -->" in page


def test_the_guide_knows_every_data_set_and_exit_status() -> None:
    guide = (ROOT / "docs" / "guide.md").read_text(encoding="utf-8")
    assert all(f"| `{name}` |" in guide for name in DATA if DATA[name].__module__.startswith("coterie."))
    errors = CoterieError, CheckpointError, NumericError, ParallelError
    statuses = {error.exit_code for error in errors} | {0, 75, 130}
    assert all(f"| {status} |" in guide for status in statuses)


def test_extras_that_pages_name_exist() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    named = {extra for page in PAGES for extra in re.findall(r"coterie\[(\w+)\]", page.read_text(encoding="utf-8"))}
    assert named and named <= set(project["optional-dependencies"])


def test_the_changelog_has_this_version_or_what_comes_next() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    heads = re.findall(r"^## (.+)$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert any(head.startswith(("Unreleased", version)) for head in heads)
