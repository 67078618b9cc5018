from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from coterie.core import ConfigError, DataError, ShapeError
from coterie.metrics import CohortTally, Tally, calibration_bins, topk_correct

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "calibration.json").read_text())["cases"][0]


def scores(count: int = 90, classes: int = 8, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, classes, generator=generator), torch.randint(classes, (count,), generator=generator)


@pytest.mark.parametrize("k", [1, 2, 5, 8, 20])
def test_topk_equals_sorting_each_row(k: int) -> None:
    logits, labels = scores()
    expected = [
        label in sorted(range(8), key=lambda column: -row[column])[:k]
        for row, label in zip(logits.tolist(), labels.tolist(), strict=True)
    ]
    assert topk_correct(logits, labels, k).tolist() == expected


@pytest.mark.slow
@pytest.mark.parametrize("k", [1, 3, 5])
def test_topk_equals_torchmetrics(k: int) -> None:
    functional = pytest.importorskip("torchmetrics.functional.classification")
    logits, labels = scores(seed=k)
    oracle = functional.multiclass_accuracy(logits, labels, num_classes=8, top_k=k, average="micro")
    assert float(topk_correct(logits, labels, k).float().mean()) == pytest.approx(float(oracle), abs=1e-6)


def test_constant_scores_are_right_for_the_first_k_classes_only() -> None:
    assert topk_correct(torch.zeros(6, 6), torch.arange(6), 2).tolist() == [True, True, False, False, False, False]


def test_scores_that_are_no_numbers_are_never_right() -> None:
    logits = torch.tensor([[float("nan"), 1.0], [float("nan"), float("nan")], [2.0, 1.0]])
    assert topk_correct(logits, torch.tensor([1, 0, 0]), 2).tolist() == [False, False, True]


def test_bad_arguments_are_refused() -> None:
    logits, labels = scores()
    with pytest.raises(ConfigError, match="top-0"):
        topk_correct(logits, labels, 0)
    with pytest.raises(ShapeError, match="do not fit"):
        topk_correct(logits, labels[1:], 1)


def test_tally_reads_golden_values() -> None:
    tally = Tally(bins=15)
    tally.add(torch.tensor(GOLDEN["inputs"]["logits"], dtype=torch.float64), torch.tensor(GOLDEN["inputs"]["labels"]))
    read = tally.read()
    assert read.top1 == pytest.approx(100 * GOLDEN["expected"]["accuracy"], abs=1e-10)
    assert read.nll == pytest.approx(GOLDEN["expected"]["negative_log_likelihood"], abs=1e-10)
    assert read.ece == pytest.approx(GOLDEN["expected"]["ece"], abs=1e-10)


def test_tally_of_batches_equals_the_whole() -> None:
    logits, labels = scores(count=101)
    tally = Tally()
    for own, true in zip(logits.split(16), labels.split(16), strict=True):
        tally.add(own, true)
    read = tally.read()
    assert read.top1 == pytest.approx(100 * float((logits.argmax(dim=1) == labels).double().mean()), abs=1e-9)
    top5 = (logits.topk(5, dim=1).indices == labels[:, None]).any(dim=1)
    assert read.top5 == pytest.approx(100 * float(top5.double().mean()), abs=1e-9)
    assert read.nll == pytest.approx(float(F.cross_entropy(logits.double(), labels)), abs=1e-9)
    assert read.ece == pytest.approx(float(calibration_bins(logits, labels).expected_error()), abs=1e-9)


def test_top5_of_three_classes_is_top3() -> None:
    logits, labels = scores(classes=3)
    tally = Tally()
    tally.add(logits, labels)
    assert tally.read().top5 == 100.0


def test_tally_keeps_no_gradient_and_leaves_its_input_alone() -> None:
    logits, labels = scores()
    kept = logits.clone()
    tally = Tally()
    tally.add(logits.requires_grad_(), labels)
    assert torch.equal(logits, kept) and logits.grad is None
    assert tally.read().top1 >= 0


def test_counting_never_reads_from_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("the host waited for the device")

    for name in ("item", "tolist", "__bool__", "__float__", "__int__", "cpu", "numpy", "nonzero"):
        monkeypatch.setattr(Tensor, name, refuse)
    tally = CohortTally(num_peers=2, leader=1)
    logits, labels = scores()
    tally.add([logits, logits], logits, labels)
    tally.add([logits, logits], logits, labels)


def test_an_empty_tally_is_refused() -> None:
    with pytest.raises(DataError, match="no images"):
        Tally().read()
    tally = Tally()
    tally.add(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64))
    with pytest.raises(DataError, match="no images"):
        tally.read()


def test_cohort_scores_name_the_leader_and_the_ensemble() -> None:
    labels = torch.tensor([0, 1, 2, 0])
    right = F.one_hot(labels, 3).float()
    wrong = right.roll(1, dims=1)
    tally = CohortTally(num_peers=3, leader=2)
    tally.add([wrong, wrong, right], wrong + 3 * right, labels)
    read = tally.read()
    assert [peer.top1 for peer in read.peers] == [0.0, 0.0, 100.0]
    assert read.leader == read.peers[2] and read.ensemble.top1 == 100.0
    assert json.loads(json.dumps(read.as_dict()))["leader"] == read.leader.as_dict()
    assert set(read.leader.as_dict()) == {"top1", "top5", "nll", "ece"}


def test_cohort_tally_refuses_other_peers() -> None:
    with pytest.raises(ConfigError, match="leader 2"):
        CohortTally(num_peers=2, leader=2)
    logits, labels = scores()
    with pytest.raises(ShapeError, match="1 peers and counts 2"):
        CohortTally(num_peers=2, leader=0).add([logits], logits, labels)
