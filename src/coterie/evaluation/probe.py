"""How much frozen features know of classes they were not trained for: a linear probe and nearest neighbours.

Features in, scores out. Whatever is chosen (how strongly the probe is regularised, how many neighbours vote) is chosen
on a part held out of the training features; the test features are scored once, after that.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from coterie.core.errors import ConfigError, NumericError, ShapeError
from coterie.metrics.accuracy import topk_correct

STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)
NEIGHBOURS = (1, 5, 20)

_ITERATIONS = 1000
_CELLS = 1 << 24  # similarities held at a time


@dataclass(frozen=True, slots=True)
class Features:
    """Features of labelled images.

    Attributes:
        values: `[N, D]` floating point, on the CPU.
        labels: `[N]` int64 in `[0, K)`.

    Raises:
        ShapeError: they do not fit together, or there are none.
        NumericError: a feature is not finite.
    """

    values: Tensor
    labels: Tensor

    def __post_init__(self) -> None:
        if self.values.dim() != 2 or self.labels.shape != self.values.shape[:1] or not len(self.labels):
            raise ShapeError(
                f"features are {list(self.values.shape)} and labels {list(self.labels.shape)};"
                " give [N, D] and [N] of one image or more"
            )
        if not self.values.isfinite().all():
            raise NumericError("a feature is not finite; the network that made it has diverged, take another one")

    def joined(self, other: Features) -> Features:
        """These features and, behind them, others of the same size."""
        return Features(torch.cat([self.values, other.values]), torch.cat([self.labels, other.labels]))


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearScores:
    """What a linear probe reached; accuracies in percent.

    Attributes:
        strength: the chosen C of scikit-learn, the inverse strength of the L2 penalty.
        top1: accuracy on the test features.
        top5: percentage of test images whose class is among the five most probable ones.
        held_out: C to accuracy on the held-out features, which chose it.
        converged: whether the solver met its tolerance within 1000 iterations.
    """

    strength: float
    top1: float
    top5: float
    held_out: Mapping[float, float]
    converged: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class NeighbourScores:
    """What nearest neighbours reached; accuracies in percent.

    Attributes:
        chosen: the number of neighbours that was best on the held-out features.
        top1: number of neighbours to accuracy on the test features.
        held_out: number of neighbours to accuracy on the held-out features.
    """

    chosen: int
    top1: Mapping[int, float]
    held_out: Mapping[int, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeScores:
    """Both scores of one set of features."""

    linear: LinearScores
    neighbours: NeighbourScores

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers by name, for result files; the keys of tables are words."""
        return {name: dict(map(_worded, scores.items())) for name, scores in asdict(self).items()}


def probe_features(train: Features, held_out: Features, test: Features, *, num_classes: int) -> ProbeScores:
    """Standardise features by the training part, then score a linear probe and nearest neighbours.

    Args:
        train: to fit on.
        held_out: of the training set too, to choose on; the last fit has both.
        test: scored once.
        num_classes: K.

    Raises:
        ConfigError: the training features are of one class only.
        ShapeError: the parts have other numbers of features.
    """
    train, held_out, test = standardised(train, held_out, test)
    return ProbeScores(
        linear=linear_probe(train, held_out, test, num_classes=num_classes),
        neighbours=nearest_neighbours(train, held_out, test, num_classes=num_classes),
    )


def standardised(train: Features, *others: Features) -> tuple[Features, ...]:
    """Shift and scale every feature to mean 0 and deviation 1 over the training part; constant ones become 0.

    Args:
        train: gives mean and deviation.
        others: are shifted and scaled as it is.

    Returns:
        All of them, in order, as float64.

    Raises:
        ShapeError: they have other numbers of features.
    """
    sizes = {part.values.shape[1] for part in (train, *others)}
    if len(sizes) > 1:
        raise ShapeError(f"parts have {sorted(sizes)} features; give parts of one network's layer")
    values = train.values.double()
    mean, deviation = values.mean(dim=0), values.std(dim=0, correction=0)
    constant = deviation <= 1e-9 * mean.abs()
    scale = torch.where(constant, 0.0, 1 / deviation.masked_fill(constant, 1.0))
    return tuple(Features((part.values.double() - mean) * scale, part.labels) for part in (train, *others))


