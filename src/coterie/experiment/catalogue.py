"""What there is to choose from, as tables made from the registries."""

from __future__ import annotations

import inspect
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
        A header and one row per thing, sorted by name.
    """
    tables: dict[str, Callable[[], Rows]] = {
        "methods": _methods,
        "nets": lambda: _described("network", NETS),
        "data": lambda: _described("data set", DATA),
        "recipes": _recipes,
    }
    return tables[what]()


def _methods() -> Rows:
    rows: Rows = [("method", "year", "what it does", "paper")]
    for name, method in METHODS.items():
        paper = method.paper
        rows.append((name, str(paper.year) if paper else "", _first_line(method), paper.cite() if paper else ""))
    return rows


def _described(kind: str, registry: Mapping[str, object]) -> Rows:
    return [(kind, "what it is"), *((name, _first_line(thing)) for name, thing in registry.items())]


def _recipes() -> Rows:
    rows: Rows = [("recipe", "method", "epochs", "what it is")]
    for name in recipe_names():
        text = find_recipe(name).read_text(encoding="utf-8")
        tree = tomllib.loads(text)
        comment = " ".join(line[1:].strip() for line in text.splitlines() if line.startswith("#"))
        rows.append((name, str(tree["method"]["name"]), str(tree.get("epochs", "")), comment))
    return rows


def _first_line(thing: object) -> str:
    return (inspect.getdoc(thing) or "").partition("\n")[0]
