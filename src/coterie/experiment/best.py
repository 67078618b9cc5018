"""States of a cohort that can be scored: the last epoch, and the one that was best on the validation split."""

from __future__ import annotations

import warnings
from pathlib import Path

from torch import Tensor

from coterie.core.errors import CheckpointError
from coterie.core.files import RecordWarning
from coterie.engine import Snapshot, load_from, peer_tensors, restore_peers
from coterie.engine.snapshot import module_tensors, restore_module
from coterie.experiment.build import Parts


def scorable(parts: Parts) -> dict[str, dict[str, Tensor]]:
    """Gather what scores depend on: the tensors of every peer, and those of the method, which makes the ensemble."""
    return {**peer_tensors(parts.cohort), "method": module_tensors(parts.method)}


def restore_scorable(parts: Parts, snapshot: Snapshot) -> None:
    """Put back what `scorable` gathered.

    Raises:
        CheckpointError: peers or method are not those of the snapshot.
    """
    restore_peers(parts.cohort, snapshot)
    restore_module(parts.method, snapshot.section("method"), what="the method")


def load_best(folder: Path) -> Snapshot | None:
    """Read `best/` of a run; when it cannot be read a warning is given, as the last epoch is what counts.

    Args:
        folder: the checkpoint itself.

    Returns:
        What `scorable` gathered, with the values `epoch` and `validation`, or None.
    """
    try:
        return load_from(folder)[1]
    except CheckpointError as error:
        message = f"the weights that were best on validation cannot be read and are left out: {error}"
        warnings.warn(message, RecordWarning, stacklevel=2)
        return None
