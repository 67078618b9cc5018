"""Runs on disk: a folder for a new one, and an experiment from the folder of an old one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import coterie.methods  # noqa: F401 (registers them)
from coterie.config import load_recipe, to_toml
from coterie.core.errors import ConfigError
from coterie.core.files import read_json
from coterie.core.plugins import load_plugins
from coterie.core.record import RunFolder
from coterie.experiment.changes import differences
from coterie.experiment.experiment import Experiment

OWN_DATA = "own data"
"""What a recipe calls networks and data that were given as Python objects."""


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
    name = run.read_environment().get("name")
    recipe = load_recipe(run.recipe, overrides)
    if recipe.data.name == OWN_DATA:
        raise ConfigError(
            f"{folder} was trained from Python on networks and data of its own; go on there:"
            " coterie.train(..., out=..., resume=True)"
        )
    return Experiment(recipe, folder=folder, name=name if isinstance(name, str) else None)


def continue_run(experiment: Experiment, *, fresh: bool = False) -> dict[str, Any]:
    """Go on with an interrupted run, to the bit; a finished one is only reported.

    Args:
        experiment: what `open_run` returned; settings that decide what is computed may not differ from the run's.
        fresh: begin again instead, with any settings; what the folder holds is renamed, not deleted.

    Returns:
        What `result.json` holds.

    Raises:
        CoterieError: see `Experiment.train`.
    """
    result = None if fresh else _result(experiment)
    if result is None:
        return experiment.train(resume=not fresh, fresh=fresh)
    folder = experiment.folder.path
    experiment.console.print(f"{folder} is finished; score it with: coterie evaluate {folder}", soft_wrap=True)
    return result


def _result(experiment: Experiment) -> dict[str, Any] | None:
    run = experiment.folder
    if not _is_done(run):
        return None
    if differences(run.recipe.read_text(encoding="utf-8"), to_toml(experiment.recipe)):
        return None  # whether the settings may differ is for the checkpoint to say
    result = read_json(run.result)
    return dict(result) if isinstance(result, dict) and "last" in result else None


def _is_done(run: RunFolder) -> bool:
    status = run.read_status()
    return status is not None and status.state == "done" and run.result.exists()
