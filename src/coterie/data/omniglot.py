"""Omniglot in its authors' layout (Lake et al., Science 2015): characters of 50 alphabets, each drawn by 20 people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor

from coterie.config.schema import DataConfig
from coterie.core.errors import DataError
from coterie.data.arrays import ArraySplit
from coterie.data.base import DATA, Normalisation, Source
from coterie.data.class_split import find_lists, open_classes, read_lists
from coterie.data.files import FileSplit, folders_in, image_files, names_below
from coterie.data.images import Framing

_FOLDER = "omniglot-py"
_HALVES = ("images_background", "images_evaluation")
_SPLITS = ("omniglot-splits/vinyals", "splits/vinyals")
_TURNS = {"rot000": 0, "rot090": 1, "rot180": 2, "rot270": 3}
_SIDE = 28

Drawings = Mapping[str, Sequence[str]]
"""Names of files, relative to the root, of each character `ALPHABET/characterNN`."""


@DATA.register("omniglot")
def omniglot(config: DataConfig, seed: int) -> Source:
    """Open Omniglot for few-shot learning: 28 x 28 grey images, bright ink on black, four rotations as four classes.

    The split is that of Vinyals et al. (NeurIPS 2016): 4,112 classes to train on, 688 for validation and 1,692 for the
    test, 20 images each. Pixels are kept in `[0, 1]` and not standardised, as in prototypical networks (Snell et al.,
    NeurIPS 2017). Each drawing is decoded once; its rotations are made of the decoded image.

    Args:
        config: `root` holds `images_background` and `images_evaluation`, or their folder `omniglot-py`, and there or
            beside it `omniglot-splits/vinyals` (or `splits/vinyals`) with `train.txt`, `val.txt` and `test.txt`, a
            class `ALPHABET/characterNN/rotDDD` on each line; `image_size` (0 for 28) and `workers` are used;
            `validation = 0` trains on the 4,800 classes of training and validation.
        seed: not used; the split is published.

    Returns:
        The data set.

    Raises:
        DataError: a folder, a list or an image is missing or damaged, or a class is unknown or in two lists.
    """
    root = _root(Path(config.root))
    split = read_lists(find_lists(root, *_SPLITS)).trained_on(config)
    drawings = _drawings(root)
    split.check_known({f"{name}/{turn}" for name in drawings for turn in _TURNS}, repr(str(root)))

    def open_part(classes: Sequence[str]) -> ArraySplit:
        return _open_part(root, drawings, classes, config)

    plain = Normalisation(mean=(0.0,), std=(1.0,))
    return open_classes("omniglot", split, open_part, plain, images_of=lambda name: len(drawings[name[:-7]]))


def _root(given: Path) -> Path:
    for root in (given / _FOLDER, given):
        if (root / _HALVES[0]).is_dir():
            return root
    raise DataError(
        f"{str(given / _FOLDER / _HALVES[0])!r} is missing; unpack Omniglot's two archives of images"
        " and give their folder as data.root"
    )


def _drawings(root: Path) -> Drawings:
    found: dict[str, list[str]] = {}
    for character in _characters(root):
        name = f"{character.parent.name}/{character.name}"
        files = names_below(root, image_files(character))
        if not files:
            raise DataError(f"{str(character)!r} has no images; unpack Omniglot again")
        if name in found:
            raise DataError(f"the character {name!r} is in both {_HALVES[0]} and {_HALVES[1]}; remove one")
        found[name] = files
    return found


def _characters(root: Path) -> list[Path]:
    """Folders of all characters, of one half of the data set or both."""
    alphabets = chain.from_iterable(folders_in(root / half) for half in _HALVES)
    return list(chain.from_iterable(map(folders_in, alphabets)))


def _open_part(root: Path, drawings: Drawings, classes: Sequence[str], config: DataConfig) -> ArraySplit:
    """Decode the drawings of these classes, each once, and rotate them: `[N, 1, S, S]`, class by class."""
    names, turns = zip(*((name[:-7], _TURNS[name[-6:]]) for name in classes), strict=True)
    place = {name: number for number, name in enumerate(dict.fromkeys(names))}
    found = [drawings[name] for name in place]
    ink = _decode(root, list(chain.from_iterable(found)), config)
    counts = torch.tensor(list(map(len, found)))
    rows, labels = _rows(counts, torch.tensor([place[name] for name in names]))
    return ArraySplit(_turned(ink[rows], torch.tensor(turns)[labels]), labels)


def _turned(images: Tensor, turns: Tensor) -> Tensor:
    """Rotate images `[N, 1, S, S]`, in place, each by its number of quarter turns `[N]`."""
    for turn in (1, 2, 3):
        turned = torch.nonzero(turns == turn).flatten()
        images[turned] = torch.rot90(images[turned], turn, (2, 3))
    return images


def _decode(root: Path, files: Sequence[str], config: DataConfig) -> Tensor:
    """Decode files to `[N, 1, S, S]` uint8 with bright ink."""
    framing = Framing(config.image_size or _SIDE)
    upright = FileSplit(root, files, torch.zeros(len(files), dtype=torch.int64), framing).load(config.workers)
    return 255 - upright.images[:, :1]


def _rows(counts: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
    """Rows `[N]` of the drawings of each class, and labels `[N]`, from drawings per character and the classes' own."""
    ends = torch.cumsum(counts, 0)
    labels = torch.repeat_interleave(torch.arange(len(places)), counts[places])
    starts = torch.cumsum(counts[places], 0) - counts[places]
    within = torch.arange(len(labels)) - starts[labels]
    return (ends - counts)[places][labels] + within, labels
