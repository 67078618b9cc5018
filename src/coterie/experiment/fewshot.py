"""Trained cohorts on classes they have not seen: accuracy over episodes, and paired differences between two runs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch import Tensor

from coterie.config import FewshotConfig
from coterie.core.draws import mix
from coterie.core.files import write_json_atomically
from coterie.engine import Snapshot
from coterie.evaluation.fewshot import EpisodeAccuracies, draw_episodes, mean_of_episodes, score_episodes
from coterie.experiment.best import restore_scorable, scores_equal
from coterie.experiment.build import runtime
from coterie.experiment.experiment import Experiment, head_of
from coterie.experiment.finished import states_of
from coterie.experiment.new_classes import check_same_images, check_unseen
from coterie.experiment.phases import peers_in
from coterie.experiment.runs import open_run
from coterie.reports import Interval, verdict

Row = dict[str, Any]
_ENSEMBLE = "mean of the probabilities of all peers"


@dataclass(frozen=True, slots=True)
class _Embedded:
    """One state of a run, run once over the test images.

    Attributes:
        state: its name, as in `result.json`.
        embeddings: of each peer, `[N, D]`.
        labels: `[N]` int64.
        head: how the embeddings are read.
        leader: index of the leader.
        data: name and fingerprint of the test images.
    """

    state: str
    embeddings: list[Tensor]
    labels: Tensor
    head: str
    leader: int
    data: tuple[str, str]

    def accuracies(self, config: FewshotConfig) -> EpisodeAccuracies:
        """Score every peer and the ensemble, episode by episode."""
        rows = draw_episodes(self.labels, config, "the test set")
        return score_episodes(self.embeddings, rows, shots=config.shots, head=self.head, leader=self.leader)


def fewshot_run(
    folder: Path,
    overrides: Sequence[str] = (),
    *,
    ways: Sequence[int] = (),
    shots: Sequence[int] = (),
    against: Path | None = None,
    plugins: Iterable[Path] = (),
    console: Console | None = None,
) -> dict[str, Any]:
    """Score a run on new classes for all ways and shots, and write `fewshot.json` in its folder.

    Args:
        folder: of the run.
        overrides: settings that differ from the run's recipe, such as `fewshot.episodes=600` or `data.root=DIR`.
        ways: classes in an episode; those of `fewshot.ways` when empty.
        shots: images of each class to learn from; those of `fewshot.shots` when empty.
        against: folder of another run; differences to it are measured on the same episodes.
        plugins: Python files that register what the recipes name.
        console: where to print tables; nowhere when None.

    Returns:
        What `fewshot.json` holds.

    Raises:
        CoterieError: runs or data cannot be used, or the test classes are too few for an episode.
    """
    experiment = open_run(folder, overrides, plugins)
    config = experiment.recipe.fewshot
    columns = columns_of(config, ways, shots)
    other = None if against is None else next(_embedded(open_run(against, overrides, plugins)))
    states = _embedded(experiment)
    rows, differences = _measured(next(states), columns, other)
    for state in states:
        rows += _measured(state, columns, None)[0]
    record: Row = {
        "episodes": config.episodes,
        "queries": config.queries,
        "seed": config.seed,
        "ensemble": _ENSEMBLE,
        "rows": rows,
        "against": None if against is None else str(against),
        "differences": differences,
    }
    write_json_atomically(experiment.folder.path / "fewshot.json", record)
    if console is not None:
        _show(record, str(folder), console)
    return record


def columns_of(config: FewshotConfig, ways: Sequence[int] = (), shots: Sequence[int] = ()) -> list[FewshotConfig]:
    """What is scored for all ways and shots; those of the configuration where there are none.

    Example:
        >>> [(column.ways, column.shots) for column in columns_of(FewshotConfig(), ways=[5, 20])]
        [(5, 1), (20, 1)]
    """
    return [replace(config, ways=w, shots=s) for w, s in product(ways or [config.ways], shots or [config.shots])]


def _measured(own: _Embedded, columns: Iterable[FewshotConfig], other: _Embedded | None) -> tuple[list[Row], list[Row]]:
    """Rows of one state, and its differences to another run where there is one."""
    rows, differences = [], []
    for column in columns:
        accuracies = own.accuracies(column)
        rows.append(_row(own, column, accuracies))
        if other is not None:
            differences.append(_difference(own, other, column, accuracies))
    return rows, differences


def fewshot_table(rows: Iterable[Row]) -> Table:
    """Lay the rows of `fewshot.json` out for a terminal: accuracies in percent and their 95 % intervals."""
    table = Table("weights", box=None, pad_edge=False)
    for heading in ("ways", "shots", "leader", "peers", "ensemble"):
        table.add_column(heading, justify="right")
    for row in rows:
        peers = ", ".join(f"{peer['top1']:.2f}" for peer in row["peers"])
        state = row["state"].replace("_", " ")
        leader, ensemble = _figure(row["leader"]), _figure(row["ensemble"])
        table.add_row(state, str(row["ways"]), str(row["shots"]), leader, Text(peers), ensemble)
    return table


def _figure(scores: Row) -> str:
    return f"{scores['top1']:.2f} +- {scores['interval']:.2f}"


def _embedded(experiment: Experiment) -> Iterator[_Embedded]:
    """Run each state of a run over the test images, the last epoch first; equal states are run once."""
    recipe = experiment.recipe
    with runtime(recipe.train, mix(recipe.seed, "globals")):
        (name, newest), *others = states_of(experiment)
        first = _embed(experiment, name, newest)
        yield first
        for state, snapshot in others:
            equal = scores_equal(snapshot, newest)
            yield replace(first, state=state) if equal else _embed(experiment, state, snapshot)


def _embed(experiment: Experiment, state: str, snapshot: Snapshot) -> _Embedded:
    parts = experiment.build(peers_in(snapshot, experiment.recipe))
    check_unseen(parts.data)
    restore_scorable(parts, snapshot)
    test = parts.data.test()
    embeddings, labels = experiment.embeddings(parts, test)
    data, head = (parts.data.name, test.fingerprint()), head_of(parts, experiment.recipe.fewshot)
    return _Embedded(state, embeddings, labels, head, parts.cohort.leader, data)


def _row(own: _Embedded, config: FewshotConfig, accuracies: EpisodeAccuracies) -> Row:
    facts = {"state": own.state, "ways": config.ways, "shots": config.shots, "head": own.head}
    return {**facts, **accuracies.scores().as_dict()}


def _difference(own: _Embedded, other: _Embedded, config: FewshotConfig, mine: EpisodeAccuracies) -> Row:
    """Paired differences of the leaders and of the ensembles, in percentage points."""
    check_same_images(own.data, other.data)
    theirs = other.accuracies(config)
    pairs = {
        "leader": (mine.values[mine.leader], theirs.values[theirs.leader]),
        "ensemble": (mine.values[-1], theirs.values[-1]),
    }
    return {
        "ways": config.ways,
        "shots": config.shots,
        "states": [own.state, other.state],
        **{name: _paired(*values) for name, values in pairs.items()},
    }


def _paired(mine: Tensor, theirs: Tensor) -> Row:
    gap = mine - theirs
    found = mean_of_episodes(gap)
    interval = Interval(
        mean=found.top1, std=found.interval * math.sqrt(len(gap)) / 1.96, half=found.interval, count=len(gap)
    )
    words = verdict(interval, pairs="episodes")
    return {"mean": found.top1, "interval": found.interval, "episodes": found.episodes, "verdict": words}


def _show(record: dict[str, Any], name: str, console: Console) -> None:
    def say(line: str) -> None:
        console.print(line, highlight=False, soft_wrap=True, markup=False)

    console.print(fewshot_table(record["rows"]))
    say(f"{record['episodes']} episodes of {record['queries']} queries a class, accuracy in %")
    for row, who in product(record["differences"], ("leader", "ensemble")):
        title = f"{row['ways']} ways, {row['shots']} shots: {who} of {name} against {record['against']}"
        say(f"{title}: {row[who]['verdict']}")
