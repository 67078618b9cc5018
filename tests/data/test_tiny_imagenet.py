"""Tiny-ImageNet in its authors' layout: parts of it, damage, decoding in workers, and the real one where at hand."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import coterie.data.framed as framed_module
from coterie.config.schema import DataConfig
from coterie.core.errors import CoterieError, DataError
from coterie.data import DATA, ArraySplit, FileSplit, Source, open_data

REAL = Path(os.environ.get("COTERIE_DATA", "")) / "tiny-imagenet-200"


def opened(root: Path, **changes: object) -> Source:
    return DATA["tiny_imagenet"](DataConfig(root=str(root), **changes), 0)  # type: ignore[arg-type]


def decoded(path: Path) -> torch.Tensor:
    return torch.from_numpy(np.asarray(Image.open(path).convert("RGB")).copy()).permute(2, 0, 1)


@pytest.mark.parametrize("inside", [True, False])
def test_a_part_of_the_classes_is_a_data_set(tiny_imagenet: Path, inside: bool) -> None:
    source = opened(tiny_imagenet if inside else tiny_imagenet.parent)
    assert source.classes == ("goldfish (n01)", "crane (n02)", "crane (n03)")
    train, test = source.train, source.test()
    assert isinstance(train, ArraySplit) and isinstance(test, ArraySplit)
    assert train.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert torch.equal(train.images[6], decoded(tiny_imagenet / "train" / "n02" / "images" / "n02_2.JPEG"))
    annotated = ["n03", "n01", None, "n02"] * 2  # n04 has no training images
    assert test.labels.tolist() == [int(name[-1]) - 1 for name in annotated if name]
    assert torch.equal(test.images[3], decoded(tiny_imagenet / "val" / "images" / "val_4.JPEG"))


def test_without_words_the_ids_are_names(tiny_imagenet: Path) -> None:
    (tiny_imagenet / "words.txt").unlink()
    assert opened(tiny_imagenet).classes == ("n01", "n02", "n03")


def test_images_are_resized_on_request_or_left_on_disk(tiny_imagenet: Path) -> None:
    assert opened(tiny_imagenet, image_size=8).train.image_size == 8
    kept, streamed = opened(tiny_imagenet).train, opened(tiny_imagenet, memory_mb=0).train
    assert isinstance(kept, ArraySplit) and isinstance(streamed, FileSplit)
    assert torch.equal(streamed.load().images, kept.images)


def test_workers_decode_the_same_and_name_what_fails(tiny_imagenet: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = opened(tiny_imagenet).train
    monkeypatch.setattr(framed_module, "_MANY", 1)
    monkeypatch.setattr(framed_module, "_BATCH", 5)
    shared = opened(tiny_imagenet, workers=2).train
    assert isinstance(alone, ArraySplit) and isinstance(shared, ArraySplit)
    assert torch.equal(alone.images, shared.images)
    (tiny_imagenet / "train" / "n03" / "images" / "n03_1.JPEG").write_bytes(b"?")
    with pytest.raises(DataError, match=r"n03_1\.JPEG' cannot be read as an image"):
        opened(tiny_imagenet, workers=2)


HARM: dict[str, tuple[Callable[[Path], object], str]] = {
    "nothing there": (shutil.rmtree, r"wnids\.txt' is missing; unpack Tiny-ImageNet's archive and give its folder"),
    "no list": (lambda root: (root / "wnids.txt").unlink(), r"wnids\.txt' is missing"),
    "list that is no text": (
        lambda root: (root / "wnids.txt").write_bytes(b"\xff\xfe"),
        r"cannot be read \(not text\)",
    ),
    "no training images": (lambda root: shutil.rmtree(root / "train"), r"train' has no classes; unpack"),
    "no classes": (lambda root: [shutil.rmtree(path) for path in (root / "train").iterdir()], r"has no classes"),
    "unlisted class": (lambda root: (root / "train" / "n77").mkdir(), r"n77' is not a class of '.*wnids\.txt'"),
    "class without images": (lambda root: (root / "train" / "n04").mkdir(), r"n04/images' is missing or empty"),
    "stray file": (lambda root: (root / "train/n01/images/a.txt").write_text("x"), r"a\.txt' is not an image file"),
    "empty file": (lambda root: (root / "train/n01/images/n01_0.JPEG").write_bytes(b""), r"n01_0\.JPEG' is missing or"),
    "odd size": (
        lambda root: Image.new("RGB", (9, 9)).save(root / "train/n02/images/n02_0.JPEG"),
        r"n02_0\.JPEG' has 9 x 9 pixels where the first image has 16 x 16",
    ),
    "no annotations": (lambda root: (root / "val/val_annotations.txt").unlink(), r"annotations\.txt' cannot be read"),
    "annotation cut": (lambda root: annotate(root, "val_0.JPEG\n"), r"txt' line 1 does not name an image and its"),
    "annotation of no class": (lambda root: annotate(root, "val_0.JPEG\tn77\n"), r"line 1 does not name"),
    "annotation outside": (lambda root: annotate(root, "../../train/n01/images/n01_0.JPEG\tn01\n"), r"line 1 does not"),
    "image missing": (lambda root: annotate(root, "val_99.JPEG\tn01\n"), r"val_99\.JPEG' is missing or empty"),
    "no image of these classes": (lambda root: annotate(root, "val_0.JPEG\tn04\n"), r"names no image of the training"),
}


def annotate(root: Path, text: str) -> None:
    (root / "val" / "val_annotations.txt").write_text(text)


@pytest.mark.parametrize("name", HARM)
def test_what_is_wrong_is_named(tiny_imagenet: Path, name: str) -> None:
    harm, message = HARM[name]
    harm(tiny_imagenet)
    with pytest.raises(CoterieError, match=message) as caught:
        opened(tiny_imagenet).test()
    assert "\n" not in str(caught.value)


def test_the_test_images_are_not_read_before_they_are_wanted(tiny_imagenet: Path) -> None:
    shutil.rmtree(tiny_imagenet / "val")
    assert len(opened(tiny_imagenet).train.labels) == 12


@pytest.mark.slow
@pytest.mark.data
@pytest.mark.skipif(not REAL.is_dir(), reason="COTERIE_DATA has no tiny-imagenet-200")
def test_the_real_tiny_imagenet() -> None:
    data = open_data(DataConfig(name="tiny_imagenet", root=str(REAL.parent), validation=0.0), 0)
    test = data.test()
    per_class = torch.bincount(data.train.labels)
    assert data.train.image_size == test.image_size == 64
    assert len(per_class) == data.num_classes and per_class.min() == per_class.max() >= 50
    assert torch.bincount(test.labels).tolist() == [50] * data.num_classes
    assert isinstance(data.train, ArraySplit)
    pixels = data.train.images[::7].double() / 255
    mean, std = pixels.mean(dim=(0, 2, 3)), pixels.transpose(0, 1).flatten(1).std(dim=1)
    assert (mean - torch.tensor(data.normalisation.mean, dtype=torch.float64)).abs().max() < 5e-3
    assert (std - torch.tensor(data.normalisation.std, dtype=torch.float64)).abs().max() < 5e-3
