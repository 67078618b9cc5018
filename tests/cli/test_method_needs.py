"""What a method needs and a cohort or the data cannot give: one line with the remedy, status 2, nothing written."""

from __future__ import annotations

from pathlib import Path

import pytest

from coterie.cli import main

TWO, THREE = "cohort.nets=cnn4_w4,cnn4_w4", "cohort.nets=cnn4_w4,cnn4_w4,cnn4_w4"
DIGITS = ["digits/dml", "epochs=1"]
SYNTHETIC = ["synthetic/mcl_okd", "data.image_size=8", "data.padding=1", "data.validation=0", "cohort.shared=0", TWO]
UNVARIED = ["data.augment=none"]
BATCH_OF_8 = "data.batch_size=8"

EMBEDDINGS = {
    "auxiliary peers of two widths": (
        ["method=okddip", "cohort.nets=resnet8,wrn_16_2,resnet8"],
        "DiversePeers needs auxiliary peers with embeddings of one size and got [64, 128];"
        " choose networks of one width for all but peer 2, the leader",
    ),
    "with the leader in between": (
        ["method=okddip", "cohort.nets=resnet8,wrn_16_2,wrn_16_2", "cohort.leader=1"],
        "got [64, 128]; choose networks of one width for all but peer 1, the leader",
    ),
    "shared stages of two widths": (
        ["method=one", "cohort.nets=cnn4_w4,cnn4_w8", "cohort.shared=1"],
        "peer 0 cannot share stage 1 of another network: the two are not alike; lower cohort.shared",
    ),
}

VIEWS = {
    "one view per peer": (
        ["method=kdcl", TWO, *UNVARIED],
        "2 views of each image are asked for and data.augment='none' makes them all alike; set data.augment=crop",
    ),
    "one view per peer, three of them": (["method=pcl", THREE, *UNVARIED], "3 views of each image are asked for"),
    "a view for the momentum copies": (["method=mcl_moco", TWO, *UNVARIED], "2 views of each image are asked for"),
    "crop that moves nothing": (
        ["method=mcl_moco", TWO, "data.padding=0", "data.flip=false"],
        "data.padding=0 with data.flip=false makes them all alike; set data.padding=4",
    ),
    "views that were asked for": (["method=dml", TWO, "data.views=3", *UNVARIED], "3 views of each image"),
    "cuts of arrays": (
        ["method=kdcl", TWO, "data.augment=resized_crop"],
        "data.augment='resized_crop' cuts image files and digits has none; use 'crop', or a folder",
    ),
    "held-out images": (
        ["method=kdcl", "method.target=general", TWO, "data.validation=0"],
        "kdcl learns from held-out images; set data.validation, 0.1 for instance",
    ),
}

PEERS = {
    "one": (["method=dml", "cohort.nets=cnn4_w4"], "DeepMutualLearning needs at least 2 peers and got 1;"),
    "one by number": (
        ["method=mcl", "net.name=cnn4_w4", "cohort.nets=", "cohort.peers=1"],
        "MutualContrastiveLearning needs at least 2 peers and got 1; raise cohort.peers, or name more in cohort.nets",
    ),
    "two": (["method=okddip", TWO], "DiversePeers needs at least 3 peers and got 2; raise cohort.peers, or name more"),
    "separate ones": (
        ["method=one", TWO],
        "NativeEnsemble needs peers that share their first stages, at least 1, and got 0; set cohort.shared=1",
    ),
}

