"""States of a cohort that can be scored: the last epoch, and the one that was best on the validation split."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
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


def scores_equal(first: Snapshot, second: Snapshot) -> bool:
    """Whether two states of a run must score the same: what `scorable` gathers of them has the same bits.

    Args:
        first: what `scorable` gathered.
        second: the same, or a whole checkpoint.
    """
    same_peers = first.values.get("peers") == second.values.get("peers")
    return same_peers and all(_same(first.section(name), second.tensors.get(name, {})) for name in first.tensors)


def _same(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


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
