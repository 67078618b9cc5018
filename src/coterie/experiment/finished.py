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
from coterie.experiment.best import load_best, restore_scorable
from coterie.experiment.build import Parts, build_nets, net_names, runtime
from coterie.experiment.experiment import Experiment
from coterie.experiment.runs import open_run


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
        parts = experiment.build()
        test = parts.data.test()
        scores: dict[str, Any] = {}
        for title, snapshot in _states(experiment):
            restore_scorable(parts, snapshot)
            scores[title] = experiment.score(parts, test).as_dict()
    if console is not None:
        console.print(score_table(scores, leader=parts.cohort.leader, names=net_names(experiment.recipe)))
    return scores


def score_table(scores: dict[str, Any], *, leader: int, names: Sequence[str]) -> Table:
    """Lay scores out for a terminal: a row for the leader, each peer and the ensemble of each state."""
    table = Table("weights", "network", box=None, pad_edge=False)
    for heading in ("top-1 %", "top-5 %", "NLL", "ECE"):
        table.add_column(heading, justify="right", no_wrap=True)
    for title, parts in scores.items():
        rows = [(f"leader (peer {leader}, {names[leader]})", parts["leader"])]
        rows += [(f"peer {m}, {names[m]}", row) for m, row in enumerate(parts["peers"])]
        shown = title.replace("_", " ")
        for name, row in [*rows, ("ensemble", parts["ensemble"])]:
            table.add_row(
                shown, Text(name), f"{row['top1']:.2f}", f"{row['top5']:.2f}", f"{row['nll']:.4f}", f"{row['ece']:.4f}"
            )
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
        parts = experiment.build()
        _, snapshot = _states(experiment)[0]
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
    return nets[parts.cohort.leader]


def _card(experiment: Experiment, parts: Parts) -> ModelCard:
    recipe = experiment.recipe
    facts = {
        "method": recipe.method,
        "data": parts.data.name,
        "training images": str(len(parts.data.train.labels)),
        "epochs": str(recipe.epochs),
        "seed": str(recipe.seed),
        "cohort": ", ".join(net_names(recipe)) + f"; the leader is peer {parts.cohort.leader}, named before training",
    }
    if experiment.folder.result.exists():
        result: Any = read_json(experiment.folder.result)
        facts["top-1 on the test set"] = f"{result['last']['test']['leader']['top1']:.2f} % (last epoch)"
    return ModelCard(
        network=net_names(recipe)[parts.cohort.leader],
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


def _states(experiment: Experiment) -> list[tuple[str, Snapshot]]:
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
