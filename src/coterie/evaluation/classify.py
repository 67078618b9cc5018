"""Accuracy of leader, peers and ensemble on a split, in one pass for all of them."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from coterie.cohort import Cohort
from coterie.core.method import Method
from coterie.metrics import CohortScores, CohortTally


@torch.inference_mode()
def classify(cohort: Cohort, method: Method, batches: Iterable[tuple[Tensor, Tensor]]) -> CohortScores:
    """Score a cohort on labelled images.

    Every image is run once through every peer, in evaluation mode; the mode is put back afterwards. The device is
    waited for once, at the end.

    Args:
        cohort: the peers.
        method: says how their logits make an ensemble.
        batches: images `[B, C, H, W]` and labels `[B]`, on the device of the cohort.

    Returns:
        Top-1, top-5, negative log-likelihood and calibration error of the leader, of every peer and of the ensemble.

    Raises:
        DataError: there were no images.
    """
    training = cohort.training
    cohort.eval()
    tally = CohortTally(num_peers=len(cohort), leader=cohort.leader)
    try:
        for images, labels in batches:
            logits = [peer.logits for peer in cohort(images[None])]
            tally.add(logits, method.ensemble(logits), labels)
    finally:
        cohort.train(training)
    return tally.read()
