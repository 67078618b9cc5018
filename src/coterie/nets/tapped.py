"""Any `nn.Module` as a peer: its classifier is found, and the classifier's input is the embedding."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TypeGuard

from torch import Tensor, nn

from coterie.core.errors import ConfigError, suggestion
from coterie.core.types import PeerOutput
from coterie.nets.layers import removed_at_the_end


class TappedNet(nn.Module):
    """Reads logits and embedding of a classifier without editing it.

    The embedding is what the module's last linear layer (or the one named) receives. A hook is attached for the length
    of one forward pass only, so the module stays as it came: same state dict, same code, exportable.

    Args:
        net: maps images `[B, C, H, W]` to logits `[B, K]`.
        head: dotted name of the linear layer that gives the logits; by default the last linear layer that is found.
        stages: dotted names of the modules whose outputs are the map after the stem and after each stage, with the
            channels of each; see `find_stages`. Without them the peer cannot serve methods that read stage maps. Maps
            `[B, H, W, C]` are handed on as `[B, C, H, W]`.

    Attributes:
        net: the module, unchanged.

    Raises:
        ConfigError: no linear layer is found, the named one is not linear, or a named module is missing.

    Example:
        >>> net = TappedNet(nn.Sequential(nn.Flatten(), nn.Linear(12, 5), nn.ReLU(), nn.Linear(5, 2)))
        >>> net.head_name, net.embedding_dim, net.num_classes
        ('3', 5, 2)
    """

    def __init__(self, net: nn.Module, head: str | None = None, stages: Mapping[str, int] | None = None) -> None:
        super().__init__()
        self.net = net
        self.head_name = find_head(net) if head is None else head
        self._stages = dict(stages or {})
        layers = dict(net.named_modules())
        for name in (self.head_name, *self._stages):
            if name not in layers:
                raise ConfigError(f"the network has no layer {name!r}; {suggestion(name, layers)}")
        self._sizes = _sizes(self.head_name, layers[self.head_name])

    @property
    def embedding_dim(self) -> int:
        """D, the size of the embedding."""
        return self._sizes[0]

    @property
    def num_classes(self) -> int:
        """K, the number of classes."""
        return self._sizes[1]

    @property
    def stage_channels(self) -> tuple[int, ...]:
        """Channels of each stage's map, the stem not counted; empty when no stages were named."""
        return tuple(self._stages.values())[1:]

    def forward(self, images: Tensor) -> Tensor:
        """Map images `[B, C, H, W]` to logits `[B, K]`."""
        logits: Tensor = self.net(images)
        return logits

    def tap(self, images: Tensor, stage_maps: bool = False, preactivations: bool = False) -> PeerOutput:
        """Map images `[B, C, H, W]` to logits, embedding and, on request, stage maps.

        Args:
            images: `[B, C, H, W]`.
            stage_maps: whether the output carries the maps of the named stages.
            preactivations: not to be had from a module that is not known.

        Raises:
            ConfigError: stage maps were asked for and no stages are named, maps before activations were asked for, or
                a tapped layer did not run once on what it must receive.
        """
        self._check_asked(stage_maps, preactivations)
        seen: list[Tensor] = []
        maps: dict[str, Tensor] = {}
        logits = self._watched(images, seen, maps if stage_maps else None)
        if len(seen) != 1 or not _is_matrix(seen[0]) or not _is_matrix(logits):
            raise ConfigError(
                f"layer {self.head_name!r} ran {len(seen)} times in a forward pass and must once receive [B, D]"
                " in a network that returns [B, K]; name the classifier with `head`"
            )
        stages = tuple(_channels_first(maps[name], channels) for name, channels in self._stages.items() if maps)
        return PeerOutput(logits=logits, embedding=seen[0], stages=stages)

    def _check_asked(self, stage_maps: bool, preactivations: bool) -> None:
        if preactivations or (stage_maps and not self._stages):
            maps = "maps before activations" if preactivations else "stage maps"
            raise ConfigError(f"this method reads {maps}; build the network as a coterie.StagedNet")

    def _watched(self, images: Tensor, seen: list[Tensor], maps: dict[str, Tensor] | None) -> object:
        """Run the network; note what the head receives and, in `maps`, what the stages give."""
        hooks = [self._layer(self.head_name).register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))]
        if maps is not None:
            hooks += [self._layer(name).register_forward_hook(partial(_keep, maps, name)) for name in self._stages]
        with removed_at_the_end(hooks):
            return self.net(images)

    def _layer(self, name: str) -> nn.Module:
        return self.net.get_submodule(name)


def _sizes(name: str, layer: nn.Module) -> tuple[int, int]:
    if not isinstance(layer, nn.Linear):
        raise ConfigError(f"head {name!r} is a {type(layer).__name__}; name the nn.Linear that gives the logits")
    return layer.in_features, layer.out_features


def _is_matrix(output: object) -> TypeGuard[Tensor]:
    return isinstance(output, Tensor) and output.dim() == 2


def find_head(net: nn.Module) -> str:
    """Name the last linear layer of a module, in the order its submodules were defined.

    Raises:
        ConfigError: there is none.
    """
    names = [name for name, layer in net.named_modules() if isinstance(layer, nn.Linear)]
    if not names:
        raise ConfigError(f"no nn.Linear found in {type(net).__name__}; a peer's classifier must be a linear layer")
    return str(names[-1])


def plain(net: nn.Module) -> nn.Module:
    """The network itself, without the taps around it."""
    return net.net if isinstance(net, TappedNet) else net


def as_tappable(net: nn.Module, head: str | None = None) -> nn.Module:
    """Return a network that a cohort can tap: staged networks as they are, others wrapped in `TappedNet`."""
    return net if hasattr(net, "tap") and head is None else TappedNet(net, head)


def _channels_first(maps: Tensor, channels: int) -> Tensor:
    """Maps `[B, C, H, W]`, also where a layer gives `[B, H, W, C]`; a view."""
    return maps if maps.shape[1] == channels else maps.permute(0, 3, 1, 2)


def _keep(maps: dict[str, Tensor], name: str, _layer: nn.Module, _inputs: object, output: Tensor) -> None:
    maps[name] = output