SAMPLER = {
    "a batch that is no multiple": (
        [*DIGITS, TWO, "method=mcl", "data.batch_size=63"],
        "data.batch_size=63 cannot be made of groups of 2 images of a class; give a multiple, such as 62",
    ),
    "a batch smaller than a group": (
        [*DIGITS, TWO, "method=l_mcl", "data.batch_size=4", "method.samples_per_class=6"],
        "data.batch_size=4 cannot be made of groups of 6 images of a class; give a multiple, such as 6",
    ),
    "one image of each class": (
        [*DIGITS, TWO, "method=mcl", "data.limit=10", "data.validation=0", "data.batch_size=4"],
        "batches need 2 images of a class and no class has more than 1; lower method.samples_per_class or add images",
    ),
    "three images of each class": (
        [*DIGITS, TWO, "method=mcl", "data.limit=30", "data.batch_size=8", "method.samples_per_class=8"],
        "batches need 8 images of a class and no class has more than 3;",
    ),
    "few classes": (
        [*SYNTHETIC, "method=mcl", "data.classes=2", "data.samples=20", "data.batch_size=24"],
        "20 training images do not fill one batch of 24",
    ),
    "one class short of a group": (
        [*SYNTHETIC, "method=l_mcl", "method.samples_per_class=4", "data.classes=3", "data.samples=9", BATCH_OF_8],
        "batches need 4 images of a class and no class has more than 3;",
    ),
    "partners that are none": (
        [*DIGITS, TWO, "method=mcl", "method.samples_per_class=1"],
        "method.samples_per_class=1 leaves images without a partner; give 2 or more, or 0 for plain shuffling",
    ),
}

CASES = {
    **{f"embeddings: {name}": ([*DIGITS, *words], said) for name, (words, said) in EMBEDDINGS.items()},
    **{f"views: {name}": ([*DIGITS, *words], said) for name, (words, said) in VIEWS.items()},
    **{f"peers: {name}": ([*DIGITS, *words], said) for name, (words, said) in PEERS.items()},
    **{f"class-aware batches: {name}": case for name, case in SAMPLER.items()},
}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.case(62)
@pytest.mark.parametrize("name", CASES)
def test_what_cannot_be_given_is_said_in_one_line(
    name: str, elsewhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words, said = CASES[name]
    assert main(["train", *words, "--out", "run"]) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("coterie: ") and printed.err.count("\n") == 1, printed.err
    assert said in printed.err
    assert list(elsewhere.iterdir()) == []


@pytest.mark.parametrize("name", CASES)
def test_a_check_finds_it_too(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    words, said = CASES[name]
    assert main(["check", *words]) == 2
    assert said in capsys.readouterr().err


GIVEN = {
    "a leader of another width": ["method=okddip", "cohort.nets=cnn4_w4,cnn4_w4,cnn4_w8"],
    "peers of all widths": ["method=l_mcl", "cohort.nets=cnn4_w4,cnn4_w8"],
    "as many groups as classes allow": ["method=mcl", "data.classes=2", "data.samples=20", "data.batch_size=16"],
    "views that only mirror": ["method=mcl_moco", "data.padding=0"],
    "one view for all": ["method=kdcl", "method.views=shared", *UNVARIED],
}


@pytest.mark.parametrize("name", GIVEN)
def test_what_can_be_given_trains(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    data = ["data.classes=4", "data.samples=16", "data.batch_size=8", "epochs=1"]
    assert main(["train", *SYNTHETIC, *data, *GIVEN[name], "--out", "run"]) == 0, capsys.readouterr().err


def small(batch: int = 8) -> list[str]:
    data = ["data.name=synthetic", "data.augment=crop", "data.samples=24", "data.classes=4", "data.image_size=16"]
    return [*data, f"data.batch_size={batch}", "epochs=1"]


PAPERS = {
    "cifar100/mcl_moco": ["cohort.nets=resnet8,resnet8"],
    "imagenet/mcl_moco": ["cohort.nets=cnn4_w4,cnn4_w4"],
    "imagenet/mcl_bank": ["cohort.nets=cnn4_w4,cnn4_w4"],
    "imagenet/l_mcl": ["cohort.nets=resnet8,resnet8", "method.interval=2"],
}


@pytest.mark.parametrize("recipe", PAPERS)
def test_recipes_of_contrast_over_queues_and_banks_train(recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", recipe, *small(), *PAPERS[recipe], "--out", "run"]) == 0, capsys.readouterr().err
    assert "test set, last epoch: leader" in capsys.readouterr().out
