"""Names of timm and torchvision: asked of a package that stands in for them, and their stages."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from coterie.cohort import Cohort
from coterie.core.errors import ConfigError, MissingExtra
from coterie.nets import NETS, TappedNet
from coterie.nets.stages import find_stages
from coterie.nets.vision import pretrained


def block(channels: int, out: int, stride: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(channels, out, 3, stride, 1), nn.BatchNorm2d(out), nn.ReLU(inplace=True))


class Residual(nn.Module):
    """Named as the networks of both packages name their parts."""

    def __init__(self, num_classes: int, in_chans: int = 3) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_chans, 4, 3, 2, 1, bias=False)
        self.act1 = nn.ReLU(inplace=True)
        self.layer1 = nn.Sequential(block(4, 6, 1), block(6, 6, 1))
        self.layer2 = nn.Sequential(block(6, 8, 2), block(8, 8, 1))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(8, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.layer2(self.layer1(self.act1(self.conv1(images))))
        logits: Tensor = self.fc(self.avgpool(maps).flatten(1))
        return logits


class Listed(Residual):
    feature_info: ClassVar = [{"num_chs": 4, "module": "act1"}, {"num_chs": 8, "module": "layer2"}]


class Patches(nn.Module):
    """Tokens, no maps; made for one size."""

    def __init__(self, num_classes: int, in_chans: int, img_size: int) -> None:
        super().__init__()
        self.embed = nn.Linear(in_chans * img_size * img_size, 5)
        self.head = nn.Linear(5, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.embed(images.flatten(1)[:, None])[:, 0])
        return logits


def find_last(net: nn.Module) -> nn.Linear:
    return [module for module in net.modules() if isinstance(module, nn.Linear)][-1]


@pytest.fixture
def packages(monkeypatch: pytest.MonkeyPatch) -> None:
    timm, torchvision, models = ModuleType("timm"), ModuleType("torchvision"), ModuleType("torchvision.models")
    kinds: dict[str, Any] = {"resnet9": Residual, "resnet9_listed": Listed, "vit_small": Patches}
    timm.list_models = lambda: list(kinds)  # type: ignore[attr-defined]

    def create_model(name: str, pretrained: bool, **options: int) -> nn.Module:
        if pretrained and name == "resnet9_listed":
            raise RuntimeError("No pretrained weights exist for resnet9_listed.\nUse pretrained=False.")
        net: nn.Module = kinds[name](**{"num_classes": 7, **options})
        if pretrained:
            nn.init.constant_(find_last(net).bias, 3.0)
        return net

    timm.create_model = create_model  # type: ignore[attr-defined]
    models.list_models = lambda module: ["resnet9"] * (module is models)  # type: ignore[attr-defined]
    models.get_model = lambda name, weights, num_classes=5: Residual(num_classes)  # type: ignore[attr-defined]
    models.get_model_builder = lambda name: Residual  # type: ignore[attr-defined]
    torchvision.models = models  # type: ignore[attr-defined]
    for module in (timm, torchvision, models):
        monkeypatch.setitem(sys.modules, module.__name__, module)


@pytest.mark.parametrize(
    ("name", "channels"),
    [("timm/resnet9", (8,)), ("timm/resnet9_listed", (8,)), ("torchvision/resnet9", (8,)), ("timm/vit_small", ())],
)
def test_foreign_models_are_peers_with_their_stages(packages: None, name: str, channels: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    net = NETS[name](num_classes=3, in_channels=1, image_size=16)
    assert isinstance(net, TappedNet)
    assert (net.num_classes, net.stage_channels) == (3, channels)
    images = torch.randn(4, 1, 16, 16)
    output = net.eval().tap(images, stage_maps=bool(channels))
    assert torch.equal(output.logits, net.net(images)) and output.embedding.shape == (4, net.embedding_dim)
    assert tuple(part.shape[1] for part in output.stages[1:]) == channels


def test_stage_maps_are_those_of_the_modules(packages: None) -> None:
    net = NETS["timm/resnet9_listed"](num_classes=3, image_size=16).eval()
    inner = net.net
    images = torch.randn(2, 3, 16, 16)
    stem, stage = net.tap(images, stage_maps=True).stages
    assert torch.equal(stem, inner.act1(inner.conv1(images)))
    assert torch.equal(stage, inner.layer2(inner.layer1(stem)))
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in net.modules())


def test_stages_end_with_the_last_map_of_each_size() -> None:
    assert find_stages(Residual(3), (3, 16, 16)) == {"layer1": 6, "layer2": 8}
    nested = nn.Sequential(nn.Sequential(block(3, 4, 1), block(4, 5, 2), block(5, 6, 1), block(6, 7, 2)), nn.Flatten())
    assert find_stages(nested, (3, 8, 8)) == {"0.0": 4, "0.2": 6, "0.3": 7}
    assert find_stages(nn.Sequential(nn.Flatten(), nn.Linear(48, 3)), (3, 4, 4)) == {}
    assert find_stages(nested, (1, 8, 8)) == {}


def test_foreign_peers_learn_together_with_ours(packages: None) -> None:
    nets = [NETS[name](num_classes=3, in_channels=1, image_size=16) for name in ("timm/resnet9", "cnn4_w4")]
    outputs = Cohort(nets, stage_maps=True)(torch.randn(1, 4, 1, 16, 16))
    assert [len(output.stages) for output in outputs] == [2, 4]
    outputs[0].logits.sum().backward()
    assert all(weight.grad is not None for weight in nets[0].parameters())


def test_models_with_the_weights_of_their_package(packages: None) -> None:
    net = pretrained("timm/resnet9", in_channels=1, image_size=16)
    assert isinstance(net, TappedNet)
    assert net.num_classes == 7 and find_last(net).bias.tolist() == [3.0] * 7
    other = pretrained("torchvision/resnet9", in_channels=3, image_size=16)
    assert isinstance(other, TappedNet) and other.num_classes == 5
    with pytest.raises(
        ConfigError, match=r"no weights of timm/resnet9_listed can be had \(No pretrained.*teacher\.weights"
    ):
        pretrained("timm/resnet9_listed", image_size=16)
    with pytest.raises(ConfigError, match="timm has no model 'resnet_9'"):
        pretrained("timm/resnet_9")


def test_missing_packages_name_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("timm", "torchvision"):
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(MissingExtra, match=rf"{package} is not installed; run: pip install 'coterie\[vision\]'"):
            NETS[f"{package}/resnet18"]


def test_unknown_models_are_refused_in_one_line(packages: None) -> None:
    with pytest.raises(ConfigError, match="timm has no model 'resnet_9'; did you mean 'resnet9'"):
        NETS["timm/resnet_9"]
    with pytest.raises(ConfigError, match="torchvision has no model 'x'; ask torchvision's list_models"):
        NETS["torchvision/x"]
    with pytest.raises(ConfigError, match="unknown network 'other/resnet9'"):
        NETS["other/resnet9"]


def test_a_missing_stage_is_refused() -> None:
    with pytest.raises(ConfigError, match="the network has no layer 'layer3'; did you mean 'layer2'"):
        TappedNet(Residual(3), stages={"layer3": 4})
