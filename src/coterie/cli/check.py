"""`coterie check`: the plan of a run and what it takes, without training it."""

from __future__ import annotations

from coterie.cli.options import Plugins, Settings
from coterie.cli.screen import make_console


def check(recipe: str, *settings: Settings, plugin: Plugins = ()) -> int:
    """Print what a recipe would do and take, and find what is wrong with it, without training.

    A few steps are tried and thrown away, to tell time and memory; that takes twenty seconds at most, or a little more.

    Parameters
    ----------
    recipe
        A recipe that ships with coterie or a TOML file.
    settings
        Knobs that differ from the recipe.
    plugin
        Python file that registers a method, a network or a data set; may be repeated.
    """
    from coterie.cli.options import open_recipe
    from coterie.experiment import make_plan

    make_plan(open_recipe(recipe, settings, plugin)).show(make_console())
    return 0
