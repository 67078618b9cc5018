"""Python files of the user that register methods, networks or data sets."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterable
from importlib.abc import Loader
from pathlib import Path
from types import ModuleType

from coterie.core.errors import ConfigError, CoterieError


def load_plugins(paths: Iterable[Path]) -> None:
    """Run each file as a module named after it, once per process.

    Only files the user names are run; recipes, checkpoints and run folders never name code.

    Args:
        paths: Python files.

    Raises:
        ConfigError: a file is missing, is not Python, or fails while it runs.
    """
    for path in paths:
        _load(Path(path).resolve())


def _load(path: Path) -> None:
    name = f"coterie_plugin_{path.stem}"
    if getattr(sys.modules.get(name), "__file__", None) == str(path):
        return
    spec = importlib.util.spec_from_file_location(name, path)
    if not path.is_file() or spec is None or spec.loader is None:
        raise ConfigError(f"no plug-in {path}; give a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    _run(module, spec.loader, path)


def _run(module: ModuleType, loader: Loader, path: Path) -> None:
    try:
        loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[module.__name__]
        if isinstance(error, CoterieError):
            raise
        raise ConfigError(f"plug-in {path} fails: {type(error).__name__}: {error}") from error
