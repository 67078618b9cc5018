"""What may differ between a run and its continuation, and the refusal of everything else."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping

from coterie.config import resolve, to_toml
from coterie.core.errors import CheckpointError, ConfigError
from coterie.core.files import JsonValue

MAY_CHANGE = frozenset(
    {
        "data.root",
        "data.workers",
        "data.memory_mb",
        "teacher.weights",
        "teacher.cache",
        "exchange.folder",
        "exchange.keep",
        "exchange.timeout",
        "train.device",
        "train.threads",
        "train.keep",
        "train.keep_every",
        "train.background_saves",
        "train.mirror",
        "train.checkpoint_every",
        "train.timeout",
        "train.peer_ranks",
        "train.shard",
    }
)
"""Settings that decide where and how a run is computed, not what; a continued run may have others."""


def differences(before: str, now: str) -> dict[str, tuple[object, object]]:
    """Compare two recipes, each in full as TOML text.

    A key that a text of an earlier version does not have counts as its default, which did what that version did.

    Returns:
        Dotted key to the values before and now, for every key whose values differ.
    """
    old, new = map(_flat, _in_full(tomllib.loads(before), tomllib.loads(now)))
    return {
        key: (old.get(key), new.get(key)) for key in sorted(old.keys() | new.keys()) if old.get(key) != new.get(key)
    }


def check_unchanged(before: Mapping[str, JsonValue], now: Mapping[str, JsonValue]) -> None:
    """Refuse to continue a run with another recipe or other data.

    Args:
        before: facts stored with the checkpoint: `recipe` as TOML text, `data` as fingerprint of the training set,
            `teachers` as digest of their weights.
        now: the same facts of the process that wants to continue.

    Raises:
        CheckpointError: they differ in more than `MAY_CHANGE`; the differences are named.
    """
    _check_recipe(str(before.get("recipe")), str(now.get("recipe")))
    if before.get("data") != now.get("data"):
        raise CheckpointError("the training set has changed since the run was begun; restore it or start a new run")
    if before.get("teachers") != now.get("teachers"):
        raise CheckpointError("the teachers are others than when the run was begun; restore them or start a new run")


def _check_recipe(before: str, now: str) -> None:
    changed = {key: values for key, values in differences(before, now).items() if key not in MAY_CHANGE}
    if changed:
        listed = ", ".join(f"{key} {old!r} -> {new!r}" for key, (old, new) in changed.items())
        raise CheckpointError(f"the run was begun with another recipe ({listed}); resume without these changes")


def _in_full(*trees: dict[str, object]) -> tuple[dict[str, object], ...]:
    try:
        return tuple(tomllib.loads(to_toml(resolve(tree))) for tree in trees)
    except ConfigError:  # a method that is not loaded, a key that is gone: both are compared as written
        return trees


def _flat(tree: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    flat: dict[str, object] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat
