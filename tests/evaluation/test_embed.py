"""Embeddings and pooled stage maps of frozen networks."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from coterie.core.errors import ConfigError
from coterie.evaluation.embed import check_stages, embed
from coterie.nets import NETS, StagedNet

IMAGES = torch.randn(7, 3, 8, 8, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(7)
BATCHES: list[tuple[Tensor, Tensor]] = [(IMAGES[:4], LABELS[:4]), (IMAGES[4:], LABELS[4:])]


def staged() -> StagedNet:
    torch.manual_seed(1)
    net = NETS["cnn4_w4"](num_classes=5)
    assert isinstance(net, StagedNet)
    net.train()(IMAGES)  # running statistics that differ from the batch's
    return net


def test_the_embedding_is_what_the_classifier_receives() -> None:
    net = staged()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    features, labels = embed(net, BATCHES)
    assert net.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert torch.equal(labels, LABELS)
    assert list(features) == ["embedding"]
    torch.testing.assert_close(net.head(features["embedding"]), net.eval()(IMAGES))
    assert not features["embedding"].requires_grad


def test_stage_maps_are_averaged_over_positions() -> None:
    net = staged()
    features, _ = embed(net, BATCHES, stages=[0, 2])
    value = net.eval().stem(IMAGES)
    expected = {"stage 0": value.mean(dim=(2, 3)), "stage 2": net.stages[1](net.stages[0](value)).mean(dim=(2, 3))}
    assert list(features) == list(expected)
    for name in expected:
        torch.testing.assert_close(features[name], expected[name])


def test_any_module_with_a_linear_head() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(192, 6), nn.ReLU(), nn.Linear(6, 2))
    features, _ = embed(net, BATCHES)
    torch.testing.assert_close(features["embedding"], net[:3](IMAGES))
    with pytest.raises(ConfigError, match=r"mine does not say where its stages end; leave --stage out"):
        check_stages(net, [1], "mine")


@pytest.mark.parametrize("stage", [-1, 4])
def test_stages_out_of_range(stage: int) -> None:
    check_stages(staged(), [0, 1, 2, 3], "peer 0")
    with pytest.raises(ConfigError, match=rf"peer 0 has no stage {stage}; give one of 0 \(the stem\) to 3"):
        check_stages(staged(), [1, stage], "peer 0")
