"""Scoring: the method's own ensemble, in evaluation mode, and everything left as it was."""

from __future__ import annotations

import pytest
import torch

from coterie.evaluation import classify
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
    assert scores.as_dict()["ensemble"]["nll"] == pytest.approx(float(expected), rel=1e-5)
