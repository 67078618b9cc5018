from __future__ import annotations

import pytest
import torch
from torch import nn

from coterie.config import OptimConfig
from coterie.engine import Precision, Stepper, learning_rate, make_optimizer

CPU = torch.device("cpu")


def make(config: OptimConfig, *, batches: int = 4, epochs: int = 2, precision: str = "float32") -> Stepper:
    parameter = nn.Parameter(torch.tensor([3.0, 4.0]))
    optimizer = make_optimizer([parameter], config)
    return Stepper(optimizer, config, Precision(precision, CPU), batches_per_epoch=batches, epochs=epochs)


def parameter_of(stepper: Stepper) -> nn.Parameter:
    return stepper.optimizer.param_groups[0]["params"][0]


def plain(**options: object) -> OptimConfig:
    return OptimConfig(**{"lr": 0.1, "momentum": 0.0, "weight_decay": 0.0, "schedule": "constant", **options})


def test_options_reach_the_optimiser() -> None:
    group = make_optimizer([nn.Parameter(torch.ones(1))], OptimConfig(lr=0.3, momentum=0.8, weight_decay=0.01))
    assert isinstance(group, torch.optim.SGD)
    options = group.param_groups[0]
    assert (options["lr"], options["momentum"], options["weight_decay"], options["nesterov"]) == (0.3, 0.8, 0.01, True)
    adamw = make_optimizer([nn.Parameter(torch.ones(1))], OptimConfig(name="adamw", lr=0.2, weight_decay=0.05))
    assert isinstance(adamw, torch.optim.AdamW)
    assert (adamw.param_groups[0]["lr"], adamw.param_groups[0]["weight_decay"]) == (0.2, 0.05)


def test_nesterov_without_momentum_is_plain_sgd() -> None:
    assert not make_optimizer([nn.Parameter(torch.ones(1))], plain(nesterov=True)).param_groups[0]["nesterov"]


@pytest.mark.parametrize(("clip", "factor"), [(0.0, 1.0), (100.0, 1.0), (1.0, 0.2)])
def test_clipping_bounds_the_norm_of_the_whole_gradient(clip: float, factor: float) -> None:
    stepper = make(plain(clip=clip))
    parameter = parameter_of(stepper)
    stepper((parameter * torch.tensor([3.0, 4.0])).sum(), 0, 0)
    expected = torch.tensor([3.0, 4.0]) - 0.1 * factor * torch.tensor([3.0, 4.0])
    torch.testing.assert_close(parameter.detach(), expected)
    assert parameter.grad is None


def test_groups_of_batches_and_the_shorter_one_at_the_end() -> None:
    stepper = make(plain(accumulate=3), batches=5)
    parameter = parameter_of(stepper)
    moved, before = [], parameter.detach().clone()
    for position in range(5):
        stepper(parameter.sum() * (position + 1), 0, position)
        moved.append((stepper.idle, stepper.group, float((before - parameter.detach())[0])))
        before = parameter.detach().clone()
    means = [0.1 * (1 + 2 + 3) / 3, 0.1 * (4 + 5) / 2]
    assert [entry[:2] for entry in moved] == [(False, 3), (False, 3), (True, 3), (False, 2), (True, 2)]
    assert [entry[2] for entry in moved] == pytest.approx([0, 0, means[0], 0, means[1]], abs=1e-6)


def test_the_rate_is_that_of_the_step_within_the_run() -> None:
    config = plain(schedule="cosine", per="step", accumulate=2)
    stepper, rates = make(config, batches=4, epochs=2), []
    for epoch in range(2):
        for position in range(4):
            stepper(parameter_of(stepper).sum(), epoch, position)
            rates.append(stepper.rate)
    expected = [learning_rate(config, step=step, steps_per_epoch=2, epochs=2) for step in range(4)]
    assert rates[1::2] == expected
    assert expected[0] == 0.1 > expected[1] > expected[2] > expected[3] > 0


@pytest.mark.case(36)
def test_float16_skips_a_step_that_overflows_and_lowers_its_scale() -> None:
    stepper = make(plain(clip=1.0), precision="float16")
    parameter, scaler = parameter_of(stepper), stepper.precision.scaler
    stepper(parameter.sum(), 0, 0)
    after_one = parameter.detach().clone()
    assert after_one.tolist() == pytest.approx([3 - 0.1 / 2**0.5, 4 - 0.1 / 2**0.5])
    scale = scaler.get_scale()
    stepper((parameter * torch.tensor([float("inf"), 1.0])).sum(), 0, 1)
    assert torch.equal(parameter.detach(), after_one)
    assert scaler.get_scale() == scale / 2
    stepper(parameter.sum(), 0, 2)
    assert not torch.equal(parameter.detach(), after_one)


def test_a_parameter_may_take_its_first_gradient_late() -> None:
    early, late = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    fused = make_optimizer([early, late], plain(momentum=0.9))
    twins = [nn.Parameter(torch.ones(2)) for _ in range(2)]
    slow = torch.optim.SGD(twins, lr=0.1, momentum=0.9, nesterov=True)
    assert fused.param_groups[0]["fused"]
    for step in range(3):
        for optimizer, (first, second) in ((fused, (early, late)), (slow, twins)):
            optimizer.zero_grad()
            (first.square().sum() + (second.pow(3).sum() if step else 0)).backward()
            optimizer.step()
    torch.testing.assert_close([early, late], twins)
