"""Finds the verb, runs it, and turns expected errors into one line and an exit status."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TextIO

from cyclopts import App, CycloptsError

from coterie import __version__
from coterie.cli.check import check
from coterie.cli.compare import compare
from coterie.cli.data import check_images
from coterie.cli.demo import demo
from coterie.cli.doctor import doctor
from coterie.cli.evaluate import evaluate
from coterie.cli.export import export
from coterie.cli.fewshot import fewshot
from coterie.cli.launch import launch
from coterie.cli.listing import show_list
from coterie.cli.report import report
from coterie.cli.status import status as show_status
from coterie.cli.train import train
from coterie.cli.transfer import transfer

app = App(
    name="coterie",
    help="Online knowledge distillation: a cohort of networks learns together, one leader ships.",
    version=__version__,
    suppress_keyboard_interrupt=False,
)
for _verb in (train, launch, check, evaluate, transfer, fewshot, export, compare, report, demo, doctor):
    app.command(_verb)
app.command(show_list, name="list")
app.command(show_status, name="status")
data_app = App(name="data", help="Look at images before training does.")
data_app.command(check_images, name="check")
app.command(data_app)
app.register_install_completion_command(add_to_startup=False)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; see `run`. A process that has lost the others of its launch ends here at once."""
    status = _run_noted(arguments) if os.environ.get("COTERIE_LAUNCH_NOTES") else run(arguments)
    engine = sys.modules.get("coterie.engine.joining")  # loaded by verbs that train
    return status if engine is None else int(engine.leave(status))


def _run_noted(arguments: Sequence[str] | None) -> int:
    """Run as a process of `coterie launch`, which wants to know how it ended."""
    from coterie.experiment.launched import begin_note, end_note

    begin_note()
    return end_note(run(arguments))


def run(arguments: Sequence[str] | None = None) -> int:
    """Find the verb and run it.

    Args:
        arguments: words after `coterie`; those of the process by default.

    Returns:
        The exit status: 0 done, 1 `data check` found faults, 2 usage, recipe or data, 4 checkpoint, 5 numeric,
        6 lost processes, 75 stopped and resumable, 130 interrupted, 141 nobody reads the output.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        with _plain_warnings():
            status = app(words, exit_on_error=False, print_error=False, result_action="return_value")
    except CycloptsError as error:
        return _complain(" ".join(str(error).split()), 2)
    except KeyboardInterrupt:
        return _complain("interrupted", 130)
    except BrokenPipeError:  # who reads our output has gone: end as any other program does
        with suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except Exception as error:
        status = _expected(error)
        if status is None:
            raise
        return _complain("" if _is_told_elsewhere(error) else str(error), status)
    return status if isinstance(status, int) else 0


def _expected(error: Exception) -> int | None:
    from coterie.core.errors import CoterieError

    return error.exit_code if isinstance(error, CoterieError) else None


def _is_told_elsewhere(error: Exception) -> bool:
    """Whether another process of the launch says what is wrong, or says the same."""
    from coterie.core.errors import FailedElsewhere
    from coterie.engine.interrupt import Preempted

    return isinstance(error, FailedElsewhere) or (isinstance(error, Preempted) and os.environ.get("RANK", "0") != "0")


@contextmanager
def _plain_warnings() -> Iterator[None]:
    """Show each warning as one line on standard error, without the place in the code that gave it."""
    before = warnings.showwarning

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        print(f"coterie: warning: {' '.join(str(message).split())}", file=sys.stderr)

    warnings.showwarning = show
    try:
        yield
    finally:
        warnings.showwarning = before


def _complain(message: str, status: int) -> int:
    for line in message.splitlines():
        print(f"coterie: {line}", file=sys.stderr)
    return status