def linear_probe(
    train: Features, held_out: Features, test: Features, *, num_classes: int, strengths: Sequence[float] = STRENGTHS
) -> LinearScores:
    """Fit multinomial logistic regression (scikit-learn, L-BFGS) on frozen features.

    Each C is fitted on `train` and scored on `held_out`; the best one, of equals the most regularised, is fitted on
    both and scored on `test`.

    Args:
        train: standardised features.
        held_out: others of the training set.
        test: scored once.
        num_classes: K; classes without training features are never predicted.
        strengths: values of C to choose from, ascending.

    Raises:
        ConfigError: the training features are of one class only.
    """
    if bool((train.labels == train.labels[0]).all()):
        raise ConfigError("the training images are of one class; give a data set with two or more")
    tried: dict[float, float] = {}
    for strength in strengths:
        scores, _ = _fit(train, strength, held_out.values, num_classes)
        tried[strength] = _accuracy(scores, held_out.labels)
    best = max(tried, key=lambda strength: tried[strength])
    scores, converged = _fit(train.joined(held_out), best, test.values, num_classes)
    return LinearScores(
        strength=best,
        top1=_accuracy(scores, test.labels),
        top5=_accuracy(scores, test.labels, 5),
        held_out=tried,
        converged=converged,
    )


def nearest_neighbours(
    train: Features, held_out: Features, test: Features, *, num_classes: int, counts: Sequence[int] = NEIGHBOURS
) -> NeighbourScores:
    """Classify by the vote of the most similar training features: cosine, one vote each.

    Of classes with equally many votes, the one whose voters are more similar in sum wins.

    Args:
        train: standardised features.
        held_out: others of the training set, which choose among the counts; they vote on the test features too.
        test: scored once.
        num_classes: K.
        counts: numbers of neighbours; where there are fewer training features, all of them vote.
    """
    chosen = _votes(train, held_out, num_classes, counts)
    final = _votes(train.joined(held_out), test, num_classes, counts)
    return NeighbourScores(chosen=max(chosen, key=lambda count: chosen[count]), top1=final, held_out=chosen)


def _fit(train: Features, strength: float, values: Tensor, num_classes: int) -> tuple[Tensor, bool]:
    """Log-probabilities `[N, K]` of `values` `[N, D]`, and whether the solver converged."""
    from sklearn.exceptions import ConvergenceWarning  # a second to import, for this only
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(C=strength, max_iter=_ITERATIONS)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConvergenceWarning)
        model.fit(train.values.numpy(), train.labels.numpy())
    scores = torch.full((len(values), num_classes), -torch.inf, dtype=torch.float64)
    scores[:, torch.from_numpy(model.classes_)] = torch.from_numpy(model.predict_log_proba(values.numpy())).double()
    return scores, not any(issubclass(warning.category, ConvergenceWarning) for warning in caught)


def _votes(bank: Features, queries: Features, num_classes: int, counts: Sequence[int]) -> dict[int, float]:
    """Accuracy in percent of the vote of each number of neighbours."""
    most = min(max(counts), len(bank.labels))
    directions = F.normalize(bank.values.float(), dim=1)
    rows = max(1, _CELLS // len(bank.labels))
    right = dict.fromkeys(counts, 0)
    for start in range(0, len(queries.labels), rows):
        values, labels = queries.values[start : start + rows], queries.labels[start : start + rows]
        near, who = (F.normalize(values.float(), dim=1) @ directions.T).topk(most, dim=1)
        for count in counts:
            votes = 1 + near[:, :count] / (4 * count)  # similarities decide between equal numbers of votes only
            scores = torch.zeros(len(values), num_classes).scatter_add_(1, bank.labels[who[:, :count]], votes)
            right[count] += int(topk_correct(scores, labels).sum())
    return {count: 100 * right[count] / len(queries.labels) for count in counts}


def _accuracy(scores: Tensor, labels: Tensor, k: int = 1) -> float:
    return 100 * int(topk_correct(scores, labels, k).sum()) / len(labels)


def _worded(item: tuple[str, Any]) -> tuple[str, Any]:
    name, value = item
    return name, {f"{key:g}": number for key, number in value.items()} if isinstance(value, dict) else value
