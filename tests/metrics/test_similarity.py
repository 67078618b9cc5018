from __future__ import annotations

import json
import math
from itertools import product
from pathlib import Path

import pytest
import torch
from torch import Tensor

from coterie.core import DataError, ShapeError
from coterie.metrics import SimilarityTally, class_similarity, cross_similarity

CASE = json.loads((Path(__file__).parents[1] / "golden" / "class_similarity.json").read_text())["cases"][0]
A = torch.tensor(CASE["inputs"]["embeddings_a"], dtype=torch.float64)
B = torch.tensor(CASE["inputs"]["embeddings_b"], dtype=torch.float64)
LABELS = torch.tensor(CASE["inputs"]["labels"])
EXPECTED = CASE["expected"]


def loop(first: Tensor, second: Tensor, labels: Tensor) -> tuple[float, float, float]:
    """Mean cosine of one class without i = j, of i = j, and of different classes, pair by pair."""
    found: dict[str, list[float]] = {"intra": [], "same": [], "inter": []}
    for i, j in product(range(len(labels)), repeat=2):
        kind = "same" if i == j else "intra" if labels[i] == labels[j] else "inter"
        found[kind].append(float(first[i] @ second[j] / first[i].norm() / second[j].norm()))
    intra, same, inter = (sum(values) / len(values) for values in found.values())
    return intra, same, inter


def test_golden_values_within_a_network() -> None:
    ours = class_similarity(A, LABELS)
    assert ours.intra == pytest.approx(EXPECTED["within_network_a"]["intra_class_mean"], abs=1e-10)
    assert ours.inter == pytest.approx(EXPECTED["within_network_a"]["inter_class_mean"], abs=1e-10)
    assert ours.per_class.tolist() == pytest.approx(EXPECTED["per_class_intra_mean_a"], abs=1e-10)
    mean = EXPECTED["mean_over_classes_of_per_class_intra_a"]
    assert float(ours.per_class.mean()) == pytest.approx(mean, abs=1e-10)


def test_golden_values_between_networks() -> None:
    ours, expected = cross_similarity(A, B, LABELS), EXPECTED["between_networks"]
    assert ours.intra == pytest.approx(expected["intra_class_mean_same_sample_left_out"], abs=1e-10)
    assert ours.intra_with_same == pytest.approx(expected["intra_class_mean_same_sample_kept"], abs=1e-10)
    assert ours.same == pytest.approx(expected["same_sample_mean"], abs=1e-10)
    assert ours.inter == pytest.approx(expected["inter_class_mean"], abs=1e-10)


def test_both_equal_a_loop_over_pairs() -> None:
    generator = torch.Generator().manual_seed(5)
    first, second = torch.randn(2, 24, 6, generator=generator, dtype=torch.float64)
    labels = torch.randint(4, (24,), generator=generator)
    intra, _, inter = loop(first, first, labels)
    own = class_similarity(first, labels)
    assert (own.intra, own.inter) == pytest.approx((intra, inter), abs=1e-10)
    cross = cross_similarity(first, second, labels)
    assert (cross.intra, cross.same, cross.inter) == pytest.approx(loop(first, second, labels), abs=1e-10)


def test_batches_add_up_to_the_whole() -> None:
    generator = torch.Generator().manual_seed(6)
    embeddings, labels = torch.randn(50, 7, generator=generator), torch.randint(5, (50,), generator=generator)
    tally = SimilarityTally()
    for part in (slice(0, 3), slice(3, 40), slice(40, 50)):
        tally.add(embeddings[part], labels[part], num_classes=6)
    found, expected = tally.read(), class_similarity(embeddings, labels)
    assert (found.intra, found.inter) == pytest.approx((expected.intra, expected.inter), abs=1e-14)
    assert found.per_class[:5].tolist() == pytest.approx(expected.per_class.tolist(), abs=1e-14)
    assert math.isnan(found.per_class[5])  # a class without images
    with pytest.raises(DataError, match="no images were counted"):
        SimilarityTally().read()


def test_lone_images_and_single_classes_have_no_mean() -> None:
    lone = class_similarity(torch.eye(3), torch.tensor([0, 0, 3]))
    assert [math.isnan(value) for value in lone.per_class.tolist()] == [False, True, True, True]
    assert math.isnan(class_similarity(torch.eye(3), torch.zeros(3, dtype=torch.int64)).inter)


def test_memory_is_that_of_the_class_sums() -> None:
    labels = torch.arange(200_000) % 10  # all pairs would take 320 GB
    embeddings = torch.nn.functional.one_hot(labels, 10).float()
    ours = class_similarity(embeddings, labels)
    assert (ours.intra, ours.inter) == pytest.approx((1.0, 0.0), abs=1e-12)


def test_bad_shapes_are_refused() -> None:
    with pytest.raises(ShapeError, match="project them"):
        cross_similarity(torch.zeros(3, 2), torch.zeros(3, 4), torch.zeros(3, dtype=torch.int64))
    with pytest.raises(ShapeError, match="at least one image"):
        class_similarity(torch.zeros(0, 2), torch.zeros(0, dtype=torch.int64))
