"""`coterie launch`: several processes that train one cohort together, restarted when one fails."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from cyclopts import App

from coterie.cli.options import Settings
from coterie.cli.train import prepare, train

if TYPE_CHECKING:
    from coterie.experiment import Experiment


def launch(
    *words: Settings,
    processes: int = 0,
    nodes: str = "1",
    rendezvous: str = "",
    job: str = "",
    restarts: int = 3,
    timeout: float | None = None,
    grace: int = 30,
) -> int:
    """Train with several processes, of one host or many, and start them again when one fails.

    Write the words of coterie train behind the options: coterie launch --processes 4 train cifar100/mcl_okd. With
    several hosts, give the same words on each of them. The exit status is that of the run.

    Parameters
    ----------
    words
        train, and what else you would give it.
    processes
        Processes on this host; by default one for each accelerator.
    nodes
        Number of hosts, or MIN:MAX; with fewer than MAX the run goes on with those that are there.
    rendezvous
        HOST:PORT where several hosts meet: one of them and a free port of it.
    job
        Name of this launch where hosts meet, the same on all of them and another one for each launch; by default
        the number that Slurm gave it.
    restarts
        How often processes are started again after a failure; a polite stop, wrong input and a loss that is not finite
        are no failures.
    timeout
        Seconds that processes and hosts wait for each other; sets train.timeout.
    grace
        Seconds that processes have to save before they are killed, once this command is asked to stop.
    """
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "FATAL")  # before torch is loaded; what we say names what was lost
    from coterie.experiment.launching import plan_launch, run_launch

    _check_verb(words)
    experiment, has_place = _experiment(words)
    if experiment is None:
        return 0
    plan = plan_launch(
        processes=processes,
        nodes=nodes,
        rendezvous=rendezvous,
        job=job or os.environ.get("SLURM_JOB_ID", ""),
        restarts=restarts,
        timeout=timeout,
        grace=grace,
    )
    folder = experiment.folder.path
    where = [] if has_place else ["--out", str(folder)]
    limit = [] if timeout is None else [f"train.timeout={timeout}"]
    return run_launch(plan, [*words, *where, *limit], folder)


def _check_verb(words: Sequence[str]) -> None:
    from coterie.core.errors import ConfigError

    if words[:1] != ("train",):
        given = f", not {words[0]!r}" if words else ""
        raise ConfigError(
            f"coterie launch starts coterie train{given}; write: coterie launch --processes 2 train RECIPE"
        )


def _experiment(words: Sequence[str]) -> tuple[Experiment | None, bool]:
    """Read the words as `coterie train` would, which finds most mistakes before any process is started.

    Returns:
        What they ask for, None when that was only to print the recipe, and whether they name the folder of the run.
    """
    app = App()
    app.command(train)
    _, bound, _ = app.parse_args(list(words), exit_on_error=False, print_error=False)
    if bound.arguments.get("print_config"):
        train(*bound.args, **bound.kwargs)
        return None, False
    recipe, settings = bound.arguments.get("recipe"), bound.arguments.get("settings", ())
    options = {name: bound.arguments[name] for name in ("out", "resume", "fresh", "plugin") if name in bound.arguments}
    return prepare(recipe, settings, **options), bool(options.keys() & {"out", "resume"})
