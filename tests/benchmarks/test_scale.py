"""The model of many devices against rings that are gone round link by link, and against processes."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy
import pytest
from benchmarks.ranks import in_processes, measured_steps
from benchmarks.scale import Exchange, Links, Load, Mesh, contrast_flops, cost, exchanges, main
from benchmarks.sizes import Setting, Sizes

LOAD = Load(image_seconds=1e-3, peers=4)
LINKS = Links(latency=1e-5, bandwidth=1e9)


def gone_round(ranks: int, size: int) -> tuple[float, numpy.ndarray]:
    """Add vectors of all ranks in a ring, part by part; bytes that a rank sends, and what each ends with."""
    parts = numpy.arange(ranks * size, dtype=float).reshape(ranks, size)
    expected = parts.sum(axis=0)
    pieces = [numpy.array_split(row.copy(), ranks) for row in parts]
    sent = 0.0
    for turn in range(2 * (ranks - 1)):
        for rank in range(ranks):
            place = (rank - turn) % ranks if turn < ranks - 1 else (rank + 1 - (turn - ranks + 1)) % ranks
            sent += pieces[rank][place].nbytes
            other = pieces[(rank + 1) % ranks]
            other[place] = other[place] + pieces[rank][place] if turn < ranks - 1 else pieces[rank][place].copy()
    for row in pieces:
        numpy.testing.assert_allclose(numpy.concatenate(row), expected)
    return sent / ranks, expected


@pytest.mark.parametrize("ranks", [2, 3, 4, 8])
def test_what_a_ring_sends(ranks: int) -> None:
    sent, total = gone_round(ranks, 24)
    assert Exchange(name="x", ranks=ranks, size=total.nbytes, adds=True).sent == pytest.approx(sent)
    assert Exchange(name="x", ranks=ranks, size=100, calls=3).sent == 300 * (ranks - 1)


def test_small_messages_go_by_halves_and_large_ones_round_a_ring() -> None:
    small, large = (Exchange(name="x", ranks=1024, size=size, adds=True).seconds(LINKS) for size in (8, 1e9))
    assert small == pytest.approx(2 * 10 * (LINKS.latency + 8 / LINKS.bandwidth))
    assert large == pytest.approx(2 * 1023 * LINKS.latency + 2 * 1023 / 1024 * 1e9 / LINKS.bandwidth)


def test_peers_on_ranks_of_their_own_send_no_gradients() -> None:
    assert {row.name for row in exchanges(LOAD, Mesh(peer=4), 64) if row.sent} == {"meeting", "outputs"}
    data = {row.name: row.sent for row in exchanges(LOAD, Mesh(data=4), 64)}
    assert data["gradients"] == 2 * 3 / 4 * 4 * 4 * LOAD.parameters
    assert data["outputs"] == 3 / 4 * 64 * 4 * LOAD.says * 4


def test_a_step_of_one_rank_is_what_it_computes() -> None:
    found = cost(replace(LOAD, whole_seconds=1e-4, step_seconds=2e-3), Mesh(), 64, LINKS)
    assert found.seconds == pytest.approx(4 * (64e-3 + 2e-3) + 64e-4) and found.sent == 0


def test_ranks_wait_for_the_slowest() -> None:
    """The expected largest of n normal numbers grows as the square root of 2 ln n."""
    waits = [cost(LOAD, Mesh(data=size), 64 * size, LINKS, jitter=0.01).slowest for size in (1, 4, 64, 1024)]
    assert waits == sorted(waits) and waits[0] < 1e-3
    assert waits[-1] / 0.256 == pytest.approx(0.01 * (math.sqrt(2 * math.log(1024)) - 0.5), rel=0.1)


def test_gradients_hide_behind_the_backward_pass() -> None:
    bare = replace(LOAD, norms=())
    shown, hidden = (cost(replace(bare, overlap=part), Mesh(data=2), 2048, LINKS).sending for part in (0.0, 1.0))
    gradients = exchanges(bare, Mesh(data=2), 2048)[2].seconds(LINKS)
    assert shown - hidden == pytest.approx(gradients)


def test_contrast_is_counted_as_a_loop_would() -> None:
    flops = 0
    for peer in range(3):
        for other in range(3):
            flops += 0 if peer == other else 2 * (2 * 5 * 7)  # scores of 5 rows of 7 numbers, and their gradient
    assert contrast_flops(3, 5, 7) == flops


def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--ranks", "1", "4"]) == 0
    table = capsys.readouterr().out.splitlines()
    assert [line.split("|")[2].strip() for line in table[2:]] == ["1 x 1", "1 x 4", "4 x 1"]
    assert main(["--images", "1e9"]) == 0
    assert "1,024.00" in capsys.readouterr().out


@pytest.mark.slow
def test_two_processes_send_what_the_model_says() -> None:
    """Other work may use the loopback device too: at least as much must have gone through it."""
    sizes = Sizes(net="resnet8", batch=8, peers=2, num_train=200, negatives=64, classes=4, dim=16, image=8)
    seen = in_processes(2, measured_steps, Setting(sizes=sizes))
    weights = exchanges(replace(LOAD, peers=2, parameters=77_000, says=68), Mesh(data=2), 8)
    assert seen.sent > 0.8 * sum(row.sent for row in weights if row.name == "gradients")
