"""Decoding one image file: every mode becomes upright RGB, damage is named, size is limited before decoding."""

from __future__ import annotations

import struct
import warnings
import zlib
from collections.abc import Callable
from importlib.resources import files
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from coterie.core.errors import DataError
from coterie.data.images import MAX_BYTES, MAX_PIXELS, MAX_SIDE, Framing, random_box, read_size, read_square

PHOTOGRAPHS = Path(str(files("sklearn.datasets.images")))
Photo = Callable[[int, tuple[int, int]], Image.Image]


def tensor_of(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)


def resized_middle(image: Image.Image, shorter: int, size: int) -> torch.Tensor:
    """What torchvision's `Resize(shorter)` and `CenterCrop(size)` make of a PIL image."""
    lengths = [shorter * side // min(image.size) for side in image.size]
    left, top = (round((length - size) / 2) for length in lengths)
    resized = image.resize((lengths[0], lengths[1]), Image.Resampling.BILINEAR)
    return tensor_of(resized.crop((left, top, left + size, top + size)))


def test_centre_equals_resize_and_crop(tmp_path: Path, photo: Photo) -> None:
    image = photo(0, (30, 20))
    image.save(tmp_path / "a.png")
    expected = image.resize((15, 10), Image.Resampling.BILINEAR).crop((2, 0, 12, 10))
    assert torch.equal(read_square(tmp_path / "a.png", Framing(10)), tensor_of(expected))


@given(st.integers(4, 90), st.integers(4, 90), st.integers(4, 60), st.booleans())
@settings(max_examples=60)
def test_centre_equals_resize_and_crop_for_any_size(width: int, height: int, size: int, larger: bool) -> None:
    image = Image.fromarray(np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8))
    file = BytesIO()
    image.save(file, "PNG")
    expected = resized_middle(image, size * 256 // 224 if larger else size, size)
    found = read_square(file, Framing(size, "resized_crop" if larger else "centre"))
    assert (found.int() - expected.int()).abs().max() <= 1  # only weights are rounded otherwise


def test_an_image_of_the_wanted_size_is_left_alone(tmp_path: Path, photo: Photo) -> None:
    photo(0, (17, 17)).save(tmp_path / "a.png")
    assert torch.equal(read_square(tmp_path / "a.png", Framing(17)), tensor_of(photo(0, (17, 17))))


@pytest.mark.parametrize("photograph", ["china.jpg", "flower.jpg"])
@pytest.mark.parametrize("size", [24, 32, 48, 64, 90, 100])
def test_photographs_decoded_at_reduced_scale_are_evaluated_as_whole_ones(photograph: str, size: int) -> None:
    path = PHOTOGRAPHS / photograph
    expected = resized_middle(Image.open(path), size, size).int()
    difference = (read_square(path, Framing(size)).int() - expected).abs().flatten().float()
    assert 0.05 < difference.mean() < 1  # of 255; above nothing, as they are indeed decoded at 1/2 or 1/4
    assert difference.quantile(0.99) <= 5
    assert (expected[:, 1:] - expected[:, :-1]).abs().float().mean() > 5  # what a shift by one pixel would cost


def test_photographs_below_four_times_the_size_are_decoded_whole() -> None:
    path = PHOTOGRAPHS / "china.jpg"
    difference = (read_square(path, Framing(112)).int() - resized_middle(Image.open(path), 112, 112).int()).abs()
    assert difference.max() <= 1
    assert difference.float().mean() < 0.01


@pytest.mark.parametrize(
    ("orientation", "undo"),
    [
        (2, Image.Transpose.FLIP_LEFT_RIGHT),
        (3, Image.Transpose.ROTATE_180),
        (4, Image.Transpose.FLIP_TOP_BOTTOM),
        (5, Image.Transpose.TRANSPOSE),
        (6, Image.Transpose.ROTATE_270),
        (7, Image.Transpose.TRANSVERSE),
        (8, Image.Transpose.ROTATE_90),
    ],
)
def test_a_turned_photograph_is_evaluated_as_an_upright_one(orientation: int, undo: Image.Transpose) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = BytesIO()
    with Image.open(PHOTOGRAPHS / "china.jpg") as image:
        part = image.crop((0, 0, 637, 425))  # sides that the reduced scale does not divide
        part.save(file, "JPEG", quality=95, exif=exif)
    with Image.open(file) as image:
        expected = resized_middle(image.transpose(undo), 48, 48).int()
    assert (read_square(file, Framing(48)).int() - expected).abs().float().mean() < 1


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


@pytest.mark.case(51)
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


@pytest.mark.case(51)
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


@pytest.mark.case(51)
def test_palette_with_transparency(tmp_path: Path) -> None:
    image = Image.new("P", (4, 4), 1)
    image.putpalette([0, 0, 0, 10, 20, 30])
    image.save(tmp_path / "a.png", transparency=b"\xff\x80")
    assert read_square(tmp_path / "a.png", Framing(4))[:, 0, 0].tolist() == [10, 20, 30]


@pytest.mark.case(51)
def test_first_frame_of_an_animation(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert read_square(tmp_path / "a.gif", Framing(4))[:, 0, 0].tolist() == [255, 0, 0]


@pytest.mark.case(51)
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


@pytest.mark.case(50)
@pytest.mark.parametrize("side", [8001, 12_000, 100_000])
def test_image_bombs_are_refused_from_their_header(tmp_path: Path, side: int) -> None:
    (tmp_path / "bomb.png").write_bytes(bomb(side, side))
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        with pytest.raises(DataError, match=rf"bomb\.png' claims more than {MAX_PIXELS} pixels"):
            read_square(tmp_path / "bomb.png", Framing(4))
    assert not seen


@pytest.mark.case(50)
def test_a_row_of_a_million_pixels_is_refused_from_its_header(tmp_path: Path) -> None:
    (tmp_path / "row.png").write_bytes(bomb(1_000_000, 1))
    with pytest.raises(DataError, match=rf"row\.png' claims more than {MAX_PIXELS} pixels or {MAX_SIDE} in a row"):
        read_square(tmp_path / "row.png", Framing(4))


@pytest.mark.case(50)
def test_a_huge_file_is_refused_unread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (tmp_path / "huge.png").open("wb") as file:
        file.truncate(MAX_BYTES + 1)  # a hole: it takes no room
    monkeypatch.setattr(Image, "open", lambda *args, **options: 1 / 0)
    with pytest.raises(DataError, match=rf"huge\.png' has {MAX_BYTES + 1} bytes, more than"):
        read_square(tmp_path / "huge.png", Framing(4))


@pytest.mark.case(75)
@given(data=st.data())
@settings(deadline=None, max_examples=60)
def test_any_bytes_are_an_image_or_one_line(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    path, content = tmp_path_factory.mktemp("fuzz") / "a.png", BytesIO()
    kind = data.draw(st.sampled_from(["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM"]))
    Image.linear_gradient("L").resize((9, 7)).convert("RGB").save(content, kind)
    changed = bytearray(content.getvalue())
    for _ in range(data.draw(st.integers(1, 6))):
        changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(bytes(changed[: data.draw(st.integers(0, len(changed)))]))
    try:
        square = read_square(path, Framing(4))
    except DataError as error:
        assert "\n" not in str(error) and len(str(error)) < 500
    else:
        assert square.shape == (3, 4, 4)


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


@pytest.mark.case(49)
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
