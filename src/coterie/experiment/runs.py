"""Runs on disk: a folder for a new one, and an experiment from the folder of an old one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import count
from pathlib import Path
from typing import Any

from rich.console import Console

import coterie.methods  # noqa: F401 (registers them)
from coterie.config import load_recipe
from coterie.core.files import read_json
from coterie.core.plugins import load_plugins
from coterie.core.record import RunFolder
from coterie.experiment.experiment import Experiment


def new_folder(name: str, out: Path | None = None) -> Path:
    """Choose the folder of a new run.

    Args:
        name: of the recipe; gives `runs/NAME`, with a number behind it when that is taken.
        out: the folder to use instead.
    """
    if out is not None:
        return out
    stem = name.removesuffix(".toml").strip("/").replace("/", "-")
    candidates = (Path("runs") / (stem if number == 1 else f"{stem}-{number}") for number in count(1))
    return next(path for path in candidates if not path.exists())


def open_run(folder: Path, overrides: Sequence[str] = (), plugins: Iterable[Path] = ()) -> Experiment:
    """Read the recipe of a run.

    Args:
        folder: of the run.
        overrides: `key=value` settings that take the place of the recipe's.
        plugins: Python files that register what the recipe names.

    Raises:
        ConfigError: the folder is not a run's, or recipe or settings are wrong.
    """
    load_plugins(plugins)
    run = RunFolder(folder).existing()
    return Experiment(load_recipe(run.recipe, overrides), folder=folder)


def continue_run(
    folder: Path, overrides: Sequence[str] = (), *, plugins: Iterable[Path] = (), console: Console | None = None
) -> dict[str, Any]:
    """Go on with an interrupted run, to the bit; a finished one is only reported.

    Raises:
        CoterieError: see `Experiment.train`.
    """
    experiment = open_run(folder, overrides, plugins)
    status = experiment.folder.read_status()
    if status is not None and status.state == "done" and experiment.folder.result.exists():
        (console or experiment.console).print(f"{folder} is finished; score it with: coterie evaluate {folder}")
        result = read_json(experiment.folder.result)
        return dict(result) if isinstance(result, dict) else {}
    return experiment.train(resume=True)
