"""Gated, shuffled and inverted units against their equations, position by position."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from coterie.nets.hcgnet import AttentionPool, Gates, HybridUnit
from coterie.nets.mobilenet import InvertedResidual
from coterie.nets.shufflenet import ShuffleDownV2, ShuffleUnitV1, ShuffleUnitV2, shuffled


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(4)


def maps(channels: int, side: int = 4) -> Tensor:
    return torch.randn(3, channels, side, side)


def test_attention_pool_is_a_mean_weighted_by_a_softmax_over_positions() -> None:
    pool, x = AttentionPool(5), maps(5, 3)
    weight, bias = pool.score.weight.detach().flatten().tolist(), float(pool.score.bias.detach())
    for image, ours in zip(x, pool(x).detach(), strict=True):
        spots = [image[:, i, j].tolist() for i in range(3) for j in range(3)]
        scores = [math.exp(sum(w * v for w, v in zip(weight, spot, strict=True)) + bias) for spot in spots]
        for c in range(5):
            mean = sum(score * spot[c] for score, spot in zip(scores, spots, strict=True)) / sum(scores)
            assert float(ours[c]) == pytest.approx(mean, abs=1e-5)


@torch.no_grad()
def test_gates_mix_the_two_vectors_and_scale_the_map() -> None:
    gates, x = Gates(6, 2).eval(), maps(6)
    near, far = gates.near(x), gates.far(x)
    hidden = gates.hidden(torch.cat([near, far], dim=1))
    share = torch.sigmoid(gates.choose_near(hidden) - gates.choose_far(hidden))  # a softmax of two
    added = (gates(x) - x * gates.forget(x))[:, :, 0, 0]
    assert torch.allclose(added, (share * near + (1 - share) * far)[:, :, 0, 0], atol=1e-6)
    assert hidden.abs().max() <= 1 and 0 < gates.forget(x).min() < gates.forget(x).max() < 1


def test_gates_see_two_widths_of_neighbourhood() -> None:
    gates = Gates(6, 4).eval()
    convolutions = [part[2] for part in (gates.near, gates.far)]
    assert [(layer.dilation, layer.groups) for layer in convolutions] == [((1, 1), 6), ((2, 2), 6)]
    assert all(layer(maps(6)).shape == (3, 6, 4, 4) for layer in convolutions)


def test_hybrid_unit_keeps_what_came_in() -> None:
    x = maps(8)
    out = HybridUnit(8, 4)(x)
    assert out.shape == (3, 12, 4, 4) and torch.equal(out[:, :8], x)


def test_shuffling_deals_the_groups_out() -> None:
    x = maps(12)
    dealt = shuffled(x, 3)
    for c in range(12):
        assert torch.equal(dealt[:, c], x[:, (c % 3) * 4 + c // 3])
    assert torch.equal(shuffled(dealt, 4), x)


@torch.no_grad()
def test_half_of_the_channels_pass_a_unit_of_v2_by() -> None:
    unit, x = ShuffleUnitV2(8).eval(), maps(8)
    out = unit(x)
    assert torch.equal(out[:, 0::2], x[:, :4]) and torch.equal(out[:, 1::2], unit.body(x[:, 4:]))
    down = ShuffleDownV2(8, 12).eval()
    halved = down(x)
    assert halved.shape == (3, 12, 2, 2)
    assert torch.equal(halved[:, 0::2], down.shortcut(x)) and torch.equal(halved[:, 1::2], down.body(x))


@torch.no_grad()
def test_units_of_v1_add_or_append() -> None:
    x = maps(48)
    same, down = ShuffleUnitV1(48, 48, 1).eval(), ShuffleUnitV1(48, 96, 2).eval()
    inner = same.expand(shuffled(same.reduce(x), 3))
    assert torch.equal(same(x), torch.relu(inner + x))
    mean = nn.functional.avg_pool2d(x, 3, 2, 1)
    assert down(x).shape == (3, 96, 2, 2) and torch.equal(down(x)[:, 48:], torch.relu(mean))


@torch.no_grad()
@pytest.mark.parametrize(("out", "stride", "adds"), [(6, 1, True), (6, 2, False), (8, 1, False)])
def test_inverted_residual_adds_only_what_fits(out: int, stride: int, adds: bool) -> None:
    unit, x = InvertedResidual(6, out, stride, 6).eval(), maps(6)
    assert unit.body[0].out_channels == 36 and unit.body[3].groups == 36
    expected = unit.body(x) + x if adds else unit.body(x)
    assert torch.equal(unit(x), expected)
