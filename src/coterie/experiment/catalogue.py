"""What there is to choose from, as tables made from the registries."""

from __future__ import annotations

import inspect
import re
import tomllib
from collections.abc import Callable, Mapping

import coterie.methods  # noqa: F401 (registers them)
from coterie.config import find_recipe, recipe_names
from coterie.core.method import METHODS
from coterie.data import DATA
from coterie.nets import NETS

Rows = list[tuple[str, ...]]


def catalogue(what: str) -> Rows:
    """List registered things.

    Args:
        what: `methods`, `nets`, `data` or `recipes`.

    Returns:
        A header and one row per thing, sorted by name with numbers in their order. The last of three or more columns is
        an aside.
    """
    tables: dict[str, Callable[[], Rows]] = {
        "methods": _methods,
        "nets": lambda: _described("network", NETS) + _sources(),
        "data": lambda: _described("data set", DATA),
        "recipes": _recipes,
    }
    return tables[what]()


def _methods() -> Rows:
    rows: Rows = [("method", "what it does", "paper")]
    for name, method in METHODS.items():
        paper = method.paper
        rows.append((name, _first_line(method), f"{paper.cite_briefly()} ({paper.year})" if paper else ""))
    return rows


def _described(kind: str, registry: Mapping[str, object]) -> Rows:
    names = sorted(registry, key=_natural)
    return [(kind, "what it is"), *((name, _first_line(registry[name])) for name in names)]


def _sources() -> Rows:
    return [(f"{prefix}/NAME", _first_line(find)) for prefix, find in NETS.sources.items()]


def _recipes() -> Rows:
    rows: Rows = [("recipe", "epochs", "what it is", "method")]
    for name in recipe_names():
        text = find_recipe(name).read_text(encoding="utf-8")
        tree = tomllib.loads(text)
        comment = " ".join(line[1:].strip() for line in text.splitlines() if line.startswith("#"))
        methods = tree["method"]["name"]
        rows.append(
            (name, str(tree.get("epochs", "")), comment, methods if isinstance(methods, str) else " + ".join(methods))
        )
    return rows


def _natural(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


def _first_line(thing: object) -> str:
    return (inspect.getdoc(thing) or "").partition("\n")[0]
