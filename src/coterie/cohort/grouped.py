"""M alike networks run as one: every layer once, on maps that hold the channels of all peers, `[B, M * C, H, W]`.

Peer 0's channels come first. A convolution over such a map has M times the groups and the peers' kernels one after the
other, a batch norm has M times the channels, a linear layer is a batch of M products; activations and pools need no
change. Which layers there are and how they are joined is read from the first network's own code, which `torch.fx`
traces; in the graph so found, every layer with weights is replaced by one that takes the weights of all peers when it
runs. Parameters, buffers and their gradients stay where they are, in the peers' own layers, so that checkpoints,
optimisers and exports know nothing of this.
"""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from coterie.cohort.joint_layers import OF_NORMS, JointConv, JointLinear, JointNorm, Together, apart, join
from coterie.core.errors import ConfigError
from coterie.core.types import PeerOutput
from coterie.nets import StagedNet

# What treats every channel alike and for itself: right as it is, whoever the channels belong to.
_LAYERS = (nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SiLU, nn.GELU, nn.Hardswish, nn.Sigmoid, nn.Tanh, nn.Identity)
_POOLS = (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)
_SUMS = {operator.add, operator.iadd, operator.sub, operator.mul, operator.imul, torch.add, torch.sub, torch.mul}
_CURVES = {F.relu, F.relu6, F.silu, F.gelu, F.hardswish, torch.relu, torch.sigmoid, torch.tanh}
_NAMED = {"add", "add_", "sub", "mul", "mul_", "relu", "relu_", "sigmoid", "tanh", "contiguous"}
_JOINS = {torch.cat, torch.concat}


_REPLACED: dict[type[nn.Module], type[Together]] = {
    nn.Conv2d: JointConv,
    nn.BatchNorm2d: JointNorm,
    nn.BatchNorm1d: JointNorm,
    nn.Linear: JointLinear,
}


class Grouped:
    """Runs M networks of one kind as one.

    Args:
        nets: M staged networks that differ in their weights only and share none.

    Raises:
        ConfigError: they are not alike, or a layer cannot be run for all of them at once; it is named.

    Example:
        >>> nets = [
        ...     StagedNet(stem=nn.Conv2d(3, 4, 3), stages=[], neck=nn.Flatten(), head=nn.Linear(16, 5)) for _ in "ab"
        ... ]
        >>> images = torch.ones(1, 7, 3, 4, 4)
        >>> together, alone = Grouped(nets)(images, [0, 0])[1].logits, nets[1](images[0])
        >>> torch.allclose(together, alone, atol=1e-6)
        True
    """

    def __init__(self, nets: Sequence[nn.Module]) -> None:
        staged = _alike(nets)
        trunks = list(map(_Trunk, staged))
        try:
            graph = fx.Tracer().trace(trunks[0])
        except Exception as error:  # code that looks at its data fails in as many ways as there are
            raise _refusal(f"code that cannot be traced ({str(error).splitlines()[0]})") from None
        first, *_ = graph.nodes
        self.spreads = all(_is_wide(user, trunks[0]) for user in first.users)
        self.trunk = fx.GraphModule(_replaced(graph, trunks), graph)
        self.head = JointLinear([net.head for net in staged])
        self.norms = [layer for layer in self.trunk.modules() if isinstance(layer, JointNorm)]

    def __call__(self, views: Tensor, seen: Sequence[int], stage_maps: bool = False) -> list[PeerOutput]:
        """Run all networks.

        Args:
            views: `[V, B, C, H, W]`.
            seen: for each network the view that it sees.
            stage_maps: whether outputs carry stage maps.

        Returns:
            M outputs, with gradient to the networks' own parameters.
        """
        kept = [self._gathered(name) for name in OF_NORMS if self.norms]
        *maps, embedding = self.trunk(self._images(views, seen))
        self._keep(kept[:2])
        embeddings = apart(embedding, len(seen)).contiguous()
        stages = zip(*(value.chunk(len(seen), dim=1) for value in maps), strict=True)
        outputs = zip(self.head.products(embeddings), embeddings, stages, strict=True)
        return [
            PeerOutput(logits=logits, embedding=own, stages=of_peer if stage_maps else ())
            for logits, own, of_peer in outputs
        ]

    def _images(self, views: Tensor, seen: Sequence[int]) -> Tensor:
        """What goes in, `[B, M * C, H, W]`; one image `[B, C, H, W]` for all where the first layers can take it."""
        alone = self.spreads and len(set(seen)) == 1
        return views[seen[0]] if alone else torch.cat([views[view] for view in seen], dim=1)

    def _gathered(self, name: str) -> tuple[list[Tensor], Tensor]:
        """Give every batch norm its part of one long vector of all; return the peers' own and that vector."""
        own = [tensor for norm in self.norms for tensor in norm.each(name)]
        vector = torch.cat(own)
        for norm, part in zip(self.norms, torch.split(vector, [norm.width for norm in self.norms]), strict=True):
            norm.joined[name] = part
        return own, vector

    @torch.no_grad()
    def _keep(self, statistics: Sequence[tuple[list[Tensor], Tensor]]) -> None:
        """Write running statistics back to the peers and count the batch."""
        for own, vector in statistics:
            torch._foreach_copy_(own, list(torch.split(vector, [tensor.shape[0] for tensor in own])))
        counted = [count for norm in self.norms for count in norm.counts()]
        if counted:
            torch._foreach_add_(counted, 1)


