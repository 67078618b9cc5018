"""A store for `train.mirror` that fails when a test says so: `faulty:///some/folder` is a folder of this machine."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import fsspec
from fsspec.implementations.local import LocalFileSystem

Plan = Callable[[str, str], None]


class FaultyStore(LocalFileSystem):
    """Asks a plan before everything it does; `put_file` may also stop half-way.

    Attributes:
        plan: told `put`, `pipe`, `get`, `ls` or `rm` and the path; raises to fail.
        torn: paths that end so lose their second half, and the writer is told of an error.
        done: what was asked for, in order.
    """

    protocol = "faulty"
    cachable = False
    plan: Plan = staticmethod(lambda what, path: None)  # type: ignore[assignment]
    torn: tuple[str, ...] = ()
    done: ClassVar[list[tuple[str, str]]] = []

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        return LocalFileSystem._strip_protocol(path.replace("faulty://", "file://") if isinstance(path, str) else path)

    def _ask(self, what: str, path: str) -> None:
        type(self).done.append((what, path))
        type(self).plan(what, path)

    def put_file(self, lpath: str, rpath: str, *args: Any, **options: Any) -> None:
        self._ask("put", rpath)
        if rpath.endswith(self.torn) and self.torn:
            content = Path(lpath).read_bytes()
            os.makedirs(os.path.dirname(rpath), exist_ok=True)  # noqa: PTH103, PTH120
            Path(rpath).write_bytes(content[: len(content) // 2])
            raise OSError("connection reset")
        super().put_file(lpath, rpath, *args, **options)

    def pipe_file(self, path: str, value: bytes, *args: Any, **options: Any) -> None:
        self._ask("pipe", path)
        super().pipe_file(path, value, *args, **options)

    def get_file(self, path: str, *args: Any, **options: Any) -> None:
        self._ask("get", path)
        super().get_file(path, *args, **options)

    def ls(self, path: str, *args: Any, **options: Any) -> Any:
        self._ask("ls", path)
        return super().ls(path, *args, **options)

    def rm(self, path: str, *args: Any, **options: Any) -> None:
        self._ask("rm", path)
        super().rm(path, *args, **options)


fsspec.register_implementation("faulty", FaultyStore, clobber=True)


@contextmanager
def store_with(plan: Plan | None = None, torn: tuple[str, ...] = ()) -> Iterator[list[tuple[str, str]]]:
    """Context in which the store fails by a plan; yields what it is asked for."""
    before = FaultyStore.plan, FaultyStore.torn, FaultyStore.done
    FaultyStore.plan = staticmethod(plan or (lambda what, path: None))  # type: ignore[assignment,method-assign]
    FaultyStore.torn, FaultyStore.done = torn, []
    try:
        yield FaultyStore.done
    finally:
        FaultyStore.plan, FaultyStore.torn, FaultyStore.done = before  # type: ignore[method-assign]


def failing(times: int, what: str = "put") -> Plan:
    """A plan by which the first so many requests of a kind fail."""
    left = [times]

    def plan(asked: str, path: str) -> None:
        if asked == what and left[0]:
            left[0] -= 1
            raise OSError("no route to host")

    return plan


def slow(seconds: float, what: str = "put") -> Plan:
    """A plan by which requests of a kind take their time."""
    return lambda asked, path: time.sleep(seconds) if asked == what else None
