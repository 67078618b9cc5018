"""Blocks against their equations, written out with torch's functions."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from coterie.nets import NETS, StagedNet
from coterie.nets.blocks import Residual, basic, bottleneck
from coterie.nets.densenet import DenseLayer
from coterie.nets.wide_resnet import WideBlock


def shaken(block: nn.Module) -> nn.Module:
    """Give batch norms statistics and weights that are not those of the identity."""
    generator = torch.Generator().manual_seed(9)
    for layer in block.modules():
        if isinstance(layer, nn.BatchNorm2d):
            for tensor in (layer.weight, layer.bias, layer.running_mean, layer.running_var):
                tensor.data = 0.5 + torch.rand(tensor.shape, generator=generator)
    return block.eval().double()


def norm(layer: nn.Module, maps: Tensor) -> Tensor:
    assert isinstance(layer, nn.BatchNorm2d)
    shape = (1, -1, 1, 1)
    mean, var, weight, bias = (t.view(shape) for t in (layer.running_mean, layer.running_var, layer.weight, layer.bias))
    return weight * (maps - mean) / (var + 1e-5).sqrt() + bias


def images(channels: int) -> Tensor:
    return torch.randn(2, channels, 6, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize(("stride", "width"), [(1, 4), (1, 6), (2, 4)])
def test_basic_block_is_two_convolutions_and_a_shortcut(stride: int, width: int) -> None:
    block, maps = shaken(basic(4, width, stride)), images(4)
    assert isinstance(block, Residual)
    conv1, norm1, _, conv2, norm2 = block.body
    inner = F.relu(norm(norm1, F.conv2d(maps, conv1.weight, stride=stride, padding=1)))
    out = norm(norm2, F.conv2d(inner, conv2.weight, padding=1))
    kept = maps
    if stride > 1 or width != 4:
        kept = norm(block.shortcut[1], F.conv2d(maps, block.shortcut[0].weight, stride=stride))
    assert torch.allclose(block(maps), F.relu(out + kept), atol=1e-12)


def test_bottleneck_has_its_stride_on_the_middle_convolution() -> None:
    block, maps = shaken(bottleneck(4, 3, 2)), images(4)
    assert isinstance(block, Residual) and block.out_channels == 12
    conv1, norm1, _, conv2, norm2, _, conv3, norm3 = block.body
    inner = F.relu(norm(norm1, F.conv2d(maps, conv1.weight)))
    inner = F.relu(norm(norm2, F.conv2d(inner, conv2.weight, stride=2, padding=1)))
    kept = norm(block.shortcut[1], F.conv2d(maps, block.shortcut[0].weight, stride=2))
    assert torch.allclose(block(maps), F.relu(norm(norm3, F.conv2d(inner, conv3.weight)) + kept), atol=1e-12)


@pytest.mark.parametrize(("stride", "width"), [(1, 4), (1, 6), (2, 6)])
def test_wide_block_normalises_before_both_paths_where_channels_change(stride: int, width: int) -> None:
    block, maps = shaken(WideBlock(4, width, stride)), images(4)
    active = F.relu(norm(block.norm1, maps))
    inner = F.relu(norm(block.norm2, F.conv2d(active, block.conv1.weight, stride=stride, padding=1)))
    kept = maps if width == 4 else F.conv2d(active, block.shortcut.weight, stride=stride)
    assert torch.allclose(block(maps), kept + F.conv2d(inner, block.conv2.weight, padding=1), atol=1e-12)


def test_dense_layer_appends_its_maps() -> None:
    block, maps = shaken(DenseLayer(5, 3)), images(5)
    norm1, _, conv1, norm2, _, conv2 = block.body
    inner = F.conv2d(F.relu(norm(norm1, maps)), conv1.weight)
    new = F.conv2d(F.relu(norm(norm2, inner)), conv2.weight, padding=1)
    assert inner.shape[1] == 12
    assert torch.allclose(block(maps), torch.cat([maps, new], dim=1), atol=1e-12)


@pytest.mark.parametrize("name", ["wrn_16_1", "densenet40_12"])
def test_last_batch_norm_and_relu_belong_to_the_neck(name: str) -> None:
    net = shaken(NETS[name](num_classes=3))
    assert isinstance(net, StagedNet)
    last = torch.randn(2, net.stage_channels[-1], 8, 8, dtype=torch.float64)
    assert torch.allclose(net.neck(last), F.relu(norm(net.neck[0], last)).mean(dim=(2, 3)), atol=1e-12)
