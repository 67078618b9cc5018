"""`coterie doctor`: what is installed, whether it fits together, and what to do."""

from __future__ import annotations

from coterie.cli.screen import make_console


def doctor() -> int:
    """Report versions, devices and optional packages, and say how to mend what does not match."""
    from rich.table import Table
    from rich.text import Text

    from coterie.experiment import diagnose

    table = Table("part", "found", "verdict", box=None, pad_edge=False)
    for finding in diagnose():
        table.add_row(*map(Text, (finding.part, finding.found, finding.verdict)))
    make_console().print(table)
    return 0
