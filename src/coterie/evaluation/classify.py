"""Accuracy of leader, peers and ensemble on a split, in one pass for all of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from coterie.cohort import Cohort
from coterie.core.errors import NumericError
from coterie.core.method import Method
from coterie.core.types import PeerOutput
from coterie.losses.logits import at_least_float32
from coterie.metrics import CohortScores, CohortTally, Scores


@torch.inference_mode()
def classify(cohort: Cohort, method: Method, batches: Iterable[tuple[Tensor, Tensor]]) -> CohortScores[Scores]:
    """Score a cohort on labelled images.

    Every image is run once through every peer, in evaluation mode; the mode is put back afterwards. The device is
    waited for once, at the end.

    Args:
        cohort: the peers.
        method: says how their outputs make an ensemble; it is in evaluation mode meanwhile.
        batches: images `[B, C, H, W]` and labels `[B]`, on the device of the cohort.

    Returns:
        Top-1, top-5, negative log-likelihood and calibration error of the leader, of every peer and of the ensemble;
        of the networks also how close embeddings of one class, and of different classes, lie.

    Raises:
        DataError: there were no images.
    """
    tally = CohortTally(num_peers=len(cohort), leader=cohort.leader)
    training = method.training
    method.eval()
    try:
        for peers, labels in _outputs(cohort, batches):
            embeddings = [peer.embedding for peer in peers]
            tally.add([peer.logits for peer in peers], method.ensemble(peers), labels, embeddings)
    finally:
        method.train(training)
    return tally.read()


def peer_logits(cohort: Cohort, batches: Iterable[tuple[Tensor, Tensor]]) -> Iterator[tuple[list[Tensor], Tensor]]:
    """Yield the logits of all peers, M times `[B, K]`, and the labels `[B]` of each batch, in evaluation mode.

    Args:
        cohort: the peers; their mode is put back when the last batch is done.
        batches: images `[B, C, H, W]` and labels `[B]`, on the device of the cohort.
    """
    for peers, labels in _outputs(cohort, batches):
        yield [peer.logits for peer in peers], labels


def peer_embeddings(cohort: Cohort, batches: Iterable[tuple[Tensor, Tensor]]) -> tuple[list[Tensor], Tensor]:
    """Run every image once through every peer, in evaluation mode, which is put back afterwards.

    Args:
        cohort: the peers.
        batches: images `[B, C, H, W]` and labels `[B]`, on the device of the cohort.

    Returns:
        Embeddings of the peers, M times `[N, D]` in at least float32, and labels `[N]`, on the device.

    Raises:
        NumericError: an embedding is not finite.
    """
    parts, labels = [], []
    for peers, targets in _outputs(cohort, batches):
        parts.append([at_least_float32(peer.embedding) for peer in peers])
        labels.append(targets)
    embeddings = [torch.cat(column) for column in zip(*parts, strict=True)]
    if not torch.stack([values.isfinite().all() for values in embeddings]).all():
        raise NumericError("an embedding is not finite; the network that made it has diverged, lower optim.lr")
    return embeddings, torch.cat(labels)


@torch.no_grad()
def _outputs(cohort: Cohort, batches: Iterable[tuple[Tensor, Tensor]]) -> Iterator[tuple[list[PeerOutput], Tensor]]:
    training = cohort.training
    cohort.eval()
    try:
        for images, labels in batches:
            yield cohort(images[None]), labels
    finally:
        cohort.train(training)
