"""Ways to hurt a run from a test: kill it at random or at a named point, take its rights, fill its disk.

Work runs in forked children, so a restart costs milliseconds: `import torch` happened once, in the parent. Every child
uses one thread and leaves through `os._exit`, never back into pytest.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from coterie.core import CoterieError
from coterie.core.crash import VARIABLE

Work = Callable[[], Any]
NOBODY = 65534


@dataclass(frozen=True)
class Outcome:
    """How work in a child ended: exit code (negative for a signal), error, warnings and what it returned."""

    code: int
    error: str = ""
    kind: str = ""
    warned: tuple[str, ...] = ()
    value: Any = None


@contextlib.contextmanager
def memory_folder() -> Iterator[Path]:
    """A folder in memory where there is one, readable by every user, removed at the end."""
    base = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    folder = Path(tempfile.mkdtemp(prefix="coterie-test-", dir=base))
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def names(folder: Path) -> list[str]:
    """What a folder holds, hidden names included, sorted."""
    return sorted(path.name for path in folder.iterdir())


def fork(work: Work) -> int:
    """Start work in a child process and return its number; the child exits 0, 1 or with a `CoterieError`'s code."""
    sys.stdout.flush()
    sys.stderr.flush()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of threads; children use none
        child = os.fork()
    if child:
        return child
    code = 1
    try:
        torch.set_num_threads(1)
        work()
        code = 0
    except CoterieError as error:
        code = error.exit_code
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def wait(child: int, timeout: float = 60.0) -> int:
    """Wait for a child; its exit code, or minus the number of the signal that ended it."""
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.001)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    raise AssertionError(f"child {child} did not end within {timeout} s")


def run_child(work: Work, *, crash_at: str = "") -> Outcome:
    """Run work in a child and report how it ended; `crash_at` sets the crash point, such as `*:7`."""
    read, write = os.pipe()

    def reporting() -> None:
        os.close(read)
        if crash_at:
            os.environ[VARIABLE] = crash_at
        report: dict[str, Any] = {}
        failure: BaseException | None = None
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                report["value"] = work()
            except BaseException as error:
                failure = error
                report |= {"error": str(error), "kind": type(error).__name__}
        report["warned"] = [f"{w.category.__name__}: {w.message}" for w in caught]
        os.write(write, json.dumps(report).encode())
        if failure is not None:
            raise failure

    child = fork(reporting)
    os.close(write)
    code = wait(child)
    with open(read, "rb") as pipe:  # noqa: PTH123
        report = json.loads(pipe.read() or b"{}")
    return Outcome(code, **{**report, "warned": tuple(report.get("warned", ()))})


def kill_until_done(work: Work, *, seed: int, shortest: float = 0.005, longest: float = 0.12, most: int = 500) -> int:
    """Run work in a child, kill -9 it after a random time, again and again, until it ends by itself.

    Args:
        work: continues where an earlier, killed call stopped; raises when it cannot.
        seed: of the random times.
        shortest: seconds before the earliest kill.
        longest: seconds before the latest kill.
        most: kills after which the work counts as getting nowhere.

    Returns:
        How often it was killed.
    """
    times = random.Random(seed)
    for kills in range(most):
        child = fork(work)
        patience = 1 + kills / 50  # a busy machine gets nowhere in the shortest times
        end = time.monotonic() + patience * times.uniform(shortest, longest)
        while time.monotonic() < end:
            found, status = os.waitpid(child, os.WNOHANG)
            if found:
                assert os.waitstatus_to_exitcode(status) == 0, f"work failed after {kills} kills"
                return kills
            time.sleep(0.001)
        os.kill(child, signal.SIGKILL)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if code == 0:
            return kills
        assert code == -signal.SIGKILL, f"work failed with {code} after {kills} kills"
    raise AssertionError(f"work did not end within {most} kills")


def as_nobody(work: Work) -> Work:
    """Work without the rights of root, which tests often have; call the result in a child only."""

    def unprivileged() -> Any:
        if os.getuid() == 0:
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
        return work()

    return unprivileged


def with_file_limit(size: int, work: Work) -> Work:
    """Work that cannot write a file beyond `size` bytes, as on a full disk; call the result in a child only."""

    def limited() -> Any:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
        return work()

    return limited


def lose_power(root: Path, work: Work) -> Work:
    """Work whose death at a crash point also loses what it did not bring to disk; call the result in a child only.

    The model: a file below `root` that was never fsynced is cut to half; one that grew since is cut back.
    """

    def forgetful() -> Any:
        synced = {path.stat().st_ino: path.stat().st_size for path in root.rglob("*") if path.is_file()}
        fsync, kill = os.fsync, os.kill

        def remember(descriptor: int) -> None:
            synced[os.fstat(descriptor).st_ino] = os.fstat(descriptor).st_size
            fsync(descriptor)

        def die(process: int, number: int) -> None:
            for path in root.rglob("*"):
                if path.is_file():
                    size = path.stat().st_size
                    os.truncate(path, min(size, synced.get(path.stat().st_ino, size // 2)))
            kill(process, number)

        os.fsync, os.kill = remember, die
        return work()

    return forgetful
