"""`coterie doctor`: what is installed, whether it fits together, and what to do."""

from __future__ import annotations


def doctor() -> int:
    """Report versions, devices and optional packages, and say how to mend what does not match."""
    from rich.console import Console
    from rich.table import Table

    from coterie.experiment import diagnose

    table = Table("part", "found", "verdict", box=None, pad_edge=False)
    for finding in diagnose():
        table.add_row(finding.part, finding.found, finding.verdict)
    Console(soft_wrap=True).print(table)
    return 0
