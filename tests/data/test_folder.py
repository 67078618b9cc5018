"""Folders of images: what is accepted, what is named when it is not, in memory and streamed."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from coterie.config.schema import DataConfig
from coterie.core.errors import ConfigError, CoterieError, DataError
from coterie.data import DATA, ArraySplit, FileSplit, Source
from coterie.data.images import Framing, read_square


def open_folder(root: Path, image_size: int = 12, **changes: object) -> Source:
    return DATA["folder"](DataConfig(name="folder", root=str(root), image_size=image_size, **changes), 0)  # type: ignore[arg-type]


def test_small_folders_live_in_memory(image_folder: Path) -> None:
    source = open_folder(image_folder)
    assert isinstance(source.train, ArraySplit)
    assert source.classes == ("cat", "dog")
    assert source.train.labels.tolist() == [0] * 5 + [1] * 5
    assert source.test().labels.tolist() == [0, 0, 1, 1]
    expected = read_square(image_folder / "train" / "dog" / "2.png", Framing(12))
    assert torch.equal(source.train.images[7], expected)


def test_large_folders_stay_on_disk(image_folder: Path) -> None:
    kept, streamed = open_folder(image_folder), open_folder(image_folder, memory_mb=0)
    assert isinstance(streamed.train, FileSplit)
    assert torch.equal(streamed.train.load().images, kept.train.images)
    assert streamed.train.decoded_bytes == kept.train.images.numel()


def test_random_cuts_are_decoded_each_time(image_folder: Path) -> None:
    split = open_folder(image_folder, augment="resized_crop").train
    assert isinstance(split, FileSplit)
    assert torch.equal(split.fetch(3, 5), split.fetch(3, 5))
    assert not torch.equal(split.fetch(3, 5), split.fetch(3, 6))
    assert split.fetch(3, None).shape == (3, 12, 12)


def test_random_cuts_need_a_size(image_folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"set data\.image_size"):
        open_folder(image_folder, image_size=0, augment="resized_crop")


def test_own_size(image_folder: Path, photo: Callable[..., object]) -> None:
    with pytest.raises(DataError, match=r"cat/0\.png' has 20 x 16 pixels and is not square; set data.image_size"):
        open_folder(image_folder, image_size=0)
    for path in image_folder.rglob("*.png"):
        photo(0, (9, 9)).save(path)  # type: ignore[attr-defined]
    assert open_folder(image_folder, image_size=0).train.image_size == 9
    photo(0, (9, 8)).save(image_folder / "train" / "dog" / "4.png")  # type: ignore[attr-defined]
    with pytest.raises(DataError, match=r"dog/4\.png' has 9 x 8 pixels where the first image has 9 x 9"):
        open_folder(image_folder, image_size=0)


def test_the_test_folder_is_preferred_to_val(image_folder: Path) -> None:
    shutil.copytree(image_folder / "train", image_folder / "test")
    assert len(open_folder(image_folder).test().labels) == 10


def test_the_test_images_are_not_read_before_they_are_wanted(image_folder: Path) -> None:
    (image_folder / "val" / "dog" / "0.png").write_bytes(b"damaged")
    source = open_folder(image_folder)
    with pytest.raises(DataError, match=r"val/dog/0\.png' cannot be read as an image"):
        source.test()


def test_hidden_files_are_passed_over(image_folder: Path) -> None:
    (image_folder / "train" / "cat" / ".DS_Store").write_bytes(b"x")
    (image_folder / "train" / ".cache").mkdir()
    assert open_folder(image_folder).train.labels.tolist() == [0] * 5 + [1] * 5


def keep_one(root: Path) -> None:
    for number in range(1, 5):
        (root / "train" / "dog" / f"{number}.png").unlink()


def empty(root: Path) -> None:
    keep_one(root)
    (root / "train" / "dog" / "0.png").unlink()


def stray(root: Path) -> None:
    shutil.copy(root / "train" / "dog" / "0.png", root / "train")


def dangling(root: Path) -> None:
    (root / "train" / "dog" / "9.png").symlink_to(root / "gone.png")


@pytest.mark.case(54)
@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda root: (root / "train" / "cat" / "1.png").write_bytes(b""), r"cat/1\.png' is missing or empty"),
        (lambda root: (root / "train" / "cat" / "1.png").write_bytes(b"?"), r"cat/1\.png' cannot be read as an image"),
        (lambda root: (root / "train" / "cat" / "notes.txt").write_bytes(b"?"), r"cat/notes\.txt' is not an image"),
        (dangling, r"dog/9\.png' is missing or empty"),
        (keep_one, r"class 'dog' has one training image \('.*dog/0\.png'\); add images or drop the class"),
        (empty, r"class folder '.*train/dog' is empty"),
        (stray, r"train/0\.png' is in no class"),
        (lambda root: (root / "val" / "cow").mkdir(), r"val/cow' is not a class of '.*train'"),
        (lambda root: shutil.rmtree(root / "val"), r"has neither 'test' nor 'val'"),
        (lambda root: shutil.rmtree(root / "train"), r"train' is missing; data\.root must hold 'train'"),
        (lambda root: [shutil.rmtree(path) for path in (root / "train").iterdir()], r"train' has no classes"),
    ],
)
def test_what_is_wrong_is_named(image_folder: Path, harm: Callable[[Path], object], message: str) -> None:
    open_folder(image_folder)
    harm(image_folder)
    with pytest.raises(CoterieError, match=message) as caught:
        open_folder(image_folder)
    assert "\n" not in str(caught.value)


def test_fingerprints_of_files(image_folder: Path) -> None:
    def fingerprint() -> str:
        return open_folder(image_folder, memory_mb=0).train.fingerprint()

    first = fingerprint()
    assert first == fingerprint()
    split = open_folder(image_folder, memory_mb=0).train
    assert isinstance(split, FileSplit)
    relabelled = FileSplit(split.root, split.names, split.labels.flip(0), split.framing)
    assert relabelled.fingerprint() != first
    assert split.select(torch.arange(9, -1, -1)).fingerprint() != first
    with (image_folder / "train" / "cat" / "0.png").open("ab") as file:
        file.write(b"x")
    assert fingerprint() != first
    (image_folder / "train" / "cat" / "0.png").unlink()
    with pytest.raises(DataError, match=r"cat/0\.png' cannot be read"):
        split.fingerprint()
