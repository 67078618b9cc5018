"""Accuracy of every peer and of the ensemble, counted on the device and read once at the end."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Generic, Protocol, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from coterie.core.errors import ConfigError, DataError, ShapeError
from coterie.metrics.calibration import DEFAULT_BINS, CalibrationBins, calibration_bins, check_scores, exact
from coterie.metrics.similarity import SimilarityTally


class Measured(Protocol):
    """What was measured of one classifier, whatever the protocol: at least an accuracy."""

    @property
    def top1(self) -> float:
        """Accuracy in percent."""

    def as_dict(self) -> dict[str, float]:
        """All numbers by name, for logs and result files."""


Score_co = TypeVar("Score_co", bound=Measured, covariant=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """What was measured of one classifier.

    Attributes:
        top1: percentage of images whose highest score is that of the true class.
        top5: percentage whose true class is among the `min(5, K)` highest scores.
        nll: mean negative log-likelihood, in nats.
        ece: expected calibration error, in `[0, 1]`.
        intra: mean cosine of embeddings over pairs of images of one class; not a number where there is none, as for an
            ensemble.
        inter: the same over pairs of different classes.
    """

    top1: float
    top5: float
    nll: float
    ece: float
    intra: float = math.nan
    inter: float = math.nan

    def as_dict(self) -> dict[str, float]:
        """The numbers by name, for logs and result files; without similarities where there are none."""
        similarities = {"intra": self.intra, "inter": self.inter}
        found = {name: value for name, value in similarities.items() if not math.isnan(value)}
        return {"top1": self.top1, "top5": self.top5, "nll": self.nll, "ece": self.ece, **found}


def topk_correct(logits: Tensor, labels: Tensor, k: int = 1) -> Tensor:
    """Tell for each image whether its class is among the k highest scores, without waiting for the device.

    An image counts as right when fewer than k other classes score higher or are equal and come first, so constant
    scores are not right for every class. Scores that are not a number are never right.

    Args:
        logits: `[B, K]` raw class scores.
        labels: `[B]` int64.
        k: how many classes may be named; more than K is the same as K.

    Returns:
        `[B]` bool, on the device of the logits.

    Raises:
        ShapeError: logits and labels do not fit together.
        ConfigError: k is below 1.

    Example:
        >>> topk_correct(torch.tensor([[0.1, 0.7, 0.2], [0.5, 0.5, 0.0]]), torch.tensor([2, 1]), k=1).tolist()
        [False, False]
    """
    check_scores(logits, labels)
    if k < 1:
        raise ConfigError(f"top-{k} accuracy does not exist; give a k of at least 1")
    own = logits.gather(1, labels[:, None])
    classes = torch.arange(logits.shape[1], device=logits.device)
    ahead = (logits > own) | ((logits == own) & (classes < labels[:, None]))
    return (ahead.sum(dim=1) < k) & ~logits.isnan().any(dim=1)


class Tally:
    """Counts of one classifier over many batches, kept on the device; `read` alone waits for it.

    Args:
        bins: confidence bins of the calibration error.

    Example:
        >>> tally = Tally()
        >>> tally.add(torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 0]))
        >>> tally.read().top1
        50.0
    """

    def __init__(self, *, bins: int = DEFAULT_BINS) -> None:
        self._num_bins = bins
        self._bins: CalibrationBins | None = None
        self._sums: Tensor | None = None
        self._similarity: SimilarityTally | None = None

    def add(self, logits: Tensor, labels: Tensor, embedding: Tensor | None = None) -> None:
        """Count a batch, without waiting for the device.

        Args:
            logits: `[B, K]` raw class scores; no gradient is kept.
            labels: `[B]` int64.
            embedding: `[B, D]`, to measure similarities of classes; no gradient is kept.

        Raises:
            ShapeError: logits and labels do not fit together.
        """
        logits = logits.detach()
        nll = F.cross_entropy(exact(logits), labels, reduction="sum")
        top1, top5 = (topk_correct(logits, labels, k).sum().to(nll) for k in (1, 5))
        sums = torch.stack([top1, top5, nll])
        bins = calibration_bins(logits, labels, bins=self._num_bins)
        self._sums = sums if self._sums is None else self._sums + sums
        self._bins = bins if self._bins is None else self._bins + bins
        if embedding is not None:
            self._similarity = self._similarity or SimilarityTally()
            self._similarity.add(embedding, labels, num_classes=logits.shape[1])

    def read(self) -> Scores:
        """Wait for the device and return the scores of everything counted so far.

        Raises:
            DataError: nothing was counted.
        """
        if self._sums is None or self._bins is None:
            raise DataError("no images were counted; evaluate a split with at least one image")
        totals = torch.stack([*self._sums, self._bins.counts.sum(), self._bins.expected_error()])
        top1, top5, nll, count, ece = totals.tolist()
        if not count:
            raise DataError("no images were counted; evaluate a split with at least one image")
        scores = Scores(top1=100 * top1 / count, top5=100 * top5 / count, nll=nll / count, ece=ece)
        if self._similarity is None:
            return scores
        found = self._similarity.read()
        return replace(scores, intra=found.intra, inter=found.inter)


@dataclass(frozen=True, slots=True, kw_only=True)
class CohortScores(Generic[Score_co]):
    """Scores of a cohort: `leader` is one of `peers`.

    Attributes:
        leader: scores of the peer that is kept.
        peers: scores of every peer, in order.
        ensemble: scores of the combined logits.
    """

    leader: Score_co
    peers: tuple[Score_co, ...]
    ensemble: Score_co

    def as_dict(self) -> dict[str, object]:
        """`leader`, `peers` and `ensemble` as plain numbers, for logs and result files."""
        return {
            "leader": self.leader.as_dict(),
            "peers": [peer.as_dict() for peer in self.peers],
            "ensemble": self.ensemble.as_dict(),
        }


class CohortTally:
    """Counts of all peers and of their ensemble over many batches.

    Args:
        num_peers: M.
        leader: index of the leader in `0 .. M-1`.
        bins: confidence bins of the calibration error.

    Raises:
        ConfigError: the leader is not one of the peers.
    """

    def __init__(self, *, num_peers: int, leader: int, bins: int = DEFAULT_BINS) -> None:
        if not 0 <= leader < num_peers:
            raise ConfigError(f"leader {leader} is not one of {num_peers} peers; give a number below {num_peers}")
        self._leader = leader
        self._peers = [Tally(bins=bins) for _ in range(num_peers)]
        self._ensemble = Tally(bins=bins)

    def add(
        self, logits: Sequence[Tensor], ensemble: Tensor, labels: Tensor, embeddings: Sequence[Tensor] = ()
    ) -> None:
        """Count a batch, without waiting for the device.

        Args:
            logits: of each peer, M times `[B, K]`.
            ensemble: `[B, K]` combined logits, as `Method.ensemble` returns them.
            labels: `[B]` int64.
            embeddings: of each peer, M times `[B, D]`, or nothing.

        Raises:
            ShapeError: another number of peers, or logits and labels do not fit together.
        """
        if len(logits) != len(self._peers):
            raise ShapeError(f"got logits of {len(logits)} peers and counts {len(self._peers)}; give one per peer")
        for tally, own, embedding in zip(self._peers, logits, embeddings or (None,) * len(logits), strict=True):
            tally.add(own, labels, embedding)
        self._ensemble.add(ensemble, labels)

    def read(self) -> CohortScores[Scores]:
        """Wait for the device and return the scores of everything counted so far.

        Raises:
            DataError: nothing was counted.
        """
        peers = tuple(tally.read() for tally in self._peers)
        return CohortScores(leader=peers[self._leader], peers=peers, ensemble=self._ensemble.read())
