from __future__ import annotations

import pytest
import torch
from torch import nn

from coterie.cohort import Cohort
from coterie.cohort.ema import CohortCopy
from coterie.core import CheckpointError, Memory
from coterie.nets import NETS


def make_cohort(shared: int = 0, seed: int = 3) -> Cohort:
    torch.manual_seed(seed)
    return Cohort([NETS["cnn4_w4"](num_classes=5, in_channels=1, image_size=8) for _ in range(3)], shared=shared)


def step(cohort: Cohort) -> None:
    """Change weights and running statistics, as a training step does."""
    cohort.train()(torch.randn(1, 6, 1, 8, 8))
    with torch.no_grad():
        for parameter in cohort.parameters():
            parameter.add_(torch.randn_like(parameter))


def tensors(cohort: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in cohort.state_dict().items()}


def test_copies_answer_as_the_cohort_did_in_evaluation_mode() -> None:
    cohort = make_cohort()
    step(cohort)
    follower, views = CohortCopy(cohort), torch.randn(3, 4, 1, 8, 8)
    expected = [peer.logits for peer in cohort.eval()(views)]
    step(cohort)
    for peer, logits in zip(follower(views), expected, strict=True):
        assert torch.equal(peer.logits, logits) and not peer.logits.requires_grad and peer.stages == ()
    follower.refresh(cohort)
    for peer, own in zip(follower(views), cohort.eval()(views), strict=True):
        assert torch.equal(peer.logits, own.logits)


def test_copies_return_no_stage_maps_and_leave_the_cohort_alone() -> None:
    cohort = make_cohort(shared=1)
    cohort.stage_maps = True
    follower = CohortCopy(cohort)
    assert follower(torch.randn(1, 2, 1, 8, 8))[0].stages == ()
    assert cohort.stage_maps and cohort.training and all(p.requires_grad for p in cohort.parameters())


@pytest.mark.parametrize("momentum", [0.75, torch.tensor(0.75)])
def test_average_follows_its_definition(momentum: float | torch.Tensor) -> None:
    cohort = make_cohort()
    follower, expected = CohortCopy(cohort), tensors(cohort)
    for _ in range(3):
        step(cohort)
        follower.update(cohort, momentum)
        for name, new in cohort.state_dict().items():
            expected[name] = 0.75 * expected[name] + 0.25 * new if new.is_floating_point() else new.clone()
    for name, tensor in follower.state().items():
        assert torch.allclose(tensor, expected[name], atol=1e-6), name
    assert any("num_batches" in name and int(tensor) == 3 for name, tensor in follower.state().items())


def test_shared_stages_are_kept_once() -> None:
    cohort = make_cohort(shared=2)
    state = CohortCopy(cohort).state()
    assert len({tensor.data_ptr() for tensor in state.values()}) == len(state) < len(cohort.state_dict())


def test_state_round_trip_and_refusal() -> None:
    memory: Memory = CohortCopy(make_cohort())
    other = CohortCopy(make_cohort(seed=4))
    other.load_state({name: tensor.clone() for name, tensor in memory.state().items()})
    assert all(torch.equal(tensor, other.state()[name]) for name, tensor in memory.state().items())
    before = {name: tensor.clone() for name, tensor in other.state().items()}
    wide = NETS["cnn4_w6"](num_classes=5, in_channels=1, image_size=8)
    with pytest.raises(CheckpointError, match=r"was saved as .* continue with the same cohort"):
        other.load_state(CohortCopy(Cohort([wide] * 3)).state())
    with pytest.raises(CheckpointError, match="is missing"):
        other.load_state({})
    assert all(torch.equal(tensor, before[name]) for name, tensor in other.state().items())


def test_move_changes_every_floating_point_tensor() -> None:
    follower = CohortCopy(make_cohort())
    follower.move(lambda tensor: tensor.double() if tensor.is_floating_point() else tensor)
    assert all(tensor.dtype in (torch.float64, torch.int64) for tensor in follower.state().values())
    assert follower(torch.randn(1, 2, 1, 8, 8, dtype=torch.float64))[0].logits.dtype == torch.float64
