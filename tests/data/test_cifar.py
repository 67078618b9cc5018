"""The CIFAR archives: layout, damage, and the real CIFAR-100 where it is at hand."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from coterie.config.schema import DataConfig
from coterie.core.errors import ConfigError, DataError
from coterie.data import DATA


def change(path: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    table = pickle.loads(path.read_bytes())
    edit(table)
    path.write_bytes(pickle.dumps(table))


@pytest.mark.parametrize("inside", [True, False])
def test_root_may_be_the_archive_or_its_parent(cifar_folder: Path, inside: bool) -> None:
    root = cifar_folder / "cifar-10-batches-py" if inside else cifar_folder
    source = DATA["cifar10"](DataConfig(root=str(root)), 0)
    assert source.train.labels.tolist() == [n % 10 for n in range(20)] * 5
    assert source.test().labels.tolist() == [n % 10 for n in range(20)]


def test_images_keep_their_order_and_channels(cifar_folder: Path) -> None:
    source = DATA["cifar10"](DataConfig(root=str(cifar_folder)), 0)
    for part in range(5):
        table = pickle.loads((cifar_folder / "cifar-10-batches-py" / f"data_batch_{part + 1}").read_bytes())
        for row in (0, 19):
            expected = table["data"][row].reshape(3, 32, 32)
            np.testing.assert_array_equal(source.train.images[20 * part + row].numpy(), expected)


def test_class_names_come_from_the_meta_file(cifar_folder: Path) -> None:
    assert DATA["cifar100"](DataConfig(root=str(cifar_folder)), 0).classes[7] == "7"
    names = [f"name {n}".encode() for n in range(100)]
    (cifar_folder / "cifar-100-python" / "meta").write_bytes(pickle.dumps({b"fine_label_names": names}))
    assert DATA["cifar100"](DataConfig(root=str(cifar_folder)), 0).classes[7] == "name 7"
    (cifar_folder / "cifar-100-python" / "meta").write_bytes(pickle.dumps({b"fine_label_names": names[1:]}))
    with pytest.raises(DataError, match="meta' does not name 100 classes"):
        DATA["cifar100"](DataConfig(root=str(cifar_folder)), 0)


def test_coarse_labels_come_with_the_same_images(cifar_folder: Path) -> None:
    config = DataConfig(root=str(cifar_folder))
    fine, coarse = DATA["cifar100"](config, 0), DATA["cifar100_coarse"](config, 0)
    assert torch.equal(fine.train.images, coarse.train.images)
    assert coarse.test().labels.tolist() == [n % 20 for n in range(200)]
    assert (coarse.name, len(coarse.classes)) == ("cifar100_coarse", 20)
    names = {"fine_label_names": ["f"] * 100, "coarse_label_names": [f"c{n}" for n in range(20)]}
    (cifar_folder / "cifar-100-python" / "meta").write_bytes(pickle.dumps(names))
    assert DATA["cifar100_coarse"](config, 0).classes[19] == "c19"
    change(cifar_folder / "cifar-100-python" / "train", lambda table: table["coarse_labels"].__setitem__(3, 20))
    with pytest.raises(DataError, match=r"label 20 of row 3 in '.*train' is not in 0\.\.19"):
        DATA["cifar100_coarse"](config, 0)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda table: table["fine_labels"].__setitem__(3, 100), r"label 100 of row 3 in '.*train' is not in 0\.\.99"),
        (lambda table: table["fine_labels"].__setitem__(3, -100), r"label -100 of row 3 in '.*train'"),
        (lambda table: table["fine_labels"].__setitem__(3, 1.5), r"label 1\.5 of row 3 in '.*train'"),
        (lambda table: table["fine_labels"].__setitem__(3, None), r"label None of row 3 in '.*train'"),
        (lambda table: table["fine_labels"].pop(), r"train' has uint8 images of shape \[200, 3072\] and 199 labels"),
        (lambda table: table.update(data=table["data"][:, :-1]), r"train' has uint8 images of shape \[200, 3071\]"),
        (lambda table: table.update(data=table["data"].astype("i8")), r"train' has int64 images"),
        (lambda table: table.pop("data"), r"train' lacks 'data' or 'fine_labels'"),
        (lambda table: table.pop("fine_labels"), r"train' lacks 'data' or 'fine_labels'"),
    ],
)
def test_damage_is_named(cifar_folder: Path, edit: Callable[[dict[str, Any]], Any], message: str) -> None:
    change(cifar_folder / "cifar-100-python" / "train", edit)
    with pytest.raises(DataError, match=message):
        DATA["cifar100"](DataConfig(root=str(cifar_folder)), 0)


def test_missing_files_are_named(cifar_folder: Path, tmp_path: Path) -> None:
    (cifar_folder / "cifar-10-batches-py" / "data_batch_4").unlink()
    with pytest.raises(DataError, match="data_batch_4' cannot be read"):
        DATA["cifar10"](DataConfig(root=str(cifar_folder)), 0)
    with pytest.raises(DataError, match="train' is missing; unpack cifar100's Python archive"):
        DATA["cifar100"](DataConfig(root=str(tmp_path / "nowhere")), 0)


def test_another_image_size_is_refused(cifar_folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"data\.image_size=64 does not apply to cifar10"):
        DATA["cifar10"](DataConfig(root=str(cifar_folder), image_size=64), 0)


@pytest.mark.data
@pytest.mark.skipif("COTERIE_DATA" not in os.environ, reason="COTERIE_DATA is not set")
def test_the_real_cifar100() -> None:
    source = DATA["cifar100"](DataConfig(root=os.environ["COTERIE_DATA"]), 0)
    assert torch.bincount(source.train.labels).tolist() == [500] * 100
    assert torch.bincount(source.test().labels).tolist() == [100] * 100
    assert source.classes[0] == "apple"
    pixels = source.train.images[::10].double() / 255
    mean, std = pixels.mean(dim=(0, 2, 3)), pixels.transpose(0, 1).flatten(1).std(dim=1)
    assert (mean - torch.tensor(source.normalisation.mean, dtype=torch.float64)).abs().max() < 3e-3
    assert (std - torch.tensor(source.normalisation.std, dtype=torch.float64)).abs().max() < 3e-3


@pytest.mark.slow
@pytest.mark.data
@pytest.mark.skipif("COTERIE_DATA" not in os.environ, reason="COTERIE_DATA is not set")
def test_the_real_coarse_labels_gather_five_fine_ones_each() -> None:
    config = DataConfig(root=os.environ["COTERIE_DATA"])
    fine, coarse = DATA["cifar100"](config, 0), DATA["cifar100_coarse"](config, 0)
    pairs = torch.stack([coarse.train.labels, fine.train.labels], dim=1).unique(dim=0)
    assert torch.bincount(pairs[:, 0]).tolist() == [5] * 20
    inside = {fine.classes[label] for superclass, label in pairs.tolist() if coarse.classes[superclass] == "trees"}
    assert inside == {"maple_tree", "oak_tree", "palm_tree", "pine_tree", "willow_tree"}
