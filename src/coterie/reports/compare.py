"""Reads finished run folders and puts recipes side by side, paired by seed."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coterie.core.errors import CheckpointError
from coterie.reports.plots import Series
from coterie.reports.stats import Interval, mean_interval, paired_interval
from coterie.reports.tables import ComparisonRow, ComparisonTable


@dataclass(frozen=True, slots=True, kw_only=True)
class RunResult:
    """What a finished run has to say; accuracies in percent.

    Attributes:
        recipe: name of the recipe.
        method: name of the method.
        seed: of the run.
        seconds: wall time of its training.
        leader: top-1 of the leader on the test set, last epoch.
        peers: the same of every peer.
        ensemble: the same of the ensemble.
        accuracy: epoch, from 0, to the leader's top-1 on the validation split; empty without one.
        loss: epoch, from 0, to the mean total loss of its logged rows.
    """

    recipe: str
    method: str
    seed: int
    seconds: float
    leader: float
    peers: tuple[float, ...]
    ensemble: float
    accuracy: Mapping[int, float]
    loss: Mapping[int, float]


def read_run(folder: Path) -> RunResult:
    """Read `result.json` and `metrics.jsonl` of a run folder.

    A last line of `metrics.jsonl` that was cut off is left out; a missing file means no curves.

    Args:
        folder: of a finished run.

    Raises:
        CheckpointError: the result is missing, or a file is damaged; the message names file, row and key.
    """
    path = folder / "result.json"
    if not path.is_file():
        raise CheckpointError(f"{path} is missing; finish the run first: coterie train --resume {folder}")
    where = str(path)
    result = _parse(_read(path), where)
    test = _get(_get(result, "last", where), "test", f"{where}: last")
    at = f"{where}: last.test"
    rows = _read_rows(folder / "metrics.jsonl")
    return RunResult(
        recipe=str(_get(result, "recipe", where)),
        method=str(_get(result, "method", where)),
        seed=int(_number(result, "seed", where)),
        seconds=_number(result, "seconds", where),
        leader=_number(_get(test, "leader", at), "top1", f"{at}.leader"),
        peers=_peers(test, at, folder),
        ensemble=_number(_get(test, "ensemble", at), "top1", f"{at}.ensemble"),
        accuracy=_accuracy(rows),
        loss=_loss(rows),
    )


def _peers(test: object, at: str, folder: Path) -> tuple[float, ...]:
    peers = _get(test, "peers", at)
    if not isinstance(peers, list) or not peers:
        raise CheckpointError(f"{at}.peers is not a list of scores; evaluate the run again: coterie evaluate {folder}")
    return tuple(_number(peer, "top1", f"{at}.peers[{m}]") for m, peer in enumerate(peers))


def compare_runs(runs: Iterable[RunResult]) -> ComparisonTable:
    """Put recipes side by side in the order of their first run; the first recipe is what others are compared with.

    Args:
        runs: any number of seeds of each recipe.

    Returns:
        A table with paired differences over the seeds that a recipe shares with the first one.

    Raises:
        CheckpointError: one recipe has two runs of one seed.
        DataError: no runs.
    """
    groups = _by_recipe(runs)
    first = next(iter(groups.values()), [])
    return ComparisonTable([_row(group, first) for group in groups.values()])


def curves_of(runs: Iterable[RunResult]) -> list[Series]:
    """Collect the learning curves of all seeds of each recipe, for `learning_curves`.

    Args:
        runs: any number of seeds of each recipe.

    Raises:
        CheckpointError: one recipe has two runs of one seed.
    """
    return [
        Series(name=name, accuracy=[run.accuracy for run in group], loss=[run.loss for run in group])
        for name, group in _by_recipe(runs).items()
    ]


def _by_recipe(runs: Iterable[RunResult]) -> dict[str, list[RunResult]]:
    groups: dict[str, dict[int, RunResult]] = {}
    for run in runs:
        group = groups.setdefault(run.recipe, {})
        if run.seed in group:
            raise CheckpointError(f"recipe {run.recipe!r} has two runs of seed {run.seed}; leave one of them out")
        group[run.seed] = run
    return {name: sorted(group.values(), key=lambda run: run.seed) for name, group in groups.items()}


def _row(group: Sequence[RunResult], first: Sequence[RunResult]) -> ComparisonRow:
    def over_seeds(read: Callable[[RunResult], float]) -> Interval:
        return mean_interval(list(map(read, group)))

    return ComparisonRow(
        recipe=group[0].recipe,
        method=group[0].method,
        leader=over_seeds(lambda run: run.leader),
        difference=None if group is first else _difference(group, first),
        ensemble=over_seeds(lambda run: run.ensemble),
        peers=over_seeds(lambda run: statistics.fmean(run.peers)),
        seconds=over_seeds(lambda run: run.seconds),
    )


def _difference(group: Sequence[RunResult], first: Sequence[RunResult]) -> Interval | None:
    reference = {run.seed: run.leader for run in first}
    pairs = [(run.leader, reference[run.seed]) for run in group if run.seed in reference]
    if not pairs:
        return None
    own, other = zip(*pairs, strict=True)
    return paired_interval(own, other)


def _read_rows(path: Path) -> list[tuple[dict[str, Any], str]]:
    if not path.is_file():
        return []
    *whole, rest = _read(path).split("\n")  # what follows the last line end was cut off, if anything
    lines = [(line, f"{path}, row {number}") for number, line in enumerate(whole, start=1) if line.strip()]
    return [(_parse(line, where), where) for line, where in lines] + _finished(rest, f"{path}, row {len(whole) + 1}")


def _finished(rest: str, where: str) -> list[tuple[dict[str, Any], str]]:
    try:
        return [(_parse(rest, where), where)]
    except CheckpointError:
        return []


def _accuracy(rows: Iterable[tuple[dict[str, Any], str]]) -> dict[int, float]:
    return {
        int(_number(row, "epoch", where)): _number(_get(row, "leader", where), "top1", f"{where}: leader")
        for row, where in _of_kind("validation", rows)
    }


def _loss(rows: Iterable[tuple[dict[str, Any], str]]) -> dict[int, float]:
    by_epoch: dict[int, list[float]] = {}
    for row, where in _of_kind("train", rows):
        by_epoch.setdefault(int(_number(row, "epoch", where)), []).append(_number(row, "loss", where))
    return {epoch: statistics.fmean(losses) for epoch, losses in by_epoch.items()}


def _of_kind(kind: str, rows: Iterable[tuple[dict[str, Any], str]]) -> list[tuple[dict[str, Any], str]]:
    return [(row, where) for row, where in rows if row.get("kind") == kind]


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"cannot read {path}: {error}; restore the file or leave this run out") from error


def _parse(text: str, where: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{where} is not JSON ({error}); restore the file or leave this run out") from error
    if not isinstance(found, dict):
        raise CheckpointError(f"{where} is not a table of names and values; restore the file or leave this run out")
    return found


def _get(table: object, key: str, where: str) -> Any:  # noqa: ANN401 - JSON holds anything
    if not isinstance(table, dict) or key not in table:
        raise CheckpointError(f"{where} has no {key!r}; restore the file or leave this run out")
    return table[key]


def _number(table: object, key: str, where: str) -> float:
    value = _get(table, key, where)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise CheckpointError(
            f"{where}: {key!r} is {value!r} and must be a finite number; restore it or leave this run out"
        )
    return float(value)
