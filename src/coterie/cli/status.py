"""`coterie status`: how a run stands."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from coterie.experiment.standing import Standing


def status(run: Path, *, json: bool = False) -> int:
    """Say how far a run is, what each of its processes was last heard to do, and how to go on.

    Parameters
    ----------
    run
        Folder of the run.
    json
        Print one JSON object instead.
    """
    from dataclasses import asdict
    from json import dumps

    from coterie.experiment.standing import standing_of

    found = standing_of(run)
    if json:
        print(dumps(asdict(found), indent=2))
        return 0
    _show(run, found)
    return 0


def _show(run: Path, found: Standing) -> None:
    ended = "" if found.exit_code is None else f", exit status {found.exit_code}"
    print(f"{run}: {found.state}{ended}, epoch {found.epoch + (found.state == 'running')}, {found.step} batches done")
    _say("because", found.message)
    if found.state != "done":
        _show_signs(found)
    print("no checkpoint yet" if found.checkpoint is None else f"newest checkpoint: after {found.checkpoint} batches")
    _say("go on with", found.next)


def _say(label: str, text: str) -> None:
    if text:
        print(f"{label}: {text}")


def _show_signs(found: Standing) -> None:
    for sign, age in zip(found.signs, found.ages, strict=True):
        where = f"process {sign.process} on {sign.host}"
        print(f"rank {sign.rank} ({where}): phase {sign.phase} of step {sign.step}, heard {age:.0f} s ago")
