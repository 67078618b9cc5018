"""Foreign modules as peers: found head, tapped embedding, nothing left behind."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from coterie.core.errors import ConfigError
from coterie.nets import NETS, TappedNet, as_tappable, find_head


class Foreign(nn.Module):
    """A network with an auxiliary linear layer defined after its classifier."""

    def __init__(self, calls: int = 1) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.classifier = nn.Linear(6, 4)
        self.auxiliary = nn.Linear(6, 6)
        self.calls = calls

    def forward(self, images: Tensor) -> Tensor:
        embedding = self.auxiliary(self.features(images))
        logits = self.classifier(embedding)
        for _ in range(self.calls - 1):
            logits = logits + self.classifier(embedding)
        return logits


@pytest.fixture
def images() -> Tensor:
    return torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def hooks(net: nn.Module) -> int:
    return sum(len(layer._forward_pre_hooks) + len(layer._forward_hooks) for layer in net.modules())


def test_last_linear_layer_is_found_and_tapped(images: Tensor) -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(192, 7), nn.ReLU(), nn.Linear(7, 4))
    tapped = TappedNet(net)
    output = tapped.tap(images)
    assert (tapped.head_name, tapped.embedding_dim, tapped.num_classes) == ("3", 7, 4)
    assert torch.equal(output.embedding, net[:3](images))
    assert torch.equal(output.logits, net(images))
    assert torch.equal(tapped(images), net(images))
    assert output.stages == () and tapped.stage_channels == ()


def test_named_head_wins_over_the_last_layer(images: Tensor) -> None:
    net = Foreign()
    assert find_head(net) == "auxiliary"
    tapped = TappedNet(net, head="classifier")
    output = tapped.tap(images)
    assert tapped.num_classes == 4
    assert torch.equal(output.embedding, net.auxiliary(net.features(images)))


def test_gradient_flows_through_the_embedding(images: Tensor) -> None:
    net = Foreign()
    TappedNet(net, head="classifier").tap(images).embedding.sum().backward()
    assert net.features[0].weight.grad.any()
    assert net.classifier.weight.grad is None


def test_module_stays_as_it_came(images: Tensor) -> None:
    net = Foreign()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    tapped = TappedNet(net, head="classifier")
    tapped.tap(images)
    assert tapped.net is net and hooks(net) == 0
    assert net.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_no_hook_is_left_after_a_failure() -> None:
    net = Foreign()
    with pytest.raises(RuntimeError, match="channels"):
        TappedNet(net, head="classifier").tap(torch.randn(2, 5, 8, 8))
    assert hooks(net) == 0


def test_deep_copy_taps_its_own_head(images: Tensor) -> None:
    tapped = TappedNet(Foreign(), head="classifier")
    twin = copy.deepcopy(tapped)
    with torch.no_grad():
        twin.net.features[0].weight.zero_()
        twin.net.features[0].bias.zero_()
    assert torch.equal(twin.tap(images).embedding, twin.net.auxiliary(twin.net.features(images)))
    assert not torch.equal(twin.tap(images).embedding, tapped.tap(images).embedding)


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_tapped_and_plain_module_can_be_exported(images: Tensor) -> None:
    tapped = TappedNet(Foreign(), head="classifier").eval()
    expected = tapped.tap(images).logits
    for net in (tapped, tapped.net):
        program = torch.export.export(net, (images,), dynamic_shapes=({0: torch.export.Dim("batch")},))
        assert torch.allclose(program.module()(images[:3]), expected[:3], atol=1e-6)


def test_staged_networks_are_not_wrapped() -> None:
    net = NETS["cnn4_w4"](num_classes=3)
    assert as_tappable(net) is net
    assert isinstance(as_tappable(net, head="head"), TappedNet)
    assert isinstance(as_tappable(Foreign()), TappedNet)


def test_a_lone_linear_layer_is_its_own_head() -> None:
    output = TappedNet(nn.Linear(4, 2)).tap(torch.ones(3, 4))
    assert torch.equal(output.embedding, torch.ones(3, 4)) and output.logits.shape == (3, 2)


@pytest.mark.parametrize(
    ("net", "head", "message"),
    [
        (nn.Sequential(nn.Conv2d(3, 4, 1)), None, "no nn.Linear found in Sequential"),
        (Foreign(), "clasifier", "no layer 'clasifier'; did you mean 'classifier'"),
        (Foreign(), "features", "head 'features' is a Sequential; name the nn.Linear"),
    ],
)
def test_unusable_heads_are_refused_in_one_line(net: nn.Module, head: str | None, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        TappedNet(net, head)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("net", "head"),
    [
        (Foreign(calls=2), "classifier"),
        (nn.Sequential(nn.Linear(8, 4)), "0"),
        (nn.ModuleDict({"used": Foreign(), "idle": nn.Linear(6, 4)}), "idle"),
    ],
    ids=["runs twice", "not [B, D]", "never runs"],
)
def test_heads_that_give_no_embedding_are_named(net: nn.Module, head: str, images: Tensor) -> None:
    if isinstance(net, nn.ModuleDict):
        net.forward = net["used"].forward
    with pytest.raises(ConfigError, match=f"layer '{head}' ran") as error:
        TappedNet(net, head).tap(images)
    assert "\n" not in str(error.value)


def test_stage_maps_of_foreign_modules_are_refused(images: Tensor) -> None:
    with pytest.raises(ConfigError, match="stage maps"):
        TappedNet(Foreign()).tap(images, stage_maps=True)
