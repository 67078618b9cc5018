"""VGG with batch norm for 32x32 images: groups of 3x3 convolutions, max-pools, one linear layer.

Simonyan and Zisserman, Very Deep Convolutional Networks for Large-Scale Image Recognition, ICLR 2015, arXiv:1409.1556.
The first group is the stem, every other group is a stage and ends with its max-pool. Sharing two stages of `vgg16`
gives the branches of MCL-OKD and DML, three those of ONE and OKDDip. Kaiming normal initialisation (fan-out) of the
convolutions, normal of standard deviation 0.01 of the head, zero biases.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from coterie.nets.base import NETS, StagedNet, pooled
from coterie.nets.blocks import check_size, conv, kaiming_fan_out

_VGG16 = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


@NETS.register("vgg8")
def vgg8(*, num_classes: int, in_channels: int = 3, image_size: int = 32) -> StagedNet:
    """VGG-8 with three max-pools; 3.97 M parameters at 100 classes."""
    check_size("vgg8", image_size, 8)
    return _vgg(((64,), (128,), (256,), (512,), (512,)), 3, num_classes, in_channels)


@NETS.register("vgg13")
def vgg13(*, num_classes: int, in_channels: int = 3, image_size: int = 32) -> StagedNet:
    """VGG-13 with three max-pools; 9.46 M parameters at 100 classes."""
    check_size("vgg13", image_size, 8)
    return _vgg(((64, 64), (128, 128), (256, 256), (512, 512), (512, 512)), 3, num_classes, in_channels)


@NETS.register("vgg16")
def vgg16(*, num_classes: int, in_channels: int = 3, image_size: int = 32) -> StagedNet:
    """VGG-16 with five max-pools, as in MCL-OKD; 14.8 M parameters at 100 classes."""
    check_size("vgg16", image_size, 32)
    return _vgg(_VGG16, 5, num_classes, in_channels)


@NETS.register("vgg16_3pool")
def vgg16_3pool(*, num_classes: int, in_channels: int = 3, image_size: int = 32) -> StagedNet:
    """VGG-16 with three max-pools, as in the benchmark of CRD: same parameters, more multiply-adds."""
    check_size("vgg16_3pool", image_size, 8)
    return _vgg(_VGG16, 3, num_classes, in_channels)


def _vgg(groups: Sequence[Sequence[int]], pools: int, num_classes: int, in_channels: int) -> StagedNet:
    parts = []
    for number, widths in enumerate(groups):
        layers: list[nn.Module] = []
        for width in widths:
            layers += [conv(in_channels, width, bias=True), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
            in_channels = width
        parts.append(nn.Sequential(*layers, *[nn.MaxPool2d(2)] * (number < pools)))
    net = StagedNet(
        stem=parts[0],
        stages=parts[1:],
        neck=pooled(),
        head=nn.Linear(in_channels, num_classes),
        stage_channels=[widths[-1] for widths in groups[1:]],
    )
    _initialise(net)
    return net


def _initialise(net: StagedNet) -> None:
    kaiming_fan_out(net)
    nn.init.normal_(net.head.weight, std=0.01)
    for layer in net.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear) and layer.bias is not None:
            nn.init.zeros_(layer.bias)
