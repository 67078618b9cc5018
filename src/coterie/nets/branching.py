"""Where the papers of branch-based online distillation part their peers, network by network."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class BranchPoints:
    """Stages that the peers of a paper share, for `Cohort(shared=...)` and `Cohort(tree=...)`.

    Attributes:
        early: stages after the stem that MCL-OKD, DML and MCL with four networks share; 0 where they are separate.
        late: stages that ONE and OKDDip share; 0 where nobody published one.
        stages: number of stages of the network.
    """

    early: int
    late: int
    stages: int

    def tree(self, num_peers: int) -> tuple[int, ...]:
        """Copies of each stage in CL-ILR: one trunk, then half as many copies as peers, then one for each.

        Example:
            >>> BRANCH_POINTS["resnet32"].tree(4), BRANCH_POINTS["vgg16"].tree(3)
            ((1, 2, 4), (1, 1, 2, 3))
        """
        middle = -(-num_peers // 2)
        return (*(1,) * self.early, middle, *(num_peers,) * (self.stages - self.early - 1))


BRANCH_POINTS = {
    "densenet40_12": BranchPoints(early=1, late=2, stages=3),
    "hcgnet_a1": BranchPoints(early=1, late=2, stages=3),
    "hcgnet_a2": BranchPoints(early=1, late=2, stages=3),
    "resnet110_bottleneck": BranchPoints(early=1, late=2, stages=3),
    "resnet164_bottleneck": BranchPoints(early=1, late=2, stages=3),
    "resnet18": BranchPoints(early=2, late=0, stages=4),
    "resnet32": BranchPoints(early=1, late=2, stages=3),
    "resnet34": BranchPoints(early=2, late=0, stages=4),
    "resnet56": BranchPoints(early=1, late=0, stages=3),
    "shufflenet_v2_05x": BranchPoints(early=1, late=0, stages=3),
    "shufflenet_v2_1x": BranchPoints(early=1, late=0, stages=3),
    "vgg16": BranchPoints(early=2, late=3, stages=4),
    "wrn_16_2": BranchPoints(early=1, late=0, stages=3),
    "wrn_28_4": BranchPoints(early=1, late=0, stages=3),
    "wrn_40_2": BranchPoints(early=1, late=0, stages=3),
}
