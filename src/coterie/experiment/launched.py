"""What a process knows of the `coterie launch` that has started it, and how it tells that launch how it ended."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from coterie.core.record import RunFolder
from coterie.engine import stop_with

JOB = "COTERIE_LAUNCH"
"""Variable that names the launch; the same on all its hosts."""

NOTES = "COTERIE_LAUNCH_NOTES"
"""Variable that names the folder in which the processes of a host note how they ended."""

FINAL = frozenset({0, 2, 4, 5, 75, 130, 141})
"""Exit statuses after which another start would end in the same way, or is not wanted."""


def launch_facts() -> dict[str, str]:
    """What of this launch is written into `environment.json` of a run that it begins."""
    return {"launch": os.environ[JOB]} if os.environ.get(JOB) else {}


def was_begun_by_this_launch(folder: RunFolder) -> bool:
    """Whether a folder holds a run that this launch began, which a restarted process goes on with."""
    facts = launch_facts()
    return bool(facts) and folder.recipe.exists() and folder.read_environment().get("launch") == facts["launch"]


def begin_note() -> None:
    """Forget how this process's place ended before a restart, and end when the launcher is gone."""
    path = _path()
    if path is not None:
        path.unlink(missing_ok=True)
        stop_with(os.getppid())


def end_note(status: int) -> int:
    """Note the exit status of this process for its launcher.

    Args:
        status: of the process.

    Returns:
        What the process leaves with: 0 for whatever must not be started again, as `torchrun` restarts after all else.
    """
    path = _path()
    if path is None:
        return status
    with suppress(OSError):
        path.write_text(str(status), encoding="utf-8")
    return 0 if status in FINAL else status


def read_notes(folder: Path) -> list[int]:
    """Exit statuses that the processes of this host have noted, in order of their numbers."""
    return [int(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("ended-*"))]


def _path() -> Path | None:
    folder = os.environ.get(NOTES)
    return Path(folder) / f"ended-{int(os.environ.get('LOCAL_RANK', '0')):04d}" if folder else None
