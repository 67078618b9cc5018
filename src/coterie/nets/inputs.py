"""What a network sees of an image: all of it, its lightness, its colours, or a smaller copy."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from coterie.core.errors import ConfigError
from coterie.core.registry import Registry

_TO_XYZ = ((0.4124564, 0.3575761, 0.1804375), (0.2126729, 0.7151522, 0.0721750), (0.0193339, 0.1191920, 0.9503041))
_WHITE = (0.95047, 1.0, 1.08883)


class Sight(nn.Module):
    """Maps normalised images `[B, C, H, W]` to what a network is given; has no parameters.

    Args:
        mean: of each channel, as the data are normalised with.
        std: of each channel.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(std)[:, None, None], persistent=False)
        self.mean: Tensor
        self.std: Tensor

    def shape(self, channels: int, size: int) -> tuple[int, int]:
        """Channels and side of what comes out for images of so many channels and of this side.

        Raises:
            ConfigError: such images cannot be looked at in this way.
        """
        return channels, size

    def forward(self, images: Tensor) -> Tensor:
        """Return the images as they are."""
        return images


class _Lab(Sight):
    """Shares the way to CIE L*a*b* colours (white D65) between what looks at lightness and at colours."""

    channels = 3

    def shape(self, channels: int, size: int) -> tuple[int, int]:
        """Only images with three channels have colours."""
        if channels != 3:
            raise ConfigError(f"net.input asks for lightness or colours and the images have {channels} channels, not 3")
        return self.channels, size

    def lab(self, images: Tensor) -> Tensor:
        """L from 0 to 100, a and b from about -100 to 100, `[B, 3, H, W]` in at least float32."""
        levels = images.to(self.mean.dtype) * self.std + self.mean
        levels = levels.clamp(0, 1)
        linear = torch.where(levels > 0.04045, ((levels + 0.055) / 1.055) ** 2.4, levels / 12.92)
        matrix = torch.tensor(_TO_XYZ, dtype=linear.dtype, device=linear.device)
        white = torch.tensor(_WHITE, dtype=linear.dtype, device=linear.device)[:, None, None]
        xyz = torch.einsum("ij,bjhw->bihw", matrix, linear) / white
        root = torch.where(xyz > 216 / 24389, xyz.clamp(min=1e-6) ** (1 / 3), (24389 / 27 * xyz + 16) / 116)
        x, y, z = root.unbind(dim=1)
        return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], dim=1)


class Luminance(_Lab):
    """The lightness L of each pixel, from -1 to 1: one channel."""

    channels = 1

    def forward(self, images: Tensor) -> Tensor:
        """Map normalised colour images `[B, 3, H, W]` to `[B, 1, H, W]`."""
        return self.lab(images)[:, :1] / 50 - 1


class Chrominance(_Lab):
    """The colour a, b of each pixel without its lightness, from about -1 to 1: two channels."""

    channels = 2

    def forward(self, images: Tensor) -> Tensor:
        """Map normalised colour images `[B, 3, H, W]` to `[B, 2, H, W]`."""
        return self.lab(images)[:, 1:] / 110


class Half(Sight):
    """The image at half its side, each pixel the mean of four."""

    def shape(self, channels: int, size: int) -> tuple[int, int]:
        """Half the side, rounded down."""
        return channels, size // 2

    def forward(self, images: Tensor) -> Tensor:
        """Map images `[B, C, H, W]` to `[B, C, H // 2, W // 2]`."""
        return F.avg_pool2d(images, 2)


INPUTS: Registry[Callable[[Sequence[float], Sequence[float]], Sight]] = Registry("input")
INPUTS.register("image")(Sight)
INPUTS.register("luminance")(Luminance)
INPUTS.register("chrominance")(Chrominance)
INPUTS.register("half")(Half)


def sight_for(name: str, mean: Sequence[float], std: Sequence[float]) -> Sight:
    """Build what a network sees with, by its registered name.

    Raises:
        UnknownName: there is no such input.
    """
    return INPUTS[name](mean, std)
