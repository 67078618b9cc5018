"""Linear probes and nearest neighbours against scikit-learn and slow loops."""

from __future__ import annotations

import json
import math

import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from coterie.core.errors import ConfigError, NumericError, ShapeError
from coterie.evaluation import probe as probe_module
from coterie.evaluation.probe import Features, linear_probe, nearest_neighbours, probe_features, standardised


def blobs(count: int, seed: int, *, spread: float = 1.0, classes: int = 6, size: int = 5) -> Features:
    """Points around one centre per class; the centres do not depend on the seed."""
    centres = 2 * torch.randn(classes, size, generator=torch.Generator().manual_seed(99))
    draw = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (count,), generator=draw)
    return Features(centres[labels] + spread * torch.randn(count, size, generator=draw), labels)


PARTS = blobs(240, 0), blobs(60, 1), blobs(150, 2)


def test_standardised_as_scikit_learn_does() -> None:
    scaler = StandardScaler().fit(PARTS[0].values.double().numpy())
    for given, made in zip(PARTS, standardised(*PARTS), strict=True):
        expected = torch.from_numpy(scaler.transform(given.values.double().numpy()))
        torch.testing.assert_close(made.values, expected)
        assert torch.equal(made.labels, given.labels)


@pytest.mark.parametrize("constant", [0.0, 3.7, -1e8])
def test_constant_features_say_nothing(constant: float) -> None:
    def with_constant(part: Features, value: float) -> Features:
        return Features(torch.cat([part.values, torch.full((len(part.labels), 1), value)], dim=1), part.labels)

    parts = standardised(with_constant(PARTS[0], constant), with_constant(PARTS[2], constant + 1))
    assert all(torch.equal(part.values[:, -1], torch.zeros(len(part.labels), dtype=torch.float64)) for part in parts)


def test_separable_features_are_told_apart() -> None:
    scores = probe_features(
        *(blobs(count, seed, spread=0.05) for seed, count in enumerate((120, 30, 80))), num_classes=6
    )
    assert scores.linear.top1 == scores.linear.top5 == 100
    assert scores.linear.converged
    assert scores.neighbours.top1 == {1: 100, 5: 100, 20: pytest.approx(100, abs=20)}


def test_the_linear_probe_is_scikit_learns_with_the_c_that_was_best_on_held_out() -> None:
    train, held_out, test = standardised(*PARTS)
    strengths = (1e-4, 1e-2, 1.0)
    scores = linear_probe(train, held_out, test, num_classes=6, strengths=strengths)

    def fitted(c: float, *parts: Features) -> LogisticRegression:
        values, labels = torch.cat([part.values for part in parts]), torch.cat([part.labels for part in parts])
        return LogisticRegression(C=c, max_iter=1000).fit(values.numpy(), labels.numpy())

    tried = {c: 100 * fitted(c, train).score(held_out.values.numpy(), held_out.labels.numpy()) for c in strengths}
    assert scores.held_out == pytest.approx(tried)
    assert scores.strength == max(strengths, key=lambda c: (tried[c], -c))
    model = fitted(scores.strength, train, held_out)
    assert scores.top1 == pytest.approx(100 * model.score(test.values.numpy(), test.labels.numpy()))
    ranked = model.predict_proba(test.values.numpy()).argsort(axis=1)[:, ::-1][:, :5]
    right = sum(int(label) in row for label, row in zip(test.labels, ranked.tolist(), strict=True))
    assert scores.top5 == pytest.approx(100 * right / len(ranked))


def test_the_test_features_choose_nothing() -> None:
    train, held_out, test = standardised(*PARTS)
    scrambled = Features(test.values, test.labels.roll(1))
    first, second = (linear_probe(train, held_out, part, num_classes=6) for part in (test, scrambled))
    assert (first.strength, first.held_out) == (second.strength, second.held_out)
    assert first.top1 > 60 > second.top1
    votes = [nearest_neighbours(train, held_out, part, num_classes=6) for part in (test, scrambled)]
    assert (votes[0].chosen, votes[0].held_out) == (votes[1].chosen, votes[1].held_out)
    assert votes[0].top1[5] > 60 > votes[1].top1[5]


def test_the_held_out_features_do_choose() -> None:
    train, held_out, test = standardised(*PARTS)
    alike = Features(train.values + 1e-6, train.labels.roll(1))  # rewards what learns wrong labels by heart
    contrary = Features(train.values, train.labels.roll(1))
    learnt, unlearnt = (linear_probe(contrary, part, test, num_classes=6) for part in (alike, held_out))
    assert learnt.held_out != unlearnt.held_out
    assert learnt.strength > 1e-4
    votes = nearest_neighbours(contrary, alike, test, num_classes=6)
    assert (votes.chosen, votes.held_out[1]) == (1, 100)
    tight = standardised(*(blobs(count, seed, spread=0.2) for seed, count in enumerate((240, 60, 150))))
    wrong = torch.where(torch.arange(240) % 4 == 0, (tight[0].labels + 1) % 6, tight[0].labels)
    outvoted = nearest_neighbours(Features(tight[0].values, wrong), *tight[1:], num_classes=6)
    assert outvoted.chosen > 1
    assert outvoted.held_out[outvoted.chosen] > outvoted.held_out[1] + 10


