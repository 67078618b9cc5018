"""`coterie demo`: the main job on data that ships inside a dependency, in about a minute."""

from __future__ import annotations

from pathlib import Path

from coterie.cli.screen import make_console


def demo(*, seeds: int = 8, jobs: int = 2, out: Path = Path("runs/demo")) -> int:
    """Train a compact network alone, with DML and with MCL-OKD beside two larger peers, compare and export it.

    Parameters
    ----------
    seeds
        Number of paired seeds; three show a gain only now and then, eight nearly always when there is one.
    jobs
        Runs at a time, each in a process of its own.
    out
        Folder for runs, table, curves and the exported leader.
    """
    from coterie.experiment import Comparison, export_run

    console = make_console()
    comparison = Comparison(recipes=("digits/alone", "digits/dml", "digits/mcl_okd"), seeds=seeds, jobs=jobs, out=out)
    comparison.run(console)
    export_run(comparison.folder("digits/mcl_okd", 0), out / "export", console=console)
    return 0