class _Trunk(nn.Module):
    """All of a network but its head: the maps after stem and stages, and the embedding."""

    def __init__(self, net: StagedNet) -> None:
        super().__init__()
        self.stem, self.stages, self.neck = net.stem, net.stages, net.neck

    def forward(self, images: Tensor) -> list[Tensor]:
        maps = [self.stem(images)]
        for stage in self.stages:
            maps.append(stage(maps[-1]))
        return [*maps, self.neck(maps[-1])]


def _alike(nets: Sequence[nn.Module]) -> Sequence[StagedNet]:
    _refuse(set(map(type, nets)) != {StagedNet}, "a network that is no plain StagedNet")
    _refuse(len(set(map(repr, nets))) > 1, "networks of different kinds")
    parameters = list(chain.from_iterable(map(nn.Module.parameters, nets)))
    _refuse(len(set(map(id, parameters))) < len(parameters), "peers that share stages")
    return cast("Sequence[StagedNet]", nets)


def _replaced(graph: fx.Graph, trunks: Sequence[_Trunk]) -> dict[str, nn.Module]:
    """Check every node, let joins append peer by peer, and gather the layers the nodes call."""
    for node in graph.nodes:
        _refuse(not _fits(node), f"{_target(node)} in {_place(node)}")
        if node.target in _JOINS:
            node.target, node.args, node.kwargs = join, (node.args[0], len(trunks)), {}
    called = Counter(str(node.target) for node in graph.nodes if node.op == "call_module")
    return {name: _together([trunk.get_submodule(name) for trunk in trunks], name, called[name]) for name in called}


def _together(layers: Sequence[nn.Module], name: str, calls: int) -> nn.Module:
    layer = layers[0]
    if type(layer) in (*_LAYERS, *_POOLS) or _flattens(layer):
        return layer
    kind = _REPLACED.get(type(layer))
    if kind is None or not kind.fits(layer) or calls > 1:
        raise _refusal(f"layer {name!r}, a {type(layer).__name__}{', run twice' * (calls > 1)}")
    return kind(layers)


def _flattens(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Flatten) and (layer.start_dim, layer.end_dim) == (1, -1)


def _is_wide(node: fx.Node, trunk: _Trunk) -> bool:
    """Whether a node is a convolution without groups, which may see one image for all peers."""
    layer = trunk.get_submodule(str(node.target)) if node.op == "call_module" else None
    return type(layer) is nn.Conv2d and layer.groups == 1


def _fits(node: fx.Node) -> bool:
    """Whether a node is a layer, or a call that treats channels alike, appends some or ends them."""
    if node.op in ("placeholder", "call_module", "output"):
        return True
    if node.target in _JOINS:
        return _argument(node, 1, "dim", 0) == 1
    if node.target in ("flatten", torch.flatten):
        return _argument(node, 1, "start_dim", 0) == 1 and _argument(node, 2, "end_dim", -1) == -1
    if node.target in ("mean", torch.mean):
        return _argument(node, 1, "dim", None) in ((2, 3), [2, 3], (-2, -1), [-2, -1])
    known: dict[str, set[Any]] = {"call_method": _NAMED, "call_function": _SUMS | _CURVES}
    return node.target in known.get(node.op, set())


def _argument(node: fx.Node, place: int, name: str, default: object) -> object:
    return node.args[place] if len(node.args) > place else node.kwargs.get(name, default)


def _target(node: fx.Node) -> str:
    target: str | Callable[..., Any] = node.target
    return repr(target if isinstance(target, str) else getattr(target, "__name__", str(target)))


def _place(node: fx.Node) -> str:
    """The dotted name of the module whose code makes a call."""
    modules = list(node.meta.get("nn_module_stack") or ["the network"])
    return f"layer {modules[-1]!r}"


def _refuse(found: bool, what: str) -> None:
    if found:
        raise _refusal(what)


def _refusal(what: str) -> ConfigError:
    return ConfigError(f"cohort.execution=grouped cannot run {what}; set cohort.execution=loop, or auto")
