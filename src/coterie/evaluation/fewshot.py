"""Accuracy on classes that training has not seen: embeddings once, then all episodes by index.

Which episodes there are is a function of a seed and of the split, so that every network is scored on the same ones
and the differences between two networks are paired.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from coterie.config import FewshotConfig
from coterie.core.draws import mix
from coterie.core.errors import UnknownName
from coterie.core.method import Episode
from coterie.data import EpisodeTable
from coterie.losses.prototypes import centroid_scores, cosine_scores, euclidean_scores, matching_scores, query_labels
from coterie.metrics import CohortScores

Head = Callable[[Tensor, Tensor], Tensor]
_CELLS = 1 << 22  # numbers of embeddings gathered at a time
_ITERATIONS = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class EpisodeScores:
    """What was measured of one network over episodes.

    Attributes:
        top1: mean over episodes of the percentage of queries that are right.
        interval: half width of its 95 % interval, `1.96 * std / sqrt(E)` with the unbiased deviation.
        episodes: E.
    """

    top1: float
    interval: float
    episodes: int

    def as_dict(self) -> dict[str, float]:
        """The three numbers by name, for logs and result files."""
        return {"top1": self.top1, "interval": self.interval, "episodes": self.episodes}


@dataclass(frozen=True, slots=True, kw_only=True)
class EpisodeAccuracies:
    """Accuracies of a cohort, episode by episode.

    Attributes:
        values: `[M + 1, E]` float64 on the CPU, in percent: the peers in order and, last, their ensemble.
        leader: index of the leader in `0 .. M-1`.
    """

    values: Tensor
    leader: int

    def scores(self) -> CohortScores[EpisodeScores]:
        """Means and intervals."""
        *peers, ensemble = map(mean_of_episodes, self.values)
        return CohortScores(leader=peers[self.leader], peers=tuple(peers), ensemble=ensemble)


def mean_of_episodes(values: Tensor) -> EpisodeScores:
    """Mean and interval of a figure of each episode, or of paired differences.

    Args:
        values: `[E]`, two or more.

    Example:
        >>> scores = mean_of_episodes(torch.tensor([50.0, 100.0, 75.0, 75.0]))
        >>> scores.top1, round(scores.interval, 2), scores.episodes
        (75.0, 20.0, 4)
    """
    values = values.double()
    half = 1.96 * float(values.std()) / math.sqrt(len(values))
    return EpisodeScores(top1=float(values.mean()), interval=half, episodes=len(values))


def draw_episodes(labels: Tensor, config: FewshotConfig, what: str) -> Tensor:
    """Draw the episodes of a split.

    Args:
        labels: `[N]` int64.
        config: ways, shots, queries, number and seed.
        what: how errors call the split.

    Returns:
        `[E, ways, shots + queries]` int64 rows on the CPU, the shots of a class first.

    Raises:
        DataError: too few classes, or images of them.
    """
    return _table(labels, config, what).draw(mix(config.seed, "fewshot"), torch.arange(config.episodes))


def check_episodes(labels: Tensor, config: FewshotConfig, what: str) -> None:
    """Check that the episodes of a split can be drawn, with the arguments and errors of `draw_episodes`."""
    _table(labels, config, what)


def _table(labels: Tensor, config: FewshotConfig, what: str) -> EpisodeTable:
    episode = Episode(ways=config.ways, shots=config.shots, queries=config.queries)
    return EpisodeTable.of(labels.cpu(), episode, what)


@torch.no_grad()
def score_episodes(
    embeddings: Sequence[Tensor], rows: Tensor, *, shots: int, head: str = "euclidean", leader: int = -1
) -> EpisodeAccuracies:
    """Score all peers and their ensemble, which means the probabilities of the peers, on the same episodes.

    Args:
        embeddings: of each peer, M times `[N, D]`.
        rows: `[E, ways, shots + queries]` int64.
        shots: images of each class to learn from.
        head: one of `HEADS`.
        leader: index of the leader.

    Raises:
        UnknownName: no such head.
    """
    if head not in HEADS:
        raise UnknownName("head", head, HEADS)
    parts = [_accuracies(embeddings, part, shots, HEADS[head]) for part in _chunks(embeddings, rows)]
    return EpisodeAccuracies(values=100 * torch.cat(parts, dim=1).cpu().double(), leader=leader % len(embeddings))


@torch.no_grad()
def answers(embeddings: Tensor, *, shots: int, head: str) -> Tensor:
    """Classify the queries of one episode.

    Args:
        embeddings: `[W, S + Q, D]`, class by class, the shots of a class first.
        shots: S.
        head: one of `HEADS`.

    Returns:
        `[W, Q]` int64, the class of the episode that each query is taken for.
    """
    scores = HEADS[head](embeddings[None, :, :shots], embeddings[None, :, shots:])
    return scores[0].argmax(dim=-1).view(len(embeddings), -1)


def _chunks(embeddings: Sequence[Tensor], rows: Tensor) -> Iterator[Tensor]:
    size = rows[0].numel() * max(values.shape[1] for values in embeddings)
    rows = rows.to(embeddings[0].device)
    yield from torch.split(rows, max(1, _CELLS // size))


def _accuracies(embeddings: Sequence[Tensor], rows: Tensor, shots: int, head: Head) -> Tensor:
    """Share of right queries `[M + 1, E]`."""
    gathered = (values[rows] for values in embeddings)
    scores = [head(images[..., :shots, :], images[..., shots:, :]) for images in gathered]
    ensemble = torch.stack([F.softmax(own, dim=-1) for own in scores]).mean(dim=0)
    labels = query_labels(rows.shape[1], rows.shape[2] - shots, rows.device)
    right = [(own.argmax(dim=-1) == labels).float().mean(dim=-1) for own in (*scores, ensemble)]
    return torch.stack(right)


def _logistic_scores(support: Tensor, queries: Tensor) -> Tensor:
    """Log-probabilities of logistic regression (scikit-learn, L2, C = 1) on unit vectors, fitted to each episode."""
    unit = (F.normalize(part, dim=-1).cpu() for part in (support, queries))
    fitted = [_logistic(*episode) for episode in zip(*unit, strict=True)]
    return torch.stack(fitted).to(support)


def _logistic(support: Tensor, queries: Tensor) -> Tensor:
    from sklearn.exceptions import ConvergenceWarning  # a second to import, for this only
    from sklearn.linear_model import LogisticRegression

    labels = query_labels(support.shape[0], support.shape[1])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model = LogisticRegression(C=1.0, max_iter=_ITERATIONS).fit(support.flatten(0, 1).numpy(), labels.numpy())
    scores = torch.from_numpy(model.decision_function(queries.flatten(0, 1).numpy()))
    return torch.stack([-scores, scores], dim=1) / 2 if scores.dim() == 1 else scores


HEADS: Mapping[str, Head] = {
    "euclidean": euclidean_scores,
    "cosine": cosine_scores,
    "centroid": centroid_scores,
    "matching": matching_scores,
    "logistic": _logistic_scores,
}
"""How embeddings of new classes can be read; the support `[E, W, S, D]` and the queries `[E, W, Q, D]` go in."""
