"""`coterie report`: a run in pictures."""

from __future__ import annotations

from pathlib import Path

from coterie.cli.options import Plugins, Settings


def report(
    run: Path,
    *settings: Settings,
    out: Path | None = None,
    against: Path | None = None,
    plugin: Plugins = (),
) -> int:
    """Draw learning curves, diversity over time and the peer-by-peer matrices of a run, finished or not.

    Of a finished few-shot run also a test episode with the leader's answers, and a map of embeddings of test classes.

    Parameters
    ----------
    run
        Folder of the run.
    settings
        Of a few-shot run, knobs that differ from its recipe, such as data.root=DIR or fewshot.ways=5.
    out
        PNG to write; RUN/report.png by default. The pictures of a few-shot run are named after it.
    against
        Folder of a baseline, whose embeddings are drawn beside the leader's; those before training by default.
    plugin
        Python file that registers a method, a network or a data set; may be repeated.
    """
    from coterie.cli.options import settings_from
    from coterie.core.record import RunFolder
    from coterie.reports import cohort_page, exchange_lines, read_rows

    folder = RunFolder(run).existing()
    rows = read_rows(folder.path)
    picture = folder.path / "report.png" if out is None else out
    cohort_page(rows, picture)
    for alarm in rows.alarms:
        print(f"alarm: {alarm}")
    for line in exchange_lines(rows.exchange):
        print(line)
    print(f"{len(rows.diagnostics)} epochs drawn in {picture}")
    return _pictures(run, settings_from(settings), against, picture, plugin)


def _pictures(run: Path, words: list[str], against: Path | None, picture: Path, plugins: tuple[Path, ...]) -> int:
    from coterie.experiment import fewshot_pictures

    for line in fewshot_pictures(run, words, against=against, picture=picture, plugins=plugins):
        print(line)
    return 0
