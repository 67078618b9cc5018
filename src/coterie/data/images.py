"""One image file to one uint8 tensor: checked before it is decoded, always RGB, upright, and cut to a square."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from coterie.core import draws
from coterie.core.errors import DataError, one_line

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"})
MAX_PIXELS = 64_000_000
MAX_SIDE = 65_535
MAX_BYTES = 1 << 30

_FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF", "PPM")
_ORIENTATION = 0x0112
_MIRRORED = {2: (1, 0), 3: (1, 1), 4: (0, 1), 6: (1, 0), 7: (1, 1), 8: (0, 1)}  # axes, across and down, once upright
_SCALE = (0.08, 1.0)
_RATIO = (3 / 4, 4 / 3)
_TRIES = 10
_SPARE = 2  # how many times the wanted pixels a JPEG keeps when it is decoded for evaluation

Box = tuple[int, int, int, int]


@dataclass(frozen=True, slots=True)
class Framing:
    """How an image of any size becomes a square.

    Attributes:
        size: side S in pixels.
        kind: `exact` takes images of S x S only; `centre` brings the shorter side to S and cuts the middle;
            `resized_crop` cuts at random for training, and for evaluation the middle S of 256/224 S.
    """

    size: int
    kind: Literal["exact", "centre", "resized_crop"] = "centre"


def read_square(file: Path | IO[bytes], framing: Framing, key: int | None = None, *, name: str = "") -> Tensor:
    """Decode an image file.

    Grey, CMYK, palette and 16-bit images become 8-bit RGB; an alpha channel is dropped, of an animation the first
    frame is taken, and the orientation noted in EXIF is applied.

    A large JPEG is decoded at 1/2, 1/4 or 1/8 of its size, which its blocks allow for less work: for a random cut where
    the cut keeps as many pixels as are wanted, for evaluation where the image keeps twice as many, so that what is
    averaged over is hardly another than without.

    Args:
        file: where it is, or its bytes.
        framing: the square to make of it.
        key: what a random cut depends on; None for the cut of evaluation.
        name: how messages call it; by default where it is.

    Returns:
        `[3, S, S]` uint8.

    Raises:
        DataError: the file is missing, damaged, not an image, too large, or of another size than `exact` asks for.
    """
    with open_image(file, name) as image:
        return image_tensor(_square(image, framing, key))


def read_size(file: Path | IO[bytes], name: str = "") -> tuple[int, int]:
    """Width and height of an image file once it is upright, from its header; raises `DataError` as `read_square`."""
    with open_image(file, name) as image:
        return _upright_size(image)


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert an image of any mode to 8-bit RGB; raises `DataError` for floating point pixels, whose range is free."""
    if image.mode == "RGB":
        return image
    if image.mode == "F":
        raise DataError("holds floating point pixels; convert it to 8 bits")
    if image.mode.startswith("I"):
        levels = np.asarray(image).astype(np.int64) // 257  # Pillow would clip 16 bits to 8 instead of scaling
        image = Image.fromarray(levels.clip(0, 255).astype(np.uint8))
    if image.mode in ("P", "PA"):
        image = image.convert("RGBA")
    return image.convert("RGB")


def image_tensor(image: Image.Image) -> Tensor:
    """Copy an 8-bit image, grey or RGB, to `[C, H, W]` uint8."""
    pixels = np.array(image)
    return torch.from_numpy(pixels.reshape(*pixels.shape[:2], -1)).permute(2, 0, 1).contiguous()


def random_box(width: int, height: int, key: int) -> Box:
    """Draw the part of an image that training sees: 8 to 100 % of its area, sides 3:4 to 4:3.

    Up to ten boxes are tried; when none fits, the largest middle part of an allowed ratio is taken, as torchvision's
    `RandomResizedCrop` does (Szegedy et al., CVPR 2015, section 6).

    Args:
        width: of the image, in pixels.
        height: of the image, in pixels.
        key: what the box depends on.

    Returns:
        Left, top, right, bottom.
    """
    chances = draws.uniform(key, torch.arange(4 * _TRIES)).view(_TRIES, 4).tolist()
    for area_chance, ratio_chance, x_chance, y_chance in chances:
        area = width * height * (_SCALE[0] + area_chance * (_SCALE[1] - _SCALE[0]))
        ratio = math.exp(math.log(_RATIO[0]) + ratio_chance * math.log(_RATIO[1] / _RATIO[0]))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(x_chance * (width - w + 1)), int(y_chance * (height - h + 1))
            return left, top, left + w, top + h
    w = min(width, max(1, round(height * _RATIO[1])))
    h = min(height, max(1, round(width / _RATIO[0])))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


