"""Image files split by class: miniImageNet in both layouts, folders with a split, Tiny-ImageNet by class."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from coterie.config.schema import DataConfig
from coterie.core.errors import ConfigError, DataError
from coterie.data import DATA, ArraySplit, FileSplit, Source, open_data
from coterie.data.images import Framing, read_square

REAL = Path(os.environ.get("COTERIE_DATA", ""))


def opened(name: str, root: Path, **changes: Any) -> Source:
    return DATA[name](DataConfig(root=str(root), **changes), 0)


def as_folders(root: Path, to: Path) -> Path:
    for part in ("train", "val", "test"):
        for line in (root / f"{part}.csv").read_text().splitlines()[1:]:
            name, label = line.split(",")
            (to / part / label).mkdir(parents=True, exist_ok=True)
            shutil.copy(root / "images" / name, to / part / label / name)
    return to


def test_both_layouts_of_mini_imagenet_are_the_same(mini_imagenet: Path, tmp_path: Path) -> None:
    listed = opened("mini_imagenet", mini_imagenet)
    folders = opened("mini_imagenet", as_folders(mini_imagenet, tmp_path / "folders"))
    assert listed.classes == folders.classes == ("n00", "n01", "n02")
    for a, b in (
        (listed.train, folders.train),
        (listed.validation, folders.validation),
        (listed.test(), folders.test()),
    ):
        assert isinstance(a, ArraySplit)
        assert isinstance(b, ArraySplit)
        assert a.image_size == 84
        assert a.fingerprint() == b.fingerprint()
    above = opened("mini_imagenet", mini_imagenet.parent)
    assert above.train.fingerprint() == listed.train.fingerprint()


def test_mini_imagenet_can_stay_on_disk(mini_imagenet: Path) -> None:
    kept, left = (opened("mini_imagenet", mini_imagenet, memory_mb=size) for size in (512, 0))
    assert isinstance(kept.train, ArraySplit)
    assert isinstance(left.train, FileSplit)
    assert torch.equal(torch.stack([left.train.fetch(row, None) for row in range(9)]), kept.train.images)
    cut = opened("mini_imagenet", mini_imagenet, augment="resized_crop")
    assert isinstance(cut.train, FileSplit)
    assert cut.train.framing == Framing(84, "resized_crop")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name,label\na.jpg,n00\n", "train.csv' begins with 'name,label'; expected the columns filename,label"),
        ("", "begins with ''; expected the columns"),
        ("filename,label\nn000000.jpg,n00\n../n000001.jpg,n00\n", "line 3 does not name an image and its class"),
        ("filename,label\nn000000.jpg\n", "line 2 does not name an image and its class"),
        ("filename,label\nnothing.jpg,n00\n", r"nothing\.jpg' is missing or empty; restore or remove it"),
        ("filename,label\nn000000.jpg,n20\n", "class 'n20' is in train and in test"),
        ("filename,label\n", "names no classes for train"),
    ],
)
def test_wrong_lists_of_mini_imagenet(mini_imagenet: Path, text: str, message: str) -> None:
    (mini_imagenet / "train.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        opened("mini_imagenet", mini_imagenet)


def test_a_folder_with_a_split(class_folder: Path) -> None:
    source = opened("folder_classes", class_folder)
    assert source.classes == ("crow", "gulls/black headed")
    assert isinstance(source.train, ArraySplit)
    second = read_square(class_folder / "gulls" / "black headed" / "1.png", Framing(16, "exact"))
    assert torch.equal(source.train.images[4], second)
    assert source.train.labels.tolist() == source.test().labels.tolist() == [0, 0, 0, 1, 1, 1]
    split = json.loads((class_folder / "split.json").read_text())
    (class_folder / "split.json").unlink()
    lines = [f"{part} {name}\n" for part, names in split.items() for name in names]
    (class_folder / "split.txt").write_text("".join(lines))
    assert opened("folder_classes", class_folder).train.fingerprint() == source.train.fingerprint()


def test_folders_make_a_split(mini_imagenet: Path, tmp_path: Path) -> None:
    root = as_folders(mini_imagenet, tmp_path / "folders")
    assert opened("folder_classes", root, image_size=12, validation=0.0).classes == ("n00", "n01", "n02", "n10", "n11")
    shutil.rmtree(root / "val")
    config = DataConfig(name="folder_classes", root=str(root), image_size=12, batch_size=2)
    with pytest.raises(ConfigError, match=r"folder_classes has no classes to validate on; set data\.validation=0"):
        open_data(config, 0)
    shutil.copytree(root / "train" / "n01", root / "test" / "n01")
    with pytest.raises(DataError, match="class 'n01' is in train and in test of"):
        open_data(config, 0)
    shutil.rmtree(root / "test")
    with pytest.raises(DataError, match="names no classes for test; add some"):
        open_data(config, 0)
    shutil.rmtree(root / "train")
    with pytest.raises(DataError, match="train' is missing and no file splits the classes; the guide says how to"):
        open_data(config, 0)


def test_wrong_splits_of_a_folder(class_folder: Path) -> None:
    def split(**parts: list[str]) -> None:
        (class_folder / "split.json").write_text(json.dumps({"train": ["crow", "owl"], "test": ["robin"]} | parts))

    split(test=["raven"])
    with pytest.raises(DataError, match=r"names the class 'raven' and '.*birds' has none; correct or remove it"):
        opened("folder_classes", class_folder)
    split(test=["../birds/swan"])
    with pytest.raises(DataError, match=r"names the class '\.\./birds/swan' and '.*birds' has none"):
        opened("folder_classes", class_folder)
    split()
    for path in (class_folder / "robin").iterdir():
        path.unlink()
    with pytest.raises(DataError, match=r"class folder '.*robin' is empty; add images or remove it"):
        opened("folder_classes", class_folder)


def test_tiny_imagenet_is_divided_by_fives(tiny_classes: Path) -> None:
    source = opened("tiny_imagenet_classes", tiny_classes)
    assert source.classes == ("n00", "n02", "n05", "n06", "n07")  # n01 is not there, and moves no other
    assert source.validation is not None
    third = read_square(tiny_classes / "train" / "n08" / "images" / "2.JPEG", Framing(16, "exact"))
    assert isinstance(source.validation, ArraySplit)
    assert torch.equal(source.validation.images[5], third)
    assert source.test().labels.tolist() == [0, 0, 0, 1, 1, 1]


def test_a_small_part_of_tiny_imagenet_has_no_classes_left_for_the_test(tiny_imagenet: Path) -> None:
    with pytest.raises(DataError, match="names no classes for test; add some"):
        opened("tiny_imagenet_classes", tiny_imagenet)


@pytest.mark.slow
@pytest.mark.data
@pytest.mark.skipif(not (REAL / "tiny-imagenet-200").is_dir(), reason="COTERIE_DATA has no tiny-imagenet-200")
def test_the_real_tiny_imagenet_by_class() -> None:
    data = open_data(DataConfig(name="tiny_imagenet_classes", root=str(REAL), image_size=16), 0)
    assert data.validation is not None
    counts = [len(torch.bincount(split.labels)) for split in (data.train, data.validation, data.test())]
    assert counts == [120, 40, 40]
    assert len(set(data.classes)) == 120
