"""Grouped execution against the loop in float64, what it refuses, and the measured choice between executions."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from itertools import chain

import pytest
import torch
from torch import Tensor, nn

from coterie.cohort import Cohort
from coterie.cohort.execution import fastest, make_execution, possible_executions
from coterie.core.errors import ConfigError
from coterie.nets import NETS, StagedNet

FAMILIES = [
    *["cnn4_w4", "densenet40_12", "resnet8", "wrn_16_1"],
    *(pytest.param(name, marks=pytest.mark.slow) for name in ("conv4", "mobilenet_v2_05x", "resnet18", "vgg8")),
]


def cohort_of(name: str, count: int = 3, **options: object) -> Cohort:
    torch.manual_seed(5)
    nets = [NETS[name](num_classes=5, image_size=16) for _ in range(count)]
    return Cohort([net.double() for net in nets], **options)


def views_of(count: int, side: int = 16) -> Tensor:
    return torch.randn(count, 4, 3, side, side, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


def far(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> float:
    """Largest distance relative to the size of what is compared; a bias before a batch norm has the gradient 0."""
    with torch.no_grad():
        pairs = [(a.double(), b.double()) for a, b in zip(ours, theirs, strict=True)]
        return max(float((a - b).norm() / b.norm().clamp(min=1e-4)) for a, b in pairs)


def passed(cohort: Cohort, views: Tensor) -> list[Tensor]:
    """Outputs, gradients and buffers after a forward and a backward pass whose loss sees all outputs."""
    peers = cohort(views)
    tensors = [tensor for peer in peers for tensor in (peer.logits, peer.embedding, *peer.stages)]
    cohort.zero_grad()
    sum((place + 1) * tensor.square().mean() for place, tensor in enumerate(tensors)).backward()
    grads = [parameter.grad for parameter in cohort.parameters()]
    return [*tensors, *grads, *map(torch.clone, cohort.buffers())]


@pytest.mark.parametrize("views", [1, 3])
@pytest.mark.parametrize("name", FAMILIES)
def test_grouped_is_the_loop(name: str, views: int) -> None:
    loop = cohort_of(name, stage_maps=True)
    grouped = copy.deepcopy(loop)
    images = views_of(views, 32 if name == "vgg8" else 16)
    grouped.execution = make_execution("grouped", grouped, images)
    for _ in range(2):  # the second pass starts from the running statistics of the first
        assert far(passed(grouped, images), passed(loop, images)) < 1e-12
    assert list(grouped.state_dict()) == list(loop.state_dict())


def test_grouped_runs_what_the_networks_are_now() -> None:
    cohort = cohort_of("resnet8")
    images = views_of(1)
    cohort.execution = make_execution("grouped", cohort, images)
    before = cohort(images)[1].logits
    with torch.no_grad():
        cohort[1].head.bias.add_(1.0)
    torch.testing.assert_close(cohort(images)[1].logits, before + 1.0)


def test_only_training_is_grouped() -> None:
    cohort = cohort_of("cnn4_w4").eval()
    images = views_of(1)
    alone = cohort(images)[0].logits
    cohort.execution = make_execution("grouped", cohort, images)
    assert torch.equal(cohort(images)[0].logits, alone)


def test_trying_leaves_no_trace() -> None:
    cohort = cohort_of("cnn4_w4")
    before = copy.deepcopy(cohort.state_dict())
    make_execution("grouped", cohort, views_of(1))
    assert all(torch.equal(cohort.state_dict()[name], tensor) for name, tensor in before.items())


def test_a_copy_of_a_cohort_is_a_loop() -> None:
    cohort = cohort_of("cnn4_w4")
    cohort.execution = make_execution("grouped", cohort, views_of(1))
    assert copy.deepcopy(cohort).execution is None


def staged(*stage: nn.Module, neck: nn.Module | None = None, features: int = 4) -> StagedNet:
    neck = neck or nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    net = StagedNet(stem=nn.Conv2d(3, 4, 3), stages=[nn.Sequential(*stage)], neck=neck, head=nn.Linear(features, 2))
    return net.double()


class Gate(nn.Module):
    """Scales a map by one number for each position, so that maps of several peers do not fit each other."""

    def __init__(self) -> None:
        super().__init__()
        self.score = nn.Conv2d(4, 1, 1)

    def forward(self, maps: Tensor) -> Tensor:
        return maps * self.score(maps)


class Looks(nn.Module):
    """Decides by what it sees."""

    def forward(self, maps: Tensor) -> Tensor:
        return maps if maps.sum() > 0 else -maps


class Twice(nn.Module):
    """Normalises with the same layer again."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(4)

    def forward(self, maps: Tensor) -> Tensor:
        return self.norm(self.norm(maps))


