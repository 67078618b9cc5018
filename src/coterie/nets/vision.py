"""Every classifier of timm and torchvision by name: `timm/NAME` and `torchvision/NAME`, with the `vision` extra.

Neither package is imported before such a name is asked for. The networks are built with fresh weights, or with those
of a cohort's `weights`, and join as `TappedNet`; their stages are found where they have some.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable
from difflib import get_close_matches
from types import ModuleType

from torch import nn

from coterie.core.errors import ConfigError, MissingExtra
from coterie.nets.base import NETS, NetBuilder
from coterie.nets.stages import find_stages
from coterie.nets.tapped import TappedNet

_Make = Callable[[int, int, int], nn.Module]  # classes, channels, image size


def timm_builder(name: str) -> NetBuilder:
    """Find a model of timm.

    Args:
        name: as in `timm.list_models()`.

    Raises:
        MissingExtra: timm is not installed.
        ConfigError: timm has no such model.
    """
    timm = _imported("timm")
    _check_known("timm", name, timm.list_models())

    def make(num_classes: int, in_channels: int, image_size: int) -> nn.Module:
        options = {"pretrained": False, "num_classes": num_classes, "in_chans": in_channels}
        try:
            net: nn.Module = timm.create_model(name, **options, img_size=image_size)
        except TypeError:  # convolutional networks take images of any size
            net = timm.create_model(name, **options)
        return net

    return _builder(f"timm/{name}", make)


def torchvision_builder(name: str) -> NetBuilder:
    """Find a classifier of torchvision.

    Args:
        name: as in `torchvision.models.list_models(module=torchvision.models)`.

    Raises:
        MissingExtra: torchvision is not installed.
        ConfigError: torchvision has no such classifier.
    """
    models = _imported("torchvision.models")
    _check_known("torchvision", name, models.list_models(module=models))

    def make(num_classes: int, in_channels: int, image_size: int) -> nn.Module:
        net: nn.Module = models.get_model(name, weights=None, num_classes=num_classes)
        return _with_channels(net, in_channels)

    return _builder(f"torchvision/{name}", make)


NETS.add_source("timm", timm_builder)
NETS.add_source("torchvision", torchvision_builder)


def _builder(name: str, make: _Make) -> NetBuilder:
    def build(*, num_classes: int, in_channels: int = 3, image_size: int = 224) -> nn.Module:
        net = make(num_classes, in_channels, image_size)
        listed = getattr(net, "feature_info", ())  # timm's own list of stages
        names = [stage["module"] for stage in listed if isinstance(stage, dict) and "module" in stage]
        known = {part for part, _ in net.named_modules()}
        names = names if known.issuperset(names) else []
        return TappedNet(net, stages=find_stages(net, (in_channels, image_size, image_size), names))

    build.__name__ = name
    build.__doc__ = f"{name} with fresh weights."
    return build


def _imported(module: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ImportError:
        raise MissingExtra(module.partition(".")[0], "vision") from None


def _check_known(package: str, name: str, known: Iterable[str]) -> None:
    names = list(known)
    if name not in names:
        near = get_close_matches(name, names, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"ask {package}'s list_models() for the names"
        raise ConfigError(f"{package} has no model {name!r}; {hint}")


def _with_channels(net: nn.Module, in_channels: int) -> nn.Module:
    """Give the first convolution other input channels, with fresh weights."""
    for layer in net.modules():
        if isinstance(layer, nn.Conv2d):
            if layer.in_channels != in_channels:
                layer.in_channels = in_channels
                layer.weight = nn.Parameter(layer.weight.new_empty(layer.out_channels, in_channels, *layer.kernel_size))
                layer.reset_parameters()
            return net
    return net
