"""Starting the processes of a run by torch's elastic launcher, with the settings that were found to be safe.

What `torchrun` does by itself, this does too: it starts processes, watches them and starts all of them again when one
has failed. Besides, a process that is started again goes on with the run that its launch began; what must not be
started again, a polite stop for instance, is not; and the exit status is the run's.
"""

from __future__ import annotations

import logging
import os
import re
import signal
import sys
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields, replace
from inspect import signature
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from coterie.core.errors import CheckpointError, ConfigError, ParallelError, one_line
from coterie.core.record import RunFolder, Status
from coterie.engine.cores import usable_cores
from coterie.experiment.hosts import interface_of, is_here, limit_silence, own_address
from coterie.experiment.launched import JOB, NOTES, read_notes

_LOST = ParallelError.exit_code
_SIGNALS = ("SIGTERM", "SIGINT", "SIGQUIT", "SIGUSR1")
_PLACE = re.compile(r"(.+):(\d+)")
_LOOK = 0.2  # seconds between two looks at the processes
_SHORTEST_JOIN = 60  # seconds that hosts wait to meet; of one that is gone they know only after 15
_LONGEST_CALL = 30  # seconds that hosts which are enough wait for more


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """How processes are started.

    Attributes:
        processes: on this host.
        nodes: smallest and largest number of hosts.
        host: where several hosts meet; empty for one host.
        port: of that host.
        job: name of this launch, the same on all hosts.
        restarts: after failures.
        timeout: seconds that hosts wait for each other.
        grace: seconds that processes have to end by themselves.
    """

    processes: int
    nodes: tuple[int, int]
    host: str
    port: int
    job: str
    restarts: int
    timeout: int
    grace: int


class _Stopped(BaseException):
    """The launcher was asked to stop before torch's own handlers of signals were set."""


def plan_launch(
    *, processes: int, nodes: str, rendezvous: str, job: str, restarts: int, timeout: float | None, grace: int
) -> Launch:
    """Check the options of a launch.

    Args:
        processes: on this host; 0 for one for each accelerator.
        nodes: number of hosts, or `MIN:MAX`.
        rendezvous: `HOST:PORT`; needed for several hosts.
        job: name of the launch; needed for several hosts.
        restarts: after failures.
        timeout: seconds that hosts wait for each other; 600 when None.
        grace: seconds that processes have to end by themselves.

    Raises:
        ConfigError: one of them is wrong, or one is missing.
    """
    seconds = 600.0 if timeout is None else timeout
    _check_amounts(min(processes, restarts), min(grace, seconds))
    span = _span(nodes)
    host, port = _place(rendezvous)
    _check_meeting(host, job, span[1])
    return Launch(
        processes=processes or max(1, torch.accelerator.device_count()),
        nodes=span,
        host=host,
        port=port,
        job=job if host else uuid.uuid4().hex,
        restarts=restarts,
        timeout=int(seconds),
        grace=grace,
    )


def run_launch(launch: Launch, words: Sequence[str], folder: Path) -> int:
    """Start processes that run `coterie` with the same words, until the run has ended or cannot go on.

    Args:
        launch: how.
        words: of the command line.
        folder: of the run.

    Returns:
        The exit status of the run.

    Raises:
        ParallelError: the hosts do not meet, or processes fail more often than they may be started again.
    """
    if launch.host:
        limit_silence(min(_SHORTEST_JOIN, launch.timeout))
    with tempfile.TemporaryDirectory(prefix="coterie-launch-") as scratch, _quiet(), _stoppable():
        notes = Path(scratch)
        os.environ.update(_environment(launch, notes))
        command = ["-u", "-m", "coterie", *words]
        try:
            return _run_group(launch, command, notes)
        except ParallelError as error:
            raise ParallelError(f"{error}; {_next_step(folder)}") from None
        finally:
            _close_record(folder)


def _run_group(launch: Launch, command: list[str], notes: Path) -> int:
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous import RendezvousError
    from torch.distributed.launcher.api import elastic_launch

    try:
        elastic_launch(_config(launch, notes), sys.executable)(*command)
    except (SignalException, _Stopped):
        return _stopped(launch, notes)
    except ChildFailedError as error:
        return _failed(error, launch, notes)
    except (RendezvousError, RuntimeError, TimeoutError, OSError) as error:
        raise _not_met(launch, error) from error
    if _unfinished(launch, notes):
        raise ParallelError("a process has left before the run was done, with status 0")
    return max(read_notes(notes), default=0)


def _not_met(launch: Launch, error: Exception) -> ParallelError:
    reason = one_line(error.__cause__ if isinstance(error.__cause__, Exception) else error)
    return ParallelError(
        f"the hosts have not met at {launch.host}:{launch.port} ({reason[:120]}); start all of them, and let"
        " --rendezvous name one of them and a free port of it"
    )


def _stopped(launch: Launch, notes: Path) -> int:
    """The status of a run whose launcher was asked to stop."""
    by_itself = 75 if _unfinished(launch, notes) else 0
    return next(filter(None, read_notes(notes)), by_itself)


def _unfinished(launch: Launch, notes: Path) -> bool:
    return len(read_notes(notes)) < launch.processes


def _failed(error: Any, launch: Launch, notes: Path) -> int:  # noqa: ANN401
    rank, failure = min(error.failures.items(), key=lambda item: item[1].timestamp)
    known = [status for status in read_notes(notes) if status not in (0, _LOST)]
    if known:
        return known[0]  # a mistake of ours: the process has shown where
    raise ParallelError(
        f"process {rank} {_end_by(failure.exitcode)}, and {launch.restarts} restarts were not enough"
    ) from None


