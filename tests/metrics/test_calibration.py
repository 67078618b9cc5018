from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from coterie.core import ConfigError, ShapeError
from coterie.metrics import CalibrationBins, brier_score, calibration_bins

CASES = json.loads((Path(__file__).parents[1] / "golden" / "calibration.json").read_text())["cases"]


def scores(count: int, classes: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(count, classes, generator=generator, dtype=torch.float64)
    return logits, torch.randint(classes, (count,), generator=generator)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_golden_values(case: dict[str, Any]) -> None:
    logits = torch.tensor(case["inputs"]["logits"], dtype=torch.float64)
    labels = torch.tensor(case["inputs"]["labels"])
    bins = calibration_bins(logits, labels, bins=case["hyperparameters"]["bins"])
    expected = case["expected"]
    assert float(bins.expected_error()) == pytest.approx(expected["ece"], abs=1e-10)
    assert float(bins.maximum_error()) == pytest.approx(expected["mce"], abs=1e-10)
    assert float(bins.rms_error()) == pytest.approx(expected["rms_calibration_error"], abs=1e-10)
    assert float(brier_score(logits, labels)) == pytest.approx(expected["brier_sum_over_classes"], abs=1e-10)
    assert bins.counts.tolist() == expected["bin_counts"]
    filled = bins.counts.clamp(min=1)
    assert (bins.confidence / filled).tolist() == pytest.approx(expected["bin_confidence"], abs=1e-10)
    assert (bins.correct / filled).tolist() == pytest.approx(expected["bin_accuracy"], abs=1e-10)


@pytest.mark.parametrize("cuts", [(1, 2, 3), (50,), (99,)])
def test_bins_of_batches_add_up_to_the_one_shot_form(cuts: tuple[int, ...]) -> None:
    logits, labels = scores(100, 7)
    whole = calibration_bins(logits, labels)
    parts = CalibrationBins.empty()
    for own, true in zip(logits.tensor_split(cuts), labels.tensor_split(cuts), strict=True):
        parts = parts + calibration_bins(own, true)
    assert torch.equal(parts.counts, whole.counts) and torch.equal(parts.correct, whole.correct)
    torch.testing.assert_close(parts.confidence, whole.confidence, rtol=0, atol=1e-12)
    torch.testing.assert_close(parts.expected_error(), whole.expected_error(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("bins", [1, 4, 15])
@pytest.mark.parametrize("classes", [2, 10])
def test_errors_equal_torchmetrics(bins: int, classes: int) -> None:
    functional = pytest.importorskip("torchmetrics.functional.classification")
    logits, labels = scores(300, classes, seed=bins)
    ours = calibration_bins(logits, labels, bins=bins)
    for norm, value in (("l1", ours.expected_error()), ("max", ours.maximum_error()), ("l2", ours.rms_error())):
        oracle = functional.multiclass_calibration_error(
            logits.float(), labels, num_classes=classes, n_bins=bins, norm=norm
        )
        assert float(value) == pytest.approx(float(oracle), abs=1e-6)


def test_errors_equal_a_loop_over_images() -> None:
    logits, labels = scores(60, 5, seed=3)
    found: dict[int, list[tuple[float, bool]]] = {}
    for row, label in zip(logits, labels.tolist(), strict=True):
        shares = [float(value) for value in row.exp() / row.exp().sum()]
        confidence = max(shares)
        found.setdefault(int(confidence * 10), []).append((confidence, shares.index(confidence) == label))
    gaps = [
        (len(images) / 60, abs(sum(c for c, _ in images) - sum(right for _, right in images)) / len(images))
        for images in found.values()
    ]
    ours = calibration_bins(logits, labels, bins=10)
    assert float(ours.expected_error()) == pytest.approx(sum(share * gap for share, gap in gaps), abs=1e-12)
    assert float(ours.maximum_error()) == pytest.approx(max(gap for _, gap in gaps), abs=1e-12)


def test_certainty_falls_into_the_last_bin() -> None:
    bins = calibration_bins(torch.tensor([[1000.0, 0.0]]), torch.tensor([0]), bins=15)
    assert bins.counts.tolist() == [0.0] * 14 + [1.0]
    assert float(bins.expected_error()) == 0.0


def test_scores_that_are_no_numbers_give_an_error_that_is_no_number() -> None:
    bins = calibration_bins(torch.tensor([[float("nan"), 0.0], [1.0, 0.0]]), torch.tensor([0, 0]))
    assert float(bins.counts.sum()) == 2.0
    assert bins.expected_error().isnan()


def test_half_precision_is_summed_in_full() -> None:
    logits, labels = scores(200, 6)
    rounded = logits.bfloat16()
    assert torch.equal(
        calibration_bins(rounded, labels).confidence, calibration_bins(rounded.double(), labels).confidence
    )


def test_bad_shapes_and_bins_are_refused() -> None:
    with pytest.raises(ShapeError, match=r"logits \(3, 2\) and labels \(2,\)"):
        calibration_bins(torch.zeros(3, 2), torch.zeros(2, dtype=torch.int64))
    with pytest.raises(ShapeError, match="do not fit"):
        brier_score(torch.zeros(3), torch.zeros(3, dtype=torch.int64))
    with pytest.raises(ConfigError, match="0 bins"):
        calibration_bins(torch.zeros(3, 2), torch.zeros(3, dtype=torch.int64), bins=0)
