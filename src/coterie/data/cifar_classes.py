"""CIFAR-100 split by class for few-shot learning: CIFAR-FS and FC100, over the authors' Python archive."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from coterie.config.schema import DataConfig
from coterie.data.arrays import ArraySplit
from coterie.data.base import DATA, Source
from coterie.data.cifar import cifar100, cifar100_coarse
from coterie.data.class_split import PARTS, ClassSplit, find_lists, open_classes, read_lists, rows_of_classes

_ARCHIVE = "cifar-100-python"


@DATA.register("cifar_fs")
def cifar_fs(config: DataConfig, seed: int) -> Source:
    """Open CIFAR-FS (Bertinetto et al., ICLR 2019): 64 classes of CIFAR-100 to train on, 16 to validate, 20 to test.

    Each class has 600 images of 32 x 32, from training and test images of CIFAR-100 alike.

    Args:
        config: `root` holds the archive's files with `meta`, or its folder `cifar-100-python`, and there or beside it
            `cifar-100-splits/cifar-fs` (or `splits/bertinetto`) with lists `train`, `val` and `test`, `.json` or
            `.txt`, of fine classes, each alone or after its superclass; `validation = 0` trains on the classes of
            `val` too.
        seed: not used; the split is published.

    Returns:
        The data set.

    Raises:
        ConfigError: another image size is asked for.
        DataError: a file is missing or damaged, or a class is unknown or in two lists.
    """
    lists = _lists(config, "cifar-100-splits/cifar-fs", "splits/bertinetto")
    parts = {part: tuple(name.rpartition("/")[2] for name in getattr(lists, part)) for part in PARTS}
    return _open("cifar_fs", ClassSplit(**parts, where=lists.where), cifar100(config, seed), config)


@DATA.register("fc100")
def fc100(config: DataConfig, seed: int) -> Source:
    """Open FC100 (Oreshkin et al., NeurIPS 2018): CIFAR-100 split by superclass, 60 classes, 20 and 20.

    The classes of 12 superclasses are trained on, those of 4 are for validation and those of 4 for the test, so that
    test classes are less like training classes than in CIFAR-FS. Each class has 600 images of 32 x 32.

    Args:
        config: `root` holds the archive's files with `meta`, or its folder `cifar-100-python`, and there or beside it
            `cifar-100-splits/fc100` with lists `train`, `val` and `test`, `.json` or `.txt`, of superclasses;
            `validation = 0` trains on the classes of `val` too.
        seed: not used; the split is published.

    Returns:
        The data set.

    Raises:
        ConfigError: another image size is asked for.
        DataError: a file is missing or damaged, or a superclass is unknown or in two lists.
    """
    lists = _lists(config, "cifar-100-splits/fc100")
    fine, coarse = cifar100(config, seed), cifar100_coarse(config, seed)
    lists.check_known(coarse.classes, "CIFAR-100")
    inside = _inside(fine, coarse)
    parts = {part: tuple(name for above in getattr(lists, part) for name in inside[above]) for part in PARTS}
    return _open("fc100", ClassSplit(**parts, where=lists.where), fine, config)


def _inside(fine: Source, coarse: Source) -> dict[str, list[str]]:
    """The classes of each superclass, from two namings of the same images."""
    pairs = sorted(set(zip(coarse.train.labels.tolist(), fine.train.labels.tolist(), strict=True)))
    return {
        name: [fine.classes[label] for above, label in pairs if above == place]
        for place, name in enumerate(coarse.classes)
    }


def _lists(config: DataConfig, *candidates: str) -> ClassSplit:
    root = Path(config.root)
    if not (root / candidates[0]).is_dir() and (root / _ARCHIVE).is_dir():
        root = root / _ARCHIVE
    return read_lists(find_lists(root, *candidates))


def _open(name: str, split: ClassSplit, whole: Source, config: DataConfig) -> Source:
    split = split.trained_on(config)
    split.check_known(whole.classes, "CIFAR-100 (named by its file 'meta')")
    images = _all_images(whole)

    def open_part(classes: Sequence[str]) -> ArraySplit:
        return rows_of_classes(images, whole.classes, classes)

    counts = dict(zip(whole.classes, torch.bincount(images.labels, minlength=len(whole.classes)).tolist(), strict=True))
    return open_classes(name, split, open_part, whole.normalisation, images_of=counts.__getitem__)


def _all_images(whole: Source) -> ArraySplit:
    parts = [part for part in (whole.train, whole.test()) if isinstance(part, ArraySplit)]
    return ArraySplit(torch.cat([part.images for part in parts]), torch.cat([part.labels for part in parts]))
