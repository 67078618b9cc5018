from __future__ import annotations

import pytest
import torch
from torch import nn

from coterie.cohort.connectors import Connector, Shape, connect, map_pairs
from coterie.cohort.facts import facts_of
from coterie.core import ConfigError, PeerFacts
from coterie.nets import NETS, as_tappable

FITS: dict[tuple[Shape, Shape], tuple[type[nn.Module], tuple[int, int], str]] = {
    ((3, 8, 8), (5, 4, 4)): (nn.Conv2d, (3, 3), "3x3 convolution of stride 2"),
    ((3, 4, 4), (5, 8, 8)): (nn.ConvTranspose2d, (4, 4), "transposed 4x4 convolution of stride 2"),
    ((3, 8, 8), (5, 8, 8)): (nn.Conv2d, (1, 1), "1x1 convolution"),
    ((3, 7, 7), (5, 4, 4)): (nn.Conv2d, (4, 4), "4x4 convolution"),
    ((3, 8, 8), (5, 2, 2)): (nn.Conv2d, (7, 7), "7x7 convolution"),
    ((3, 7, 5), (5, 4, 4)): (nn.Conv2d, (4, 2), "4x2 convolution"),
}


@pytest.mark.parametrize("shapes", FITS, ids=str)
def test_a_connector_gives_the_shape_of_the_teacher(shapes: tuple[Shape, Shape]) -> None:
    kind, kernel, words = FITS[shapes]
    connector = Connector(*shapes)
    layer, norm = connector.body
    assert isinstance(layer, kind) and layer.kernel_size == kernel and isinstance(norm, nn.BatchNorm2d)
    assert connector(torch.randn(2, *shapes[0])).shape == (2, *shapes[1])
    assert connector.describe().endswith(f" by {words}")


@pytest.mark.parametrize(
    ("student", "teacher"), [((3, 3, 3), (5, 7, 7)), ((3, 2, 2), (5, 8, 8)), ((3, 4, 2), (5, 4, 8))]
)
def test_where_none_fits_the_teacher_is_averaged(student: Shape, teacher: Shape) -> None:
    connector = Connector(student, teacher)
    goals = torch.randn(2, *teacher)
    (own,), (goal,) = connect(nn.ModuleList([connector]), [torch.randn(2, *student)], [goals])
    assert own.shape == goal.shape == (2, 5, *student[1:])
    assert torch.allclose(goal, nn.functional.adaptive_avg_pool2d(goals, student[1:]), atol=1e-6)
    assert connector.describe().endswith("the teacher's averaged to its size")


def test_a_relu_is_added_on_request() -> None:
    maps = torch.randn(4, 3, 4, 4)
    assert bool((Connector((3, 4, 4), (5, 4, 4))(maps) < 0).any())
    assert not bool((Connector((3, 4, 4), (5, 4, 4), relu=True)(maps) < 0).any())


def test_maps_pair_up_from_the_last() -> None:
    few, many = (
        PeerFacts(embedding_dim=1, num_classes=2, stages=tuple((c, 4, 4) for c in range(start, start + count)))
        for start, count in ((10, 3), (20, 4))
    )
    assert [(own[0], goal[0]) for own, goal in map_pairs("at", few, many)] == [(11, 22), (12, 23)]
    stem = map_pairs("at", few, many, "stem and stages")
    assert [(own[0], goal[0]) for own, goal in stem] == [(10, 21), (11, 22), (12, 23)]
    with pytest.raises(
        ConfigError, match="at compares maps before the activations of stages, and the student has none"
    ):
        map_pairs("at", few, many, "preactivations")


def test_facts_are_what_the_network_says_and_leave_it_alone() -> None:
    net = NETS["vgg8"](num_classes=3).train()
    net.neck.eval()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    facts = facts_of(net, (3, 32, 32))
    assert facts.stages == ((64, 16, 16), (128, 8, 8), (256, 4, 4), (512, 4, 4), (512, 4, 4))
    assert facts.preactivations == ((128, 16, 16), (256, 8, 8), (512, 4, 4), (512, 4, 4))
    assert all(norm is not None and norm[0] is not net.stages[0][1].weight for norm in facts.norms)
    assert net.training and not net.neck.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    plain = facts_of(as_tappable(nn.Sequential(nn.Flatten(), nn.Linear(12, 2))), (3, 2, 2))
    assert plain == PeerFacts(embedding_dim=12, num_classes=2)
