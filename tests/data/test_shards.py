"""Packed images: to the bit what the folder gives, and one line on whatever is wrong with them."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from coterie.config.schema import DataConfig
from coterie.core.errors import CoterieError, MissingExtra
from coterie.data import ArraySplit, Opened, ShuffledOrder, ViewPlan, evaluation_batches, make_loader, open_data
from coterie.data.shards import ShardSplit
from doc_pages import ROOT, write_files


def opened(name: str, root: Path, **changes: Any) -> Opened:
    config: dict[str, Any] = {"image_size": 12, "batch_size": 3, "padding": 1, "workers": 0}
    return open_data(DataConfig(name=name, root=str(root), **config | changes), seed=4)


@pytest.mark.parametrize(
    "changes",
    [{"augment": "resized_crop"}, {"memory_mb": 0}, {}, {"augment": "resized_crop", "workers": 2, "limit": 8}],
    ids=str,
)
def test_batches_are_those_of_the_folder(image_folder: Path, packed: Path, changes: dict[str, Any]) -> None:
    folder, shards = opened("folder", image_folder, **changes), opened("shards", packed, **changes)
    assert shards.classes == folder.classes
    assert shards.normalisation == folder.normalisation
    config = DataConfig(**{"batch_size": 3, "padding": 1} | changes)
    plan = ViewPlan.of(config, folder.normalisation, seed=4, views=2)
    for epoch in (0, 1):
        one, other = (
            make_loader(data.train, order=ShuffledOrder(len(data.train.labels), 3, 1), plan=plan, workers=workers)
            for data, workers in ((folder, 0), (shards, changes.get("workers", 0)))
        )
        batches = list(zip(one.batches(epoch), other.batches(epoch), strict=True))
        assert len(batches) >= 2
        for ours, theirs in batches:
            assert torch.equal(ours.views, theirs.views)
            assert torch.equal(ours.labels, theirs.labels)
        one.close()
        other.close()
    for first, second in ((folder.validation, shards.validation), (folder.test(), shards.test())):
        assert first is not None and second is not None
        found = [
            list(evaluation_batches(split, batch_size=4, normalisation=plan.normalisation)) for split in (first, second)
        ]
        for (images, labels), (same, numbers) in zip(*found, strict=True):
            assert torch.equal(images, same)
            assert torch.equal(labels, numbers)


@pytest.mark.slow
def test_the_page_says_how_to_pack(image_folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    (image_folder / "train" / "dog").rename(image_folder / "train" / "cat-like")  # before "cat/" by its letters
    (image_folder / "val" / "dog").rename(image_folder / "val" / "cat-like")
    write_files(ROOT / "docs" / "add-your-data.md", tmp_path)
    command = [sys.executable, "pack.py", image_folder, "packed"]
    environment = {**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(list(map(str, command)), cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    folder, shards = opened("folder", image_folder), opened("shards", tmp_path / "packed")
    assert shards.classes == folder.classes == ("cat", "cat-like")
    assert shards.train.fingerprint() == folder.train.fingerprint()  # of every pixel and label
    assert shards.test().fingerprint() == folder.test().fingerprint()


def test_small_sets_live_in_memory_and_large_ones_are_mapped(packed: Path) -> None:
    assert isinstance(opened("shards", packed).train, ArraySplit)
    split = opened("shards", packed, memory_mb=0, validation=0).train
    assert isinstance(split, ShardSplit)
    assert len(pickle.dumps(split)) < 20_000  # what a worker that does not fork is sent
    assert len(split.table.cache_files) > 1


def test_fingerprints_know_rows_and_labels(packed: Path) -> None:
    split = opened("shards", packed, memory_mb=0, validation=0).train
    assert isinstance(split, ShardSplit)
    assert split.fingerprint() == opened("shards", packed, memory_mb=0, validation=0).train.fingerprint()
    others = [
        split.select(torch.arange(9, -1, -1)),
        ShardSplit(split.table, split.rows, 1 - split.labels, split.framing),
    ]
    assert split.fingerprint() not in {other.fingerprint() for other in others}


def test_own_size(packed: Path) -> None:
    with pytest.raises(CoterieError, match=r"row 0 of '.*train' \('0\.png'\) has 20 x 16 pixels and is not square"):
        opened("shards", packed, image_size=0)


def lose(name: str) -> Callable[[Path, Any], object]:
    return lambda root, made: shutil.rmtree(root / name)


def cut_short(root: Path, made: Any) -> None:
    for path in (root / "train").glob("*.arrow"):
        path.write_bytes(path.read_bytes()[:100])


def rewrite(change: Callable[[Any], Any]) -> Callable[[Path, Any], None]:
    """Pack again after a change of the `DatasetDict`."""

    def harm(root: Path, made: Any) -> None:
        shutil.rmtree(root)
        change(made).save_to_disk(str(root))

    return harm


def damage(row: dict[str, Any]) -> dict[str, Any]:
    return {"image": {"bytes": b"no image", "path": "b.png"}}


def unlabelled(made: Any) -> Any:
    return made.map(lambda row: {"label": None})


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lose(""), r"is missing; data\.root must be a folder that datasets' save_to_disk has written"),
        (lose("train"), r"cannot be read as packed images"),
        (cut_short, r"cannot be read as packed images"),
        (rewrite(lambda made: made["train"]), r"does not hold 'train' and 'test' or 'validation'"),
        (rewrite(lambda made: made.remove_columns("label")), r"train' has 0 columns of ClassLabel"),
        (rewrite(lambda made: made.map(lambda row: {"copy": row["image"]})), r"train' has 2 columns of Image"),
        (rewrite(lambda made: made.filter(lambda row: False)), r"train' is empty"),
        (rewrite(unlabelled), r"label -1 of row 0 of the training set"),
        (rewrite(lambda made: made.map(lambda row: {"image": None})), r"row 0 of '.*train' has no image in it"),
        (rewrite(lambda made: made.map(damage)), r"row 0 of '.*train' \('b\.png'\) cannot be read as an image"),
    ],
    ids=range(10),
)
def test_what_is_wrong_is_named(packed: Path, unpacked: Any, harm: Callable[[Path, Any], object], message: str) -> None:
    harm(packed, unpacked)
    with pytest.raises(CoterieError, match=message) as caught:
        opened("shards", packed)
    assert "\n" not in str(caught.value)


def test_what_is_read_cannot_name_code(packed: Path) -> None:
    path = packed / "train" / "dataset_info.json"
    info = json.loads(path.read_text())
    info["features"]["label"]["_type"] = "os.system"
    path.write_text(json.dumps(info))
    with pytest.raises(CoterieError, match="cannot be read as packed images"):
        opened("shards", packed)


def test_without_the_package_its_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingExtra, match=r"^datasets is not installed; run: pip install 'coterie\[shards\]'$"):
        opened("shards", tmp_path)
