"""Write the tables of the documentation that follow from the code: methods, knobs, networks, settings, recipes.

    python tools/make_tables.py [--check] [--docs docs]

A table stands between `<!-- table: NAME -->` and `<!-- end of table -->` in any page. Without `--check` each is
written anew; with it nothing is written, and stale pages are named and cost exit status 1.
"""

from __future__ import annotations

import argparse
import inspect
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path

import torch

import coterie.methods  # noqa: F401 (registers them)
from coterie.cohort import Cohort
from coterie.config import Recipe, find_recipe, load_recipe
from coterie.core.method import METHODS
from coterie.experiment import catalogue
from coterie.nets import NETS
from coterie.nets.base import NetBuilder, StagedNet
from coterie.nets.cost import count_parameters, multiply_adds

DOCS = Path(__file__).resolve().parents[1] / "docs"
_SLOT = re.compile(r"(?<=<!-- table: )(?P<name>[\w ]+?) -->\n.*?(?=<!-- end of table -->)", re.DOTALL)
_BRANCHED = (
    ("resnet32", 1, 32, 100),
    ("resnet110_bottleneck", 1, 32, 100),
    ("vgg16", 2, 32, 100),
    ("densenet40_12", 1, 32, 100),
    ("resnet18", 2, 224, 1000),
    ("resnet34", 2, 224, 1000),
)  # network, shared stages, side and classes of the images
_DIGITS = (1, 8, 10)  # channels, side and classes of the images that the small networks are for
Rows = Iterable[Sequence[object]]


def main() -> int:
    """Write or check all pages; the exit status is 1 when `--check` finds a stale one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; fail when a page is stale")
    parser.add_argument("--docs", type=Path, default=DOCS, help="folder of the pages")
    options = parser.parse_args()
    stale = [page for page in sorted(options.docs.glob("*.md")) if _renew(page, write=not options.check)]
    for page in stale:
        print(f"{page.name} {'is stale; run: python tools/make_tables.py' if options.check else 'written'}")
    return int(options.check and bool(stale))


def _renew(page: Path, *, write: bool) -> bool:
    """Fill the tables of a page and tell whether that changes it."""
    text = page.read_text(encoding="utf-8")
    fresh = _SLOT.sub(lambda slot: f"{slot['name']} -->\n\n{make_table(slot['name'])}\n", text)
    if write and fresh != text:
        page.write_text(fresh, encoding="utf-8")
    return fresh != text


def make_table(name: str) -> str:
    """Make a table by its name in a page: `methods`, `knobs of METHOD`, `networks`, `branches` and so on."""
    if name.startswith("knobs of "):
        return _markdown(
            ("knob", "default", "meaning"), _knobs("method", METHODS[name.removeprefix("knobs of ")].Config)
        )
    return _TABLES[name]()


def _methods() -> str:
    rows = []
    for name, method in METHODS.items():
        needs = method.needs
        paper = method.paper.cite() if method.paper else ""
        rows.append((f"`{name}`", _first_line(method), paper, needs.min_peers, needs.views))
    return _markdown(("method", "terms", "paper", "peers, at least", "views"), rows)


def _networks() -> str:
    header = (
        "network",
        "images",
        "classes",
        "parameters",
        "multiply-adds",
        "D",
        "maps that `shared` = 1, 2, ... share",
    )
    return _markdown(header, (_network(name, NETS[name]) for name, _ in catalogue("nets")[1:] if name in NETS))


def _network(name: str, build: NetBuilder) -> tuple[object, ...]:
    side = inspect.signature(build).parameters["image_size"].default
    channels, side, classes = _DIGITS if name.startswith("cnn4") else (3, side, 1000 if side == 224 else 100)
    net = build(num_classes=classes, in_channels=channels, image_size=side)
    parameters, adds = f"{count_parameters(net):,}", f"{multiply_adds(net, (channels, side, side)):,}"
    images = f"{channels} x {side} x {side}"
    if not isinstance(net, StagedNet):
        return f"`{name}`", images, classes, parameters, adds, "", "cannot share"
    with torch.inference_mode():
        _, *maps = net.eval().tap(torch.zeros(1, channels, side, side), stage_maps=True).stages
    shapes = ", ".join(" x ".join(map(str, stage.shape[1:])) for stage in maps)
    return f"`{name}`", images, classes, parameters, adds, net.embedding_dim, shapes


def _branches() -> str:
    header = ("network", "`cohort.shared`", "classes", "parameters", "multiply-adds")
    rows = []
    for name, shared, side, classes in _BRANCHED:
        cohort = Cohort([NETS[name](num_classes=classes, image_size=side) for _ in range(4)], shared=shared)
        adds = multiply_adds(cohort, (1, 3, side, side), batch_dim=1)
        rows.append((f"`{name}`", shared, classes, f"{count_parameters(cohort):,}", f"{adds:,}"))
    return _markdown(header, rows)


def _settings() -> str:
    rows: list[Sequence[object]] = []
    for part in fields(Recipe):
        default = getattr(Recipe(), part.name)
        if part.name == "method":
            rows.append(("`method.name`", f"`{default}`", "the method; its own knobs are on the page of methods"))
        elif is_dataclass(default) and part.name != "method_config":
            rows += _knobs(part.name, type(default))
        elif part.name != "method_config":
            rows.append((f"`{part.name}`", f"`{default}`", _meanings(Recipe)[part.name]))
    return _markdown(("setting", "default", "meaning"), rows)


def _knobs(prefix: str, config: type) -> list[Sequence[object]]:
    meanings, values = _meanings(config), config()
    return [
        (f"`{prefix}.{knob.name}`", _literal(getattr(values, knob.name)), meanings[knob.name])
        for knob in fields(config)
    ]


def _recipes() -> str:
    rows = []
    for name, epochs, what, method in catalogue("recipes")[1:]:
        recipe = load_recipe(find_recipe(name))
        nets = ", ".join(recipe.cohort.nets) or f"{recipe.cohort.peers} x {recipe.net.name}"
        rows.append((f"`{name}`", f"`{method}`", nets, epochs, what))
    return _markdown(("recipe", "method", "networks", "epochs", "what it is"), rows)


def _meanings(config: type) -> dict[str, str]:
    """Read what each attribute means off the docstrings of a class and of those it derives from, on one line each."""
    found: dict[str, str] = {}
    for kind in reversed(config.__mro__[:-1]):
        found |= _documented(kind)
    return found


def _documented(config: type) -> dict[str, str]:
    section = inspect.cleandoc(config.__doc__ or "").partition("Attributes:\n")[2].partition("\n\n")[0]
    entries = re.split(r"^ {4}(?=\w+: )", section, flags=re.MULTILINE)[1:]
    pairs = (" ".join(entry.split()).partition(": ") for entry in entries)
    return {name: meaning.rstrip(".") for name, _, meaning in pairs}


def _literal(value: object) -> str:
    if value is None or value == () or value == "":
        return "none"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def _first_line(thing: object) -> str:
    return (inspect.getdoc(thing) or "").partition("\n")[0]


def _markdown(header: Sequence[str], rows: Rows) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(map(_cell, line))} |\n" for line in lines)


def _cell(content: object) -> str:
    return re.sub(r"([|*])", r"\\\1", str(content))


_TABLES: dict[str, Callable[[], str]] = {
    "methods": _methods,
    "networks": _networks,
    "branches": _branches,
    "settings": _settings,
    "recipes": _recipes,
}

if __name__ == "__main__":
    sys.exit(main())
