"""`coterie train`: train a cohort by a recipe, or go on with a run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coterie.cli.options import Plugins, Settings

if TYPE_CHECKING:
    from coterie.experiment import Experiment


def train(
    recipe: str | None = None,
    *settings: Settings,
    out: Path | None = None,
    resume: str | None = None,
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
        Folder of an interrupted run to go on with, to the bit; or the URL of its train.mirror, to go on in --out.
    fresh
        With --resume: begin that run again; what its folder holds is renamed, not deleted.
    plugin
        Python file that registers a method, a network or a data set; may be repeated.
    print_config
        Print the whole recipe and stop.
    """
    from coterie.config import to_toml
    from coterie.experiment import continue_run

    experiment = prepare(recipe, settings, out=out, resume=resume, fresh=fresh, plugin=plugin)
    if print_config:
        print(to_toml(experiment.recipe), end="")
        return 0
    result = experiment.train() if resume is None else continue_run(experiment, fresh=fresh)
    if experiment.folder.writes:
        _report(experiment.folder.path, result)
    return 0


def prepare(
    recipe: str | None,
    settings: Sequence[str],
    *,
    out: Path | None = None,
    resume: str | None = None,
    fresh: bool = False,
    plugin: Sequence[Path] = (),
) -> Experiment:
    """Read recipe and settings of a new run, or those of an old one; arguments are those of `train`.

    Raises:
        ConfigError: something is wrong with them.
    """
    if resume is None:
        return _new_run(None if fresh else recipe, settings, out, plugin)
    return _old_run(resume, settings if recipe is None else (recipe, *settings), out, plugin)


def _new_run(recipe: str | None, words: Sequence[str], out: Path | None, plugins: Sequence[Path]) -> Experiment:
    from coterie.cli.options import open_recipe
    from coterie.core.errors import ConfigError
    from coterie.experiment import Experiment, new_folder

    if recipe is None:
        raise ConfigError("give a recipe, for instance digits/mcl_okd, or --resume RUN; see: coterie list recipes")
    return Experiment(open_recipe(recipe, words, plugins), folder=new_folder(recipe, out), name=recipe)


def _old_run(run: str, words: Sequence[str], out: Path | None, plugins: Sequence[Path]) -> Experiment:
    from coterie.cli.options import settings_from
    from coterie.core.errors import ConfigError
    from coterie.experiment import fetch_run, new_folder, open_run

    if "://" in run:
        folder = new_folder(run.rstrip("/").rpartition("/")[2], out)
        fetch_run(run, folder)
        return open_run(folder, [f"train.mirror={run}", *settings_from(words)], plugins)
    if out is not None:
        raise ConfigError(f"a run goes on in its own folder, {run!r}; leave --out away")
    return open_run(Path(run), settings_from(words), plugins)


def _report(folder: Path, result: dict[str, Any]) -> None:
    test = result["last"]["test"]
    peers = ", ".join(f"{peer['top1']:.2f}" for peer in test["peers"])
    print(
        f"test set, last epoch: leader {test['leader']['top1']:.2f} %, peers {peers} %,"
        f" ensemble {test['ensemble']['top1']:.2f} %\n"
        f"run: {folder}; next: coterie evaluate {folder}, coterie export {folder}"
    )
