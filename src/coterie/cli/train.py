"""`coterie train`: train a cohort by a recipe, or go on with a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from coterie.cli.options import Plugins, Settings


def train(
    recipe: str | None = None,
    *settings: Settings,
    out: Path | None = None,
    resume: Path | None = None,
    fresh: bool = False,
    plugin: Plugins = (),
    print_config: bool = False,
) -> int:
    """Train a cohort and keep its leader.

    Parameters
    ----------
    recipe
        A recipe that ships with coterie (coterie list recipes) or a TOML file.
    settings
        Knobs that differ from the recipe: key=value or --key value, such as optim.lr=0.1.
    out
        Folder of the run; runs/NAME by default.
    resume
        Folder of an interrupted run to go on with, to the bit.
    fresh
        With --resume: begin that run again; what its folder holds is renamed, not deleted.
    plugin
        Python file that registers a method, a network or a data set; may be repeated.
    print_config
        Print the whole recipe and stop.
    """
    from coterie.cli.options import open_recipe, settings_from
    from coterie.config import to_toml
    from coterie.core.errors import ConfigError
    from coterie.experiment import Experiment, continue_run, new_folder, open_run

    if resume is not None and out is not None:
        raise ConfigError(f"a run goes on in its own folder, {str(resume)!r}; leave --out away")
    if resume is not None:
        words = settings_from(settings if recipe is None else (recipe, *settings))
        experiment = open_run(resume, words, plugin)
    elif fresh or recipe is None:
        raise ConfigError("give a recipe, for instance digits/mcl_okd, or --resume RUN; see: coterie list recipes")
    else:
        experiment = Experiment(open_recipe(recipe, settings, plugin), folder=new_folder(recipe, out), name=recipe)
    if print_config:
        print(to_toml(experiment.recipe), end="")
        return 0
    result = experiment.train() if resume is None else continue_run(experiment, fresh=fresh)
    _report(experiment.folder.path, result)
    return 0


def _report(folder: Path, result: dict[str, Any]) -> None:
    test = result["last"]["test"]
    peers = ", ".join(f"{peer['top1']:.2f}" for peer in test["peers"])
    print(
        f"test set, last epoch: leader {test['leader']['top1']:.2f} %, peers {peers} %,"
        f" ensemble {test['ensemble']['top1']:.2f} %\n"
        f"run: {folder}; next: coterie evaluate {folder}, coterie export {folder}"
    )
