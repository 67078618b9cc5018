"""What networks see of an image, against colours whose CIE Lab values are known."""

import pytest
import torch
from torch import Tensor

from coterie.core import ConfigError, UnknownName
from coterie.nets.inputs import INPUTS, sight_for

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
COLOURS = {
    (255, 255, 255): (100.0, 0.0, 0.0),
    (0, 0, 0): (0.0, 0.0, 0.0),
    (255, 0, 0): (53.24, 80.09, 67.20),
    (0, 255, 0): (87.73, -86.18, 83.18),
    (0, 0, 255): (32.30, 79.19, -107.86),
    (119, 119, 119): (50.03, 0.0, 0.0),
    (1, 2, 3): (0.51, -0.12, -0.47),
}


def normalised(levels: Tensor) -> Tensor:
    mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
    return (levels / 255 - mean) / std


@pytest.mark.parametrize("colour", COLOURS)
def test_lightness_and_colours(colour: tuple[int, int, int]) -> None:
    image = normalised(torch.tensor(colour, dtype=torch.float32)[None, :, None, None].expand(2, 3, 4, 5))
    lightness = sight_for("luminance", MEAN, STD)(image)
    colours = sight_for("chrominance", MEAN, STD)(image)
    expected = torch.tensor(COLOURS[colour])
    assert lightness.shape == (2, 1, 4, 5) and colours.shape == (2, 2, 4, 5)
    torch.testing.assert_close((lightness[0, 0, 0, 0] + 1) * 50, expected[0], atol=0.02, rtol=0)
    torch.testing.assert_close(colours[1, :, 1, 1] * 110, expected[1:], atol=0.04, rtol=0)


def test_half_is_the_mean_of_four() -> None:
    image = torch.arange(16.0).reshape(1, 1, 4, 4)
    assert sight_for("half", (0.5,), (0.5,))(image).flatten().tolist() == [2.5, 4.5, 10.5, 12.5]


def test_the_whole_image_is_not_copied() -> None:
    image = torch.rand(1, 3, 4, 4)
    assert sight_for("image", MEAN, STD)(image) is image


@pytest.mark.parametrize("name", INPUTS)
def test_shapes_are_what_comes_out(name: str) -> None:
    sight = sight_for(name, MEAN, STD)
    channels, size = sight.shape(3, 9)
    assert sight(torch.rand(2, 3, 9, 9)).shape == (2, channels, size, size)
    assert not list(sight.parameters()) and not sight.state_dict()


def test_errors() -> None:
    with pytest.raises(ConfigError, match="the images have 1 channels, not 3"):
        sight_for("luminance", (0.5,), (0.5,)).shape(1, 8)
    with pytest.raises(UnknownName, match="luminance"):
        sight_for("luminence", MEAN, STD)
