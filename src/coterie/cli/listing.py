"""`coterie list`: what there is to choose from."""

from __future__ import annotations

from typing import Literal

from coterie.cli.options import Plugins


def show_list(what: Literal["methods", "nets", "data", "recipes"], *, plugin: Plugins = ()) -> int:
    """List methods, networks, data sets or recipes.

    Parameters
    ----------
    what
        methods, nets, data or recipes.
    plugin
        Python file that registers a method, a network or a data set; may be repeated.
    """
    from rich.console import Console
    from rich.table import Table

    from coterie.core.plugins import load_plugins
    from coterie.experiment import catalogue

    load_plugins(plugin)
    header, *rows = catalogue(what)
    table = Table(*header, box=None, pad_edge=False)
    for row in rows:
        table.add_row(*row)
    Console(soft_wrap=True).print(table)
    return 0
