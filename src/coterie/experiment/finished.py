"""What is done with a finished run: its cohort is restored, scored and exported."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text

from coterie.core.draws import mix
from coterie.core.errors import CheckpointError
from coterie.core.files import read_json
from coterie.engine import CheckpointStore, restore_peers
from coterie.engine.snapshot import Snapshot
from coterie.evaluation.export import ExportReport, export_leader, report_table
from coterie.evaluation.model_card import ModelCard
from coterie.experiment.best import load_best, restore_scorable, scores_equal
from coterie.experiment.build import Parts, build_nets, runtime
from coterie.experiment.experiment import Experiment
from coterie.experiment.phases import peers_in
from coterie.experiment.runs import open_run

_COLUMNS = {
    "top1": ("top-1 %", ".2f"),
    "top5": ("top-5 %", ".2f"),
    "nll": ("NLL", ".4f"),
    "ece": ("ECE", ".4f"),
    "intra": ("intra", ".3f"),
    "inter": ("inter", ".3f"),
    "interval": ("95 % +-", ".2f"),
    "episodes": ("episodes", ".0f"),
}  # what may have been measured: heading and format


def evaluate_run(
    folder: Path, overrides: Sequence[str] = (), *, plugins: Iterable[Path] = (), console: Console | None = None
) -> dict[str, Any]:
    """Score leader, every peer and the ensemble of a run on the test set.

    Args:
        folder: of the run.
        overrides: settings that differ from the run's recipe, such as `data.root=DIR`.
        plugins: Python files that register what the recipe names.
        console: where to print the table; nowhere when None.

    Returns:
        `last_epoch` (`newest_checkpoint` of a run that is not finished) and, when a validation split was held out,
        `best_on_validation`: scores as in `result.json`.

    Raises:
        CoterieError: the folder, its checkpoints or the data cannot be used.
    """
    experiment = open_run(folder, overrides, plugins)
    with runtime(experiment.recipe.train, mix(experiment.recipe.seed, "globals")):
        scores: dict[str, Any] = {}
        tables = []
        states = states_of(experiment)
        for title, snapshot in states:
            parts = experiment.build(peers_in(snapshot, experiment.recipe))
            known = scores.get(states[0][0]) if scores_equal(snapshot, states[0][1]) else None
            scores[title] = known or _scored(experiment, parts, snapshot)
            tables.append(score_rows(title, scores[title], leader=parts.cohort.leader, names=parts.names))
    if console is not None:
        console.print(score_table(row for rows in tables for row in rows))
    return scores


def _scored(experiment: Experiment, parts: Parts, snapshot: Snapshot) -> dict[str, Any]:
    restore_scorable(parts, snapshot)
    return experiment.score(parts, parts.data.test()).as_dict()


def score_rows(
    title: str, scores: dict[str, Any], *, leader: int, names: Sequence[str]
) -> list[tuple[str, str, dict[str, float]]]:
    """Title, network and scores of the leader, of each peer and of the ensemble of one state."""
    rows = [(f"leader (peer {leader}, {names[leader]})", scores["leader"])]
    rows += [(f"peer {m}, {names[m]}", row) for m, row in enumerate(scores["peers"])]
    return [(title.replace("_", " "), name, row) for name, row in [*rows, ("ensemble", scores["ensemble"])]]


def score_table(rows: Iterable[tuple[str, str, dict[str, float]]]) -> Table:
    """Lay out what `score_rows` returned for a terminal."""
    rows = list(rows)
    measured = [name for name in _COLUMNS if any(name in row for _, _, row in rows)]
    table = Table("weights", "network", box=None, pad_edge=False)
    for heading, _ in map(_COLUMNS.__getitem__, measured):
        table.add_column(heading, justify="right", no_wrap=True)
    for title, name, row in rows:
        table.add_row(title, Text(name), *(f"{row[key]:{_COLUMNS[key][1]}}" if key in row else "" for key in measured))
    return table


def export_run(
    folder: Path, out: Path | None = None, *, plugins: Iterable[Path] = (), console: Console | None = None
) -> ExportReport:
    """Write the leader of a run, from its last checkpoint, as files that load without this package.

    Args:
        folder: of the run.
        out: folder to write; `export/` in the run's by default.
        plugins: Python files that register what the recipe names.
        console: where to print what was written; nowhere when None.

    Raises:
        CoterieError: the run has no sound checkpoint, or a file does not give the leader's logits when loaded again.
    """
    experiment = open_run(folder, plugins=plugins)
    recipe = experiment.recipe
    with runtime(recipe.train, mix(recipe.seed, "globals")):
        _, snapshot = states_of(experiment)[0]
        parts = experiment.build(peers_in(snapshot, recipe))
        restore_peers(parts.cohort, snapshot)
        report = export_leader(
            parts.cohort.leader_net,
            image_shape=parts.image_shape,
            folder=experiment.folder.export if out is None else out,
            card=_card(experiment, parts),
            build=partial(_plain, experiment, parts),
        )
    if console is not None:
        _show(report, console)
    return report


def _plain(experiment: Experiment, parts: Parts) -> torch.nn.Module:
    nets = build_nets(
        experiment.recipe,
        num_classes=len(parts.data.classes),
        channels=parts.image_shape[0],
        image_size=parts.image_shape[1],
    )
    return nets[parts.peers[parts.cohort.leader]]


def _card(experiment: Experiment, parts: Parts) -> ModelCard:
    recipe = experiment.recipe
    facts = {
        "method": recipe.method,
        "data": parts.data.name,
        "training images": str(len(parts.data.train.labels)),
        "epochs": str(recipe.epochs),
        "seed": str(recipe.seed),
        "cohort": ", ".join(parts.names) + f"; the leader is peer {parts.cohort.leader}, named before training",
    }
    if experiment.folder.result.exists():
        result: Any = read_json(experiment.folder.result)
        facts["top-1 on the test set"] = f"{result['last']['test']['leader']['top1']:.2f} % (last epoch)"
    return ModelCard(
        network=parts.names[parts.cohort.leader],
        classes=parts.data.classes,
        normalisation=parts.data.normalisation,
        facts=facts,
    )


def _show(report: ExportReport, console: Console) -> None:
    header, *rows = report_table(report.rows)
    table = Table(header[0], box=None, pad_edge=False)
    for heading in header[1:-1]:
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(*map(Text, row[:-1]))
    console.print(table)
    for row in rows:
        console.print(Text(f"{row[0]}: {row[-1]}"), soft_wrap=True)
    console.print(
        f"{report.folder}: {report.parameters:,} parameters, as many as the plain network;"
        f" {report.multiply_adds:,} multiply-adds an image",
        highlight=False,
        soft_wrap=True,
    )


def states_of(experiment: Experiment) -> list[tuple[str, Snapshot]]:
    """Name and read the states of a run that can be scored: the newest first, then the best on validation.

    Raises:
        CheckpointError: there is no sound checkpoint.
    """
    store = CheckpointStore(experiment.folder.checkpoints)
    newest = store.load_newest(read_only=True)
    if newest is None:
        raise CheckpointError(f"{experiment.folder.path} has no checkpoint yet; train it first")
    done = newest[1].value("epoch") == experiment.recipe.epochs
    states = [("last_epoch" if done else "newest_checkpoint", newest[1])]
    best = load_best(experiment.folder.best) if experiment.folder.best.exists() else None
    if best is not None:
        states.append(("best_on_validation", best))
    return states
