"""Takes one protection of `tools/protections.toml` out of the package, in every process that is started with
PYTHONPATH=tests/without and COTERIE_WITHOUT=NAME; `tools/protections.py` runs tests so, to see them fail."""

from __future__ import annotations

import os
import sys
import tomllib
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import CodeType

TABLE = Path(__file__).resolve().parents[2] / "tools" / "protections.toml"


class Altered(SourceFileLoader):
    """Loads a module with one text of its source replaced; nothing is cached on disk."""

    text = instead = ""

    def get_code(self, fullname: str) -> CodeType:
        source = Path(self.path).read_text(encoding="utf-8")
        assert source.count(self.text) == 1, f"{self.text!r} is {source.count(self.text)} times in {self.path}"
        return compile(source.replace(self.text, self.instead), self.path, "exec", dont_inherit=True)


class Finder(MetaPathFinder):
    """Finds that one module."""

    def __init__(self, module: str, text: str, instead: str) -> None:
        self.module, self.text, self.instead = module, text, instead

    def find_spec(self, fullname: str, path: object = None, target: object = None) -> ModuleSpec | None:
        if fullname != self.module:
            return None
        spec = PathFinder.find_spec(fullname, path)  # type: ignore[arg-type]
        if spec is not None and spec.origin is not None:
            loader = Altered(fullname, spec.origin)
            loader.text, loader.instead = self.text, self.instead
            spec.loader = loader
        return spec


name = os.environ.get("COTERIE_WITHOUT")
if name:
    row = tomllib.loads(TABLE.read_text(encoding="utf-8"))[name]
    sys.meta_path.insert(0, Finder(row["module"], row["text"], row["instead"]))
