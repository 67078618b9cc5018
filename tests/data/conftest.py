"""Tiny image folders, archives and data sets made on the fly."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from coterie.data import ArraySplit


def _photo(seed: int, size: tuple[int, int]) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.fixture
def photo() -> Callable[[int, tuple[int, int]], Image.Image]:
    """Random RGB image of a (width, height)."""
    return _photo


@pytest.fixture
def image_folder(tmp_path: Path) -> Path:
    """Two classes of five 20 x 16 PNG images to train on, and two of each to test."""
    for part, count in (("train", 5), ("val", 2)):
        for label, name in enumerate(("cat", "dog")):
            place = tmp_path / "images" / part / name
            place.mkdir(parents=True)
            for number in range(count):
                _photo(100 * label + number, (20, 16)).save(place / f"{number}.png")
    return tmp_path / "images"


@pytest.fixture
def cifar_folder(tmp_path: Path) -> Path:
    """CIFAR-10 and CIFAR-100 archives of 20 and 200 images per file, written by Python 3."""
    root = tmp_path / "archives"
    draw = np.random.default_rng(0)

    def write(path: Path, count: int, key: str, classes: int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        images = draw.integers(0, 256, (count, 3072), dtype=np.uint8)
        path.write_bytes(pickle.dumps({"data": images, key: [n % classes for n in range(count)]}, protocol=4))

    for part in range(1, 6):
        write(root / "cifar-10-batches-py" / f"data_batch_{part}", 20, "labels", 10)
    write(root / "cifar-10-batches-py" / "test_batch", 20, "labels", 10)
    for name in ("train", "test"):
        write(root / "cifar-100-python" / name, 200, "fine_labels", 100)
    return root


@pytest.fixture
def small_split() -> ArraySplit:
    """48 random 3 x 8 x 8 images of 4 classes."""
    draw = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (48, 3, 8, 8), generator=draw, dtype=torch.uint8)
    return ArraySplit(images, torch.arange(48) % 4)
