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
def tiny_imagenet(tmp_path: Path) -> Path:
    """Three of four listed classes, four 16 x 16 images of each to train on and two of all four to test."""
    root = tmp_path / "archives" / "tiny-imagenet-200"
    ids = ["n03", "n01", "n04", "n02"]
    for label, name in enumerate(["n01", "n02", "n03"]):
        place = root / "train" / name / "images"
        place.mkdir(parents=True)
        (place.parent / f"{name}_boxes.txt").write_text(f"{name}_0.JPEG\t0\t0\t15\t15\n")
        for number in range(4):
            _photo(100 * label + number, (16, 16)).save(place / f"{name}_{number}.JPEG")
    (root / "val" / "images").mkdir(parents=True)
    rows = [(f"val_{number}.JPEG", ids[number % 4]) for number in range(8)]
    for number, (name, _) in enumerate(rows):
        _photo(1000 + number, (16, 16)).save(root / "val" / "images" / name)
    (root / "val" / "val_annotations.txt").write_text("".join(f"{name}\t{of}\t0\t0\t9\t9\n" for name, of in rows))
    (root / "wnids.txt").write_text("\n".join(ids) + "\n")
    (root / "words.txt").write_text("n01\tgoldfish, Carassius auratus\nn02\tcrane\nn03\tcrane\nn99\tunused\n")
    return root


@pytest.fixture
def cifar_folder(tmp_path: Path) -> Path:
    """CIFAR-10 and CIFAR-100 archives of 20 and 200 images per file, written by Python 3."""
    root = tmp_path / "archives"
    draw = np.random.default_rng(0)

    def write(path: Path, count: int, **classes: int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        images = draw.integers(0, 256, (count, 3072), dtype=np.uint8)
        labels = {key: [n % among for n in range(count)] for key, among in classes.items()}
        path.write_bytes(pickle.dumps({"data": images, **labels}, protocol=4))

    for part in range(1, 6):
        write(root / "cifar-10-batches-py" / f"data_batch_{part}", 20, labels=10)
    write(root / "cifar-10-batches-py" / "test_batch", 20, labels=10)
    for name in ("train", "test"):
        write(root / "cifar-100-python" / name, 200, fine_labels=100, coarse_labels=20)
    return root


@pytest.fixture
def small_split() -> ArraySplit:
    """48 random 3 x 8 x 8 images of 4 classes."""
    draw = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (48, 3, 8, 8), generator=draw, dtype=torch.uint8)
    return ArraySplit(images, torch.arange(48) % 4)
