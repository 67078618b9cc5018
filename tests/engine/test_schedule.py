"""Learning rates against PyTorch's own schedulers and the formulas of the recipes."""

import math

import pytest
import torch

from coterie.config import OptimConfig
from coterie.engine.schedule import learning_rate


def rates(config: OptimConfig, epochs: int, steps: int) -> list[float]:
    return [learning_rate(config, step=s, steps_per_epoch=steps, epochs=epochs) for s in range(epochs * steps)]


def torch_rates(make: object, epochs: int, lr: float) -> list[float]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr)
    scheduler = make(optimizer)  # type: ignore[operator]
    found = []
    for _ in range(epochs):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


def test_cosine_per_epoch_is_torchs_cosine_annealing() -> None:
    ours = rates(OptimConfig(lr=0.05), 30, 7)[::7]
    theirs = torch_rates(lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 30), 30, 0.05)
    assert ours == pytest.approx(theirs, abs=1e-12)
    assert len(set(rates(OptimConfig(lr=0.05), 30, 7)[:7])) == 1


def test_step_is_torchs_multi_step() -> None:
    config = OptimConfig(lr=0.1, schedule="step", milestones=(10, 20), gamma=0.1)
    theirs = torch_rates(lambda o: torch.optim.lr_scheduler.MultiStepLR(o, [10, 20], 0.1), 30, 0.1)
    assert rates(config, 30, 1) == pytest.approx(theirs, abs=1e-12)


def test_cosine_per_step_moves_at_every_step_and_ends_near_zero() -> None:
    found = rates(OptimConfig(lr=1.0, per="step"), 4, 5)
    assert found == sorted(found, reverse=True) and len(set(found)) == 20
    assert found[10] == pytest.approx(0.5) and found[-1] == pytest.approx(0.5 * (1 + math.cos(math.pi * 19 / 20)))


def test_warm_up_rises_in_a_line_and_then_the_schedule_begins_at_its_top() -> None:
    found = rates(OptimConfig(lr=1.0, warmup_epochs=2), 10, 4)
    assert found[:8] == pytest.approx([(k + 1) / 9 for k in range(8)])
    assert found[8] == 1.0 and found[-1] == pytest.approx(0.5 * (1 + math.cos(math.pi * 7 / 8)))


def test_one_cycle_peaks_after_three_tenths() -> None:
    found = rates(OptimConfig(lr=2.0, schedule="one_cycle", per="step"), 10, 10)
    assert max(found) == found[30] == 2.0 and found[0] < 0.1 and found[-1] < 0.01
    assert found[:31] == sorted(found[:31]) and found[30:] == sorted(found[30:], reverse=True)


def test_constant_stays() -> None:
    assert set(rates(OptimConfig(lr=0.3, schedule="constant"), 3, 3)) == {0.3}


def test_a_step_every_so_many_epochs_is_a_row_of_milestones() -> None:
    listed = rates(OptimConfig(lr=0.1, schedule="step", gamma=0.5, milestones=(2, 4)), 6, 3)
    assert rates(OptimConfig(lr=0.1, schedule="step", gamma=0.5, every=2, milestones=(1,)), 6, 3) == listed
    assert listed[0] == 0.1 and listed[-1] == pytest.approx(0.025)
