"""Runs of two processes or more under torment: each start forks ranks, as each restart of a launcher starts them."""

from __future__ import annotations

import os
import random
import signal
import time
from collections import deque
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch.distributed as dist

from coterie.config import Recipe
from coterie.core import CheckpointError, CoterieError
from coterie.core.record import RunFolder, read_metrics
from coterie.engine import CheckpointStore
from coterie.experiment import Experiment
from faults import fork, memory_folder, names
from tiny import Trace, run_in_pieces, tiny, trace

LIMIT = 10.0  # seconds in which ranks must end once one of them is gone
LONG = 600.0  # seconds in which a run must end that nobody torments
LOST = 6
MEETINGS = 6  # that are kept: several starts may be under way


class Meeting:
    """A store in a process that does nothing else, as a launcher has: ranks inherit none of its sockets.

    It is no file: a process killed while it writes there leaves half a record, at which others read for ever. The
    process ends with this one.

    Attributes:
        port: where it listens.
    """

    def __init__(self) -> None:
        (told, tell), (held, self._hold) = os.pipe(), os.pipe()

        def host() -> None:
            os.close(self._hold)
            store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
            os.write(tell, f"{store.port}".encode())
            os.close(tell)
            os.read(held, 1)  # until all who hold the other end are gone

        self._process = fork(host)
        os.close(tell)
        os.close(held)
        self.port = int(os.read(told, 16))
        os.close(told)

    def close(self) -> None:
        """End it."""
        os.close(self._hold)
        os.kill(self._process, signal.SIGKILL)
        os.waitpid(self._process, 0)


_meetings: deque[Meeting] = deque()  # of the last starts


def recipe(method: str = "mcl_okd", **settings: object) -> Recipe:
    """A tiny recipe that two ranks share, with a checkpoint after every step."""
    base: dict[str, object] = {"seed": 3, "train__checkpoint_every": 1, "train__log_every": 1, "train__threads": 1}
    return tiny(method, **{**base, "train__timeout": LIMIT, **settings})


def work(given: Recipe, folder: Path) -> Callable[[int], None]:
    """What each rank does: begin the run, or go on with it."""

    def train(rank: int) -> None:
        begun = RunFolder(folder).recipe.exists()
        Experiment(given, folder=folder, name="tiny", quiet=True).train(resume=begun)

    return train


def start(task: Callable[[int], None], size: int = 2) -> list[int]:
    """Fork ranks that do a task and may meet as those of a launcher do, in a store; their process numbers."""
    _meetings.append(Meeting())
    while len(_meetings) > MEETINGS:
        _meetings.popleft().close()
    port = _meetings[-1].port

    def as_rank(rank: int) -> None:
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": f"{port}"}
        os.environ |= {"TORCHELASTIC_USE_AGENT_STORE": "True", "RANK": f"{rank}", "WORLD_SIZE": f"{size}"}
        os.environ |= {"LOCAL_RANK": f"{rank}", "LOCAL_WORLD_SIZE": f"{size}"}
        task(rank)

    return [fork(lambda rank=rank: as_rank(rank)) for rank in range(size)]


def ended(children: list[int], limit: float = 3 * LIMIT) -> list[int]:
    """Wait for all ranks to end by themselves; their exit codes, minus the number of a signal."""
    codes: dict[int, int] = {}
    end = time.monotonic() + limit
    while len(codes) < len(children):
        if time.monotonic() > end:
            left = [child for child in children if child not in codes]
            for child in left:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
            raise AssertionError(f"{len(left)} ranks did not end within {limit} s")
        for child in children:
            if child not in codes:
                found, status = os.waitpid(child, os.WNOHANG)
                codes |= {child: os.waitstatus_to_exitcode(status)} if found else {}
        time.sleep(0.002)
    return [codes[child] for child in children]


def acknowledged(folder: Path) -> int:
    """The step of the newest checkpoint that has its name, and so counts as saved."""
    steps = CheckpointStore(RunFolder(folder).checkpoints).steps() if folder.exists() else []
    return steps[-1] if steps else 0


def check_kept(folder: Path, promised: int) -> None:
    """Nothing that was acknowledged is lost: a checkpoint as new, or newer, is whole, and its rows are there."""
    if not promised:
        return
    found = CheckpointStore(RunFolder(folder).checkpoints).load_newest(read_only=True)
    assert found is not None and found[0] >= promised, f"step {promised} was saved, {found and found[0]} is there"
    rows = [row["step"] for row in read_metrics(RunFolder(folder).metrics) if row["kind"] == "train"]
    assert set(range(1, promised + 1)) <= set(rows)


def left_behind(folder: Path) -> list[str]:
    """What an interrupted writer has left in a finished run: temporary, damaged and retired files, a signed lock."""
    found = [name for part in (folder, folder / "checkpoints", folder / "heartbeats") for name in names(part)]
    odd = [name for name in found if name.startswith((".tmp-", ".del-", ".bad-", ".old-"))]
    return odd + ["a signed lock"] * bool((folder / ".lock").read_text())


@cache
def undisturbed(given: Recipe, size: int = 2) -> Trace:
    """The trace of the run that nobody torments."""
    with memory_folder() as folder:
        run_in_pieces(tiny(), folder / "warm")  # imports what a first step needs, so that children need not
        assert ended(start(work(given, folder / "run"), size), LONG) == [0] * size
        return trace(folder / "run")


def kill_ranks(given: Recipe, folder: Path, *, seed: int, most: int, longest: float = 0.5, size: int = 2) -> int:
    """Kill one rank or all at random moments, until the run has ended or was killed often enough; then let it end.

    After each kill the ranks that were not killed must end by themselves in time, and what was saved must be there.

    Args:
        given: recipe.
        folder: new; of the run.
        seed: of moments and victims.
        most: kills.
        longest: seconds before the latest kill.
        size: number of ranks.

    Returns:
        How many kills hit a run that had not ended.
    """
    draw, kills = random.Random(seed), 0
    for _ in range(10 * most):
        children = start(work(given, folder), size)
        hit = kills < most and _kill(children, draw, longest)
        kills += hit
        promised = acknowledged(folder)
        codes = ended(children, 3 * LIMIT if hit else LONG)
        if not any(codes):
            return kills
        assert set(codes) <= {0, LOST, -signal.SIGKILL}, f"ranks ended with {codes} after {kills} kills"
        check_kept(folder, promised)
    raise AssertionError(f"the run did not end after {kills} kills")


def _kill(children: list[int], draw: random.Random, longest: float) -> bool:
    time.sleep(draw.uniform(0.01, longest))
    victims = draw.choice([children[:1], children[-1:], children])
    running = [child for child in victims if os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None]
    for child in running:
        os.kill(child, signal.SIGKILL)
    return bool(running)


def refused(task: Callable[[], object]) -> str:
    """What an expected error says."""
    try:
        task()
    except (CoterieError, CheckpointError) as error:
        return str(error)
    raise AssertionError("nothing was refused")
