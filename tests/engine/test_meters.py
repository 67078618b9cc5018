from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from coterie.core import Batch, NumericError, PeerOutput, ShapeError, Terms
from coterie.engine import Meters, Objective


def fake_run(batches: int = 1, module: nn.Module | None = None) -> Any:
    """As much of a run as meters look at."""
    objective = Objective(module or nn.Linear(1, 1), nn.Module())
    return SimpleNamespace(
        batches=batches, clock=SimpleNamespace(epoch=0), stepper=SimpleNamespace(rate=0.5), objective=objective
    )


def batch_of(labels: list[int]) -> Batch:
    zero = torch.zeros((), dtype=torch.int64)
    targets = torch.tensor(labels)
    return Batch(views=torch.zeros(1, len(labels), 1, 1, 1), labels=targets, indices=targets, epoch=zero, step=zero)


def peers_saying(*answers: list[int]) -> list[PeerOutput]:
    one_hot = [nn.functional.one_hot(torch.tensor(answer), 4).float() for answer in answers]
    return [PeerOutput(logits=logits, embedding=logits) for logits in one_hot]


def terms_of(task: float, extra: float, weight: float = 0.5) -> Terms:
    return Terms().add("task", torch.tensor(task)).add("extra", torch.tensor(extra), weight)


def make(every: int = 0) -> tuple[Meters, list[dict[str, Any]], list[dict[str, Any]]]:
    rows: list[dict[str, Any]] = []
    timing: list[dict[str, Any]] = []
    return Meters(every=every, emit=rows.append, emit_timing=timing.append), rows, timing


def test_a_row_is_the_mean_over_images_not_over_batches() -> None:
    meters, rows, timing = make()
    meters.on_step(fake_run(1), peers_saying([0, 1, 2], [0, 0, 0]), terms_of(1.0, 4.0), batch_of([0, 1, 1]))
    meters.on_step(fake_run(2), peers_saying([3], [2]), terms_of(5.0, 0.0), batch_of([3]))
    assert rows == []
    meters.on_epoch(fake_run(2))
    (row,) = rows
    assert row["terms"] == {"task": (3 * 1 + 5) / 4, "extra": 3 * 4 / 4}
    assert row["loss"] == (3 * (1 + 2) + 5) / 4
    assert row["accuracy"] == [75.0, 25.0]
    assert (row["kind"], row["epoch"], row["step"], row["lr"]) == ("train", 0, 2, 0.5)
    assert timing[0]["step"] == 2
    assert timing[0]["images_per_second"] == pytest.approx(4 / timing[0]["seconds"])


def test_rows_every_so_many_batches_and_the_rest_at_the_end_of_the_epoch() -> None:
    meters, rows, _ = make(every=2)
    for number in range(1, 6):
        meters.on_step(fake_run(number), peers_saying([0]), terms_of(number, 0.0), batch_of([0]))
    assert [(row["step"], row["terms"]["task"]) for row in rows] == [(2, 1.5), (4, 3.5)]
    meters.on_epoch(fake_run(5))
    meters.on_epoch(fake_run(5))
    assert [(row["step"], row["terms"]["task"]) for row in rows] == [(2, 1.5), (4, 3.5), (5, 5.0)]


def test_an_open_row_survives_a_restart() -> None:
    meters, rows, _ = make()
    meters.on_step(fake_run(1), peers_saying([0]), terms_of(2.0, 1.0), batch_of([0]))
    tensors, names = meters.state()
    other, later, _ = make()
    other.load_state({name: tensor.clone() for name, tensor in tensors.items()}, names, torch.device("cpu"))
    for each in (meters, other):
        each.on_step(fake_run(2), peers_saying([1]), terms_of(0.1, 3.0), batch_of([0]))
        each.on_epoch(fake_run(2))
    assert rows == later
    assert make()[0].state() == ({}, [])


@pytest.mark.case(34)
@pytest.mark.parametrize(("task", "extra", "named"), [(math.nan, 1.0, "task"), (1.0, math.inf, "extra")])
def test_a_loss_that_is_not_finite_is_named_and_never_written(task: float, extra: float, named: str) -> None:
    meters, rows, _ = make()
    meters.on_step(fake_run(1), peers_saying([0]), terms_of(task, extra), batch_of([0]))
    meters.on_step(fake_run(2), peers_saying([0]), terms_of(1.0, 1.0), batch_of([0]))
    for look in (meters.check, meters.on_epoch):
        with pytest.raises(NumericError, match=rf"the loss is not finite \(terms: {named}\).*optim\.lr") as caught:
            look(fake_run(2))
        assert caught.value.exit_code == 5
    assert rows == []


@pytest.mark.case(34)
def test_a_weight_that_is_not_finite_is_named() -> None:
    meters, _, _ = make()
    layer = nn.Linear(2, 1)
    meters.check(fake_run(module=layer))
    with torch.no_grad():
        layer.bias.fill_(math.inf)
    with pytest.raises(NumericError, match=r"1 parameters are not finite, cohort\.bias for one"):
        meters.check(fake_run(module=layer))


def test_buffers_may_hold_infinity() -> None:
    class Masked(nn.Linear):
        def __init__(self) -> None:
            super().__init__(2, 1)
            self.register_buffer("mask", torch.tensor(-math.inf))

    make()[0].check(fake_run(module=Masked()))


def test_terms_that_change_within_a_row_are_refused() -> None:
    meters, _, _ = make()
    meters.on_step(fake_run(1), peers_saying([0]), terms_of(1.0, 1.0), batch_of([0]))
    other = Terms().add("task", torch.tensor(1.0)).add("later", torch.tensor(1.0))
    with pytest.raises(ShapeError, match=r"\['task', 'later'\] after \['task', 'extra'\].*weight 0"):
        meters.on_step(fake_run(2), peers_saying([0]), other, batch_of([0]))
