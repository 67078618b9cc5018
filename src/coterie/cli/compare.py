"""`coterie compare`: several recipes on equal data, budget and seeds."""

from __future__ import annotations

from pathlib import Path

from coterie.cli.options import Plugins, Settings
from coterie.cli.screen import make_console


def compare(
    *recipes: Settings,
    seeds: int = 5,
    jobs: int = 1,
    out: Path | None = None,
    plugin: Plugins = (),
    unequal: bool = False,
) -> int:
    """Train each recipe with the same seeds and say which differences are more than chance.

    Parameters
    ----------
    recipes
        Two or more recipes, the baseline first; key=value words among them are set in all of them.
    seeds
        Number of seeds, counted from the first recipe's seed.
    jobs
        Runs at a time, each in a process of its own.
    out
        Folder for the runs, the table (Markdown, CSV) and the learning curves (PNG); runs/compare-... by default.
    plugin
        Python file that registers a method, a network or a data set; may be repeated.
    unequal
        Compare although data, budget or optimiser differ between the recipes.
    """
    from coterie.cli.options import settings_from
    from coterie.experiment import Comparison, new_folder

    words = settings_from(recipes)
    comparison = Comparison(
        recipes=tuple(word for word in words if "=" not in word),
        settings=tuple(word for word in words if "=" in word),
        seeds=seeds,
        jobs=jobs,
        out=new_folder("compare", out),
        plugins=plugin,
        unequal=unequal,
    )
    comparison.run(make_console())
    return 0
