"""Branch points: they fit the networks they are named after, and trees are those of the equation."""

from __future__ import annotations

import pytest
import torch

from coterie.nets import NETS, StagedNet
from coterie.nets.branching import BRANCH_POINTS


@pytest.mark.parametrize("name", BRANCH_POINTS)
def test_points_lie_within_the_network(name: str) -> None:
    with torch.device("meta"):
        net = NETS[name](num_classes=10, image_size=32)
    assert isinstance(net, StagedNet)
    points = BRANCH_POINTS[name]
    assert points.stages == len(net.stages)
    assert 0 < points.early < points.stages and (points.late == 0 or points.early < points.late < points.stages)


@pytest.mark.parametrize(
    ("peers", "copies"), [(2, (1, 1, 2)), (3, (1, 2, 3)), (4, (1, 2, 4)), (5, (1, 3, 5)), (8, (1, 4, 8))]
)
def test_the_middle_of_a_tree_has_half_as_many_copies_as_peers(peers: int, copies: tuple[int, ...]) -> None:
    assert BRANCH_POINTS["hcgnet_a1"].tree(peers) == copies
    assert BRANCH_POINTS["vgg16"].tree(peers) == (1, *copies)
