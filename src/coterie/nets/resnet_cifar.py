"""ResNet for 32x32 images: a 3x3 stem, three stages, no max-pool.

He et al., Deep Residual Learning for Image Recognition, CVPR 2016, arXiv:1512.03385. Kaiming normal initialisation
(fan-out) of the convolutions; the head keeps torch's default. Three networks are called ResNet-110 in the literature of
online distillation; they have names of their own here: `resnet110_bottleneck` (12 bottleneck blocks a stage, as in
OKDDip and MCL-OKD), `resnet110_basic` (18 basic blocks a stage) and `resnet164_bottleneck` (18 bottleneck blocks a
stage, the "ResNet-110" of ONE). `resnet50_cifar` has the four stages of the ImageNet network after a 3x3 stem. Sharing
one stage gives the branches of MCL-OKD and DML, two those of ONE and OKDDip.
"""

from __future__ import annotations

from torch import nn

from coterie.nets.base import NETS, StagedNet, pooled
from coterie.nets.blocks import Block, basic, bottleneck, conv_norm_relu, kaiming_fan_out, residual_stages

_WIDTHS = (16, 32, 64)


@NETS.register("resnet8")
def resnet8(*, num_classes: int, in_channels: int = 3, image_size: int = 32) -> StagedNet:
    """ResNet-8: one basic block a stage; 0.08 M parameters at 100 classes."""
    return _resnet(basic, 1, num_classes, in_channels)


@NETS.register("resnet14")
def resnet14(*, num_classes: int, in_channels: int = 3, image_size: int = 32) -> StagedNet:
    """ResNet-14: two basic blocks a stage; 0.18 M parameters at 100 classes."""
    return _resnet(basic, 2, num_classes, in_channels)


@NETS.register("resnet20")
def resnet20(*, num_classes: int, in_channels: int = 3, image_size: int = 32) -> StagedNet:
    """ResNet-20: three basic blocks a stage; 0.28 M parameters at 100 classes."""
    return _resnet(basic, 3, num_classes, in_channels)


@NETS.register("resnet32")
def resnet32(*, num_classes: int, in_channels: int = 3, image_size: int = 32) -> StagedNet:
    """ResNet-32: five basic blocks a stage; 0.47 M parameters at 100 classes."""
    return _resnet(basic, 5, num_classes, in_channels)


@NETS.register("resnet44")
def resnet44(*, num_classes: int, in_channels: int = 3, image_size: int = 32) -> StagedNet:
    """ResNet-44: seven basic blocks a stage; 0.67 M parameters at 100 classes."""
    return _resnet(basic, 7, num_classes, in_channels)


@NETS.register("resnet56")
def resnet56(*, num_classes: int, in_channels: int = 3, image_size: int = 32) -> StagedNet:
    """ResNet-56: nine basic blocks a stage; 0.86 M parameters at 100 classes."""
    return _resnet(basic, 9, num_classes, in_channels)


@NETS.register("resnet110_basic")
def resnet110_basic(*, num_classes: int, in_channels: int = 3, image_size: int = 32) -> StagedNet:
    """ResNet-110 of the original paper: 18 basic blocks a stage; 1.74 M parameters at 100 classes."""
    return _resnet(basic, 18, num_classes, in_channels)


@NETS.register("resnet110_bottleneck")
def resnet110_bottleneck(*, num_classes: int, in_channels: int = 3, image_size: int = 32) -> StagedNet:
    """ResNet-110 of OKDDip and MCL-OKD: 12 bottleneck blocks a stage; 1.17 M parameters at 100 classes."""
    return _resnet(bottleneck, 12, num_classes, in_channels)


@NETS.register("resnet164_bottleneck")
def resnet164_bottleneck(*, num_classes: int, in_channels: int = 3, image_size: int = 32) -> StagedNet:
    """ResNet-164, "ResNet-110" in ONE: 18 bottleneck blocks a stage; 1.73 M parameters at 100 classes."""
    return _resnet(bottleneck, 18, num_classes, in_channels)


@NETS.register("resnet8x4")
def resnet8x4(*, num_classes: int, in_channels: int = 3, image_size: int = 32) -> StagedNet:
    """ResNet-8, four times as wide after a stem of 32 channels; 1.23 M parameters at 100 classes."""
    return _resnet(basic, 1, num_classes, in_channels, stem=32, widths=(64, 128, 256))


@NETS.register("resnet32x4")
def resnet32x4(*, num_classes: int, in_channels: int = 3, image_size: int = 32) -> StagedNet:
    """ResNet-32, four times as wide after a stem of 32 channels; 7.43 M parameters at 100 classes."""
    return _resnet(basic, 5, num_classes, in_channels, stem=32, widths=(64, 128, 256))


@NETS.register("resnet50_cifar")
def resnet50_cifar(*, num_classes: int, in_channels: int = 3, image_size: int = 32) -> StagedNet:
    """ResNet-50 with a 3x3 stem of 64 channels, as in the benchmark of CRD; 23.7 M parameters at 100 classes."""
    return _resnet(bottleneck, (3, 4, 6, 3), num_classes, in_channels, stem=64, widths=(64, 128, 256, 512))


def _resnet(
    block: Block,
    depth: int | tuple[int, ...],
    num_classes: int,
    in_channels: int,
    *,
    stem: int = 16,
    widths: tuple[int, ...] = _WIDTHS,
) -> StagedNet:
    depths = (depth,) * len(widths) if isinstance(depth, int) else depth
    stages, channels = residual_stages(block, stem, widths, depths)
    net = StagedNet(
        stem=nn.Sequential(*conv_norm_relu(in_channels, stem)),
        stages=stages,
        neck=pooled(),
        head=nn.Linear(channels[-1], num_classes),
        stage_channels=channels,
    )
    kaiming_fan_out(net)
    return net
