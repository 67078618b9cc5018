"""Pictures of a finished few-shot run: one of its test episodes, and where leaders put the images of some test classes.

Only the images that are drawn are embedded. Everything follows from the weights and `fewshot.seed`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from coterie.config import FewshotConfig
from coterie.core.draws import mix
from coterie.core.errors import ConfigError
from coterie.core.files import read_json
from coterie.core.record import RunFolder
from coterie.data import Normalisation, Split, evaluation_batches
from coterie.engine import Snapshot
from coterie.evaluation.fewshot import answers, draw_episodes
from coterie.evaluation.plane import neighbour_share, plane
from coterie.experiment.best import restore_scorable
from coterie.experiment.build import Parts, runtime
from coterie.experiment.experiment import Experiment, head_of
from coterie.experiment.finished import states_of
from coterie.experiment.new_classes import check_same_images, check_unseen
from coterie.experiment.phases import peers_in
from coterie.experiment.runs import open_run
from coterie.reports import EpisodePicture, Panel, embedding_map, episode_page

_WAYS, _CLASSES, _IMAGES = 20, 20, 20  # ways that are drawn, classes on the map, and images of each of them, at most
_TITLE = (
    "{images} images of {classes} test classes of {data}, by t-SNE: neighbours stay neighbours, distances mean little"
)


@dataclass(frozen=True, slots=True)
class _Leader:
    """The leader of a finished run and its test images; fresh until `restore`.

    Attributes:
        experiment: of the run.
        parts: built.
        snapshot: the weights of the last epoch.
        test: the test split.
    """

    experiment: Experiment
    parts: Parts
    snapshot: Snapshot
    test: Split

    @classmethod
    def open(cls, experiment: Experiment) -> _Leader:
        if not experiment.folder.result.exists():
            raise ConfigError(
                f"{experiment.folder} is not finished, and test images are seen after the last epoch only"
            )
        snapshot = states_of(experiment)[0][1]
        parts = experiment.build(peers_in(snapshot, experiment.recipe))
        check_unseen(parts.data)
        return cls(experiment, parts, snapshot, parts.data.test())

    @property
    def name(self) -> str:
        """Folder and recipe."""
        return f"leader of {self.experiment.folder.path.name} ({self.experiment.name})"

    def restore(self) -> None:
        """Take the trained weights."""
        restore_scorable(self.parts, self.snapshot)

    def embeddings(self, rows: Tensor) -> Tensor:
        """Embed test images: `[*rows, D]` on the CPU."""
        embeddings, _ = self.experiment.embeddings(self.parts, self.test.select(rows.flatten()))
        return embeddings[self.parts.cohort.leader].cpu().view(*rows.shape, -1)

    def images(self, rows: Tensor) -> Tensor:
        """Test images as they are: `[*rows, C, H, W]` in `[0, 1]`."""
        split = self.test.select(rows.flatten())
        plain = Normalisation(mean=(0.0,) * split.channels, std=(1.0,) * split.channels)
        batches = evaluation_batches(split, batch_size=256, normalisation=plain)
        images = torch.cat([images for images, _ in batches]).clamp(0, 1)
        return images.view(*rows.shape, *images.shape[1:])

    def panel(self, rows: Tensor, title: str) -> Panel:
        """Lay out what the leader, as it stands, makes of images `[K, P]` of K classes."""
        values = self.embeddings(rows).flatten(0, 1)
        share = neighbour_share(values, _labels(rows))
        return Panel(title=title, note=f"nearest neighbour of the same class: {share:.1f} %", points=plane(values))


def fewshot_pictures(
    folder: Path,
    overrides: Sequence[str] = (),
    *,
    against: Path | None = None,
    picture: Path | None = None,
    plugins: Iterable[Path] = (),
) -> list[str]:
    """Draw an episode of a few-shot run, and a map of embeddings: the leader's beside a baseline's.

    Args:
        folder: of the run.
        overrides: settings that differ from the run's recipe, such as `data.root=DIR`.
        against: folder of the baseline; without it the leader is drawn beside itself as it was before training.
        picture: the names are made of this one, `-episode` and `-embeddings` behind its stem; `report.png` of the run
            by default.
        plugins: Python files that register what the recipes name.

    Returns:
        What was drawn, a line for each picture; nothing for a run that was not scored by episodes, or is not finished,
        when neither settings nor a baseline ask for pictures.

    Raises:
        CoterieError: a run is not finished or not scored by episodes, or its data cannot be used.
    """
    run = RunFolder(folder).existing()
    if not (overrides or against or _by_episodes(run)):
        return []
    picture = picture or run.path / "report.png"
    experiment = open_run(folder, overrides, plugins)
    with runtime(experiment.recipe.train, mix(experiment.recipe.seed, "globals")):
        own = _Leader.open(experiment)
        rows = _map_rows(own.test.labels, experiment.recipe.fewshot)
        left = _fresh(own, rows) if against is None else _baseline(own, open_run(against, overrides, plugins), rows)
        own.restore()
        lines = [_draw_episode(own, picture.with_stem(f"{picture.stem}-episode"))]
        panels = [left, own.panel(rows, own.name)]
        return [*lines, _draw_map(own, panels, rows, picture.with_stem(f"{picture.stem}-embeddings"))]


def _by_episodes(run: RunFolder) -> bool:
    """Whether a run is finished and its result is one of episodes."""
    try:
        result: Any = read_json(run.result) if run.result.exists() else {}
        return "episodes" in result["last"]["test"]["leader"]
    except (KeyError, TypeError):
        return False


def _fresh(own: _Leader, rows: Tensor) -> Panel:
    return own.panel(rows, "the same network before training")


def _baseline(own: _Leader, experiment: Experiment, rows: Tensor) -> Panel:
    other = _Leader.open(experiment)
    check_same_images(*((leader.parts.data.name, leader.test.fingerprint()) for leader in (own, other)))
    other.restore()
    return other.panel(rows, other.name)


def _map_rows(labels: Tensor, config: FewshotConfig) -> Tensor:
    """Rows `[K, P]` of the images on the map: K classes out of those with enough images, P of each."""
    counts = torch.bincount(labels)
    classes = min(_CLASSES, int((counts > 1).sum()))
    images = min(_IMAGES, int(counts.topk(classes).values[-1]))
    return draw_episodes(
        labels, replace(config, ways=classes, shots=1, queries=images - 1, episodes=1), "the test set"
    )[0]


def _labels(rows: Tensor) -> Tensor:
    return torch.arange(len(rows)).repeat_interleave(rows.shape[1])


def _draw_episode(own: _Leader, path: Path) -> str:
    config = own.experiment.recipe.fewshot
    config = replace(config, ways=min(config.ways, _WAYS), episodes=1)
    rows = draw_episodes(own.test.labels, config, "the test set")[0]
    images = own.images(rows)
    episode = EpisodePicture(
        title=f"first test episode of {own.parts.data.name}",
        network=own.name,
        support=images[:, : config.shots],
        queries=images[:, config.shots :],
        answers=answers(own.embeddings(rows), shots=config.shots, head=head_of(own.parts, config)),
    )
    episode_page(episode, path)
    return (
        f"the first test episode, {int(episode.right.sum())} of {episode.right.numel()} queries right, drawn in {path}"
    )


def _draw_map(own: _Leader, panels: Sequence[Panel], rows: Tensor, path: Path) -> str:
    title = _TITLE.format(images=rows.numel(), classes=len(rows), data=own.parts.data.name)
    embedding_map(panels, _labels(rows), own.images(rows[:, 0]), path, title=title)
    return f"embeddings of {len(rows)} test classes, {panels[1].title} beside {panels[0].title}, drawn in {path}"
