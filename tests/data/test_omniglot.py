"""Omniglot: characters, their rotations, and the split of Vinyals et al."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from coterie.cli import main
from coterie.config.schema import DataConfig
from coterie.core.errors import DataError
from coterie.data import DATA, ArraySplit, Source, open_data

REAL = Path(os.environ.get("COTERIE_DATA", ""))


def opened(root: Path, **changes: float) -> Source:
    return DATA["omniglot"](DataConfig(root=str(root), **changes), 0)  # type: ignore[arg-type]


def test_rotations_are_those_of_the_drawing(omniglot: Path) -> None:
    train = opened(omniglot).train
    assert isinstance(train, ArraySplit)
    assert train.labels.tolist() == [label for label in range(8) for _ in range(4)]
    folder = omniglot / "omniglot-py" / "images_background" / "Greek"
    for row, image in enumerate(train.images):
        label, number = divmod(row, 4)
        with Image.open(folder / f"character{1 + label // 4:02}" / f"0001_{number + 1:02}.png") as drawing:
            turned = drawing.convert("L").rotate(90 * (label % 4))  # counter-clockwise
        small = np.asarray(turned.resize((28, 28), Image.Resampling.BILINEAR)).astype(int)
        assert np.abs(image[0].numpy() - (255 - small)).max() <= 1


def test_without_scaling_ink_is_bright(omniglot: Path) -> None:
    train = opened(omniglot, image_size=35).train
    assert isinstance(train, ArraySplit)
    with Image.open(omniglot / "omniglot-py/images_background/Greek/character01/0001_01.png") as drawing:
        assert np.array_equal(train.images[0, 0].numpy(), np.where(np.asarray(drawing), 0, 255))


def test_classes_by_part(omniglot: Path) -> None:
    source, whole = opened(omniglot), opened(omniglot, validation=0.0)
    assert source.unseen
    assert source.validation is not None
    assert source.classes[:2] == ("Greek/character01/rot000", "Greek/character01/rot090")
    assert whole.classes == source.classes + tuple(
        f"Latin_(old)/character01/rot{turn}" for turn in ("000", "090", "180", "270")
    )
    assert isinstance(whole.train, ArraySplit)
    assert isinstance(source.validation, ArraySplit)
    assert torch.equal(whole.train.images[32:], source.validation.images)
    assert (source.normalisation.mean, source.normalisation.std) == ((0.0,), (1.0,))


def test_the_root_is_the_folder_or_what_holds_it(omniglot: Path) -> None:
    prints = {opened(root).train.fingerprint() for root in (omniglot, omniglot / "omniglot-py")}
    assert len(prints) == 1


def test_workers_change_nothing(omniglot: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("coterie.data.framed._MANY", 1)
    prints = {opened(omniglot, workers=workers).train.fingerprint() for workers in (0, 2)}
    assert len(prints) == 1


def rewrite(path: Path, old: str, new: str) -> None:
    path.write_text(path.read_text().replace(old, new))


def test_wrong_lists_and_folders(omniglot: Path) -> None:
    lists, images = omniglot / "omniglot-splits" / "vinyals", omniglot / "omniglot-py"
    rewrite(lists / "test.txt", "N_Ko/character01/rot090", "N_Ko/character09/rot090")
    with pytest.raises(DataError, match=r"names the class 'N_Ko/character09/rot090' and '.*omniglot-py' has none"):
        opened(omniglot)
    rewrite(lists / "test.txt", "N_Ko/character09/rot090", "Greek/character02/rot090")
    with pytest.raises(DataError, match="class 'Greek/character02/rot090' is in train and in test"):
        opened(omniglot)
    rewrite(lists / "test.txt", "Greek/character02/rot090", "N_Ko/character01/rot045")
    with pytest.raises(DataError, match="names the class 'N_Ko/character01/rot045'"):
        opened(omniglot)
    rewrite(lists / "test.txt", "N_Ko/character01/rot045", "N_Ko/character01/rot090")
    shutil.copytree(images / "images_background" / "Greek", images / "images_evaluation" / "Greek")
    with pytest.raises(DataError, match="'Greek/character01' is in both images_background and images_evaluation"):
        opened(omniglot)
    shutil.rmtree(images / "images_evaluation")
    with pytest.raises(DataError, match="names the class 'N_Ko/character01/rot000'"):
        opened(omniglot)
    for drawing in (images / "images_background" / "Greek" / "character02").iterdir():
        drawing.unlink()
    with pytest.raises(DataError, match="character02' has no images; unpack Omniglot again"):
        opened(omniglot)
    shutil.rmtree(lists)
    with pytest.raises(DataError, match="omniglot-splits/vinyals' is missing; put the split's lists of classes there"):
        opened(omniglot)


def test_a_missing_archive_is_one_line_and_status_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["check", "digits/dml", "data.name=omniglot", f"data.root={tmp_path}"]
    assert main(words) == 2
    said = capsys.readouterr().err.strip()
    assert "images_background' is missing; unpack Omniglot's two archives" in said
    assert "\n" not in said


@pytest.mark.slow
@pytest.mark.data
@pytest.mark.skipif(not (REAL / "omniglot-py").is_dir(), reason="COTERIE_DATA has no omniglot-py")
def test_the_real_omniglot() -> None:
    config = DataConfig(name="omniglot", root=str(REAL))
    data, whole = open_data(config, 0), open_data(DataConfig(name="omniglot", root=str(REAL), validation=0.0), 0)
    assert data.validation is not None
    assert torch.bincount(data.train.labels).tolist() == [20] * 4112
    assert torch.bincount(data.validation.labels).tolist() == [20] * 688
    assert torch.bincount(data.test().labels).tolist() == [20] * 1692
    assert torch.bincount(whole.train.labels).tolist() == [20] * 4800
    listed = (REAL / "omniglot-splits" / "vinyals" / "trainval.txt").read_text().split()
    assert set(whole.classes) == set(listed)
    kept = {name.rpartition("/")[0] for name in (REAL / "omniglot-splits" / "vinyals" / "test.txt").read_text().split()}
    assert kept.isdisjoint(name.rpartition("/")[0] for name in listed)
