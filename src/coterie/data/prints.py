"""What of an image is compared with others: digests of its file and of its pixels, and a hash of what it looks like."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from coterie.core.errors import DataError
from coterie.core.names import printable
from coterie.data.base import Split
from coterie.data.files import FileSplit, check_image_file
from coterie.data.images import open_image, upright
from coterie.data.stream import fetch_all

LOOK_BYTES = 16

_DIGEST = 16  # bytes of SHA-256 that are kept
_SIDE = 8
_CHUNK = 64  # images that a worker looks at, and sends, at a time
_MANY = 2000  # images from which on worker processes are sooner done than started


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where an image is.

    Attributes:
        part: `train`, `val`, `test`, or nothing where a data set has no parts.
        label: name of its class.
        name: file relative to the data set's folder, or part and row; printable.
        path: its file; None where it has none.
    """

    part: str
    label: str
    name: str
    path: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ImagePrint:
    """An image that was decoded, or that could not be.

    Attributes:
        place: where it is.
        damage: why it cannot be decoded; empty for a whole image, and the rest is then empty.
        file: digest of the file; empty where there is none.
        pixels: digest of size and pixels as training sees them: 8-bit RGB, upright.
        look: 16 bytes, of which resized or recompressed copies share nearly all bits; see `look_of`.
        size: width and height in pixels.
        mode: what the file holds, such as `RGB`, `L`, `CMYK`.
        kind: format of the file, such as `PNG`.
    """

    place: Place
    damage: str = ""
    file: bytes = b""
    pixels: bytes = b""
    look: bytes = b""
    size: tuple[int, int] = (0, 0)
    mode: str = ""
    kind: str = ""


def look_of(image: Image.Image) -> bytes:
    """Hash what an image looks like: which of neighbouring pixels is brighter, at 8 x 8 places, across and down.

    The difference hash of an image of 9 x 8 pixels, and that of one of 8 x 9: copies that were scaled, recompressed or
    made a little brighter differ in few of the 128 bits.
    """
    grey = image.convert("L")
    across = _small(grey, _SIDE + 1, _SIDE)
    down = _small(grey, _SIDE, _SIDE + 1)
    bits = np.stack([across[:, 1:] > across[:, :-1], down[1:] > down[:-1]])
    return np.packbits(bits).tobytes()


def _small(grey: Image.Image, width: int, height: int) -> np.ndarray[Any, Any]:
    return np.asarray(grey.resize((width, height), Image.Resampling.BILINEAR))


def print_files(places: Sequence[Place], workers: int = 0) -> list[ImagePrint]:
    """Decode every file once.

    Args:
        places: with paths.
        workers: processes that share the work when there are thousands of files; 0 decodes in this one.

    Returns:
        A print for each, in order; that of a file that cannot be decoded says why.

    Raises:
        DataError: a worker process died.
    """
    starts = range(0, len(places), _CHUNK)
    requests = [places[start : start + _CHUNK] for start in starts]
    found: list[ImagePrint] = []
    for prints in fetch_all(_Printer(), requests, workers if len(places) >= _MANY else 0):
        found += prints
    return found


def print_split(split: Split, part: str, classes: Sequence[str], workers: int = 0) -> list[ImagePrint]:
    """Look at every image of a split: its files where it has files, else its images as evaluation sees them.

    Args:
        split: with labels in `[0, K)`.
        part: `train`, `val` or `test`.
        classes: K names.
        workers: as of `print_files`.

    Raises:
        DataError: an image that has no file cannot be made.
    """
    names = [printable(classes[label]) for label in split.labels.tolist()]
    if isinstance(split, FileSplit):
        files = zip(names, split.names, strict=True)
        return print_files([place_of(split.root, split.root / file, part, name) for name, file in files], workers)
    images = zip(names, _images(split), strict=True)
    return [
        _print_array(Place(part=part, label=name, name=f"{part} row {row}"), image)
        for row, (name, image) in enumerate(images)
    ]


def place_of(root: Path, path: Path, part: str, label: str) -> Place:
    """The place of a file below a data set's folder."""
    return Place(part=part, label=label, name=printable(str(path.relative_to(root))), path=path)


class _Printer(Dataset[Any]):
    """Answers places with prints; runs in workers."""

    def __getitem__(self, places: Sequence[Place]) -> list[ImagePrint]:
        return list(map(_print_file, places))


def _print_file(place: Place) -> ImagePrint:
    path = place.path
    assert path is not None, "the place of a file has a path"
    try:
        check_image_file(path)
        with open_image(path) as image:
            kind, mode = image.format or "", image.mode
            whole = upright(image)
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").digest()[:_DIGEST]
    except (DataError, OSError) as error:
        return ImagePrint(place=place, damage=_reason(error, path))
    return ImagePrint(place=place, file=digest, kind=kind, mode=mode, **_seen(whole))


def _reason(error: Exception, path: Path) -> str:
    """What is wrong, without the name that stands beside it, and without the remedy."""
    said = error.strerror if isinstance(error, OSError) else str(error)
    return printable((said or "cannot be read").removeprefix(f"{str(path)!r} ").partition("; ")[0])


def _print_array(place: Place, image: Tensor) -> ImagePrint:
    """Print an image `[C, H, W]`, of which other than 1 and 3 channels are averaged to one for the look."""
    shape = f"{tuple(image.shape)}{image.dtype};".encode()
    pixels = image.contiguous().numpy()
    digest = hashlib.sha256(shape + pixels.tobytes()).digest()[:_DIGEST]
    levels = _levels(pixels)
    shown = levels.transpose(1, 2, 0) if len(levels) == 3 else levels.mean(0).astype(np.uint8)
    picture = Image.fromarray(np.ascontiguousarray(shown))
    return ImagePrint(place=place, pixels=digest, look=look_of(picture), size=picture.size)


def _levels(pixels: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Pixels as 256 levels: floating point ones are spread over the image's own range."""
    if pixels.dtype == np.uint8:
        return pixels
    low, high = float(pixels.min()), float(pixels.max())
    return ((pixels - low) * (255 / max(high - low, 1e-12))).astype(np.uint8)


def _seen(image: Image.Image) -> dict[str, Any]:
    digest = hashlib.sha256(f"{image.size};".encode() + image.tobytes()).digest()[:_DIGEST]
    return {"pixels": digest, "look": look_of(image), "size": image.size}


def _images(split: Split) -> Iterator[Tensor]:
    """Every image `[C, H, W]` of a split that has no files."""
    stored = getattr(split, "images", None)
    if isinstance(stored, Tensor):
        yield from torch.unbind(stored)
        return
    fetch = getattr(split, "fetch", None)
    assert fetch is not None, "a split has images or fetches them"
    for row in range(len(split.labels)):
        yield fetch(row, None)
