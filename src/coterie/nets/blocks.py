"""Parts that several families of networks are put together from."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from coterie.core.errors import ConfigError
from coterie.nets.boundaries import Boundary, last_norm
from coterie.nets.layers import layers_of


def conv(in_channels: int, out_channels: int, size: int = 3, stride: int = 1, *, bias: bool = False) -> nn.Conv2d:
    """A convolution that keeps the map's size at stride 1.

    Args:
        in_channels: channels that go in.
        out_channels: channels that come out.
        size: side of the kernel, an odd number.
        stride: step in both directions.
        bias: whether a bias is added; needless before a batch norm.
    """
    return nn.Conv2d(in_channels, out_channels, size, stride, padding=size // 2, bias=bias)


def conv_norm(in_channels: int, out_channels: int, size: int = 3, stride: int = 1) -> list[nn.Module]:
    """A convolution without bias and its batch norm; see `conv` for the arguments."""
    return [conv(in_channels, out_channels, size, stride), nn.BatchNorm2d(out_channels)]


def conv_norm_relu(in_channels: int, out_channels: int, size: int = 3, stride: int = 1) -> list[nn.Module]:
    """A convolution without bias, its batch norm and a ReLU; see `conv` for the arguments."""
    return [*conv_norm(in_channels, out_channels, size, stride), nn.ReLU(inplace=True)]


def norm_relu_conv(in_channels: int, out_channels: int, size: int = 3, stride: int = 1) -> list[nn.Module]:
    """A batch norm, a ReLU and a convolution without bias; see `conv` for the arguments."""
    return [nn.BatchNorm2d(in_channels), nn.ReLU(inplace=True), conv(in_channels, out_channels, size, stride)]


def depthwise_norm(channels: int, stride: int = 1) -> list[nn.Module]:
    """A 3x3 convolution of each channel for itself, without bias, and its batch norm."""
    layer = nn.Conv2d(channels, channels, 3, stride, padding=1, groups=channels, bias=False)
    return [layer, nn.BatchNorm2d(channels)]


class Residual(nn.Module):
    """`relu(body(x) + shortcut(x))` (He et al., CVPR 2016, arXiv:1512.03385).

    Where the shape changes the shortcut is a 1x1 convolution with batch norm, elsewhere the map itself.

    Args:
        body: maps `[B, in_channels, H, W]` to `[B, out_channels, H/stride, W/stride]`.
        in_channels: channels that go in.
        out_channels: channels that come out.
        stride: step of the body.
    """

    def __init__(self, body: nn.Module, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.body = body
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Sequential(*conv_norm(in_channels, out_channels, 1, stride))
        self.relu = nn.ReLU(inplace=True)
        self.out_channels = out_channels

    def forward(self, maps: Tensor) -> Tensor:
        """Map `[B, in_channels, H, W]` to `[B, out_channels, H/stride, W/stride]`."""
        active: Tensor = self.relu(self.body(maps) + self.shortcut(maps))
        return active

    def ending(self) -> Boundary:
        """The sum, whose batch norm is that of the body."""
        return Boundary(inputs=(self.relu,), norm=last_norm(self.body))


Block = Callable[[int, int, int], Residual]


def basic(in_channels: int, width: int, stride: int) -> Residual:
    """Two 3x3 convolutions of `width` channels; the first has the stride."""
    body = nn.Sequential(*conv_norm_relu(in_channels, width, 3, stride), *conv_norm(width, width))
    return Residual(body, in_channels, width, stride)


def bottleneck(in_channels: int, width: int, stride: int) -> Residual:
    """1x1, 3x3 (with the stride) and 1x1 convolutions; `4 * width` channels come out."""
    body = nn.Sequential(
        *conv_norm_relu(in_channels, width, 1),
        *conv_norm_relu(width, width, 3, stride),
        *conv_norm(width, 4 * width, 1),
    )
    return Residual(body, in_channels, 4 * width, stride)


def residual_stages(
    block: Block, in_channels: int, widths: tuple[int, ...], depths: tuple[int, ...]
) -> tuple[list[nn.Module], list[int]]:
    """Stages of residual blocks; every stage but the first halves the map in its first block.

    Args:
        block: `basic` or `bottleneck`.
        in_channels: channels after the stem.
        widths: width of the blocks of each stage.
        depths: number of blocks of each stage.

    Returns:
        The stages and the channels of each one's map.
    """
    stages: list[nn.Module] = []
    channels = [in_channels]
    for width, depth in zip(widths, depths, strict=True):
        blocks = [block(channels[-1], width, 2 if stages else 1)]
        for _ in range(depth - 1):
            blocks.append(block(blocks[0].out_channels, width, 1))
        stages.append(nn.Sequential(*blocks))
        channels.append(blocks[0].out_channels)
    return stages, channels[1:]


def kaiming_fan_out(net: nn.Module) -> None:
    """Draw the weights of all convolutions from a normal with variance `2 / fan_out` (He et al., ICCV 2015)."""
    for layer in layers_of(net, nn.Conv2d):
        nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")


def check_size(name: str, image_size: int, smallest: int) -> None:
    """Refuse images of which a network's pooling would leave nothing.

    Raises:
        ConfigError: `image_size` is below `smallest` pixels.
    """
    if image_size < smallest:
        raise ConfigError(
            f"{name} needs images of at least {smallest} pixels and got {image_size};"
            " set data.image_size or choose another network"
        )
