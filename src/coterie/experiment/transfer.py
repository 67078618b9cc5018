"""What the frozen networks of a run know of another data set: linear probes and nearest neighbours."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch import nn

from coterie.config import resolve
from coterie.core.draws import mix
from coterie.core.errors import CheckpointError, ConfigError
from coterie.core.files import read_json, write_json_atomically
from coterie.evaluation.embed import check_stages, embed
from coterie.evaluation.probe import NEIGHBOURS, Features, probe_features
from coterie.experiment.build import pick_device, runtime
from coterie.experiment.runs import open_run
from coterie.experiment.target import Target
from coterie.experiment.trained import Trained, load_trained

Which = Sequence[int] | Literal["leader", "all"]

_DEFAULTS = {"data": {"augment": "none", "batch_size": 2}}  # any number of images will do: none are trained on
_ABOUT = (
    "{data}: {train_images:,} training images, {held_out_images:,} of them held out to choose on, {test_images:,} test"
    " images, {classes} classes, {image_size} x {image_size} pixels"
)


@dataclass(frozen=True, slots=True)
class _Subject:
    """A network with trained or fresh weights."""

    peer: int
    weights: Literal["trained", "fresh"]
    net: nn.Module


def transfer_run(
    folder: Path,
    overrides: Sequence[str],
    *,
    peers: Which = "leader",
    stages: Sequence[int] = (),
    limit: int = 0,
    seed: int | None = None,
    plugins: Iterable[Path] = (),
    console: Console | None = None,
) -> dict[str, Any]:
    """Probe the frozen networks of a run on another data set, beside the same networks with fresh weights.

    Args:
        folder: of the run; the measurement is added to its `transfer.json`.
        overrides: `data.name` and other `data` settings of the data set, which start from the defaults and not from
            the run's, and `train` settings. `data.validation` is the share of the training images on which
            regularisation and neighbours are chosen.
        peers: numbers of peers, `leader` or `all`.
        stages: stages whose pooled maps are probed, 0 for the stem; none for the embedding.
        limit: training images per class; 0 for all.
        seed: key of limit and held-out part; the run's by default.
        plugins: Python files that register what recipe or settings name.
        console: where to print what is measured; nowhere when None.

    Returns:
        What was added to `transfer.json`.

    Raises:
        CoterieError: run, settings, peers, stages or data cannot be used.
    """
    _check_words(overrides)
    experiment = open_run(folder, [word for word in overrides if not _of_data(word)], plugins)
    config = resolve(_DEFAULTS, [word for word in overrides if _of_data(word)]).data
    recipe, path = experiment.recipe, experiment.folder.path / "transfer.json"
    earlier = _read_list(path)
    seed = recipe.seed if seed is None else seed
    with runtime(recipe.train, mix(recipe.seed, "globals")):
        run = load_trained(experiment)
        subjects = _subjects(run, peers, stages)
        target = Target.open(
            config, limit=limit, seed=seed, device=pick_device(recipe.train.device), sees=recipe.net.input
        )
        record = {**target.facts(), "limit_per_class": limit, "seed": seed, "state": run.state}
        _show(console, Text(_ABOUT.format(**record)))
        record["rows"] = _measure(run, subjects, target, stages)
    write_json_atomically(path, [*earlier, record])
    _show(console, transfer_table(record))
    return record


def transfer_table(record: dict[str, Any]) -> Table:
    """Lay a measurement out for a terminal: one row for each network and layer, trained and fresh."""
    table = Table("features", box=None, pad_edge=False)
    for heading in ("C", "top-1 %", "top-5 %", *(f"{count}-NN" for count in NEIGHBOURS), "seconds"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in record["rows"]:
        linear, votes = row["linear"], row["neighbours"]["top1"]
        figures = [f"{figure:.2f}" for figure in (linear["top1"], linear["top5"], *votes.values())]
        table.add_row(Text(_title(row)), f"{linear['strength']:g}", *figures, f"{row['seconds']:.1f}")
    return table


def _title(row: dict[str, Any]) -> str:
    if row["weights"] == "fresh":
        return f"fresh {row['network']}, {row['layer']}"
    return f"{'leader' if row['leader'] else 'peer'} {row['peer']}, {row['network']}, {row['layer']}"


def _of_data(word: str) -> bool:
    return word.lstrip().startswith("data.")


def _check_words(words: Sequence[str]) -> None:
    for word in words:
        if not _of_data(word) and not word.lstrip().startswith("train."):
            raise ConfigError(f"{word!r} does not apply to a transfer; set keys of data and train only")
    if not any(word.partition("=")[0].strip() == "data.name" for word in words):
        raise ConfigError("no data set to transfer to; name one, for instance data.name=tiny_imagenet data.root=DIR")


def _read_list(path: Path) -> list[Any]:
    earlier = read_json(path) if path.exists() else []
    if not isinstance(earlier, list):
        raise CheckpointError(f"{path} is not a list of measurements; move it away")
    return earlier


def _show(console: Console | None, what: Table | Text) -> None:
    if console is not None:
        console.print(what, soft_wrap=isinstance(what, Text))


def _subjects(run: Trained, peers: Which, stages: Sequence[int]) -> list[_Subject]:
    """The trained networks that are asked for and, once for each architecture, the first of them with fresh weights."""
    every = range(len(run.trained))
    chosen = every if peers == "all" else [run.leader] if isinstance(peers, str) else list(dict.fromkeys(peers))
    for peer in chosen:
        if peer not in every:
            raise ConfigError(f"the run has {len(every)} peers and no peer {peer}; give a number from 0 to {every[-1]}")
        check_stages(run.trained[peer], stages, _name(run, peer))
    first = {run.names[peer]: peer for peer in reversed(chosen)}
    trained = [_Subject(peer, "trained", run.trained[peer]) for peer in chosen]
    return trained + [_Subject(peer, "fresh", run.fresh[peer]) for peer in sorted(first.values())]


def _name(run: Trained, peer: int) -> str:
    return f"peer {peer} ({run.names[peer]})"


def _measure(run: Trained, subjects: list[_Subject], target: Target, stages: Sequence[int]) -> list[dict[str, Any]]:
    for subject in subjects:
        _check_takes(run, subject, target)
    return [row for subject in subjects for row in _rows(run, subject, target, stages)]


def _check_takes(run: Trained, subject: _Subject, target: Target) -> None:
    """Send one empty image of the data's shape through a network."""
    name, (channels, size, _) = _name(run, subject.peer), target.image_shape
    if channels != run.channels:
        raise ConfigError(
            f"{name} takes images of {run.channels} channels and those of {target.data.name} have"
            f" {channels}; choose other data"
        )
    image = torch.zeros(1, run.channels, size, size, device=target.device)
    try:
        with torch.no_grad():
            subject.net.to(target.device).eval()(image)
    except (RuntimeError, AssertionError, ValueError) as error:
        line = " ".join(str(error).split())[:200]
        raise ConfigError(
            f"{name} cannot take images of {size} x {size} pixels ({line}); set data.image_size to the size"
            " it was trained on"
        ) from error


def _rows(run: Trained, subject: _Subject, target: Target, stages: Sequence[int]) -> Iterator[dict[str, Any]]:
    """Run a network over the data once, then score each of its layers."""
    start = time.perf_counter()
    known, labels = embed(subject.net, target.batches(target.train), stages)
    tested, test_labels = embed(subject.net, target.batches(target.test), stages)
    shared = (time.perf_counter() - start) / len(known)
    for layer, values in known.items():
        start = time.perf_counter()
        fit, held_out = (Features(values[rows], labels[rows]) for rows in (target.fit, target.held_out))
        scores = probe_features(
            fit, held_out, Features(tested[layer], test_labels), num_classes=target.data.num_classes
        )
        yield {
            "peer": subject.peer,
            "leader": subject.peer == run.leader,
            "network": run.names[subject.peer],
            "weights": subject.weights,
            "layer": layer,
            "features": values.shape[1],
            **scores.as_dict(),
            "seconds": shared + time.perf_counter() - start,
        }
