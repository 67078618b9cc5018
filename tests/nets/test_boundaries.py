"""Maps before activations, against what each network's own layers say."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from coterie.cohort import Cohort, Teachers
from coterie.core import Batch, ConfigError
from coterie.nets import NETS, StagedNet, TappedNet
from coterie.nets.base import pooled

REGISTERED = [name for name, build in NETS.items() if getattr(build, "__module__", "").startswith("coterie")]
SIZE = 32


def make(name: str) -> StagedNet:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = NETS[name](num_classes=3, image_size=SIZE)
        for layer in net.modules():
            if isinstance(layer, nn.BatchNorm2d):  # so that no two batch norms are alike
                nn.init.uniform_(layer.weight, 0.5, 1.5)
                nn.init.uniform_(layer.bias, -0.5, 0.5)
    assert isinstance(net, StagedNet)
    return net.eval()


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randn(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("name", REGISTERED)
def test_every_network_has_one_for_each_stage(name: str) -> None:
    with torch.device("meta"):
        net = NETS[name](num_classes=3, image_size=SIZE).eval()
        output = net.tap(torch.empty(2, 3, SIZE, SIZE), stage_maps=True, preactivations=True)
    assert isinstance(net, StagedNet)
    assert [maps.shape[1] for maps in output.preactivations] == list(net.stage_channels)
    for boundary, maps in zip(net.boundaries(), output.preactivations, strict=True):
        assert boundary.norm is None or boundary.norm.num_features == maps.shape[1]


def active(net: StagedNet, k: int, inner: Tensor, stage: Tensor) -> tuple[Tensor, Tensor]:
    return F.relu(inner), stage


def active_pooled(net: StagedNet, k: int, inner: Tensor, stage: Tensor) -> tuple[Tensor, Tensor]:
    outer = F.relu(inner)
    return (F.max_pool2d(outer, 2) if outer.shape != stage.shape else outer), stage


def linear(net: StagedNet, k: int, inner: Tensor, stage: Tensor) -> tuple[Tensor, Tensor]:
    return inner, stage


def next_norm(net: StagedNet, k: int, inner: Tensor, stage: Tensor) -> tuple[Tensor, Tensor]:
    norm = next(m for m in [*net.stages, net.neck][k + 1].modules() if isinstance(m, nn.BatchNorm2d))
    return inner, norm(stage)


Relation = Callable[[StagedNet, int, Tensor, Tensor], tuple[Tensor, Tensor]]
RELATIONS: dict[str, Relation] = {
    "resnet8": active,
    "resnet18": active,
    "resnet50_cifar": active,
    "cnn4_w4": active,
    "shufflenet_v1_stem1": active,
    "shufflenet_v2_05x": active,
    "vgg8": active_pooled,
    "conv4": active_pooled,
    "mobilenet_v2_05x": linear,
    "wrn_16_1": next_norm,
    "densenet40_12": next_norm,
    "hcgnet_a1": next_norm,
}


@pytest.mark.parametrize("name", RELATIONS)
def test_values_are_those_before_the_activation(name: str, images: Tensor) -> None:
    net = make(name)
    with torch.no_grad():
        plain = net.tap(images, stage_maps=True)
        output = net.tap(images, stage_maps=True, preactivations=True)
        assert plain.preactivations == ()
        assert torch.equal(output.logits, plain.logits)
        for stage, expected in zip(output.stages, plain.stages, strict=True):
            assert torch.equal(stage, expected)
        for k, (inner, stage) in enumerate(zip(output.preactivations, output.stages[1:], strict=True)):
            assert torch.equal(*RELATIONS[name](net, k, inner, stage))
            assert bool((inner < 0).any())


@pytest.mark.parametrize(
    ("name", "place"),
    [("resnet8", "stages.{}.0.body.4"), ("vgg8", "stages.{}.1"), ("mobilenet_v2_05x", None), ("shufflenet_v2_05x", "")],
)
def test_norms_are_those_before_the_activation(name: str, place: str | None) -> None:
    net = make(name)
    norms = [boundary.norm for boundary in net.boundaries()]
    if place == "":
        assert norms == [None] * 3  # a half of the channels has none
    elif place is None:
        assert norms == [[m for m in s.modules() if isinstance(m, nn.BatchNorm2d)][-1] for s in net.stages]
    else:
        assert norms == [net.get_submodule(place.format(k)) for k in range(len(net.stages))]


@pytest.mark.parametrize("name", ["resnet8", "wrn_16_1", "vgg8", "shufflenet_v2_05x"])
def test_looking_changes_no_gradient_and_leaves_no_hook(name: str, images: Tensor) -> None:
    nets = [make(name).train(), make(name).train()]
    for net, look in zip(nets, (False, True), strict=True):
        net.tap(images, preactivations=look).logits.square().sum().backward()
        assert not any(layer._forward_pre_hooks for layer in net.modules())
    for first, second in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        assert torch.equal(first.grad, second.grad)


def test_gradient_passes(images: Tensor) -> None:
    net = make("wrn_16_1").train()
    net.tap(images, preactivations=True).preactivations[0].sum().backward()
    reached = {name.split(".")[1] for name, weight in net.named_parameters() if weight.grad is not None}
    assert {"0", "1"} <= reached  # the first stage, and the second one's first batch norm
    assert net.stages[1][0].norm1.bias.grad is not None and net.stages[1][0].conv1.weight.grad is None


def unknown() -> StagedNet:
    head = nn.Linear(4, 2)
    return StagedNet(stem=nn.Conv2d(3, 4, 1), stages=[nn.Conv2d(4, 4, 1)], neck=pooled(), head=head)


@pytest.mark.parametrize("net", [unknown(), TappedNet(nn.Sequential(nn.Flatten(), nn.Linear(3 * SIZE**2, 2)))])
def test_networks_without_them_are_refused(net: StagedNet | TappedNet, images: Tensor) -> None:
    with pytest.raises(ConfigError, match="this method reads maps before activations") as error:
        net.tap(images, preactivations=True)
    assert "\n" not in str(error.value)


class Failing(nn.Module):
    """A neck that never works."""

    def forward(self, maps: Tensor) -> Tensor:
        raise ValueError("no")


def test_a_failing_pass_leaves_no_hook(images: Tensor) -> None:
    net = make("cnn4_w4")
    net.neck = Failing()
    with pytest.raises(ValueError, match="no"):
        net.tap(images, preactivations=True)
    assert not any(layer._forward_pre_hooks for layer in net.modules())


@pytest.mark.parametrize("name", ["cnn4_w4", "wrn_16_1"])
@pytest.mark.parametrize("shape", [{"shared": 2}, {"shared": 0}, {"tree": (1, 2, 4)}])
def test_peers_that_share_stages_get_those_of_their_own_way(name: str, shape: dict[str, object]) -> None:
    nets = [make(name) for _ in range(4)]
    for m, net in enumerate(nets):  # peers differ
        for weight in net.parameters():
            weight.data *= 1 + m / 9
    cohort = Cohort(nets, **shape).eval()
    cohort.preactivations, cohort.peer_views = True, 2
    views = torch.randn(3, 2, 3, 16, 16, generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        outputs = cohort(views)
        for m, output in enumerate(outputs):
            alone = copy.deepcopy(cohort[m]).tap(views[m % 2], preactivations=True)
            assert len(output.preactivations) == 3
            for got, expected in zip(output.preactivations, alone.preactivations, strict=True):
                assert torch.equal(got, expected)


def test_teachers_give_them_on_request() -> None:
    zero = torch.zeros((), dtype=torch.int64)
    views = torch.randn(1, 2, 3, 16, 16, generator=torch.Generator().manual_seed(5))
    batch = Batch(views=views, labels=torch.tensor([0, 1]), indices=torch.tensor([0, 1]), epoch=zero, step=zero)
    net = make("resnet8")
    (without,) = Teachers([net])(batch).teachers
    (output,) = Teachers([net], preactivations=True)(batch).teachers
    assert without.preactivations == ()
    assert output.stages == () and not output.preactivations[0].requires_grad
    assert torch.equal(output.preactivations[2], net.tap(views[0], preactivations=True).preactivations[2])
