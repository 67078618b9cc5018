"""`coterie fewshot`: train by episodes, and score classes that training has not seen."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from coterie.cli.options import Plugins, Settings
from coterie.cli.screen import make_console

if TYPE_CHECKING:
    from coterie.experiment import Experiment

_SHORT = ("episodes=", "queries=", "head=")


def fewshot(
    run: str,
    *settings: Settings,
    ways: str = "",
    shots: str = "",
    against: Path | None = None,
    out: Path | None = None,
    plugin: Plugins = (),
) -> int:
    """Score a run on new classes, by episodes; a recipe is trained first.

    Figures are written to RUN/fewshot.json. All runs are scored on the same episodes.

    Parameters
    ----------
    run
        Folder of a run, or a recipe whose data have test classes of their own, such as omniglot/mcl_okd.
    settings
        Knobs that differ from the recipe, such as epochs=40; --episodes, --queries and --head, of the evaluation only,
        stand for fewshot.episodes and so on.
    ways
        Classes in an episode, one number or several: 5,20.
    shots
        Images of each class to learn from, one number or several: 1,5.
    against
        Folder of another run to compare with, episode by episode.
    out
        Folder of the run when a recipe is trained; runs/NAME by default.
    plugin
        Python file that registers a method, a network or a data set; may be repeated.
    """
    from coterie.cli.options import open_recipe, settings_from
    from coterie.experiment import fewshot_run, open_run
    from coterie.experiment.fewshot import columns_of

    columns = {"ways": _numbers("ways", ways, 2), "shots": _numbers("shots", shots, 1)}
    words = settings_from(settings)
    asked = [f"fewshot.{word}" for word in words if word.startswith(_SHORT)]
    words = [word for word in words if not word.startswith(_SHORT)]
    folder = Path(run)
    if not (folder / "recipe.toml").is_file():
        experiment = _untrained(run, words, out, plugin)
        experiment.columns = tuple(columns_of(open_recipe(run, [*words, *asked], plugin).fewshot, **columns))
        if against is not None:
            open_run(against, plugins=plugin)  # what is wrong with it is not found after an hour of training
        experiment.train()
        folder, words = experiment.folder.path, []
    fewshot_run(folder, [*words, *asked], **columns, against=against, plugins=plugin, console=make_console())
    return 0


def _untrained(recipe: str, words: list[str], out: Path | None, plugin: tuple[Path, ...]) -> Experiment:
    from coterie.cli.options import open_recipe
    from coterie.experiment import Experiment, new_folder

    return Experiment(open_recipe(recipe, words, plugin), folder=new_folder(recipe, out), name=recipe)


def _numbers(name: str, text: str, least: int) -> list[int]:
    from coterie.core.errors import ConfigError

    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not all(part.isdecimal() and int(part) >= least for part in parts):
        raise ConfigError(f"--{name} is {text!r}; give whole numbers of at least {least} with commas between: 5,20")
    return [int(part) for part in parts]
