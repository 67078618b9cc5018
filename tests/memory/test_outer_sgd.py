"""SGD of an outer step against torch's own, and its state."""

from __future__ import annotations

import pytest
import torch

from coterie.core.errors import CheckpointError
from coterie.memory.outer_sgd import OuterSGD


def test_steps_are_those_of_torch() -> None:
    draw = torch.Generator().manual_seed(0)
    ours = [torch.randn(shape, generator=draw) for shape in ((3, 2), (4,))]
    theirs = [value.clone().requires_grad_() for value in ours]
    sgd = OuterSGD(zip("ab", ours, strict=True))
    other = torch.optim.SGD(theirs, lr=0.3, momentum=0.9, nesterov=True, weight_decay=0.01)
    for _ in range(3):
        slopes = [torch.randn(value.shape, generator=draw) for value in ours]
        for value, slope in zip(theirs, slopes, strict=True):
            value.grad = slope.clone()
        other.step()
        sgd.step(ours, slopes, lr=0.3, weight_decay=0.01)
    for mine, value in zip(ours, theirs, strict=True):
        assert torch.allclose(mine, value, rtol=1e-6)


def test_state_goes_on() -> None:
    first, second = (OuterSGD([("w", torch.zeros(3))]) for _ in range(2))
    weights = torch.zeros(3)
    first.step([weights], [torch.ones(3)], lr=0.1)
    second.load_state({name: tensor.clone() for name, tensor in first.state().items()})
    again = weights.clone()
    for sgd, value in ((first, weights), (second, again)):
        sgd.step([value], [torch.full((3,), 2.0)], lr=0.1)
    assert torch.equal(weights, again)
    first.move(lambda tensor: tensor.double())
    assert first.state()["w"].dtype == torch.float64


@pytest.mark.parametrize("state", [{}, {"w": torch.zeros(4)}])
def test_state_of_other_parameters_is_refused(state: dict[str, torch.Tensor]) -> None:
    with pytest.raises(CheckpointError, match=r"the momentum of w .* is \[3\] here"):
        OuterSGD([("w", torch.zeros(3))]).load_state(state)
