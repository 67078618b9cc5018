"""What every registered network must do, whoever wrote it."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from coterie.cohort import Cohort
from coterie.core.errors import ConfigError, CoterieError
from coterie.nets import NETS, StagedNet

CLASSES, SIZE = 3, 32


@dataclass
class Made:
    """Two networks of one name from two seeds, in eval mode; tests copy what they change."""

    name: str
    net: StagedNet
    other: StagedNet


def make(name: str, seed: int) -> StagedNet:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = NETS[name](num_classes=CLASSES, image_size=SIZE)
    assert isinstance(net, StagedNet)
    return net.eval()


def blank(name: str, classes: int = CLASSES, in_channels: int = 3) -> nn.Module:
    with torch.device("meta"):
        return NETS[name](num_classes=classes, in_channels=in_channels, image_size=SIZE).eval()


# what other tests register for themselves is no network of this package or of a plug-in
REGISTERED = [name for name, build in NETS.items() if getattr(build, "__module__", "").startswith("coterie")]
LARGE = re.compile("hcgnet|resnet110|resnet50|resnet34|vgg1|wrn_28_4|densenet")


@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=pytest.mark.slow if LARGE.match(name) else ()) for name in REGISTERED],
)
def made(request: pytest.FixtureRequest) -> Iterator[Made]:
    yield Made(request.param, make(request.param, 0), make(request.param, 1))


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randn(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(3))


@pytest.mark.slow
def test_class_count_and_channels_are_those_asked_for(made: Made) -> None:
    net = blank(made.name, classes=7, in_channels=1)
    assert net(torch.empty(2, 1, SIZE, SIZE, device="meta")).shape == (2, 7)
    assert net.num_classes == 7
    assert net.embedding_dim == made.net.embedding_dim


def test_embedding_is_what_the_head_receives(made: Made, images: Tensor) -> None:
    seen: list[Tensor] = []
    hook = made.net.head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        output = made.net.tap(images)
    hook.remove()
    assert len(seen) == 1
    assert output.embedding is seen[0]
    assert output.embedding.shape == (2, made.net.embedding_dim)
    assert output.logits.shape == (2, CLASSES)
    assert torch.equal(output.logits, nn.functional.linear(seen[0], made.net.head.weight, made.net.head.bias))


def test_forward_tap_and_trunk_with_finish_agree_to_the_bit(made: Made, images: Tensor) -> None:
    with torch.no_grad():
        logits = made.net(images)
        assert torch.equal(made.net.tap(images).logits, logits)
        for depth in range(len(made.net.stages) + 1):
            maps = made.net.trunk(images, depth)
            assert len(maps) == depth + 1
            assert torch.equal(made.net.finish(maps).logits, logits)


def test_stage_maps_come_on_request_with_their_channels(made: Made, images: Tensor) -> None:
    with torch.no_grad():
        assert made.net.tap(images).stages == ()
        stages = made.net.tap(images, stage_maps=True).stages
    assert len(stages) == len(made.net.stages) + 1
    assert tuple(stage.shape[1] for stage in stages[1:]) == made.net.stage_channels
    assert all(stage.dim() == 4 for stage in stages)


def test_stage_maps_survive_the_forward_pass(made: Made, images: Tensor) -> None:
    """No later layer may write into a map that was handed out."""
    with torch.no_grad():
        handed_out = made.net.tap(images, stage_maps=True).stages
        again = made.net.trunk(images, 0)
        for stage in made.net.stages:
            again.append(stage(again[-1].clone()))
    for given, expected in zip(handed_out, again, strict=True):
        assert torch.equal(given, expected)


def test_state_dict_carries_everything(made: Made, images: Tensor) -> None:
    net = blank(made.name).to_empty(device="cpu")
    net.load_state_dict(made.other.state_dict(), strict=True)
    with torch.no_grad():
        assert torch.equal(net(images), made.other(images))


@pytest.mark.slow
def test_gradient_reaches_every_parameter(made: Made, images: Tensor) -> None:
    net = copy.deepcopy(made.net)
    net(images).square().sum().sqrt().backward()
    silent = {name for name, weight in net.named_parameters() if weight.grad is None or not weight.grad.any()}
    without_effect = {name for name in silent if name.endswith("score.bias")}  # a softmax does not see what it adds
    assert silent == without_effect


@pytest.mark.slow
def test_leader_of_a_shared_cohort_fits_the_plain_network(made: Made, images: Tensor) -> None:
    nets = [copy.deepcopy(made.net), copy.deepcopy(made.other)]
    depth = 1 + len(nets[0].stages) // 2
    cohort = Cohort(nets, shared=depth).train()
    with torch.no_grad():
        cohort(images[None])  # moves the statistics of the shared batch norms
        leader = cohort.eval()(images[None])[-1].logits
        plain = blank(made.name).to_empty(device="cpu")
        plain.load_state_dict(cohort.leader_net.state_dict(), strict=True)
        assert torch.equal(plain(images), leader)
        assert not torch.equal(plain(images), made.other(images))


def test_weights_follow_the_seed(made: Made) -> None:
    first, again, other = made.net.state_dict(), make(made.name, 0).state_dict(), made.other.state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    drawn = [name for name in first if name.endswith("weight") and first[name].dim() > 1]
    assert drawn and all(not torch.equal(first[name], other[name]) for name in drawn)


@pytest.mark.parametrize(("name", "size"), [("vgg16", 8), ("vgg8", 4), ("conv4", 15)])
def test_images_too_small_for_the_pooling_are_refused(name: str, size: int) -> None:
    with pytest.raises(ConfigError, match=f"{name} needs images of at least") as error:
        NETS[name](num_classes=2, image_size=size)
    assert "\n" not in str(error.value)


def test_unknown_network_suggests_the_nearest() -> None:
    with pytest.raises(CoterieError, match="unknown network 'vgg_16'; did you mean 'vgg16'"):
        NETS["vgg_16"]


@pytest.mark.parametrize(
    ("size", "channels", "embedding", "parameters"), [(28, 1, 64, 111_936), (84, 3, 1600, 113_088)]
)
def test_conv4_is_the_encoder_of_few_shot_learning(size: int, channels: int, embedding: int, parameters: int) -> None:
    net = NETS["conv4"](num_classes=5, in_channels=channels, image_size=size)
    assert isinstance(net, StagedNet)
    assert net.embedding_dim == embedding
    head = sum(weight.numel() for weight in net.head.parameters())
    assert sum(weight.numel() for weight in net.parameters()) - head == parameters


@pytest.mark.parametrize("width", [4, 6, 8, 16, 32])
def test_cnn4_counts_from_its_definition(width: int) -> None:
    net = NETS[f"cnn4_w{width}"](num_classes=10, in_channels=1, image_size=8)
    convolutions = 9 * (width + width * width + 2 * width * width + 4 * width * width)
    assert sum(weight.numel() for weight in net.parameters()) == convolutions + 2 * 6 * width + 20 * width + 10
    sizes = [tuple(stage.shape[1:]) for stage in net.tap(torch.randn(2, 1, 8, 8), stage_maps=True).stages]
    assert sizes == [(width, 8, 8), (width, 8, 8), (2 * width, 4, 4), (2 * width, 4, 4)]


def spread(weight: Tensor, fan: int) -> float:
    """Standard deviation in units of sqrt(2 / fan)."""
    return float(weight.detach().std()) * (fan / 2) ** 0.5


@pytest.mark.parametrize("name", ["resnet32x4", "wrn_28_4", "vgg8", "resnet18"])
def test_convolutions_start_with_kaiming_fan_out(name: str) -> None:
    layers = [
        layer for layer in make(name, 5).modules() if isinstance(layer, nn.Conv2d) and layer.weight.numel() > 9000
    ]
    for layer in layers:
        assert spread(layer.weight, layer.out_channels * layer.kernel_size[0] ** 2) == pytest.approx(1, abs=0.05)


def test_densenet_starts_with_kaiming_fan_in_and_vgg_with_a_small_head() -> None:
    dense, vgg = make("densenet40_12", 5), make("vgg8", 5)
    for layer in dense.modules():
        if isinstance(layer, nn.Conv2d) and layer.weight.numel() > 4000:
            assert spread(layer.weight, layer.in_channels * layer.kernel_size[0] ** 2) == pytest.approx(1, abs=0.08)
    assert not dense.head.bias.any() and not vgg.head.bias.any()
    assert float(vgg.head.weight.detach().std()) == pytest.approx(0.01, rel=0.1)
    assert not any(layer.bias.any() for layer in vgg.modules() if isinstance(layer, nn.Conv2d))
