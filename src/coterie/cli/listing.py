"""`coterie list`: what there is to choose from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from coterie.cli.options import Plugins
from coterie.cli.screen import make_console

if TYPE_CHECKING:
    from rich.table import Table

_ROOM = 200  # columns of a terminal in which asides have a column of their own


def show_list(what: Literal["methods", "nets", "data", "recipes"], *, plugin: Plugins = ()) -> int:
    """List methods, networks, data sets or recipes.

    Parameters
    ----------
    what
        methods, nets, data or recipes.
    plugin
        Python file that registers a method, a network or a data set; may be repeated.
    """
    from coterie.core.plugins import load_plugins
    from coterie.experiment import catalogue

    load_plugins(plugin)
    header, *rows = catalogue(what)
    console = make_console()
    console.print(_table(header, rows, stacked=console.width < _ROOM))
    return 0


def _table(header: Sequence[str], rows: Sequence[Sequence[str]], *, stacked: bool) -> Table:
    """Lay rows out; stacked, the last of three or more columns stands below the one before, unless the name tells."""
    from rich.table import Table
    from rich.text import Text

    columns = max(2, len(header) - 1) if stacked else len(header)
    table = Table(box=None, pad_edge=False)
    for title in header[:columns]:
        table.add_column(title, overflow="fold")  # long names go on in the next line
    for row in rows:
        table.add_row(*map(Text, row[: columns - 1]), Text.assemble(row[columns - 1], *_aside(header, row, columns)))
    return table


def _aside(header: Sequence[str], row: Sequence[str], columns: int) -> list[tuple[str, str]]:
    """What follows the columns that a row has room for."""
    below = zip(header[columns:], row[columns:], strict=True)
    return [(f"\n{title}: {text}", "dim") for title, text in below if text and text not in row[0]]
