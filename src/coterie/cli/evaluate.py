"""`coterie evaluate`: score a finished run."""

from __future__ import annotations

from pathlib import Path

from coterie.cli.options import Plugins, Settings
from coterie.cli.screen import make_console


def evaluate(run: Path, *settings: Settings, plugin: Plugins = ()) -> int:
    """Score leader, peers and ensemble of a run on the test set: top-1, top-5, NLL and calibration error.

    Parameters
    ----------
    run
        Folder of the run.
    settings
        Knobs that differ from the run's recipe, such as data.root=DIR.
    plugin
        Python file that registers a method, a network or a data set; may be repeated.
    """
    from coterie.cli.options import settings_from
    from coterie.experiment import evaluate_run

    evaluate_run(run, settings_from(settings), plugins=plugin, console=make_console())
    return 0
