"""The critic is never steeper than 1, at no moment of its life, and its bound is a bound."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from coterie.core import ShapeError
from coterie.losses.critic import LipschitzCritic, gradient_penalty, norm_bound
from golden_logits import assert_close

PAIRS = 10_000


def steepest(critic: LipschitzCritic, size: int) -> float:
    """Largest slope between random pairs at all distances, and along the gradient, where it is largest."""
    own = torch.Generator().manual_seed(5)
    x = torch.randn(PAIRS, 2 * size, generator=own, dtype=torch.float64)
    away = torch.randn(x.shape, generator=own, dtype=torch.float64) * torch.logspace(-2, 1, PAIRS)[:, None]
    with torch.no_grad():
        uphill = critic.layers().slopes(*x.chunk(2, dim=1))
        slopes = [rise(critic, x, x + step) for step in (away, 0.05 * uphill)]
    return float(torch.stack(slopes).max())


def rise(critic: LipschitzCritic, x: Tensor, y: Tensor) -> Tensor:
    gap = (critic(*x.chunk(2, dim=1)) - critic(*y.chunk(2, dim=1))).abs()
    return (gap / (x - y).norm(dim=1)).max()


def moments(size: int) -> Iterator[LipschitzCritic]:
    """A critic fresh, after each of some wild steps, in evaluation, and after a restart; then with awkward weights."""
    torch.manual_seed(3)
    critic = LipschitzCritic(size)
    yield critic
    optimizer = torch.optim.SGD(critic.parameters(), lr=20.0, momentum=0.9)
    for _ in range(2):
        x = torch.randn(4, 32, size)
        optimizer.zero_grad()
        (critic(x[0], x[1]) - critic(x[2], x[3])).mean().neg().backward()
        optimizer.step()
        yield critic
    yield critic.eval()
    again = LipschitzCritic(size)
    again.load_state_dict(critic.state_dict())
    yield again
    nn.init.orthogonal_(again.first.weight)  # all singular values alike: where the bound is farthest off
    yield again
    with torch.no_grad():
        again.first.weight.copy_(torch.outer(torch.randn(size), torch.randn(2 * size)) * 1e4)  # and all but one 0
    yield again


@pytest.mark.slow
@pytest.mark.parametrize("size", [3, 128])
def test_never_steeper_than_one(size: int) -> None:
    for count, critic in enumerate(moments(size)):
        weights = critic.layers()
        exact = torch.linalg.matrix_norm(torch.cat([weights.teacher, weights.student], dim=1).double(), 2)
        assert 0.99 < exact <= 1, count
        assert weights.readout.double().norm() <= 1, count
        assert 0 < steepest(critic.double(), size) <= 1, count
        critic.float()


def test_a_critic_without_normalisation_is_steeper() -> None:
    torch.manual_seed(0)
    critic = LipschitzCritic(8, normalise=False)
    with torch.no_grad():
        critic.first.weight.mul_(9)
        critic.second.weight.mul_(9)
    assert steepest(critic.double(), 8) > 1


def test_the_steepest_critic_comes_close_to_one() -> None:
    critic = LipschitzCritic(2).double()
    with torch.no_grad():
        critic.first.weight.copy_(torch.eye(2, 4))
        critic.second.weight.copy_(torch.tensor([[1.0, 0.0]]))
        critic.first.bias.zero_()
    x, zeros = torch.tensor([[1.0, 0.0]], dtype=torch.float64), torch.zeros(1, 2, dtype=torch.float64)
    assert 0.99 < (critic(x, zeros) - critic(zeros, zeros)).item() <= 1


def test_values_by_the_equation() -> None:
    torch.manual_seed(1)
    critic, teacher, student = LipschitzCritic(3).double(), torch.randn(5, 3).double(), torch.randn(5, 3).double()
    weight = critic.first.weight / torch.linalg.matrix_norm(critic.first.weight, 2)
    readout = critic.second.weight[0] / critic.second.weight.norm()

    def value(pair: Tensor) -> float:
        hidden = [float(weight[k] @ pair + critic.first.bias[k]) for k in range(3)]
        return sum(float(readout[k]) * (h if h > 0 else 0.2 * h) for k, h in enumerate(hidden))

    with torch.no_grad():
        origin = value(torch.zeros(6, dtype=torch.float64))
        expected = [value(torch.cat(pair)) - origin for pair in zip(teacher, student, strict=True)]
        assert critic(teacher, student).tolist() == pytest.approx(expected, rel=1e-2, abs=1e-4)
    free = LipschitzCritic(3, normalise=False).double()
    free.load_state_dict(critic.state_dict())
    weight, readout = free.first.weight, free.second.weight[0]
    with torch.no_grad():
        origin = value(torch.zeros(6, dtype=torch.float64))
        expected = [value(torch.cat(pair)) - origin for pair in zip(teacher, student, strict=True)]
        assert_close(free(teacher, student), expected)


@pytest.mark.parametrize("shape", [(1, 7), (7, 1), (5, 9), (9, 5), (40, 80)])
def test_bound_holds_and_is_close(shape: tuple[int, int]) -> None:
    torch.manual_seed(4)
    for scale in (1e-12, 1.0, 1e12):
        weight = scale * torch.randn(shape)
        exact = torch.linalg.matrix_norm(weight.double(), 2)
        assert exact < norm_bound(weight).double() <= exact * 1.01
        far = torch.linalg.matrix_norm(weight.double() @ weight.double().t()).sqrt()
        assert norm_bound(weight, squarings=0).item() == pytest.approx(far.item(), rel=1e-5)


@pytest.mark.parametrize("squarings", [0, 3])
@pytest.mark.parametrize("shape", [(1, 4), (3, 5), (5, 3)])
def test_slope_of_the_bound(shape: tuple[int, int], squarings: int) -> None:
    torch.manual_seed(6)
    weight = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    (given,) = torch.autograd.grad(norm_bound(weight, squarings), weight)
    step, entries = 1e-6, torch.eye(weight.numel(), dtype=torch.float64).view(-1, *shape)
    with torch.no_grad():
        rises = [norm_bound(weight + step * e, squarings) - norm_bound(weight - step * e, squarings) for e in entries]
    assert torch.allclose(given.flatten(), torch.stack(rises) / (2 * step), atol=1e-8)


def test_slopes_are_the_derivative_of_the_value() -> None:
    torch.manual_seed(7)
    critic = LipschitzCritic(4).double()
    pair = torch.randn(2, 6, 4, dtype=torch.float64, requires_grad=True)
    teacher, student = torch.autograd.grad(critic(*pair).sum(), pair)[0]
    assert_close(critic.layers().slopes(*pair), torch.cat([teacher, student], dim=1).tolist())


def test_gradient_penalty_by_double_differentiation() -> None:
    torch.manual_seed(8)
    critic = LipschitzCritic(4, normalise=False).double()
    joint, product = torch.randn(2, 2, 6, 4, dtype=torch.float64)
    mix = torch.rand(6, dtype=torch.float64)
    gradient_penalty(critic, tuple(joint), tuple(product), mix).backward()
    given = {name: p.grad for name, p in critic.named_parameters()}
    critic.zero_grad()
    points = (mix[:, None] * joint + (1 - mix[:, None]) * product).requires_grad_()
    (slopes,) = torch.autograd.grad(critic(*points).sum(), points, create_graph=True)
    slow = torch.stack([(torch.cat([slopes[0, i], slopes[1, i]]).norm() - 1) ** 2 for i in range(6)]).mean()
    slow.backward()
    assert_close(gradient_penalty(critic, tuple(joint), tuple(product), mix), slow.item())
    for name, parameter in critic.named_parameters():
        if name != "first.bias":  # no derivative: it moves the kinks alone
            assert_close(given[name], parameter.grad.tolist())


def test_gradient_penalty_brings_the_slope_to_one() -> None:
    torch.manual_seed(9)
    critic = LipschitzCritic(4, normalise=False)
    optimizer = torch.optim.SGD(critic.parameters(), lr=0.2)
    joint, product = torch.randn(2, 2, 64, 4)
    values = []
    for _ in range(60):
        values.append(gradient_penalty(critic, tuple(joint), tuple(product), torch.rand(64)))
        optimizer.zero_grad()
        values[-1].backward()
        optimizer.step()
    assert values[-1].item() < 0.2 * values[0].item()


def test_everything_it_is_lies_in_its_parameters() -> None:
    torch.manual_seed(10)
    critic, again = LipschitzCritic(6), LipschitzCritic(6)
    critic.train()(torch.randn(3, 6), torch.randn(3, 6)).sum().backward()
    assert set(critic.state_dict()) == {name for name, _ in critic.named_parameters()}
    again.load_state_dict(critic.state_dict())
    x = torch.randn(2, 3, 6)
    assert torch.equal(critic(*x), again.eval()(*x)) and torch.equal(critic(*x), critic.eval()(*x))


def test_autocast_does_not_shorten_its_numbers() -> None:
    critic, x = LipschitzCritic(6), torch.randn(2, 3, 6)
    with torch.autocast("cpu", torch.bfloat16):
        value = critic(*x)
    assert value.dtype == torch.float32 and torch.equal(value, critic(*x))
    assert critic(*x.bfloat16()).dtype == torch.float32


def test_embeddings_of_another_size_are_refused() -> None:
    critic = LipschitzCritic(6)
    with pytest.raises(ShapeError, match="critic of size 6"):
        critic(torch.zeros(2, 6), torch.zeros(2, 5))
    pair = torch.zeros(2, 5), torch.zeros(2, 5)
    with pytest.raises(ShapeError, match="critic of size 6"):
        gradient_penalty(critic, pair, pair, torch.zeros(2))
