"""Runs whose checkpoints are kept in a second place too: begun, gone on with, and fetched to another machine."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Literal

from coterie.config import Recipe
from coterie.core.errors import CheckpointError, ConfigError
from coterie.core.record import RunFolder
from coterie.engine import CheckpointStore, Mirror, Remote, Uploads


def prepare_mirror(recipe: Recipe, folder: RunFolder, begin: Literal["start", "start_over", "resume"]) -> None:
    """Find out whether `train.mirror` can be used, and fetch what is newer there than on this machine.

    Args:
        recipe: names it, or none.
        folder: of the run, locked.
        begin: how the run begins.

    Raises:
        ConfigError: the address cannot be used, or a new run would mix with the one that is there.
        CheckpointError: it cannot be reached.
    """
    if not (recipe.train.mirror and folder.writes):
        return
    mirror = Mirror(Remote(recipe.train.mirror), folder)
    if begin == "resume":
        catch_up(mirror, CheckpointStore(folder.checkpoints))
    elif mirror.steps():
        raise ConfigError(
            f"train.mirror={recipe.train.mirror!r} holds a run already; go on with it by coterie train --resume"
            f" {recipe.train.mirror} --out FOLDER, or give another train.mirror"
        )


def catch_up(mirror: Mirror, store: CheckpointStore) -> int | None:
    """Fetch the newest whole checkpoint of a mirror when it is newer than all whole ones on this machine.

    Returns:
        The step that was fetched, or None.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what is damaged is named when the run is opened
        try:
            found = store.load_newest(read_only=True)
        except CheckpointError:
            found = None
    return mirror.fetch(after=-1 if found is None else found[0])


def fetch_run(url: str, folder: Path) -> None:
    """Bring recipe and environment of a run that is kept elsewhere to a folder of this machine, where it can go on.

    Args:
        url: the `train.mirror` of the run.
        folder: where it goes on; a run that is there stays as it is.

    Raises:
        ConfigError: there is no run.
        CheckpointError: the place cannot be reached.
    """
    run = RunFolder(folder)
    if run.recipe.exists():
        return
    if not Mirror(Remote(url), run.create()).fetch_small():
        raise ConfigError(f"{url!r} holds no run (no recipe.toml); give the train.mirror of one")


def uploads_for(recipe: Recipe, folder: RunFolder, store: CheckpointStore) -> Uploads | None:
    """What copies the checkpoints of a run elsewhere; None where the recipe names no place or others write."""
    if not (recipe.train.mirror and folder.writes):
        return None
    return Uploads(Mirror(Remote(recipe.train.mirror), folder), store, patience=recipe.train.timeout)
