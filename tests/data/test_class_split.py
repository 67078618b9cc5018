"""Splits by class: how they are written, and what is said of wrong ones."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from coterie.config.schema import DataConfig
from coterie.core.errors import DataError
from coterie.data import ArraySplit
from coterie.data.class_split import ClassSplit, find_lists, read_lists, read_split, rows_of_classes


def test_json_and_text_say_the_same(tmp_path: Path) -> None:
    (tmp_path / "split.json").write_text(json.dumps({"train": ["b", ["a", "old one"]], "val": [], "test": ["c"]}))
    (tmp_path / "split.txt").write_text("train b\n\ntest c\ntrain   a/old one \n")
    splits = [read_split(tmp_path / name) for name in ("split.json", "split.txt")]
    assert [(split.train, split.val, split.test) for split in splits] == [(("b", "a/old one"), (), ("c",))] * 2


def test_lists_of_either_kind(tmp_path: Path) -> None:
    (tmp_path / "train.json").write_text('[["fish", "ray"], "owl"]')
    (tmp_path / "val.txt").write_text("crow\n\n")
    (tmp_path / "test.txt").write_text(" black swan\ngull\n")
    split = read_lists(tmp_path)
    assert split.classes == ("fish/ray", "owl", "crow", "black swan", "gull")
    assert split.val == ("crow",)


def test_without_validation_its_classes_are_trained_on() -> None:
    split = ClassSplit(train=("a", "b"), val=("c",), test=("d",), where="here")
    assert split.trained_on(DataConfig(validation=0.1)) is split
    whole = split.trained_on(DataConfig(validation=0.0))
    assert (whole.train, whole.val, whole.test) == (("a", "b", "c"), (), ("d",))


def test_rows_are_chosen_and_numbered_by_class() -> None:
    labels = torch.randint(0, 6, (40,), generator=torch.Generator().manual_seed(1))
    images = ArraySplit(torch.arange(40, dtype=torch.uint8).view(40, 1, 1, 1), labels)
    chosen = rows_of_classes(images, "abcdef", "eab")
    expected = [(row, place) for place, name in enumerate("eab") for row in range(40) if "abcdef"[labels[row]] == name]
    assert list(zip(chosen.images.flatten().tolist(), chosen.labels.tolist(), strict=True)) == expected


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("split.json", '{"train": ["a"], "test": ["b", "a"]}', "class 'a' is in train and in test of '.*split.json'"),
        ("split.json", '{"train": ["a", "a"], "test": ["b"]}', "class 'a' is twice in train of"),
        ("split.json", '{"train": ["a"]}', "names no classes for test; add some"),
        ("split.json", '{"train": ["a"], "tset": ["b"]}', "is not a split of classes; give"),
        ("split.json", '["a"]', "is not a split of classes; give"),
        ("split.json", '{"train": "a", "test": ["b"]}', "has 'a' where a list of classes should be"),
        ("split.json", '{"train": [3], "test": ["b"]}', "has 3 where the name of a class should be"),
        ("split.json", '{"train": [[]], "test": ["b"]}', r"has \[\] where the name of a class should be"),
        ("split.json", "{", "is not JSON; give"),
        ("split.txt", "train a\nnone b\n", "line 2 is 'none b'; write train, val or test, a blank and a class"),
        ("split.txt", "train\n", "line 1 is 'train'; write"),
        ("split.txt", "val a\ntest b\nval b\ntrain c\n", "class 'b' is in val and in test"),
        ("split.txt", "", "names no classes for train"),
    ],
)
def test_wrong_splits(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=message) as caught:
        read_split(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_missing_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"split\.txt' cannot be read \(No such file or directory\); restore it"):
        read_split(tmp_path / "split.txt")
    with pytest.raises(DataError, match=r"train\.txt' cannot be read .*; restore the list of classes"):
        read_lists(tmp_path)
    with pytest.raises(DataError, match=r"'.*lists/of' is missing; put the split's lists of classes there"):
        find_lists(tmp_path, "lists/of")


def test_lists_are_found_inside_and_beside(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "lists").mkdir()
    assert find_lists(tmp_path, "none", "lists") == find_lists(tmp_path / "images", "lists") == tmp_path / "lists"


def test_unknown_classes_are_named() -> None:
    split = ClassSplit(train=("a",), test=("b",), where="split.json")
    split.check_known({"a", "b", "c"}, "the folder")
    with pytest.raises(
        DataError, match=r"'split\.json' names the class 'b' and the folder has none; correct or remove"
    ):
        split.check_known({"a"}, "the folder")
