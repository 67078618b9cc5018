"""Coterie: online knowledge distillation. A cohort of networks learns together; one leader ships.

    import coterie
    outcome = coterie.train([net_a, net_b, net_c], train_set, test_set, method="mcl_okd")
    outcome.leader  # the last network, trained

Names are loaded when they are first used, so that `import coterie` and `coterie --help` stay quick.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from coterie.cohort import Cohort
    from coterie.core import (
        METHODS,
        Batch,
        CoterieError,
        Facts,
        Memory,
        Method,
        Needs,
        Outer,
        Paper,
        PeerOutput,
        Peers,
        Terms,
    )
    from coterie.data import DATA, Normalisation, Source
    from coterie.experiment import Experiment, Outcome, train
    from coterie.nets import NETS, StagedNet, TappedNet

_HOMES = {
    "coterie.core": ("METHODS Batch CoterieError Facts Memory Method Needs Outer Paper PeerOutput Peers Terms"),
    "coterie.cohort": "Cohort",
    "coterie.data": "DATA Normalisation Source",
    "coterie.experiment": "Experiment Outcome train",
    "coterie.nets": "NETS StagedNet TappedNet",
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names.split()}

__all__ = [
    "DATA",
    "METHODS",
    "NETS",
    "Batch",
    "Cohort",
    "CoterieError",
    "Experiment",
    "Facts",
    "Memory",
    "Method",
    "Needs",
    "Normalisation",
    "Outcome",
    "Outer",
    "Paper",
    "PeerOutput",
    "Peers",
    "Source",
    "StagedNet",
    "TappedNet",
    "Terms",
    "train",
]


def __getattr__(name: str) -> object:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'coterie' has no attribute {name!r}")
    return getattr(import_module(_HOME_OF[name]), name)