class Shuffle(nn.Module):
    """Reorders channels."""

    def forward(self, maps: Tensor) -> Tensor:
        return maps.flip(1)


@pytest.mark.parametrize(
    ("layers", "line"),
    [
        ([nn.ReLU(), nn.Dropout(0.5)], "layer 'stages.0.1', a Dropout"),
        ([nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect")], "layer 'stages.0.0', a Conv2d"),
        ([nn.BatchNorm2d(4, momentum=None)], "layer 'stages.0.0', a BatchNorm2d"),
        ([nn.BatchNorm2d(4, affine=False)], "layer 'stages.0.0', a BatchNorm2d"),
        ([Twice()], "layer 'stages.0.0.norm', a BatchNorm2d, run twice"),
        ([nn.BatchNorm2d(4), Shuffle()], "'flip' in layer 'stages.0.1'"),
        ([Looks()], "code that cannot be traced"),
        ([Gate()], "these networks"),
        ([nn.Linear(14, 14)], "a linear layer over 4 dimensions"),
    ],
)
def test_what_cannot_be_grouped_is_named(layers: list[nn.Module], line: str) -> None:
    cohort = Cohort([staged(*copy.deepcopy(layers)) for _ in range(2)])
    with pytest.raises(ConfigError, match=r"^cohort\.execution=grouped cannot run .*; set ") as refusal:
        make_execution("grouped", cohort, views_of(1))
    assert line in str(refusal.value) and "\n" not in str(refusal.value)
    assert list(possible_executions(cohort, views_of(1))) == ["loop"]


def test_linear_layers_inside_are_grouped() -> None:
    neck = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.BatchNorm1d(4), nn.Linear(4, 6), nn.Tanh())
    loop = Cohort([staged(nn.ReLU(), nn.MaxPool2d(2), neck=copy.deepcopy(neck), features=6) for _ in range(3)])
    grouped = copy.deepcopy(loop)
    grouped.execution = make_execution("grouped", grouped, views_of(1))
    assert far(passed(grouped, views_of(1)), passed(loop, views_of(1))) < 1e-12


def mixed() -> Cohort:
    return Cohort(list(chain(cohort_of("cnn4_w4", 1).nets, cohort_of("cnn4_w8", 1).nets)))


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (mixed, "networks of different kinds"),
        (lambda: cohort_of("cnn4_w4", shared=1), "peers that share stages"),
        (lambda: cohort_of("cnn4_w4", tree=(1, 2)), "peers that share stages"),
        (lambda: cohort_of("cnn4_w4", frozen=[0]), "frozen peers"),
        (lambda: Cohort([nn.Sequential(nn.Flatten(), nn.Linear(768, 2)).double()]), "no plain StagedNet"),
    ],
)
def test_cohorts_that_are_no_one_network_are_refused(make: object, line: str) -> None:
    with pytest.raises(ConfigError, match=line):
        make_execution("grouped", make(), views_of(1))


def test_streams_are_refused_on_a_cpu() -> None:
    with pytest.raises(ConfigError, match=r"cannot run on cpu, only on CUDA; set cohort\.execution=loop"):
        make_execution("streams", cohort_of("cnn4_w4"), views_of(1))


def test_the_fastest_is_found_and_leaves_no_trace() -> None:
    cohort = cohort_of("cnn4_w4")
    before, state = cohort.execution, copy.deepcopy(cohort.state_dict())
    draws = torch.get_rng_state()
    slow = {None: 3.0}
    now = [0.0]

    def clock() -> float:
        now[0] += slow.get(cohort.execution, 1.0) / 2
        return now[0]

    ways = possible_executions(cohort, views_of(1))
    assert list(ways) == ["loop", "grouped"]
    assert fastest(cohort, views_of(1), ways, clock) == {"grouped": 0.5, "loop": 1.5}
    assert cohort.execution is before
    assert all(torch.equal(cohort.state_dict()[name], tensor) for name, tensor in state.items())
    assert all(parameter.grad is None for parameter in cohort.parameters())
    assert torch.equal(torch.get_rng_state(), draws)


def test_the_own_clock_measures() -> None:
    cohort = cohort_of("cnn4_w4")
    assert all(seconds > 0 for seconds in fastest(cohort, views_of(1), {"loop": None}).values())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("name", ["grouped", "streams"])
def test_executions_on_cuda_are_the_loop(name: str) -> None:
    loop = cohort_of("resnet8", stage_maps=True).cuda()
    other = copy.deepcopy(loop)
    images = views_of(3).cuda()
    other.execution = make_execution(name, other, images)
    for _ in range(2):
        assert far(passed(other, images), passed(loop, images)) < 1e-12
