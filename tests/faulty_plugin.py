"""A plug-in that hurts one process of a launch: COTERIE_TEST_FAULT=KIND:RANK:STEP:LIVES, in its first LIVES lives.

Kinds: `kill` and `stop` send SIGKILL and SIGSTOP, `raise` raises, `exit` leaves with status 0, `stuck` waits for data
that do not come, `nan` makes the images of one batch no numbers. Lives are counted in the folder of COTERIE_TEST_LIVES.
"""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

from coterie.core.types import Batch
from coterie.data.loaders import ArrayLoader


def hurt(kind: str, batch: Batch) -> Batch:
    if kind in ("kill", "stop"):
        os.kill(os.getpid(), signal.SIGKILL if kind == "kill" else signal.SIGSTOP)
    if kind == "raise":
        raise RuntimeError("a mistake of ours")
    if kind == "exit":
        os._exit(0)
    if kind == "stuck":
        time.sleep(1000)
    return batch.with_views(batch.views * float("nan")) if kind == "nan" else batch


def arm(kind: str, step: int, lives: int, folder: Path) -> None:
    batches = ArrayLoader.batches

    def hurting(self: ArrayLoader, epoch: int, start: int = 0) -> Iterator[Batch]:
        for batch in batches(self, epoch, start):
            life = len(list(folder.glob("life-*")))
            if int(batch.step) >= step and life < lives:
                (folder / f"life-{life}").touch()
                yield hurt(kind, batch)
            else:
                yield batch

    ArrayLoader.batches = hurting


fault = os.environ.get("COTERIE_TEST_FAULT", "")
if fault and os.environ.get("RANK") == fault.split(":")[1]:
    kind, _, step, lives = fault.split(":")
    arm(kind, int(step), int(lives), Path(os.environ["COTERIE_TEST_LIVES"]))
