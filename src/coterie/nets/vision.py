"""Every classifier of timm and torchvision by name: `timm/NAME` and `torchvision/NAME`, with the `vision` extra.

Neither package is imported before such a name is asked for. The networks are built with fresh weights, or with those
of a cohort's `weights`, and join as `TappedNet`; their stages are found where they have some. Networks whose classifier
is no linear layer (SqueezeNet, DLA, DPN) cannot join. The other way round, `register_in_timm` makes our networks known
to timm.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from types import ModuleType
from typing import Any

import torch
from torch import nn

from coterie.core.errors import ConfigError, MissingExtra
from coterie.nets.base import NETS, NetBuilder
from coterie.nets.layers import layers_of
from coterie.nets.stages import find_stages
from coterie.nets.tapped import TappedNet

_Make = Callable[[int, int, int], nn.Module]  # classes, channels, image size

_TORCHVISION_OPTIONS: dict[str, Callable[[int], dict[str, Any]]] = {  # by the module that defines a family
    "googlenet": lambda _: {"aux_logits": False, "init_weights": True},
    "inception": lambda _: {"aux_logits": False, "init_weights": True},
    "maxvit": lambda size: {"input_size": (size, size)},
    "vision_transformer": lambda size: {"image_size": size},
}


def timm_builder(name: str) -> NetBuilder:
    """Any model of timm by its name there; needs the `vision` extra.

    Args:
        name: as in `timm.list_models()`.

    Raises:
        MissingExtra: timm is not installed.
        ConfigError: timm has no such model.
    """
    timm = _imported("timm")
    _check_known("timm", name, timm.list_models())

    def make(num_classes: int, in_channels: int, image_size: int) -> nn.Module:
        return _timm_model(name, image_size, pretrained=False, num_classes=num_classes, in_chans=in_channels)

    return _builder(f"timm/{name}", make)


def torchvision_builder(name: str) -> NetBuilder:
    """Any classifier of torchvision by its name there; needs the `vision` extra.

    Args:
        name: as in `torchvision.models.list_models(module=torchvision.models)`.

    Raises:
        MissingExtra: torchvision is not installed.
        ConfigError: torchvision has no such classifier.
    """
    models = _imported("torchvision.models")
    _check_known("torchvision", name, models.list_models(module=models))
    family = models.get_model_builder(name).__module__.rpartition(".")[2]
    special = _TORCHVISION_OPTIONS.get(family)

    def make(num_classes: int, in_channels: int, image_size: int) -> nn.Module:
        options = special(image_size) if special else {}
        net: nn.Module = models.get_model(name, weights=None, num_classes=num_classes, **options)
        return _with_channels(net, in_channels)

    return _builder(f"torchvision/{name}", make)


NETS.add_source("timm", timm_builder)
NETS.add_source("torchvision", torchvision_builder)


def pretrained(name: str, *, in_channels: int = 3, image_size: int = 224) -> nn.Module:
    """Build a network of timm or torchvision with the weights that the package offers for it, and its own classes.

    The weights are fetched, or read from the package's cache.

    Args:
        name: `timm/NAME` or `torchvision/NAME`.
        in_channels: C of the images.
        image_size: their side in pixels.

    Raises:
        MissingExtra: the package is not installed.
        ConfigError: there is no such model, there are no weights of it, or they cannot be fetched.
    """
    package, _, rest = name.partition("/")
    find = NETS.sources[package]
    find(rest)  # refuses names that are not known

    try:
        net = _fetched(package, rest, in_channels, image_size)
    except (OSError, RuntimeError, ValueError) as error:  # of the network, of the hub, or of names without weights
        why = " ".join(str(error).split())[:200]
        raise ConfigError(f"no weights of {name} can be had ({why}); give a file with teacher.weights") from None
    return _builder(name, lambda *_: net)(num_classes=0, in_channels=in_channels, image_size=image_size)


def _fetched(package: str, name: str, in_channels: int, image_size: int) -> nn.Module:
    if package == "timm":
        return _timm_model(name, image_size, pretrained=True, in_chans=in_channels)
    return _with_channels(_imported("torchvision.models").get_model(name, weights="DEFAULT"), in_channels)


def register_in_timm() -> list[str]:
    """Make every network of this project a model of timm, so that its scripts and `timm.create_model` can build it.

    The names there are ours after `coterie_`, because timm has other networks by the name of some. `num_classes`,
    `in_chans` and `img_size` are understood; there are no pretrained weights. Calling it again adds what has been
    registered since.

    Returns:
        The names that are new to timm.

    Raises:
        MissingExtra: timm is not installed.
    """
    timm = _imported("timm")
    _imported("timm.models")
    new = [name for name in NETS if not timm.is_model(f"coterie_{name}")]
    for name in new:
        entry = _timm_entry(name)
        globals()[entry.__name__] = entry  # timm adds the name to this module's `__all__`
        timm.models.register_model(entry)
    return [f"coterie_{name}" for name in new]


def _timm_model(name: str, image_size: int, **options: object) -> nn.Module:
    timm = _imported("timm")
    try:
        net: nn.Module = timm.create_model(name, **options, img_size=image_size)
    except TypeError:  # convolutional networks take images of any size
        net = timm.create_model(name, **options)
    return net


def _timm_entry(name: str) -> Callable[..., nn.Module]:
    def build(
        pretrained: bool = False, *, num_classes: int = 100, in_chans: int = 3, img_size: int = 32, **unused: object
    ) -> nn.Module:
        if pretrained:
            raise ConfigError(f"coterie_{name} has no pretrained weights; give pretrained=False and load your own")
        return NETS[name](num_classes=num_classes, in_channels=in_chans, image_size=img_size)

    build.__name__ = build.__qualname__ = f"coterie_{name}"
    build.__doc__ = NETS[name].__doc__
    return build


def _builder(name: str, make: _Make) -> NetBuilder:
    def build(*, num_classes: int, in_channels: int = 3, image_size: int = 224) -> nn.Module:
        shape = in_channels, image_size, image_size
        with _refused_in_one_line(name, shape):
            net = make(num_classes, in_channels, image_size)
        stages = find_stages(net, shape, _listed_stages(net))
        if not stages:  # nothing has shown yet that it takes such images
            with _refused_in_one_line(name, shape), torch.no_grad():
                net.eval()(torch.zeros(1, *shape))
        return TappedNet(net.train(), stages=stages)

    build.__name__ = name
    build.__doc__ = f"{name} with fresh weights."
    return build


def _listed_stages(net: nn.Module) -> list[str]:
    """Names of the stages in timm's own list; empty where it has none or names no modules."""
    listed = getattr(net, "feature_info", ())
    names = [stage["module"] for stage in listed if isinstance(stage, dict) and "module" in stage]
    known = {part for part, _ in net.named_modules()}
    return names if known.issuperset(names) else []


@contextmanager
def _refused_in_one_line(name: str, shape: tuple[int, int, int]) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # the package is not ours: what it raises is about the size or kind of the images
        reason = " ".join(str(error).split())
        raise ConfigError(
            f"{name} cannot take images of {list(shape)} ({reason}); set data.image_size, 224 for instance,"
            " or choose another network"
        ) from error


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
    for layer in layers_of(net, nn.Conv2d)[:1]:
        if layer.in_channels != in_channels:
            layer.in_channels = in_channels
            layer.weight = nn.Parameter(layer.weight.new_empty(layer.out_channels, in_channels, *layer.kernel_size))
            layer.reset_parameters()
    return net
