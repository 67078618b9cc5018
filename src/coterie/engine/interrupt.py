"""Polite stops: the first signal ends the run after the step and a checkpoint, the second at once."""

from __future__ import annotations

import os
import signal
import threading
import time
from types import FrameType, TracebackType
from typing import Self

from coterie.core.errors import CoterieError

_WATCH = 0.5  # seconds between two looks at the parent
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class Preempted(CoterieError):
    """The run was asked to stop, has saved a checkpoint and can be resumed (exit 75)."""

    exit_code = 75


def stop_with(parent: int) -> None:
    """Ask this process to stop politely, as by SIGTERM, once its parent is gone; returns at once.

    Args:
        parent: the process that has started this one.
    """

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_WATCH)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


class Interrupt:
    """Context in which SIGTERM, SIGINT and SIGUSR1 only raise a flag that the loop reads between steps.

    Attributes:
        asked: whether a signal has arrived.

    A second signal leaves the process at once with status 130; checkpoints on disk stay valid. Outside the main thread,
    where Python delivers no signals, the context changes nothing.
    """

    def __init__(self) -> None:
        self.asked = False
        self._before: dict[int, object] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._arrived) for number in _SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _arrived(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            os._exit(130)
        self.asked = True