def _end_by(code: int) -> str:
    return f"was ended by signal {-code}" if code < 0 else f"left with status {code}"


def _config(launch: Launch, notes: Path) -> Any:  # noqa: ANN401
    """Torch's description of a launch; words that this version does not know are left out."""
    from torch.distributed.launcher.api import LaunchConfig

    known = {field.name for field in fields(LaunchConfig)} & set(signature(LaunchConfig).parameters)
    return LaunchConfig(**{name: value for name, value in _words(launch, notes).items() if name in known})


def _words(launch: Launch, notes: Path) -> dict[str, Any]:
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs

    wait = {"join_timeout": max(_SHORTEST_JOIN, launch.timeout), "read_timeout": min(60, launch.timeout)}
    call = {"last_call_timeout": min(_LONGEST_CALL, launch.timeout)}
    return {
        "min_nodes": launch.nodes[0],
        "max_nodes": launch.nodes[1],
        "nproc_per_node": launch.processes,
        "run_id": launch.job,
        "rdzv_backend": "c10d",
        "rdzv_endpoint": f"{launch.host or '127.0.0.1'}:{launch.port}",
        "rdzv_configs": {"is_host": is_here(launch.host), **wait, **call},
        "max_restarts": launch.restarts,
        "monitor_interval": _LOOK,
        "local_addr": own_address(launch.host, launch.port),
        "logs_specs": DefaultLogsSpecs(log_dir=str(notes / "logs")),
        "signals_to_handle": ",".join(_SIGNALS),
        "shutdown_timeout": launch.grace,
    }


def _environment(launch: Launch, notes: Path) -> dict[str, str]:
    """Variables of the processes; what the user has set stays."""
    wanted = {
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",  # or gloo reads stale addresses after a restart
        "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": str(launch.grace),
        "OMP_NUM_THREADS": str(max(1, usable_cores() // launch.processes)),
    }
    interface = interface_of(own_address(launch.host, launch.port))
    if interface:
        wanted["GLOO_SOCKET_IFNAME"] = interface  # or gloo asks for the address of a name that may have none
    kept = {name: os.environ.get(name, value) for name, value in wanted.items()}
    return {**kept, JOB: launch.job, NOTES: str(notes)}


def _span(nodes: str) -> tuple[int, int]:
    least, colon, most = nodes.partition(":")
    most = most if colon else least
    if not (least.isdecimal() and most.isdecimal() and 0 < int(least) <= int(most)):
        raise ConfigError(f"--nodes {nodes!r} must be a number of hosts, or MIN:MAX")
    return int(least), int(most)


def _check_amounts(count: int, seconds: float) -> None:
    if count < 0 or seconds < 1:
        raise ConfigError("--processes and --restarts must be at least 0, --timeout and --grace at least 1 second")


def _check_meeting(host: str, job: str, hosts: int) -> None:
    if hosts > 1 and not host:
        raise ConfigError(
            "several hosts need a place to meet; give --rendezvous HOST:PORT, one of them and a free port"
        )
    if host and not job:
        raise ConfigError("give --job NAME, the same on all hosts and another one for each launch")


def _place(rendezvous: str) -> tuple[str, int]:
    if not rendezvous:
        return "", 0
    found = _PLACE.fullmatch(rendezvous)
    if found is None or int(found[2]) not in range(1, 65536):
        raise ConfigError(f"--rendezvous {rendezvous!r} must be HOST:PORT, such as node1:29500")
    return found[1], int(found[2])


@contextmanager
def _stoppable() -> Iterator[None]:
    """Context in which a signal ends the launcher in order, also before and after torch listens for it."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise _Stopped

    before = {name: signal.signal(getattr(signal, name), stop) for name in _SIGNALS}
    hung_up = signal.getsignal(signal.SIGHUP)
    if hung_up is signal.SIG_DFL:  # a lost terminal is a reason to save, which SIGHUP itself is not to the processes
        signal.signal(signal.SIGHUP, lambda number, frame: os.kill(os.getpid(), signal.SIGTERM))
    try:
        yield
    finally:
        for name, handler in before.items():
            signal.signal(getattr(signal, name), handler)
        signal.signal(signal.SIGHUP, hung_up)


class _OneLine(logging.Handler):
    """Says what torch's launcher reports as an error in one line."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print the first line of a record."""
        text = record.getMessage().strip().partition("\n")[0][:200]
        print(f"coterie: launcher: {text}", file=sys.stderr, flush=True)


@contextmanager
def _quiet() -> Iterator[None]:
    """Context in which torch's launcher says errors only, each in a line."""
    import torch.distributed.run  # noqa: F401 (makes its loggers)

    for name in [name for name in logging.root.manager.loggerDict if name.startswith("torch.distributed")]:
        _send_to(name, [], propagate=True)
    _send_to("torch.distributed", [_OneLine(logging.ERROR)], propagate=False)
    yield


def _send_to(name: str, handlers: list[logging.Handler], *, propagate: bool) -> None:
    logger = logging.getLogger(name)
    logger.handlers, logger.propagate = handlers, propagate


def _close_record(folder: Path) -> None:
    """Let the status of a run say that it has failed, when whoever would have said so was killed."""
    run = RunFolder(folder)
    with suppress(CheckpointError):
        status = run.read_status()
        if status is not None and status.state == "running":
            _write_failed(run, status)


def _write_failed(run: RunFolder, status: Status) -> None:
    with run.lock():
        message = "its processes were ended before they could say why"
        run.write_status(replace(status, state="failed", exit_code=_LOST, message=message))


def _next_step(folder: Path) -> str:
    return f"go on with: coterie train --resume {folder}, under coterie launch or alone"
