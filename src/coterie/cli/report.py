"""`coterie report`: a run on one picture."""

from __future__ import annotations

from pathlib import Path


def report(run: Path, *, out: Path | None = None) -> int:
    """Draw learning curves, diversity over time and the peer-by-peer matrices of a run, finished or not.

    Parameters
    ----------
    run
        Folder of the run.
    out
        PNG to write; RUN/report.png by default.
    """
    from coterie.core.record import RunFolder
    from coterie.reports import cohort_page, read_rows

    folder = RunFolder(run).existing()
    rows = read_rows(folder.path)
    picture = folder.path / "report.png" if out is None else out
    cohort_page(rows, picture)
    for alarm in rows.alarms:
        print(f"alarm: {alarm}")
    print(f"{len(rows.diagnostics)} epochs drawn in {picture}")
    return 0
