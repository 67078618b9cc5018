"""Planted faults are found, each by its kind and name, and whole data sets are left in peace."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance

from coterie.config.schema import DataConfig
from coterie.core.errors import DataError
from coterie.data import DATA, ArraySplit, DatasetSplit, FileSplit, Normalisation, Source
from coterie.data.checkup import check_data, check_folder, check_source
from coterie.data.findings import FAULTS, NOTES, DataCheck
from coterie.data.images import Framing
from coterie.data.lookalikes import NEAR, find_lookalikes
from coterie.data.prints import look_of

Harm = Callable[[Path], object]


@pytest.fixture
def image_folder(image_folder: Path) -> Path:
    """The folder of all tests, whose images of val repeat those of train, with other images in val."""
    for number, path in enumerate(sorted((image_folder / "val").rglob("*.png"))):
        pixels = np.random.default_rng(1000 + number).integers(0, 256, (16, 20, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
    return image_folder


def texts(found: DataCheck) -> dict[str, list[str]]:
    return {finding.kind: [item.text() for item in finding.items] for finding in found.findings}


def copy(root: Path, source: str, target: str) -> None:
    (root / target).parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(root / source, root / target)


def move(root: Path, source: str, target: str) -> None:
    copy(root, source, target)
    (root / source).unlink()


def resave(root: Path, source: str, target: str, **options: Any) -> None:
    with Image.open(root / source) as image:
        image.save(root / target, **options)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


PLANTED: dict[str, tuple[Harm, dict[str, list[str]]]] = {
    "cut": (
        lambda root: truncate(root / "train/cat/1.png"),
        {"damaged": ["train/cat/1.png (cannot be read as an image (image file is truncated"]},
    ),
    "empty": (
        lambda root: (root / "val/dog/1.png").write_bytes(b""),
        {"damaged": ["val/dog/1.png (is missing or empty)"]},
    ),
    "text": (
        lambda root: (root / "train/cat/1.png").write_text("no image"),
        {"damaged": ["train/cat/1.png (cannot be read as an image"]},
    ),
    "link that leads nowhere": (
        lambda root: (root / "train/cat/9.png").symlink_to("gone.png"),
        {"damaged": ["train/cat/9.png (is missing or empty)"]},
    ),
    "copied file": (
        lambda root: copy(root, "train/cat/1.png", "train/cat/8.png"),
        {"duplicates": ["train/cat/1.png = train/cat/8.png (one file)"]},
    ),
    "other file, equal pixels": (
        lambda root: resave(root, "train/cat/1.png", "train/cat/8.bmp"),
        {"duplicates": ["train/cat/1.png = train/cat/8.bmp (equal pixels)"]},
    ),
    "two classes": (
        lambda root: copy(root, "train/cat/1.png", "train/dog/8.png"),
        {"mislabelled": ["train/cat/1.png = train/dog/8.png (cat, dog)"]},
    ),
    "leak": (
        lambda root: copy(root, "val/dog/0.png", "train/dog/7.png"),
        {"leaks": ["train/dog/7.png = val/dog/0.png (train, val)"]},
    ),
    "leak into another class": (
        lambda root: copy(root, "val/dog/0.png", "train/cat/7.png"),
        {
            "mislabelled": ["train/cat/7.png = val/dog/0.png (cat, dog)"],
            "leaks": ["train/cat/7.png = val/dog/0.png (train, val)"],
        },
    ),
    "leak from test into val": (
        lambda root: copy(root, "val/dog/0.png", "test/dog/1.png"),
        {"leaks": ["val/dog/0.png = test/dog/1.png (val, test)"]},
    ),
    "empty class": (lambda root: (root / "train/cow").mkdir(), {"empty classes": ["train/cow"]}),
    "empty class of val": (
        lambda root: [path.unlink() for path in (root / "val/cat").iterdir()],
        {"empty classes": ["val/cat"]},
    ),
    "class of one": (
        lambda root: [path.unlink() for path in (root / "train/cat").glob("[1-9].png")],
        {"lone classes": ["train/cat"]},
    ),
    "class that train has not": (
        lambda root: move(root, "val/cat/0.png", "val/owl/0.png"),
        {"unknown classes": ["val/owl"]},
    ),
    "format that is not named": (
        lambda root: (root / "train/cat/1.png").rename(root / "train/cat/1.jpg"),
        {"wrong extensions": ["train/cat/1.jpg (PNG)"]},
    ),
    "file that is no image": (
        lambda root: (root / "train/cat/notes.txt").write_text("x"),
        {"not images": ["train/cat/notes.txt"]},
    ),
    "image in no class": (
        lambda root: (root / "train/cat/1.png").rename(root / "train/1.png"),
        {"not images": ["train/1.png"]},
    ),
    "other size": (
        lambda root: Image.effect_noise((24, 24), 80).convert("RGB").save(root / "train/cat/1.png"),
        {"sizes": ["20 x 16 (13 images)", "24 x 24 (1 images)"]},
    ),
    "other mode": (
        lambda root: Image.effect_noise((20, 16), 80).save(root / "train/cat/1.png"),
        {"modes": ["RGB (13 images)", "L (1 images)"]},
    ),
    "brighter copy": (
        lambda root: _brighten(root / "train/cat/1.png", root / "val/cat/1.png"),
        {"lookalikes": ["train/cat/1.png = val/cat/1.png ("]},
    ),
}


def _brighten(source: Path, target: Path) -> None:
    with Image.open(source) as image:
        ImageEnhance.Brightness(image).enhance(0.9).save(target)


def test_a_sound_folder_is_clean(image_folder: Path) -> None:
    found = check_folder(image_folder)
    assert found.is_clean and found.findings == ()
    assert (found.counts, found.classes) == ({"train": 10, "val": 4}, 2)
    assert found.as_json() == {"counts": {"train": 10, "val": 4}, "classes": 2, "clean": True, "findings": {}}


@pytest.mark.case(49, 54)
@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_fault_is_found_and_nothing_else(image_folder: Path, name: str) -> None:
    harm, expected = PLANTED[name]
    harm(image_folder)
    found = check_folder(image_folder)
    seen = texts(found)
    assert seen.keys() == expected.keys()
    for kind, starts in expected.items():
        assert len(seen[kind]) == len(starts)
        assert all(text.startswith(start) for text, start in zip(seen[kind], starts, strict=True)), seen
    assert found.is_clean == (not expected.keys() & FAULTS.keys())


def test_every_kind_has_a_planted_fault() -> None:
    assert {kind for _, expected in PLANTED.values() for kind in expected} == {*FAULTS, *NOTES}


def test_classes_without_parts(class_folder: Path) -> None:
    assert check_folder(class_folder).is_clean  # what is no image beside the classes, such as split.json, is left alone
    (class_folder / "split.json").unlink()
    (class_folder / "hen").mkdir()
    copy(class_folder, "owl/1.png", "gulls/black headed/9.png")
    assert texts(check_folder(class_folder)) == {
        "empty classes": ["hen"],
        "mislabelled": ["owl/1.png = gulls/black headed/9.png (owl, gulls/black headed)"],
    }


def test_a_split_by_class_has_no_unknown_classes(image_folder: Path) -> None:
    for old, new in (("cat", "owl"), ("dog", "fox")):
        (image_folder / "val" / old).rename(image_folder / "val" / new)
    assert check_folder(image_folder).is_clean


def test_workers_find_the_same(image_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("copied file", "leak", "brighter copy", "image in no class", "empty"):
        PLANTED[name][0](image_folder)
    alone = check_folder(image_folder)
    monkeypatch.setattr("coterie.data.prints._MANY", 1)
    monkeypatch.setattr("coterie.data.prints._CHUNK", 3)
    assert check_folder(image_folder, workers=2) == alone
    assert texts(alone).keys() == {"damaged", "not images", "leaks", "lookalikes"}


@pytest.mark.case(32)
def test_a_dead_worker_is_one_line(image_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("coterie.data.prints._MANY", 1)
    monkeypatch.setattr("coterie.data.prints._print_file", lambda place: os._exit(1))
    with pytest.raises(DataError, match="a worker process died or hung"):
        check_folder(image_folder, workers=1)


@pytest.mark.case(83)
def test_names_cannot_reach_the_terminal_or_break_a_line(image_folder: Path) -> None:
    odd = "a\x1b[31m\n\u202eb\udcff.png"
    truncate(image_folder / "train/cat/1.png")
    (image_folder / "train/cat/1.png").rename(image_folder / "train/cat" / odd)
    (item,) = check_folder(image_folder).findings[0].items
    assert item.names == ("train/cat/a\\x1b[31m\\n\\u202eb\\udcff.png",)
    assert item.text().isprintable()


@pytest.mark.parametrize("name", ["gone", "file", "hollow"])
def test_what_is_no_folder_of_classes(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "hollow" / "train").mkdir(parents=True)
    with pytest.raises(DataError, match=rf"{name}' (is not a folder|has no classes); give") as caught:
        check_folder(tmp_path / name)
    assert "\n" not in str(caught.value)


def arrays(count: int, key: int) -> ArraySplit:
    draw = torch.Generator().manual_seed(key)
    return ArraySplit(
        torch.randint(0, 256, (count, 3, 16, 16), dtype=torch.uint8, generator=draw), torch.arange(count) % 3
    )


def source_of(train: Any, test: Any, **more: Any) -> Source:
    half = Normalisation(mean=(0.5,) * 3, std=(0.5,) * 3)
    return Source(name="own", train=train, test=lambda: test, classes=("a", "b", "c"), normalisation=half, **more)


def test_arrays_with_planted_copies() -> None:
    train, test = arrays(12, 0), arrays(6, 1)
    train.images[9], train.images[4], test.images[2] = train.images[0], train.images[3], train.images[5]
    found = check_source(source_of(train, test))
    assert texts(found) == {
        "duplicates": ["train row 0 = train row 9 (equal pixels)"],
        "mislabelled": ["train row 3 = train row 4 (a, b)"],
        "leaks": ["train row 5 = test row 2 (train, test)"],
    }
    assert check_source(source_of(arrays(12, 0), arrays(6, 1))).is_clean


def test_arrays_of_new_classes_leak_too() -> None:
    train, validation, test = arrays(12, 0), arrays(6, 1), arrays(6, 2)
    validation.images[1] = test.images[0]
    found = check_source(source_of(train, test, validation=validation, unseen=True))
    assert texts(found)["leaks"] == ["val row 1 = test row 0 (val, test)"]


def test_classes_of_arrays() -> None:
    few = arrays(12, 0).select(torch.tensor([0, 3, 6, 1]))
    assert texts(check_source(source_of(few, arrays(6, 1)))) == {
        "empty classes": ["train/c"],
        "lone classes": ["train/b"],
    }


class Floats(torch.utils.data.Dataset[Any]):
    """Two channels of floating point noise; item 2 is item 0."""

    targets = (0, 1, 0, 1)

    def __len__(self) -> int:
        return 4

    def __getitem__(self, row: int) -> tuple[torch.Tensor, int]:
        return torch.randn(2, 12, 12, generator=torch.Generator().manual_seed(row % 2 if row == 2 else row)), row % 2


def test_items_of_a_dataset() -> None:
    source = source_of(DatasetSplit(Floats()), DatasetSplit(Floats(), rows=torch.tensor([1, 3])))
    found = texts(check_source(source))
    assert found["duplicates"] == ["train row 0 = train row 2 (equal pixels)"]
    assert found["leaks"] == ["train row 1 = test row 0 (train, test)", "train row 3 = test row 1 (train, test)"]


def test_files_of_a_named_data_set_are_named(tiny_imagenet: Path) -> None:
    config = DataConfig(name="tiny_imagenet", root=str(tiny_imagenet), workers=0)
    assert isinstance(check_data(config, 0), DataCheck)
    images = "train/n01/images/n01_1.JPEG", "val/images/val_1.JPEG"
    truncate(tiny_imagenet / "train/n02/images/n02_2.JPEG")
    copy(tiny_imagenet, *images)
    found = texts(check_data(config, 0))
    assert found["leaks"] == [" = ".join(images) + " (train, test)"]
    assert found["damaged"][0].startswith("train/n02/images/n02_2.JPEG (")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["digits", "synthetic", "cifar100", "omniglot", "mini_imagenet", "folder_classes"])
def test_every_kind_of_data_set(roots: dict[str, Path], name: str) -> None:
    found = check_data(DataConfig(name=name, root=str(roots.get(name, roots[""])), workers=0), 0)
    assert found.classes >= 2 and min(found.counts.values()) > 0


def photo(key: int, side: int = 96) -> Image.Image:
    noise = Image.fromarray(np.random.default_rng(key).integers(0, 256, (6, 6, 3), dtype=np.uint8))
    return noise.resize((side, side), Image.Resampling.BICUBIC)


def distance(first: bytes, second: bytes) -> int:
    return (int.from_bytes(first, "big") ^ int.from_bytes(second, "big")).bit_count()


def test_looks_outlive_scaling_recompression_and_light(tmp_path: Path) -> None:
    for key in range(20):
        image, look = photo(key), look_of(photo(key))
        image.save(tmp_path / "a.jpg", quality=60)
        with Image.open(tmp_path / "a.jpg") as compressed:
            assert distance(look, look_of(compressed)) <= NEAR
        assert distance(look, look_of(image.resize((48, 48), Image.Resampling.LANCZOS))) <= NEAR
        assert distance(look, look_of(ImageEnhance.Brightness(image).enhance(0.8))) <= NEAR
        assert all(distance(look, look_of(photo(other))) > 2 * NEAR for other in range(key))


def test_pairs_are_those_of_a_loop_over_all() -> None:
    draw = np.random.default_rng(0)
    looks = [draw.bytes(16) for _ in range(300)]
    for row in range(0, 300, 3):
        bits = np.unpackbits(np.frombuffer(looks[row], dtype=np.uint8))
        bits[draw.choice(128, draw.integers(0, 12), replace=False)] ^= 1
        looks.append(np.packbits(bits).tobytes())
    expected = {
        (i, j, distance(looks[i], looks[j]))
        for i in range(len(looks))
        for j in range(i + 1, len(looks))
        if distance(looks[i], looks[j]) <= NEAR
    }
    assert len(expected) > 30
    assert set(find_lookalikes(looks)) == expected


def test_blank_images_are_no_lookalikes() -> None:
    blank = look_of(Image.new("RGB", (32, 32), "white"))
    assert find_lookalikes([blank] * 5 + [photo(0).tobytes()[:16]]) == []
    assert find_lookalikes([]) == []


@pytest.mark.skipif("COTERIE_DATA" not in os.environ, reason="COTERIE_DATA is not set")
@pytest.mark.slow
def test_cifar100_repeats_itself() -> None:
    config = DataConfig(name="cifar100", root=os.environ["COTERIE_DATA"])
    source, places = DATA["cifar100"](config, 0), {}
    for part, split in (("train", source.train), ("test", source.test())):
        for image, label in zip(split.images.numpy(), split.labels.tolist(), strict=True):
            places.setdefault(image.tobytes(), []).append((part, label))
    repeated = [set(found) for found in places.values() if len(found) > 1]
    seen = texts(check_data(config, 0))
    assert len(seen["leaks"]) == sum(len({part for part, _ in found}) > 1 for found in repeated) > 0
    assert len(seen["mislabelled"]) == sum(len({label for _, label in found}) > 1 for found in repeated) > 0


def test_a_split_of_files_keeps_its_names(image_folder: Path) -> None:
    names = ["train/cat/0.png", "train/dog/0.png", "train/dog/1.png"]
    split = FileSplit(image_folder, names, torch.tensor([0, 1, 1]), Framing(8))
    copy(image_folder, names[0], names[2])
    assert texts(check_source(source_of(split, arrays(6, 0))))["mislabelled"] == [f"{names[0]} = {names[2]} (a, b)"]