@contextmanager
def open_image(file: Path | IO[bytes], name: str = "") -> Iterator[Image.Image]:
    """Open an image file of an allowed format and size; nothing is decoded yet.

    Whatever goes wrong inside, decoding included, becomes a `DataError` that names the file, as of `read_square`.
    """
    name = name or repr(str(file))
    too_large = f"{name} claims more than {MAX_PIXELS} pixels or {MAX_SIDE} in a row; scale it down or remove it"
    try:
        _check_bytes(file)
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(file, formats=_FORMATS)
        with image:
            if image.width * image.height > MAX_PIXELS or max(image.size) > MAX_SIDE:
                raise DataError(too_large)
            yield image
    except DataError as error:
        raise error if name in str(error) else DataError(f"{name} {error}") from error
    except FileNotFoundError as error:
        raise DataError(f"{name} is missing; restore it or remove it from the data set") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DataError(too_large) from error
    except Exception as error:  # Pillow's decoders raise many kinds on damaged files
        raise DataError(f"{name} cannot be read as an image ({one_line(error)}); replace or remove it") from error


def _turns(image: Image.Image) -> int:
    return int(image.getexif().get(_ORIENTATION, 1))


def _upright(image: Image.Image) -> Image.Image:
    return image if _turns(image) == 1 else ImageOps.exif_transpose(image)


def _check_bytes(file: Path | IO[bytes]) -> None:
    size = file.stat().st_size if isinstance(file, Path) else 0
    if size > MAX_BYTES:
        raise DataError(f"has {size} bytes, more than any image of ours ({MAX_BYTES}); scale it down or remove it")


def upright(image: Image.Image) -> Image.Image:
    """Decode an image to 8-bit RGB, turned as its EXIF orientation says."""
    whole = to_rgb(_upright(image))
    whole.load()  # while its file is open
    return whole


def _upright_size(image: Image.Image) -> tuple[int, int]:
    return (image.height, image.width) if _turns(image) >= 5 else image.size


def _check_exact(image: Image.Image, size: int) -> None:
    if image.size != (size, size):
        raise DataError(
            f"has {image.width} x {image.height} pixels where the first image has {size} x {size};"
            " set data.image_size to bring all to one size"
        )


def _square(image: Image.Image, framing: Framing, key: int | None) -> Image.Image:
    size = framing.size
    if framing.kind == "exact":
        square = to_rgb(_upright(image))
        _check_exact(square, size)
        return square
    if framing.kind == "centre":
        return _centre_square(image, size, size)
    if key is None:
        return _centre_square(image, size * 256 // 224, size)
    return _random_square(image, size, key)


def _centre_square(image: Image.Image, shorter: int, size: int) -> Image.Image:
    """Bring the shorter side to a length and cut the middle, in one go: pixels that are cut off are not scaled."""
    sides, mirrored = _upright_size(image), _MIRRORED.get(_turns(image), (0, 0))
    upright, scale = _decoded(image, min(sides) / (_SPARE * shorter))
    spans = [
        _middle(side, upright.size[axis], scale, shorter * side // min(sides), size, mirrored[axis])
        for axis, side in enumerate(sides)
    ]
    (left, right), (top, bottom) = spans
    return to_rgb(upright).resize((size, size), Image.Resampling.BILINEAR, (left, top, right, bottom))


def _middle(side: int, decoded: int, scale: float, length: int, size: int, mirrored: int) -> tuple[float, float]:
    """Where in a decoded side the middle `size` of `length` pixels are that the whole side is brought to.

    A decoder rounds up: of `decoded` pixels only `side / scale` show the image, the last ones, where it was mirrored.
    """
    step = side / scale / length
    first = mirrored * (decoded - side / scale) + round((length - size) / 2) * step
    return first, min(first + size * step, decoded)


def _random_square(image: Image.Image, size: int, key: int) -> Image.Image:
    box = random_box(*_upright_size(image), key)
    upright, scale = _decoded(image, min(box[2] - box[0], box[3] - box[1]) / size)
    left, top, right, bottom = (round(edge / scale) for edge in box)
    part = upright.crop((left, top, max(right, left + 1), max(bottom, top + 1)))
    return to_rgb(part).resize((size, size), Image.Resampling.BILINEAR)


def _decoded(image: Image.Image, most: float) -> tuple[Image.Image, float]:
    """Decode an image, if it is a JPEG at 1/2, 1/4 or 1/8 of its size but not below 1/`most`.

    Returns:
        The image, upright, and what its sides were divided by.
    """
    width = image.width
    reduced = image.draft("RGB", (math.ceil(width / most), math.ceil(image.height / most))) if most >= 2 else None
    return _upright(image), 1.0 if reduced is None else width / reduced[1][2]
