"""Cohorts: separate and shared peers, mixed architectures, views, the leader, and what is refused."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from coterie.cohort import Cohort
from coterie.core.errors import ConfigError
from coterie.nets import NETS, StagedNet


def nets(*names: str, classes: int = 5) -> list[nn.Module]:
    torch.manual_seed(7)
    return [NETS[name](num_classes=classes, in_channels=1, image_size=8) for name in names]


def foreign(classes: int = 5) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 9), nn.ReLU(), nn.Linear(9, classes))


@pytest.fixture
def views() -> Tensor:
    return torch.randn(3, 4, 1, 8, 8, generator=torch.Generator().manual_seed(2))


def test_separate_peers_answer_as_they_do_alone(views: Tensor) -> None:
    peers = nets("cnn4_w4", "cnn4_w4")
    cohort = Cohort(peers).eval()
    outputs = cohort(views[:1])
    assert len(cohort) == len(outputs) == 2
    for net, output in zip(peers, outputs, strict=True):
        assert torch.equal(output.logits, net(views[0]))
        assert output.stages == ()


def test_mixed_peers_have_embeddings_of_their_own(views: Tensor) -> None:
    cohort = Cohort([*nets("cnn4_w4", "resnet8"), foreign()])
    outputs = cohort(views[:1])
    assert cohort.embedding_dims == (8, 64, 9)
    assert [tuple(output.embedding.shape) for output in outputs] == [(4, 8), (4, 64), (4, 9)]
    assert cohort.num_classes == 5


def test_each_peer_sees_its_own_view(views: Tensor) -> None:
    peers = nets("cnn4_w4", "cnn4_w6", "cnn4_w8")
    outputs = Cohort(peers).eval()(views)
    for net, view, output in zip(peers, views, outputs, strict=True):
        assert torch.equal(output.logits, net(view))


@pytest.mark.parametrize("shared", [1, 2, 3])
@pytest.mark.parametrize("leader", [0, -1])
def test_shared_stages_are_the_leaders_own(shared: int, leader: int, views: Tensor) -> None:
    peers = nets("cnn4_w4", "cnn4_w4", "cnn4_w4")
    kept = copy.deepcopy(peers[leader]).eval()
    cohort = Cohort(peers, leader=leader, shared=shared).eval()
    staged = [net for net in peers if isinstance(net, StagedNet)]
    for net in staged:
        assert net.stem is staged[leader].stem
        assert all(net.stages[k] is staged[leader].stages[k] for k in range(shared))
        assert net.head is staged[leader].head or net is not staged[leader]
    assert torch.equal(cohort(views[:1])[leader].logits, kept(views[0]))
    assert len({id(net.head) for net in staged}) == 3


def test_shared_parameters_are_listed_once_and_learn_from_all_peers(views: Tensor) -> None:
    peers = nets("cnn4_w4", "cnn4_w4")
    one = sum(weight.numel() for weight in peers[0].parameters())
    trunk = sum(weight.numel() for part in (peers[0].stem, peers[0].stages[0]) for weight in part.parameters())
    cohort = Cohort(peers, shared=1).eval()
    assert sum(weight.numel() for weight in cohort.parameters()) == 2 * one - trunk
    weight = peers[0].stem[0].weight
    slopes = []
    for picked in ([0], [1], [0, 1]):
        weight.grad = None
        outputs = cohort(views[:1])
        torch.stack([outputs[m].logits.square().sum() for m in picked]).sum().backward()
        slopes.append(weight.grad.clone())
    assert torch.allclose(slopes[0] + slopes[1], slopes[2], rtol=1e-4)
    assert slopes[0].any() and slopes[1].any()


@pytest.mark.parametrize(("count", "runs"), [(1, 1), (3, 3)])
def test_shared_trunk_runs_once_for_each_view(count: int, runs: int, views: Tensor) -> None:
    peers = nets("cnn4_w4", "cnn4_w4", "cnn4_w4")
    cohort = Cohort(peers, shared=2)
    calls: list[int] = []
    peers[0].stages[1].register_forward_hook(lambda *_: calls.append(1))
    cohort(views[:count])
    assert len(calls) == runs
    assert int(peers[2].stem[1].num_batches_tracked) == runs


def test_shared_cohort_gives_each_peer_its_view(views: Tensor) -> None:
    peers = nets("cnn4_w4", "cnn4_w4", "cnn4_w4")
    outputs = Cohort(peers, shared=1).eval()(views)
    for net, view, output in zip(peers, views, outputs, strict=True):
        assert torch.equal(output.logits, net(view))


def test_leader_state_fits_a_network_built_alone(views: Tensor) -> None:
    cohort = Cohort(nets("cnn4_w4", "cnn4_w4"), shared=2)
    with torch.no_grad():
        cohort(views[:1])
    (plain,) = nets("cnn4_w4")
    plain.load_state_dict(cohort.leader_net.state_dict(), strict=True)
    assert torch.equal(plain.eval()(views[0]), cohort.eval()(views[:1])[-1].logits)


def test_foreign_leader_comes_back_as_it_was_given(views: Tensor) -> None:
    net = foreign()
    cohort = Cohort([*nets("cnn4_w4"), net])
    assert cohort.leader == 1 and cohort.leader_net is net and cohort[1] is net
    assert set(net.state_dict()) == set(foreign().state_dict())
    assert torch.equal(cohort.eval()(views[:1])[1].logits, net(views[0]))


def test_stage_maps_on_request(views: Tensor) -> None:
    for shared in (0, 1):
        outputs = Cohort(nets("cnn4_w4", "cnn4_w4"), shared=shared, stage_maps=True)(views[:1])
        assert [[stage.shape[1] for stage in output.stages] for output in outputs] == [[4, 4, 8, 8]] * 2


@pytest.mark.parametrize(
    ("names", "options", "message"),
    [
        ((), {}, "needs at least one network"),
        (("cnn4_w4", "cnn4_w4"), {"leader": 2}, "leader 2 is not one of 2 peers"),
        (("cnn4_w4", "cnn4_w4"), {"leader": -3}, "leader -3 is not one of 2 peers"),
        (("cnn4_w4", "cnn4_w6"), {"shared": 1}, "peer 0 cannot share stage 1 of another network"),
        (("cnn4_w4", "cnn4_w4"), {"shared": 4}, "2 peers of 3 stages cannot have their first 4 in"),
        (("cnn4_w4", "cnn4_w4"), {"shared": -1}, "cohort.shared=-1"),
    ],
)
def test_impossible_cohorts_are_refused_in_one_line(
    names: tuple[str, ...], options: dict[str, int], message: str
) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        Cohort(nets(*names), **options)
    assert "\n" not in str(error.value)


def test_peers_of_other_class_counts_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"heads of \[5, 6\] classes"):
        Cohort([*nets("cnn4_w4"), *nets("cnn4_w4", classes=6)])


def test_foreign_modules_cannot_share_stages() -> None:
    with pytest.raises(ConfigError, match="peer 1, a Sequential, cannot share stages, only staged"):
        Cohort([*nets("cnn4_w4"), foreign()], shared=1)
