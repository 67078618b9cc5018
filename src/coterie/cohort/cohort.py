"""The cohort: M peers that see the same images, separate or with their first stages shared, and one leader."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import cast

from torch import Tensor, nn

from coterie.core.errors import ConfigError
from coterie.core.types import PeerOutput
from coterie.nets import StagedNet, Tappable, TappedNet, as_tappable


class Cohort(nn.Module):
    """M peers side by side.

    With `shared=k` the stem and the first k stages of all peers become *the same module objects*, those of the leader:
    each peer stays a whole network whose state dict loads into the plain architecture, while the shared part is run,
    trained and counted once.

    Args:
        nets: M networks; `StagedNet` or any module whose last linear layer is its classifier.
        leader: which peer is kept, named before training; negative numbers count from the end.
        shared: how many stages after the stem all peers share; 0 keeps them separate.
        stage_maps: whether `forward` returns stage maps.

    Raises:
        ConfigError: no peers, a leader out of range, peers with other class counts, or first stages that differ.

    Example:
        >>> import torch
        >>> cohort = Cohort([nn.Sequential(nn.Flatten(), nn.Linear(4, 3)) for _ in range(2)])
        >>> [tuple(peer.logits.shape) for peer in cohort(torch.zeros(1, 5, 1, 2, 2))]
        [(5, 3), (5, 3)]
    """

    def __init__(
        self, nets: Sequence[nn.Module], *, leader: int = -1, shared: int = 0, stage_maps: bool = False
    ) -> None:
        super().__init__()
        if not nets:
            raise ConfigError("a cohort needs at least one network; give nets=[...]")
        if not -len(nets) <= leader < len(nets):
            raise ConfigError(f"leader {leader} is not one of {len(nets)} peers; give a number below {len(nets)}")
        self.leader = leader % len(nets)
        self.shared = shared
        self.stage_maps = stage_maps
        self.nets = nn.ModuleList(as_tappable(net) for net in nets)
        counts = [net.num_classes for net in self]
        if len(set(counts)) > 1:
            raise ConfigError(f"peers have heads of {counts} classes; give all of them the same number")
        if shared:
            self._share(shared)

    def __len__(self) -> int:
        return len(self.nets)

    def __iter__(self) -> Iterator[Tappable]:
        return iter(cast("Sequence[Tappable]", self.nets))

    def __getitem__(self, peer: int) -> nn.Module:
        """The plain network of a peer, as it was given."""
        net = self.nets[peer]
        return net.net if isinstance(net, TappedNet) else net

    @property
    def leader_net(self) -> nn.Module:
        """The plain network that is kept; its state dict fits a network built without a cohort."""
        return self[self.leader]

    @property
    def num_classes(self) -> int:
        """K, the number of classes."""
        return next(iter(self)).num_classes

    @property
    def embedding_dims(self) -> tuple[int, ...]:
        """D of each peer."""
        return tuple(net.embedding_dim for net in self)

    def forward(self, views: Tensor) -> list[PeerOutput]:
        """Run all peers.

        Args:
            views: `[V, B, C, H, W]`; with V=1 every peer sees the same view, with V=M peer m sees view m.

        Returns:
            M outputs, in order.
        """
        num_views = views.shape[0]
        view_of = [m % num_views for m in range(len(self))]
        if not self.shared:
            return [net.tap(views[v], self.stage_maps) for net, v in zip(self, view_of, strict=True)]
        staged = cast("Sequence[StagedNet]", self.nets)
        trunks = [staged[0].trunk(view, self.shared) for view in views]
        return [net.finish(trunks[v], self.stage_maps) for net, v in zip(staged, view_of, strict=True)]

    def _share(self, depth: int) -> None:
        for net in self.nets:
            if not isinstance(net, StagedNet):
                raise ConfigError("only staged networks can share stages; set cohort.shared=0 or use coterie.StagedNet")
        staged = cast("Sequence[StagedNet]", self.nets)
        first = staged[self.leader]
        for m, net in enumerate(staged):
            if not 0 < depth <= len(net.stages) or _first_stages(net, depth) != _first_stages(first, depth):
                raise ConfigError(
                    f"peer {m} cannot share {depth} stages with the leader: it has {len(net.stages)} stages and"
                    " the shared ones must be alike; lower cohort.shared"
                )
            net.stem = first.stem
            for k in range(depth):
                net.stages[k] = first.stages[k]


def _first_stages(net: StagedNet, depth: int) -> str:
    return repr(nn.ModuleList([net.stem, *net.stages[:depth]]))  # kinds and sizes of all layers, in order
