"""Contracts that every layer shares: types of a step, methods, registries, errors and draws."""

from coterie.core.errors import (
    CheckpointError,
    ConfigError,
    CoterieError,
    DataError,
    MissingExtra,
    NumericError,
    ShapeError,
    UnknownName,
)
from coterie.core.method import METHODS, Episode, Facts, Memory, Method, Needs, Outer, Paper, PeerFacts
from coterie.core.registry import Registry
from coterie.core.types import Batch, PartnerOutput, PeerOutput, Peers, Term, Terms, logits_of

__all__ = [
    "METHODS",
    "Batch",
    "CheckpointError",
    "ConfigError",
    "CoterieError",
    "DataError",
    "Episode",
    "Facts",
    "Memory",
    "Method",
    "MissingExtra",
    "Needs",
    "NumericError",
    "Outer",
    "Paper",
    "PartnerOutput",
    "PeerFacts",
    "PeerOutput",
    "Peers",
    "Registry",
    "ShapeError",
    "Term",
    "Terms",
    "UnknownName",
    "logits_of",
]
