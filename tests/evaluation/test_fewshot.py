from __future__ import annotations

import math
import statistics

import pytest
import torch
from torch import Tensor

from coterie.config import FewshotConfig
from coterie.core import DataError, UnknownName
from coterie.evaluation.fewshot import HEADS, draw_episodes, mean_of_episodes, score_episodes
from coterie.losses.prototypes import euclidean_scores

CONFIG = FewshotConfig(ways=3, shots=2, queries=4, episodes=40)


def clusters(noise: float, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(6).repeat_interleave(9)
    centres = torch.randn(6, 5, generator=generator)
    return centres[labels] + noise * torch.randn(54, 5, generator=generator), labels


def slow_accuracy(values: Tensor, episode: Tensor, shots: int) -> float:
    prototypes = [values[own[:shots]].mean(dim=0) for own in episode]
    right = total = 0
    for k, own in enumerate(episode):
        for row in own[shots:]:
            distances = [float(((values[row] - prototype) ** 2).sum()) for prototype in prototypes]
            right += distances.index(min(distances)) == k
            total += 1
    return 100 * right / total


def test_accuracies_are_those_of_a_slow_loop() -> None:
    values, labels = clusters(0.8)
    rows = draw_episodes(labels, CONFIG, "the split")
    found = score_episodes([values], rows, shots=2)
    assert found.values[0].tolist() == pytest.approx([slow_accuracy(values, own, 2) for own in rows])


def test_means_and_intervals() -> None:
    values, labels = clusters(0.8)
    found = score_episodes([values, values * 2], draw_episodes(labels, CONFIG, "x"), shots=2, leader=-1)
    scores = found.scores()
    numbers = found.values[1].tolist()
    assert scores.leader == scores.peers[1]
    assert scores.leader.top1 == pytest.approx(statistics.fmean(numbers))
    assert scores.leader.interval == pytest.approx(1.96 * statistics.stdev(numbers) / math.sqrt(40))
    assert scores.as_dict()["ensemble"] == scores.ensemble.as_dict() and scores.ensemble.episodes == 40


def test_the_ensemble_means_probabilities() -> None:
    peers = [clusters(1.0, seed)[0] for seed in (1, 2, 3)]
    rows = draw_episodes(clusters(1.0)[1], CONFIG, "x")
    found = score_episodes(peers, rows, shots=2)
    labels = torch.arange(3).repeat_interleave(4)
    for number, own in enumerate(rows):
        scores = [euclidean_scores(values[own[:, :2]], values[own[:, 2:]]).softmax(dim=1) for values in peers]
        right = (torch.stack(scores).mean(dim=0).argmax(dim=1) == labels).float().mean()
        assert float(found.values[3, number]) == pytest.approx(100 * float(right))


@pytest.mark.parametrize("head", HEADS)
def test_every_head_tells_clusters_apart_and_guesses_noise(head: str) -> None:
    values, labels = clusters(0.01)
    rows = draw_episodes(labels, CONFIG, "x")
    assert score_episodes([values], rows, shots=2, head=head).scores().leader.top1 == 100.0
    noise = torch.randn(54, 5, generator=torch.Generator().manual_seed(5))
    guessed = score_episodes([noise], rows, shots=2, head=head).scores().leader.top1
    assert 20 < guessed < 47


@pytest.mark.parametrize("ways", [2, 3])
def test_logistic_regression_is_that_of_scikit_learn(ways: int) -> None:
    from sklearn.linear_model import LogisticRegression

    values, labels = clusters(1.0)
    rows = draw_episodes(labels, FewshotConfig(ways=ways, shots=2, queries=4, episodes=5), "x")
    found = score_episodes([values], rows, shots=2, head="logistic").values[0]
    unit = torch.nn.functional.normalize(values, dim=1).numpy()
    for number, own in enumerate(rows):
        model = LogisticRegression().fit(unit[own[:, :2].flatten()], torch.arange(ways).repeat_interleave(2))
        expected = model.score(unit[own[:, 2:].flatten()], torch.arange(ways).repeat_interleave(4))
        assert float(found[number]) == pytest.approx(100 * expected)


def test_chunks_do_not_change_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    values, labels = clusters(0.8)
    rows = draw_episodes(labels, CONFIG, "x")
    whole = score_episodes([values], rows, shots=2).values
    monkeypatch.setattr("coterie.evaluation.fewshot._CELLS", 100)
    assert torch.equal(score_episodes([values], rows, shots=2).values, whole)


def test_episodes_depend_on_their_own_seed_only() -> None:
    labels = clusters(1.0)[1]
    again, other = (draw_episodes(labels, FewshotConfig(ways=3, shots=2, queries=4, seed=s), "x") for s in (0, 1))
    assert torch.equal(again[:40], draw_episodes(labels, CONFIG, "x")) and not torch.equal(again, other)


def test_bad_requests() -> None:
    values, labels = clusters(1.0)
    with pytest.raises(DataError, match="7 ways and the split 6 classes"):
        draw_episodes(labels, FewshotConfig(ways=7), "the split")
    with pytest.raises(UnknownName, match="euclidian"):
        score_episodes([values], draw_episodes(labels, CONFIG, "x"), shots=2, head="euclidian")


def test_paired_differences_may_be_negative() -> None:
    found = mean_of_episodes(torch.tensor([-1.0, -3.0]))
    assert found.top1 == -2.0 and found.interval == pytest.approx(1.96 * math.sqrt(2) / math.sqrt(2))
