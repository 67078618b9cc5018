"""How far confidence is from accuracy: calibration errors over bins, in one shot or collected batch by batch.

Confidence is the largest softmax probability of an image. Bins are equal parts of `[0, 1]`, lower edge inside. As in
Guo et al., ICML 2017, arXiv:1706.04599, eq. 3 and 5, the expected calibration error weighs the gap of each bin by its
share of the images, and the maximum calibration error is the largest gap. Sums are kept in float64, but in float32 on
devices that have nothing longer.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from coterie.core.errors import ConfigError, ShapeError

DEFAULT_BINS = 15


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationBins:
    """Sums over the images of each confidence bin; two sets of images are put together by adding their bins.

    Attributes:
        counts: `[n]` float, images per bin.
        confidence: `[n]` float, sum of the confidences per bin.
        correct: `[n]` float, number of right answers per bin.
    """

    counts: Tensor
    confidence: Tensor
    correct: Tensor

    @classmethod
    def empty(cls, bins: int = DEFAULT_BINS, device: torch.device | str = "cpu") -> CalibrationBins:
        """Bins of no images.

        Args:
            bins: how many equal parts `[0, 1]` has.
            device: where the sums live.

        Raises:
            ConfigError: fewer than one bin.
        """
        if bins < 1:
            raise ConfigError(f"calibration cannot use {bins} bins; give at least 1")
        sums = [exact(torch.zeros(bins, device=device)) for _ in range(3)]
        return cls(counts=sums[0], confidence=sums[1], correct=sums[2])

    def __add__(self, other: CalibrationBins) -> CalibrationBins:
        """Bins of both sets of images together."""
        return CalibrationBins(
            counts=self.counts + other.counts,
            confidence=self.confidence + other.confidence,
            correct=self.correct + other.correct,
        )

    def gaps(self) -> Tensor:
        """`[n]` float: distance of mean confidence and accuracy in each bin; 0 for a bin without images."""
        return (self.confidence - self.correct).abs() / self.counts.clamp(min=1)

    def shares(self) -> Tensor:
        """`[n]` float: share of the images in each bin."""
        return self.counts / self.counts.sum().clamp(min=1)

    def expected_error(self) -> Tensor:
        """`[]`: expected calibration error (ECE), the gaps weighted by the shares of the bins."""
        return (self.shares() * self.gaps()).sum()

    def maximum_error(self) -> Tensor:
        """`[]`: maximum calibration error (MCE), the largest gap."""
        return self.gaps().max()

    def rms_error(self) -> Tensor:
        """`[]`: root of the squared gaps weighted by the shares of the bins."""
        return (self.shares() * self.gaps().square()).sum().sqrt()


def calibration_bins(logits: Tensor, labels: Tensor, *, bins: int = DEFAULT_BINS) -> CalibrationBins:
    """Sort images into confidence bins, without waiting for the device.

    Args:
        logits: `[B, K]` raw class scores.
        labels: `[B]` int64.
        bins: how many equal parts `[0, 1]` has.

    Returns:
        The bins of these images, on the device of the logits; add those of further batches with `+`.

    Raises:
        ShapeError: logits and labels do not fit together.

    Example:
        >>> part = calibration_bins(torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 0]), bins=2)
        >>> part.counts.tolist(), round(float(part.expected_error()), 3)
        ([0.0, 2.0], 0.306)
    """
    check_scores(logits, labels)
    confidence, answers = exact(logits.detach()).softmax(dim=1).max(dim=1)
    rows = (confidence * bins).long().clamp(0, bins - 1)  # also keeps what is not a number in range
    empty = CalibrationBins.empty(bins, logits.device)
    return CalibrationBins(
        counts=empty.counts.index_add(0, rows, torch.ones_like(confidence)),
        confidence=empty.confidence.index_add(0, rows, confidence),
        correct=empty.correct.index_add(0, rows, exact(answers == labels)),
    )


def brier_score(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean squared distance of class probabilities from the truth, summed over classes. Brier, 1950.

    Args:
        logits: `[B, K]` raw class scores.
        labels: `[B]` int64.

    Returns:
        `[]`, in `[0, 2]`.

    Raises:
        ShapeError: logits and labels do not fit together.
    """
    check_scores(logits, labels)
    probabilities = exact(logits.detach()).softmax(dim=1)
    truth = torch.zeros_like(probabilities).scatter_(1, labels[:, None], 1.0)
    return (probabilities - truth).square().sum(dim=1).mean()


def exact(values: Tensor) -> Tensor:
    """Convert to the longest floating point of the tensor's device: float64, or float32 on Apple's accelerator."""
    return values.to(torch.float32 if values.device.type == "mps" else torch.float64)


def check_scores(logits: Tensor, labels: Tensor) -> None:
    """Refuse logits that are not `[B, K]` or labels that are not `[B]`.

    Raises:
        ShapeError: logits and labels do not fit together.
    """
    if logits.dim() != 2 or labels.shape != logits.shape[:1]:
        raise ShapeError(
            f"logits {tuple(logits.shape)} and labels {tuple(labels.shape)} do not fit; give [B, K] and [B]"
        )
