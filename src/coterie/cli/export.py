"""`coterie export`: the leader as files that load without coterie."""

from __future__ import annotations

from pathlib import Path

from coterie.cli.options import Plugins
from coterie.cli.screen import make_console


def export(run: Path, *, out: Path | None = None, plugin: Plugins = ()) -> int:
    """Write the leader of a run as safetensors, torch.export program and ONNX, reload each and compare.

    Parameters
    ----------
    run
        Folder of the run.
    out
        Folder to write; RUN/export by default.
    plugin
        Python file that registers a method, a network or a data set; may be repeated.
    """
    from coterie.experiment import export_run

    export_run(run, out, plugins=plugin, console=make_console())
    return 0
