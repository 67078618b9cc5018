"""Reads fenced blocks off Markdown pages; `python doc_pages.py OUT PAGE ...` tries the commands in pages
and writes to OUT, as JSON, what went wrong with each.

A comment right above a fence says what the block is: `<!-- file: NAME -->` is a file that other blocks of the page use,
`<!-- needs: export -->` runs in a folder with an exported leader.
"""

from __future__ import annotations

import contextlib
import json
import re
import shlex
import sys
import tempfile
import traceback
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
_FENCE = re.compile(
    r"(?:^<!-- (?P<role>file|needs): (?P<what>\S+) -->\n)?^```(?P<language>\w*)\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its text, and the file it stands for or the thing it needs."""

    language: str
    text: str
    file: str = ""
    needs: str = ""


def blocks_of(page: Path) -> list[Block]:
    found = _FENCE.finditer(page.read_text(encoding="utf-8"))
    return [
        Block(fence["language"], fence["text"], **{fence["role"] or "file": fence["what"] or ""}) for fence in found
    ]


def scripts_of(page: Path) -> list[Block]:
    return [block for block in blocks_of(page) if block.language == "python" and not block.file]


def shell_lines(page: Path) -> list[list[str]]:
    texts = [block.text for block in blocks_of(page) if block.language in ("sh", "console")]
    lines = (shlex.split(line, comments=True) for text in texts for line in text.splitlines())
    return [words for words in lines if words]


def write_files(page: Path, folder: Path) -> None:
    for block in blocks_of(page):
        if block.file:
            (folder / block.file).write_text(block.text, encoding="utf-8")


def try_command(words: list[str]) -> None:
    """Parse a command and everything in it; run it too when that is quick and nothing in it is a placeholder."""
    from coterie.cli.main import app, main

    command, bound, _ = app.parse_args(words, exit_on_error=False, print_error=False)
    resolve(command.__name__, bound.arguments)
    verb, *rest = words
    quick = verb in ("list", "check", "doctor") or any(
        word in rest for word in ("--print-config", "epochs=2", "--resume")
    )
    placeholder = {"DIR", "RUN"} & set(re.split(r"[ =]", " ".join(rest))) or any("://" in word for word in rest)
    if quick and not placeholder:
        status = main(words)
        assert status == 0, f"coterie {shlex.join(words)} leaves with {status}"


def resolve(verb: str, arguments: dict[str, object]) -> None:
    from coterie.cli.options import open_recipe, settings_from
    from coterie.data import DATA
    from coterie.experiment import Comparison
    from coterie.experiment.build import net_names
    from coterie.nets import NETS

    plugins = arguments.get("plugin", ())
    named = arguments.get("recipe") or (verb == "fewshot" and arguments["run"])
    if named and named != "RUN":
        recipe = open_recipe(named, arguments.get("settings", ()), plugins)
        known = {*NETS, *(f"{source}/resnet18" for source in NETS.sources)}
        assert recipe.data.name in DATA and known.issuperset(net_names(recipe))
    if verb == "compare":
        words = settings_from(arguments["recipes"])
        recipes, settings = ([word for word in words if ("=" in word) == given] for given in (False, True))
        seeds = arguments.get("seeds", 5)
        Comparison(recipes=tuple(recipes), settings=tuple(settings), seeds=seeds, out=Path("runs"))._tasks()


def tried(page: Path) -> str:
    """Try the commands of a page in a folder of its own: what went wrong, or nothing."""
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        write_files(page, Path(folder))
        try:
            for line in shell_lines(page):
                if "coterie" in line:  # alone, or behind `torchrun ... -m`
                    try_command(line[line.index("coterie") + 1 :])
        except BaseException:
            return traceback.format_exc()
    return ""


if __name__ == "__main__":
    import coterie.cli.main  # noqa: F401 (once for all pages)

    with get_context("fork").Pool(1, maxtasksperchild=1) as pool:  # what a page registers others do not see
        results = pool.map(tried, map(Path, sys.argv[2:]), chunksize=1)
    Path(sys.argv[1]).write_text(json.dumps(dict(zip(sys.argv[2:], results, strict=True))), encoding="utf-8")
