from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from scipy.stats import chisquare

from coterie.core import DataError, Episode
from coterie.data import EpisodeOrder, EpisodeTable

LABELS = torch.tensor([k for k, count in enumerate((5, 9, 6, 7, 5, 8)) for _ in range(count)])[torch.randperm(40)]
EPISODE = Episode(ways=3, shots=2, queries=3, per_epoch=4)


def test_every_episode_is_sound() -> None:
    rows = EpisodeTable.of(LABELS, EPISODE).draw(0, torch.arange(500))
    assert rows.shape == (500, 3, 5)
    classes = LABELS[rows]
    assert (classes == classes[:, :, :1]).all()
    assert all(len(set(own[:, 0].tolist())) == 3 for own in classes)
    assert all(len(set(own.flatten().tolist())) == 15 for own in rows)  # so support and queries do not overlap


def test_classes_and_images_are_uniform() -> None:
    count = 6000
    rows = EpisodeTable.of(LABELS, EPISODE).draw(1, torch.arange(count))
    places = LABELS[rows][:, :, 0]
    for place in places.T:  # each place of an episode, not only their sum
        assert chisquare(torch.bincount(place, minlength=6)).pvalue > 1e-3
    pairs = (places[:, 0] * 6 + places[:, 1]).bincount(minlength=36).view(6, 6)
    assert (pairs.diagonal() == 0).all() and chisquare(pairs[~torch.eye(6, dtype=torch.bool)]).pvalue > 1e-3
    for k in range(6):
        own = rows[places == k]
        for shot in own.T:
            seen = torch.bincount(shot, minlength=40)[k == LABELS]
            assert chisquare(seen).pvalue > 1e-4


def test_a_number_gives_the_same_episode_in_whatever_company() -> None:
    table = EpisodeTable.of(LABELS, EPISODE)
    together = table.draw(7, torch.arange(50))
    assert torch.equal(together[30:31], table.draw(7, torch.tensor([30])))
    assert not torch.equal(together, table.draw(8, torch.arange(50)))
    assert all(not torch.equal(a, b) for a, b in pairwise(together))


def test_chunks_do_not_change_the_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    table = EpisodeTable.of(LABELS, EPISODE)
    whole = table.draw(0, torch.arange(20))
    monkeypatch.setattr("coterie.data.episodes._CELLS", 100)
    assert torch.equal(table.draw(0, torch.arange(20)), whole)


def test_the_order_is_a_function_of_seed_epoch_and_position() -> None:
    order = EpisodeOrder(LABELS, EPISODE, seed=3)
    assert order.batches_per_epoch == 4
    first = {(epoch, position): order.rows(epoch, position) for epoch in range(2) for position in range(4)}
    again = EpisodeOrder(LABELS, EPISODE, seed=3)
    for key in reversed(first):  # in another order, as after a restart
        assert torch.equal(again.rows(*key), first[key])
        assert len(set(first[key].tolist())) == len(first[key]) == EPISODE.images
    assert len({tuple(rows.tolist()) for rows in first.values()}) == 8
    assert not torch.equal(EpisodeOrder(LABELS, EPISODE, seed=4).rows(0, 0), first[0, 0])


def test_small_classes_take_no_part() -> None:
    rows = EpisodeTable.of(LABELS, Episode(ways=3, shots=2, queries=5)).draw(0, torch.arange(200))
    assert set(LABELS[rows].flatten().tolist()) == {1, 3, 5}


@pytest.mark.parametrize(
    ("episode", "message"),
    [
        (Episode(ways=7, shots=1, queries=1), "an episode has 7 ways and the test set 6 classes; ask for fewer ways"),
        (Episode(ways=3, shots=8, queries=1), "8 shots and 1 queries .* 1 of the 6 classes of the test set have 9"),
    ],
)
def test_what_cannot_be_drawn_is_said_in_one_line(episode: Episode, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        EpisodeTable.of(LABELS, episode, "the test set")
    assert "\n" not in str(caught.value)
