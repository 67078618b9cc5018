"""Decoding one image file: every mode becomes upright RGB, damage is named, size is limited before decoding."""

from __future__ import annotations

import struct
import warnings
import zlib
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from coterie.core.errors import DataError
from coterie.data.images import MAX_PIXELS, Framing, random_box, read_size, read_square

Photo = Callable[[int, tuple[int, int]], Image.Image]


def tensor_of(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)


def test_centre_equals_resize_and_crop(tmp_path: Path, photo: Photo) -> None:
    image = photo(0, (30, 20))
    image.save(tmp_path / "a.png")
    expected = image.resize((15, 10), Image.Resampling.BILINEAR).crop((2, 0, 12, 10))
    assert torch.equal(read_square(tmp_path / "a.png", Framing(10)), tensor_of(expected))


def test_evaluation_cuts_the_middle_of_256_over_224(tmp_path: Path, photo: Photo) -> None:
    image = photo(0, (64, 64))
    image.save(tmp_path / "a.png")
    expected = image.resize((32, 32), Image.Resampling.BILINEAR).crop((2, 2, 30, 30))
    assert torch.equal(read_square(tmp_path / "a.png", Framing(28, "resized_crop")), tensor_of(expected))


@pytest.mark.parametrize("key", range(5))
def test_random_cut_equals_crop_and_resize(tmp_path: Path, photo: Photo, key: int) -> None:
    image = photo(0, (40, 30))
    image.save(tmp_path / "a.png")
    expected = image.crop(random_box(40, 30, key)).resize((12, 12), Image.Resampling.BILINEAR)
    assert torch.equal(read_square(tmp_path / "a.png", Framing(12, "resized_crop"), key), tensor_of(expected))


@given(st.integers(1, 400), st.integers(1, 400), st.integers(0, 2**62))
@settings(deadline=None)
def test_random_boxes_stay_inside(width: int, height: int, key: int) -> None:
    left, top, right, bottom = random_box(width, height, key)
    assert 0 <= left < right <= width
    assert 0 <= top < bottom <= height


def test_random_boxes_have_the_areas_and_ratios_asked_for() -> None:
    boxes = torch.tensor([random_box(1000, 1000, key) for key in range(800)], dtype=torch.float64)
    width, height = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    share, ratio = width * height / 1e6, width / height
    assert 0.079 < share.min() < 0.1
    assert share.max() > 0.9
    assert abs(share.mean() - 0.4784) < 0.025  # 20,000 draws with numpy's generator; large narrow boxes do not fit
    assert abs(share.std() - 0.2343) < 0.02
    assert ratio.min() > 0.745
    assert ratio.max() < 1.345
    assert abs(ratio.log().mean()) < 0.02


def test_no_fitting_box_gives_the_largest_middle() -> None:
    assert random_box(400, 10, 0) == (193, 0, 206, 10)
    assert random_box(10, 400, 0) == (0, 193, 10, 206)


def test_jpeg_decoded_at_reduced_scale_is_about_the_same(tmp_path: Path) -> None:
    across, down = np.meshgrid(np.linspace(0, 255, 640), np.linspace(0, 255, 480))
    image = Image.fromarray(np.stack([across, down, (across + down) / 2], axis=2).astype(np.uint8))
    image.save(tmp_path / "a.jpg", quality=95)
    image.save(tmp_path / "a.png")
    for key in range(4):
        jpeg, png = (read_square(tmp_path / f"a.{kind}", Framing(32, "resized_crop"), key) for kind in ("jpg", "png"))
        assert (jpeg.float() - png.float()).abs().mean() < 3


@pytest.mark.parametrize("orientation", [3, 6, 8])
def test_exif_orientation_is_applied(tmp_path: Path, orientation: int) -> None:
    image = Image.new("RGB", (32, 16), (255, 0, 0))
    image.paste((0, 0, 255), (16, 0, 32, 16))
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(tmp_path / "a.png", exif=exif)
    first = read_square(tmp_path / "a.png", Framing(16))[:, 0, 0].tolist()
    last = read_square(tmp_path / "a.png", Framing(16))[:, -1, -1].tolist()
    red_first = {3: False, 6: True, 8: False}[orientation]
    assert (first == [255, 0, 0], last == [0, 0, 255]) == (red_first, red_first)
    assert read_size(tmp_path / "a.png") == ((32, 16) if orientation == 3 else (16, 32))
    for key in range(3):
        assert read_square(tmp_path / "a.png", Framing(8, "resized_crop"), key).shape == (3, 8, 8)


