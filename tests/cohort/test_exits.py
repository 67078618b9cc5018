"""Exits: fresh stages of the same family, and nothing of the network itself."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from coterie.cohort.exits import Exit, exits_of
from coterie.core.errors import ConfigError
from coterie.nets import NETS, StagedNet


def build(name: str) -> StagedNet:
    torch.manual_seed(2)
    net = NETS[name](num_classes=5, image_size=32)
    assert isinstance(net, StagedNet)
    return net


@pytest.mark.parametrize("name", ["resnet8", "wrn_16_1", "vgg8", "shufflenet_v2_05x", "densenet40_12"])
def test_exits_end_as_the_network_does(name: str) -> None:
    net = build(name).eval()
    maps = net.tap(torch.randn(2, 3, 32, 32), stage_maps=True).stages
    (exits,) = exits_of([net])
    assert len(exits) == len(net.stages) - 1
    for end, stage in zip(exits, maps[1:-1], strict=True):
        features, logits = end.eval()(stage)
        assert features.shape == (2, net.embedding_dim) and logits.shape == (2, 5)


def test_exits_share_no_weight_with_the_network_and_start_afresh() -> None:
    net = build("resnet32")
    kept = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    end = Exit(net, 1)
    own = {id(tensor) for tensor in (*net.parameters(), *net.buffers())}
    assert not own & {id(tensor) for tensor in (*end.parameters(), *end.buffers())}
    rebuilt = [*net.stages[1:].parameters(), *net.neck.parameters(), *net.head.parameters()]
    for old, new in zip(rebuilt, end.parameters(), strict=True):
        assert old.shape == new.shape
        if old.dim() > 1:
            assert not torch.equal(old, new)
            assert float(new.detach().std()) == pytest.approx(float(old.detach().std()), rel=0.2)
        elif old.shape[0] != 5:
            assert torch.equal(new, old)  # batch norms begin with 1 and 0
    assert all(torch.equal(tensor, kept[name]) for name, tensor in net.state_dict().items())


def test_trained_statistics_do_not_pass_to_an_exit_and_frozen_weights_do_not_freeze_it() -> None:
    net = build("resnet8")
    net(torch.randn(4, 3, 32, 32) * 5)
    net.requires_grad_(False)
    end = Exit(net, 1)
    norms = [layer for layer in end.modules() if isinstance(layer, nn.BatchNorm2d)]
    assert norms and all(not norm.running_mean.any() and int(norm.num_batches_tracked) == 0 for norm in norms)
    assert all(parameter.requires_grad for parameter in end.parameters())


def test_fewer_blocks_a_stage() -> None:
    net = build("resnet32").eval()
    full, short = (sum(p.numel() for p in Exit(net, 1, blocks=blocks).parameters()) for blocks in (0, 1))
    assert short < full / 3
    stage = net.tap(torch.randn(2, 3, 32, 32), stage_maps=True).stages[1]
    assert Exit(net, 1, blocks=1).eval()(stage)[0].shape == (2, 64)


def test_networks_without_stages_are_refused() -> None:
    plain = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    with pytest.raises(ConfigError, match="peer 1 is a Sequential without two stages") as error:
        exits_of([build("resnet8"), plain])
    assert "\n" not in str(error.value)
