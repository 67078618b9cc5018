"""CIFAR-FS and FC100: classes of CIFAR-100 by published lists."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch

from coterie.config.schema import DataConfig
from coterie.core.errors import ConfigError, DataError
from coterie.data import DATA, ArraySplit, Source, open_data

REAL = Path(os.environ.get("COTERIE_DATA", ""))


def opened(name: str, root: Path, **changes: float) -> Source:
    return DATA[name](DataConfig(root=str(root), **changes), 0)  # type: ignore[arg-type]


def images_of(root: Path, name: str) -> torch.Tensor:
    """All images of a fine class, from training and test images."""
    whole = opened("cifar100", root)
    parts = (whole.train, whole.test())
    label = whole.classes.index(name)
    return torch.cat([part.images[part.labels == label] for part in parts if isinstance(part, ArraySplit)])


def test_cifar_fs_takes_fine_classes_from_both_files(cifar_folder: Path) -> None:
    source = opened("cifar_fs", cifar_folder)
    assert source.unseen
    assert source.classes == tuple(map(str, range(12)))
    test = source.test()
    assert isinstance(test, ArraySplit)
    assert test.labels.tolist() == [label for label in range(5) for _ in range(4)]
    assert torch.equal(test.images, torch.cat([images_of(cifar_folder, str(30 + label)) for label in range(5)]))
    assert opened("cifar_fs", cifar_folder, validation=0.0).classes[12:] == ("20", "21", "22")


def test_fc100_takes_whole_superclasses(cifar_folder: Path) -> None:
    source = opened("fc100", cifar_folder)
    inside = [str(label) for above in range(3) for label in range(above, 100, 20)]
    assert source.classes == tuple(inside)
    test = source.test()
    assert isinstance(test, ArraySplit)
    names = [str(label) for above in (7, 5) for label in range(above, 100, 20)]
    assert torch.equal(test.images, torch.cat([images_of(cifar_folder, name) for name in names]))


def test_lists_are_found_beside_and_inside_the_archive(cifar_folder: Path) -> None:
    expected = opened("cifar_fs", cifar_folder).train.fingerprint()
    archive = cifar_folder / "cifar-100-python"
    assert opened("cifar_fs", archive).train.fingerprint() == expected
    lists = cifar_folder / "cifar-100-splits" / "cifar-fs"
    (archive / "splits" / "bertinetto").mkdir(parents=True)
    for part in ("train", "val", "test"):
        names = [name for _, name in json.loads((lists / f"{part}.json").read_text())]
        (archive / "splits" / "bertinetto" / f"{part}.txt").write_text("\n".join(names))
    shutil.rmtree(cifar_folder / "cifar-100-splits")
    for root in (archive, cifar_folder):
        assert opened("cifar_fs", root).train.fingerprint() == expected
    with pytest.raises(DataError, match="cifar-100-splits/fc100' is missing; put the split's lists of classes there"):
        opened("fc100", cifar_folder)


@pytest.mark.parametrize(
    ("name", "folder", "entry", "message"),
    [
        (
            "cifar_fs",
            "cifar-fs",
            ["1", "unicorn"],
            "names the class 'unicorn' and CIFAR-100 .named by its file 'meta'. has",
        ),
        ("cifar_fs", "cifar-fs", ["1", "21"], "class '1/21' is in val and in test"),
        ("cifar_fs", "cifar-fs", "21", "class '21' is in val and in test"),
        ("fc100", "fc100", "myths", "names the class 'myths' and CIFAR-100 has none; correct or remove it"),
        ("fc100", "fc100", "4", "class '4' is in val and in test"),
    ],
)
def test_wrong_lists(cifar_folder: Path, name: str, folder: str, entry: object, message: str) -> None:
    (cifar_folder / "cifar-100-splits" / folder / "test.json").write_text(json.dumps([entry]))
    with pytest.raises(DataError, match=message):
        opened(name, cifar_folder)


def test_another_image_size_or_no_archive(cifar_folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"data\.image_size=64 does not apply to cifar100"):
        opened("cifar_fs", cifar_folder, image_size=64)
    shutil.rmtree(cifar_folder / "cifar-100-python")
    with pytest.raises(DataError, match="cifar-100-python/train' is missing; unpack cifar100's Python archive"):
        opened("fc100", cifar_folder)


@pytest.mark.slow
@pytest.mark.data
@pytest.mark.skipif(not (REAL / "cifar-100-splits").is_dir(), reason="COTERIE_DATA has no cifar-100-splits")
@pytest.mark.parametrize(("name", "counts"), [("cifar_fs", [64, 16, 20]), ("fc100", [60, 20, 20])])
def test_the_real_splits_of_cifar100(name: str, counts: list[int]) -> None:
    data, whole = (open_data(DataConfig(name=name, root=str(REAL), validation=share), 0) for share in (0.1, 0.0))
    splits = (data.train, data.validation, data.test())
    assert [torch.bincount(split.labels).tolist() for split in splits if split] == [[600] * count for count in counts]
    assert whole.num_classes == 80
    seen = {
        bytes(image.flatten()[::16].numpy())
        for split in splits
        if isinstance(split, ArraySplit)
        for image in split.images
    }
    assert len(seen) > 59_000  # of 60,000: CIFAR-100 has few images twice, so no class is in two splits
