"""Scoring: the method's own ensemble, in evaluation mode, and everything left as it was."""

from __future__ import annotations

import pytest
import torch

from coterie.evaluation import classify, peer_embeddings
from coterie.metrics import class_similarity
from coterie.testing import make_scene


@pytest.mark.parametrize("training", [True, False])
def test_the_methods_ensemble_is_scored_and_nothing_changes(training: bool) -> None:
    scene = make_scene("one")
    scene.train(2, scene.optimizer())
    scene.cohort.train(training)
    scene.method.train(training)
    before, images, labels = scene.tensors(), scene.batch.views[0], scene.batch.labels
    scores = classify(scene.cohort, scene.method, [(images[:5], labels[:5]), (images[5:], labels[5:])])
    assert scene.cohort.training == scene.method.training == training
    assert all(torch.equal(tensor, before[name]) for name, tensor in scene.tensors().items())
    scene.cohort.eval()
    scene.method.eval()
    with torch.no_grad():
        logits = scene.method.ensemble(scene.cohort(images[None]))
    expected = torch.nn.functional.cross_entropy(logits, labels)
    assert scores.ensemble.nll == pytest.approx(float(expected), rel=1e-5)


def test_similarities_of_classes_come_from_the_same_pass() -> None:
    scene = make_scene("independent")
    images, labels = scene.batch.views[0], scene.batch.labels % 3
    passes: list[int] = []
    scene.cohort.register_forward_pre_hook(lambda module, given: passes.append(len(given[0][0])))
    scores = classify(scene.cohort, scene.method, [(images[:5], labels[:5]), (images[5:], labels[5:])])
    assert passes == [5, len(images) - 5]  # every image once, for all that is measured
    embeddings, _ = peer_embeddings(scene.cohort, [(images, labels)])
    for peer, embedding in zip(scores.peers, embeddings, strict=True):
        expected = class_similarity(embedding, labels)
        assert (peer.intra, peer.inter) == pytest.approx((expected.intra, expected.inter), rel=1e-5)
    assert {"intra", "inter"} <= scores.leader.as_dict().keys()
    assert not {"intra", "inter"} & scores.ensemble.as_dict().keys()
