from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import doc_pages
from doc_pages import PAGES, ROOT, Block, blocks_of, scripts_of, shell_lines, write_files

SCRIPTS = [(page, number) for page in PAGES for number, script in enumerate(scripts_of(page)) if not script.needs]


def name_of(value: object) -> str:
    return value.relative_to(ROOT).as_posix() if isinstance(value, Path) else str(value)


def run(words: list[object], folder: Path) -> str:
    """Run a program and return what it printed; on failure all of it is in the message."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": "", "COLUMNS": "120"}
    done = subprocess.run(list(map(str, words)), cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def run_script(script: Block, folder: Path) -> str:
    path = folder / "snippet.py"
    path.write_text(script.text, encoding="utf-8")
    return run([sys.executable, path], folder)


@pytest.mark.slow
@pytest.mark.parametrize(("page", "number"), SCRIPTS, ids=name_of)
def test_every_script_runs(page: Path, number: int, tmp_path: Path) -> None:
    write_files(page, tmp_path)
    run_script(scripts_of(page)[number], tmp_path)


@pytest.fixture(scope="module")
def wrong(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What is wrong with the commands of each page."""
    return try_pages(PAGES, tmp_path_factory.mktemp("pages"))


def try_pages(pages: list[Path], folder: Path) -> dict[str, str]:
    run([sys.executable, doc_pages.__file__, folder / "wrong.json", *pages], folder)
    found: dict[str, str] = json.loads((folder / "wrong.json").read_text(encoding="utf-8"))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_command_is_understood(page: Path, wrong: dict[str, str]) -> None:
    assert wrong[str(page)] == ""


def test_pages_have_scripts_and_commands() -> None:
    assert len(SCRIPTS) >= 5
    assert sum(words[0] == "coterie" for page in PAGES for words in shell_lines(page)) >= 25


@pytest.mark.slow
def test_a_wrong_command_would_be_found(tmp_path: Path) -> None:
    commands = ["trian digits/mcl_okd", "train digits/mcl_ok", "train digits/mcl_okd optim.lrr=1", "check digits/dml"]
    pages = [tmp_path / f"{number}.md" for number in range(len(commands))]
    for page, command in zip(pages, commands, strict=True):
        page.write_text(f"```sh\ncoterie {command}\n```\n")
    found = try_pages(pages, tmp_path)
    assert [bool(found[str(page)]) for page in pages] == [True, True, True, False]


def test_other_programs_in_shell_blocks_exist() -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for page in PAGES:
        for words in shell_lines(page):
            if words[0] == "make":
                assert words[1] in targets
            elif words[0] == "python":
                files = {block.file for block in blocks_of(page)}
                place = ROOT / words[2].replace(".", "/")
                module = words[1] == "-m" and any(map(Path.is_file, (place / "__main__.py", place.with_suffix(".py"))))
                assert module or (ROOT / words[1]).is_file() or words[1] in files
            elif words[0] == "torchrun":
                assert words[words.index("-m") + 1] == "coterie"
            else:
                assert words[0] in ("coterie", "pip")


def test_recipes_in_blocks_are_toml() -> None:
    found = [block for page in PAGES for block in blocks_of(page) if block.language == "toml"]
    assert found and all(tomllib.loads(block.text) for block in found)


def readme(needs: str) -> Block:
    (script,) = [script for script in scripts_of(ROOT / "README.md") if script.needs == needs]
    return script


def test_readme_example_has_at_most_15_lines() -> None:
    assert len(readme("").text.splitlines()) <= 15 and "coterie.train" in readme("").text


@pytest.mark.slow
def test_readme_loads_the_leader_in_12_lines_with_torch_alone(tmp_path: Path) -> None:
    script = readme("export")
    assert len(script.text.splitlines()) <= 12
    assert re.findall(r"^(?:import|from) (\w+)", script.text, re.MULTILINE) == ["torch"]
    run([sys.executable, "-m", "coterie", "train", "digits/mcl_okd", "epochs=1", "--out", "run"], tmp_path)
    without_onnx = "import sys; sys.modules['onnx'] = None; from coterie.cli import main; sys.exit(main(sys.argv[1:]))"
    run([sys.executable, "-c", without_onnx, "export", "run"], tmp_path)  # which would take most of the time
    export = tmp_path / "run" / "export"
    assert script.text in (export / "README.md").read_text(encoding="utf-8")
    assert re.fullmatch(r"class \d, confidence [01]\.\d{3}\n", run_script(script, export))
