"""Any `nn.Module` as a peer: its classifier is found, and the classifier's input is the embedding."""

from __future__ import annotations

from torch import Tensor, nn

from coterie.core.errors import ConfigError, suggestion
from coterie.core.types import PeerOutput


class TappedNet(nn.Module):
    """Reads logits and embedding of a classifier without editing it.

    The embedding is what the module's last linear layer (or the one named) receives. A hook is attached for the length
    of one forward pass only, so the module stays as it came: same state dict, same code, exportable.

    Args:
        net: maps images `[B, C, H, W]` to logits `[B, K]`.
        head: dotted name of the linear layer that gives the logits; by default the last linear layer that is found.

    Attributes:
        net: the module, unchanged.

    Raises:
        ConfigError: no linear layer is found, or the named one is missing or not linear.

    Example:
        >>> net = TappedNet(nn.Sequential(nn.Flatten(), nn.Linear(12, 5), nn.ReLU(), nn.Linear(5, 2)))
        >>> net.head_name, net.embedding_dim, net.num_classes
        ('3', 5, 2)
    """

    def __init__(self, net: nn.Module, head: str | None = None) -> None:
        super().__init__()
        self.net = net
        self.head_name = find_head(net) if head is None else head
        layers = dict(net.named_modules())
        if self.head_name not in layers:
            raise ConfigError(f"the network has no layer {head!r}; {suggestion(self.head_name, layers)}")
        layer = layers[self.head_name]
        if not isinstance(layer, nn.Linear):
            raise ConfigError(
                f"head {self.head_name!r} is a {type(layer).__name__}; name the nn.Linear that gives the logits"
            )
        self._sizes = layer.in_features, layer.out_features

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
        """Empty: the stages of a foreign module are not known."""
        return ()

    def forward(self, images: Tensor) -> Tensor:
        """Map images `[B, C, H, W]` to logits `[B, K]`."""
        logits: Tensor = self.net(images)
        return logits

    def tap(self, images: Tensor, stage_maps: bool = False) -> PeerOutput:
        """Map images `[B, C, H, W]` to logits and embedding.

        Args:
            images: `[B, C, H, W]`.
            stage_maps: must be False here.

        Raises:
            ConfigError: stage maps were asked for, or the head did not run or did not receive `[B, D]`.
        """
        if stage_maps:
            raise ConfigError("this method reads stage maps; build the network as a coterie.StagedNet")
        seen: list[Tensor] = []
        head = self.net.get_submodule(self.head_name)
        hook = head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        try:
            logits = self.net(images)
        finally:
            hook.remove()
        if len(seen) != 1 or seen[0].dim() != 2 or not isinstance(logits, Tensor) or logits.dim() != 2:
            raise ConfigError(
                f"layer {self.head_name!r} ran {len(seen)} times in a forward pass and must once receive [B, D]"
                " in a network that returns [B, K]; name the classifier with `head`"
            )
        return PeerOutput(logits=logits, embedding=seen[0])


def find_head(net: nn.Module) -> str:
    """Name the last linear layer of a module, in the order its submodules were defined.

    Raises:
        ConfigError: there is none.
    """
    names = [name for name, layer in net.named_modules() if isinstance(layer, nn.Linear)]
    if not names:
        raise ConfigError(f"no nn.Linear found in {type(net).__name__}; a peer's classifier must be a linear layer")
    return str(names[-1])


def as_tappable(net: nn.Module, head: str | None = None) -> nn.Module:
    """Return a network that a cohort can tap: staged networks as they are, others wrapped in `TappedNet`."""
    return net if hasattr(net, "tap") and head is None else TappedNet(net, head)
