"""Tiny image folders, archives and data sets made on the fly."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

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
def unpacked(image_folder: Path, tmp_path: Path) -> Any:
    """The images of `image_folder` as `datasets` finds them."""
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    return datasets.load_dataset("imagefolder", data_dir=str(image_folder), cache_dir=str(tmp_path / "cache"))


@pytest.fixture
def packed(unpacked: Any, tmp_path: Path) -> Path:
    """The images of `image_folder`, packed into several Arrow files for each part."""
    unpacked.save_to_disk(str(tmp_path / "packed"), num_shards={"train": 3, "validation": 2})
    return tmp_path / "packed"


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
    fine = {"train": range(12), "val": range(20, 23), "test": range(30, 35)}
    coarse = {"train": range(3), "val": range(4, 5), "test": range(7, 4, -2)}
    lists = root / "cifar-100-splits"
    for name in fine:
        write_json(lists / "cifar-fs" / f"{name}.json", [[str(label % 20), str(label)] for label in fine[name]])
        write_json(lists / "fc100" / f"{name}.json", [str(label) for label in coarse[name]])
    return root


def write_json(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


@pytest.fixture
def omniglot(tmp_path: Path) -> Path:
    """Five characters of three alphabets, four 35 x 35 drawings each; 8 classes to train on, 4 and 4 kept."""
    root = tmp_path / "letters"
    draw = np.random.default_rng(7)
    parts = {
        "train": ["Greek/character01", "Greek/character02"],
        "val": ["Latin_(old)/character01"],
        "test": ["N_Ko/character01"],
    }
    for name in [*(name for names in parts.values() for name in names), "N_Ko/character02"]:
        half = "images_evaluation" if name.startswith("N_Ko") else "images_background"
        (root / "omniglot-py" / half / name).mkdir(parents=True)
        for number in range(1, 5):
            ink = Image.fromarray(draw.integers(0, 256, (35, 35), dtype=np.uint8)).convert("1")
            ink.save(root / "omniglot-py" / half / name / f"0001_{number:02}.png")
    lists = root / "omniglot-splits" / "vinyals"
    lists.mkdir(parents=True)
    for part, names in parts.items():
        lines = [f"{name}/rot{turn:03}\n" for name in names for turn in (0, 90, 180, 270)]
        (lists / f"{part}.txt").write_text("".join(lines))
    return root


@pytest.fixture
def mini_imagenet(tmp_path: Path) -> Path:
    """Images and lists as of miniImageNet: 3, 2 and 2 classes, three images of 20 x 16 each."""
    root = tmp_path / "mini" / "mini-imagenet"
    (root / "images").mkdir(parents=True)
    for base, (part, count) in enumerate((("train", 3), ("val", 2), ("test", 2))):
        rows = [(f"n{base}{label}000{number}.jpg", f"n{base}{label}") for label in range(count) for number in range(3)]
        for number, (name, _) in enumerate(rows):
            _photo(100 * base + number, (20, 16)).save(root / "images" / name)
        (root / f"{part}.csv").write_text("filename,label\n" + "".join(f"{name},{label}\n" for name, label in rows))
    return root


@pytest.fixture
def class_folder(tmp_path: Path) -> Path:
    """Seven folders of three 16 x 16 images, one of them a folder in a folder, with `split.json` of six."""
    root = tmp_path / "birds"
    names = ["crow", "gulls/black headed", "finch", "owl", "robin", "swan", "unused"]
    for label, name in enumerate(names):
        (root / name).mkdir(parents=True)
        for number in range(3):
            _photo(10 * label + number, (16, 16)).save(root / name / f"{number}.png")
    write_json(root / "split.json", {"train": names[:2], "val": names[2:4], "test": names[4:6]})
    return root


@pytest.fixture
def tiny_classes(tmp_path: Path) -> Path:
    """Tiny-ImageNet's training images of nine of ten listed classes, three of 16 x 16 each."""
    root = tmp_path / "ten" / "tiny-imagenet-200"
    ids = [f"n{number:02}" for number in range(10)]
    for label, name in enumerate(ids):
        if name != "n01":
            (root / "train" / name / "images").mkdir(parents=True)
            for number in range(3):
                _photo(10 * label + number, (16, 16)).save(root / "train" / name / "images" / f"{number}.JPEG")
    (root / "wnids.txt").write_text("\n".join(reversed(ids)) + "\n")
    return root


@pytest.fixture
def roots(
    image_folder: Path,
    cifar_folder: Path,
    tiny_imagenet: Path,
    omniglot: Path,
    mini_imagenet: Path,
    class_folder: Path,
    tiny_classes: Path,
) -> dict[str, Path]:
    """What `data.root` is of data sets that need another one than `cifar_folder`, which is under the name `""`."""
    return {
        "": cifar_folder,
        "folder": image_folder,
        "tiny_imagenet": tiny_imagenet,
        "omniglot": omniglot,
        "mini_imagenet": mini_imagenet,
        "folder_classes": class_folder,
        "tiny_imagenet_classes": tiny_classes,
    }


@pytest.fixture
def small_split() -> ArraySplit:
    """48 random 3 x 8 x 8 images of 4 classes."""
    draw = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (48, 3, 8, 8), generator=draw, dtype=torch.uint8)
    return ArraySplit(images, torch.arange(48) % 4)
