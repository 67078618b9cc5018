"""The real timm and torchvision: every family builds, its stages are found, and its networks train in a cohort.

`make test-vision` runs this in an environment of its own; elsewhere it is skipped.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import coterie.methods  # noqa: F401 (registers them)
from coterie.cli import main
from coterie.cohort import Cohort
from coterie.core import METHODS, Batch, ConfigError, Facts
from coterie.nets import NETS, TappedNet, register_in_timm
from coterie.nets.cost import count_parameters

pytestmark = [
    pytest.mark.vision,
    pytest.mark.skipif(not (find_spec("timm") and find_spec("torchvision")), reason="timm or torchvision is missing"),
]

CLASSES, SIDE = 5, 64
HALVES = [32, 16, 8, 4, 2]

TORCHVISION: dict[str, tuple[int, list[int]]] = {  # side of the images, sides of the maps after stem and stages
    "alexnet": (64, [15, 7, 3]),
    "convnext_tiny": (64, HALVES[1:]),
    "densenet121": (64, HALVES),
    "efficientnet_b0": (64, HALVES),
    "efficientnet_v2_s": (64, HALVES),
    "googlenet": (64, HALVES),
    "inception_v3": (96, [47, 45, 22, 20, 9, 4]),
    "maxvit_t": (224, [112, 56, 28, 14, 7]),
    "mnasnet0_5": (64, HALVES),
    "mobilenet_v2": (64, HALVES),
    "mobilenet_v3_small": (64, HALVES),
    "regnet_x_400mf": (64, HALVES),
    "regnet_y_400mf": (64, HALVES),
    "resnet18": (64, HALVES),
    "resnext50_32x4d": (64, HALVES),
    "shufflenet_v2_x0_5": (64, HALVES),
    "swin_t": (64, HALVES[1:]),
    "swin_v2_t": (64, HALVES[1:]),
    "vgg11_bn": (64, [64, *HALVES]),
    "vit_b_32": (64, []),
    "wide_resnet50_2": (64, HALVES),
}
TIMM: dict[str, list[int]] = {
    "convnext_atto": HALVES[1:],
    "convnextv2_atto": HALVES[1:],
    "densenet121": HALVES,
    "edgenext_xx_small": HALVES[1:],
    "efficientnet_b0": HALVES,
    "eva02_tiny_patch14_224": [],
    "ghostnet_050": HALVES,
    "hrnet_w18_small": HALVES,
    "lcnet_050": HALVES,
    "levit_128s": [],
    "maxvit_nano_rw_256": HALVES,
    "mixer_s16_224": [],
    "mobilenetv2_050": HALVES,
    "mobilenetv3_large_100": HALVES,
    "mobilenetv3_small_050": HALVES,
    "mobilenetv4_conv_small": HALVES,
    "mobilevit_xxs": HALVES,
    "nfnet_l0": HALVES,
    "poolformer_s12": HALVES[1:],
    "regnetx_002": HALVES,
    "regnety_002": HALVES,
    "repvgg_a0": HALVES,
    "resnet18": HALVES,
    "resnet50d": HALVES,
    "rexnet_100": HALVES,
    "seresnet18": HALVES,
    "swin_tiny_patch4_window7_224": HALVES[1:],
    "swinv2_tiny_window8_256": HALVES[1:],
    "tf_efficientnetv2_b0": HALVES,
    "vgg11_bn": [64, *HALVES],
    "vit_tiny_patch16_224": [],
    "xcit_nano_12_p16_224": [],
}
MODELS = {f"torchvision/{name}": case for name, case in TORCHVISION.items()}
MODELS |= {f"timm/{name}": (SIDE, sides) for name, sides in TIMM.items()}


def build(name: str, side: int = SIDE, channels: int = 3) -> TappedNet:
    torch.manual_seed(0)
    net = NETS[name](num_classes=CLASSES, in_channels=channels, image_size=side)
    assert isinstance(net, TappedNet)
    return net


@pytest.mark.parametrize("name", MODELS)
def test_models_are_peers_with_their_stages(name: str) -> None:
    side, sides = MODELS[name]
    net = build(name, side)
    assert net.training and not any(part._forward_hooks for part in net.modules())
    (peer,) = Cohort([net], stage_maps=bool(sides)).eval()(torch.randn(1, 2, 3, side, side))
    assert peer.logits.shape == (2, CLASSES) and peer.embedding.shape == (2, net.embedding_dim)
    assert [tuple(part.shape[2:]) for part in peer.stages] == [(width, width) for width in sides]
    assert tuple(part.shape[1] for part in peer.stages[1:]) == net.stage_channels
    head = net.net.get_submodule(net.head_name)
    assert isinstance(head, nn.Linear)
    if not name.startswith("timm/levit"):  # the mean of two heads
        torch.testing.assert_close(head(peer.embedding), peer.logits)


def test_every_family_of_torchvision_is_listed_here() -> None:
    from torchvision import models

    def family(name: str) -> str:
        return str(models.get_model_builder(name).__module__)

    tested = {family(name) for name in TORCHVISION} | {family("squeezenet1_1")}
    assert {family(name) for name in models.list_models(module=models)} == tested


@pytest.mark.parametrize("name", ["torchvision/resnet18", "torchvision/swin_t", "timm/regnetx_002"])
def test_other_numbers_of_channels(name: str) -> None:
    assert build(name, channels=1).eval().tap(torch.randn(2, 1, SIDE, SIDE)).logits.shape == (2, CLASSES)


def test_maps_with_channels_last_are_turned() -> None:
    net = build("timm/swin_tiny_patch4_window7_224").eval()
    images = torch.randn(1, 3, SIDE, SIDE)
    given: list[Tensor] = []
    hook = net.net.get_submodule("layers.1").register_forward_hook(lambda *seen: given.append(seen[2]))
    stages = net.tap(images, stage_maps=True).stages
    hook.remove()
    assert given[0].shape == (1, 8, 8, 192) and torch.equal(stages[1], given[0].permute(0, 3, 1, 2))


REFUSED = {
    "torchvision/squeezenet1_1": "no nn.Linear found in SqueezeNet; a peer's classifier must be a linear layer",
    "timm/dla34": "no nn.Linear found in DLA; a peer's classifier must be a linear layer",
    "torchvision/inception_v3": r"inception_v3 cannot take images of \[3, 64, 64\] \(.*\); set data.image_size, 224",
    "torchvision/maxvit_t": r"torchvision/maxvit_t cannot take images of \[3, 64, 64\] \(.*\); set data.image_size",
    "timm/inception_v3": r"timm/inception_v3 cannot take images of \[3, 64, 64\]",
    "timm/resnet_18": "timm has no model 'resnet_18'; did you mean 'resnet18'",
    "torchvision/fcn_resnet50": "torchvision has no model 'fcn_resnet50'",
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_a_peer_is_refused_in_one_line(name: str) -> None:
    with pytest.raises(ConfigError, match=REFUSED[name]) as caught:
        build(name)
    assert "\n" not in str(caught.value)


def test_stages_are_not_shared() -> None:
    with pytest.raises(ConfigError, match="peer 0, a ResNet, cannot share stages"):
        Cohort([build("timm/resnet18"), build("timm/resnet18")], shared=1)


@pytest.mark.parametrize("method", ["dml", "mcl_okd"])
@pytest.mark.parametrize(
    "names", [("timm/regnetx_002", "torchvision/resnet18"), ("timm/vit_tiny_patch16_224", "resnet8")]
)
def test_a_training_step_reaches_stem_and_head(names: Sequence[str], method: str) -> None:
    torch.manual_seed(0)
    cohort = Cohort([NETS[name](num_classes=CLASSES, image_size=SIDE) for name in names])
    labels = torch.arange(20) % CLASSES
    facts = Facts(
        num_peers=2,
        leader=1,
        num_classes=CLASSES,
        embedding_dims=cohort.embedding_dims,
        labels=labels,
        num_epochs=1,
        stage_channels=tuple(net.stage_channels for net in cohort),
    )
    taught = METHODS[method](METHODS[method].Config(), facts)
    zero = torch.zeros((), dtype=torch.int64)
    views = torch.randn(1, 4, 3, SIDE, SIDE)
    batch = Batch(views=views, labels=labels[:4], indices=torch.arange(4), epoch=zero, step=zero)
    optimizer = torch.optim.SGD([*cohort.parameters(), *taught.parameters()], lr=0.01)
    ends = [part for net in cohort.nets for part in (next(net.parameters()), list(net.parameters())[-1])]
    before = [end.detach().clone() for end in ends]
    peers = cohort(views)
    taught.losses(peers, batch).total().backward()
    optimizer.step()
    taught.after_step(peers, batch)
    assert not any(torch.equal(old, new) for old, new in zip(before, ends, strict=True))
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in cohort.parameters())


SYNTHETIC = ["synthetic/mcl_okd", "cohort.nets=", "cohort.shared=0", "cohort.peers=2", "data.image_size=32"]


def test_commands_know_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["list", "nets"]) == 0
    listed = capsys.readouterr().out
    assert "timm/NAME" in listed and "torchvision/NAME" in listed
    assert main(["check", *SYNTHETIC, "net.name=timm/resnet18"]) == 0
    assert "timm/resnet18, 11," in capsys.readouterr().out
    assert main(["doctor"]) == 0
    tiny = ["data.samples=24", "data.batch_size=8", "epochs=1", "method=dml", "--out", "run"]
    assert main(["train", *SYNTHETIC, *tiny, "net.name=timm/mobilenetv3_small_050"]) == 0
    assert main(["evaluate", "run"]) == 0


COMPLAINTS: dict[str, tuple[list[str], str]] = {
    "unknown": (["net.name=timm/resnet_18"], "timm has no model 'resnet_18'; did you mean 'resnet18'?"),
    "shared": (["net.name=timm/resnet18", "cohort.shared=1"], "peer 0, a ResNet, cannot share stages"),
    "no maps": (["net.name=timm/vit_tiny_patch16_224", "method=l_mcl"], "peer 0 is a TappedNet without two stages"),
    "too small": (["net.name=torchvision/inception_v3"], "cannot take images of [3, 32, 32]"),
    "no linear head": (["net.name=torchvision/squeezenet1_0"], "a peer's classifier must be a linear layer"),
}


@pytest.mark.parametrize("name", COMPLAINTS)
def test_commands_refuse_in_one_line(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    words, said = COMPLAINTS[name]
    assert main(["check", *SYNTHETIC, *words]) == 2
    printed = capsys.readouterr().err
    assert said in printed and printed.count("\n") == 1


def test_our_networks_are_models_of_timm() -> None:
    import timm

    new = register_in_timm()
    assert new == [f"coterie_{name}" for name in NETS]
    assert register_in_timm() == []
    assert set(timm.list_models("coterie_*")) == set(new)
    torch.manual_seed(0)
    net = timm.create_model("coterie_resnet32", num_classes=7, in_chans=1)
    torch.manual_seed(0)
    ours = NETS["resnet32"](num_classes=7, in_channels=1)
    assert all(torch.equal(a, b) for a, b in zip(net.state_dict().values(), ours.state_dict().values(), strict=True))
    assert count_parameters(timm.create_model("coterie_resnet32")) == 472_756
    assert timm.create_model("coterie_conv4", img_size=64).head.in_features == 64 * 16
    assert type(timm.create_model("resnet18")).__module__.startswith("timm.")
    config: dict[str, Any] = timm.data.resolve_model_data_config(net)
    assert config["input_size"][0] == 3
    with pytest.raises(ConfigError, match="coterie_resnet8 has no pretrained weights"):
        timm.create_model("coterie_resnet8", pretrained=True)


def test_importing_our_networks_imports_neither_package(tmp_path: Path) -> None:
    code = "import coterie.nets, coterie.experiment, sys; sys.exit(bool({'timm', 'torchvision'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False, cwd=tmp_path).returncode == 0