@pytest.mark.parametrize("classes", [2, 6])
def test_classes_without_training_features_are_never_right(classes: int) -> None:
    parts = [blobs(80, seed, spread=0.05, classes=classes) for seed in range(3)]
    train, held_out, test = (Features(part.values, part.labels + 3) for part in parts)
    stranger = Features(torch.cat([test.values, test.values[:10]]), torch.cat([test.labels, torch.zeros(10).long()]))
    scores = linear_probe(*standardised(train, held_out, stranger), num_classes=3 + classes)
    assert scores.top1 == pytest.approx(100 * 80 / 90)
    votes = nearest_neighbours(*standardised(train, held_out, stranger), num_classes=3 + classes)
    assert votes.top1[1] == pytest.approx(100 * 80 / 90)


def loop_vote(bank: Features, query: list[float], count: int) -> int:
    """The class with most votes among the most similar, the sum of similarities deciding between equals."""

    def cosine(a: list[float], b: list[float]) -> float:
        return sum(x * y for x, y in zip(a, b, strict=True)) / (math.hypot(*a) * math.hypot(*b))

    pairs = zip(bank.values.tolist(), bank.labels.tolist(), strict=True)
    near = sorted(((cosine(query, row), label) for row, label in pairs), reverse=True)[:count]
    tally: dict[int, tuple[int, float]] = {}
    for similarity, label in near:
        votes, total = tally.get(label, (0, 0.0))
        tally[label] = votes + 1, total + similarity
    return max(tally, key=lambda label: tally[label])


@pytest.mark.parametrize("cells", [1, 1000, 1 << 24])
def test_neighbours_against_a_loop(cells: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe_module, "_CELLS", cells)
    train, held_out, test = standardised(*(blobs(count, seed, spread=3) for seed, count in enumerate((60, 20, 50))))
    counts = (1, 2, 4, 7)
    scores = nearest_neighbours(train, held_out, test, num_classes=6, counts=counts)

    def accuracy(bank: Features, queries: Features, count: int) -> float:
        rows = zip(queries.values.tolist(), queries.labels.tolist(), strict=True)
        return 100 * sum(loop_vote(bank, row, count) == label for row, label in rows) / len(queries.labels)

    assert scores.top1 == pytest.approx({count: accuracy(train.joined(held_out), test, count) for count in counts})
    assert scores.held_out == pytest.approx({count: accuracy(train, held_out, count) for count in counts})
    assert scores.chosen == max(counts, key=lambda count: scores.held_out[count])


def test_more_neighbours_than_features_are_all_of_them() -> None:
    parts = standardised(*(blobs(count, seed) for seed, count in enumerate((9, 3, 40))))
    scores = nearest_neighbours(*parts, num_classes=6, counts=(12, 500))
    assert scores.top1[12] == scores.top1[500]


def test_a_solver_that_did_not_converge_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe_module, "_ITERATIONS", 1)
    assert not linear_probe(*standardised(*PARTS), num_classes=6).converged


def test_scores_become_json() -> None:
    scores = probe_features(*PARTS, num_classes=6)
    kept = json.loads(json.dumps(scores.as_dict()))
    assert kept == scores.as_dict()
    assert kept["linear"]["held_out"]["0.01"] == scores.linear.held_out[1e-2]
    assert kept["neighbours"]["top1"]["20"] == scores.neighbours.top1[20]


def test_what_cannot_be_probed() -> None:
    labels = torch.zeros(4, dtype=torch.int64)
    with pytest.raises(ShapeError, match=r"features are \[4, 2\] and labels \[3\]"):
        Features(torch.zeros(4, 2), labels[:3])
    with pytest.raises(ShapeError, match=r"of one image or more"):
        Features(torch.zeros(0, 2), labels[:0])
    with pytest.raises(NumericError, match="a feature is not finite"):
        Features(torch.tensor([[0.0, torch.nan]]), labels[:1])
    with pytest.raises(ShapeError, match=r"parts have \[2, 3\] features"):
        standardised(Features(torch.zeros(4, 2), labels), Features(torch.zeros(4, 3), labels))
    alone = Features(torch.rand(4, 2), labels)
    with pytest.raises(ConfigError, match="training images are of one class"):
        linear_probe(alone, alone, alone, num_classes=2)