@pytest.mark.parametrize(
    ("mode", "colour", "kind", "expected"),
    [
        ("L", 77, "png", (77, 77, 77)),
        ("1", 1, "png", (255, 255, 255)),
        ("LA", (77, 10), "png", (77, 77, 77)),
        ("RGBA", (1, 2, 3, 0), "png", (1, 2, 3)),
        ("CMYK", (0, 255, 255, 0), "tiff", (255, 0, 0)),
        ("I;16", 256 * 77 + 77, "png", (77, 77, 77)),
        ("I;16", 65535, "tiff", (255, 255, 255)),
    ],
)
def test_modes_become_rgb(tmp_path: Path, mode: str, colour: int, kind: str, expected: tuple[int, int, int]) -> None:
    path = tmp_path / f"a.{kind}"
    Image.new(mode, (4, 4), colour).save(path)
    assert read_square(path, Framing(4, "exact"))[:, 2, 2].tolist() == list(expected)


def test_palette_with_transparency(tmp_path: Path) -> None:
    image = Image.new("P", (4, 4), 1)
    image.putpalette([0, 0, 0, 10, 20, 30])
    image.save(tmp_path / "a.png", transparency=b"\xff\x80")
    assert read_square(tmp_path / "a.png", Framing(4))[:, 0, 0].tolist() == [10, 20, 30]


def test_first_frame_of_an_animation(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert read_square(tmp_path / "a.gif", Framing(4))[:, 0, 0].tolist() == [255, 0, 0]


def test_floating_point_pixels_are_refused(tmp_path: Path) -> None:
    Image.new("F", (4, 4), 0.5).save(tmp_path / "a.tiff")
    with pytest.raises(DataError, match=r"a\.tiff' holds floating point pixels"):
        read_square(tmp_path / "a.tiff", Framing(4))


def test_another_size_than_the_first(tmp_path: Path, photo: Photo) -> None:
    photo(0, (6, 4)).save(tmp_path / "a.png")
    with pytest.raises(
        DataError, match=r"a\.png' has 6 x 4 pixels where the first image has 4 x 4; set data.image_size"
    ):
        read_square(tmp_path / "a.png", Framing(4, "exact"))


def bomb(width: int, height: int) -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [8001, 12_000, 100_000])
def test_image_bombs_are_refused_from_their_header(tmp_path: Path, side: int) -> None:
    (tmp_path / "bomb.png").write_bytes(bomb(side, side))
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        with pytest.raises(DataError, match=rf"bomb\.png' claims more than {MAX_PIXELS} pixels"):
            read_square(tmp_path / "bomb.png", Framing(4))
    assert not seen


def png_bytes(photo: Photo) -> bytes:
    content = BytesIO()
    photo(1, (16, 16)).save(content, "PNG")
    return content.getvalue()


@pytest.mark.parametrize("content", [b"", b"no image at all", b"\x89PNG\r\n\x1a\n", b"%!PS-Adobe-3.0 EPSF-3.0\n"])
def test_files_that_are_no_images_are_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(DataError, match=r"a\.png' cannot be read as an image") as caught:
        read_square(tmp_path / "a.png", Framing(4))
    assert "\n" not in str(caught.value)


def test_truncated_file_is_named(tmp_path: Path, photo: Photo) -> None:
    content = png_bytes(photo)
    (tmp_path / "a.png").write_bytes(content[: len(content) // 2])
    with Image.open(tmp_path / "a.png") as image:
        assert image.size == (16, 16)  # the header is whole: only decoding finds out
    with pytest.raises(DataError, match=r"a\.png' cannot be read as an image"):
        read_square(tmp_path / "a.png", Framing(4))


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone\.png' is missing"):
        read_square(tmp_path / "gone.png", Framing(4))


def test_a_name_with_a_line_break_stays_on_one_line(tmp_path: Path) -> None:
    (tmp_path / "a\nb.png").write_bytes(b"x")
    with pytest.raises(DataError) as caught:
        read_square(tmp_path / "a\nb.png", Framing(4))
    assert "\n" not in str(caught.value)
