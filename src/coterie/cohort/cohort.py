"""The cohort: M peers that see the same images, separate or with stages in common, and one leader."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from traceback import walk_tb
from typing import TypeAlias, cast

import torch
from torch import Tensor, nn

from coterie.cohort.rescale import rescale_gradient
from coterie.cohort.tree import check_alike, copies_of_stages, owner_of
from coterie.core.across import told
from coterie.core.errors import ConfigError
from coterie.core.types import PeerOutput
from coterie.nets import StagedNet, Tappable, TappedNet, as_tappable
from coterie.nets.boundaries import Notes

_Done = dict[tuple[int, ...], Tensor]  # a view and the parts it went through: the map after them
Execution: TypeAlias = Callable[["Cohort", Tensor], list[PeerOutput]]
"""Another way than peer after peer to run a cohort on views `[V, B, C, H, W]`, with the same outputs."""


class Cohort(nn.Module):
    """M peers side by side.

    Peers that share stages hold the *same module objects*, those of the leader where it takes part: each peer stays a
    whole network whose state dict loads into the plain architecture, while a shared part is run, trained and counted
    once.

    Args:
        nets: M networks; `StagedNet` or any module whose last linear layer is its classifier.
        leader: which peer is kept, named before training; negative numbers count from the end.
        shared: how many stages after the stem all peers share; 0 keeps them separate.
        tree: copies of each stage, first to last, in place of `shared`: `(1, 2, 4)` is one stem and first stage, two
            second stages, four third ones; numbers rise to M at most, and the stem is copied as the first stage.
        rescale: divide the gradient by the number of branches wherever peers part (intermediate-layer rescaling).
        stage_maps: whether `forward` returns stage maps.
        frozen: peers that are not trained: their parameters take no gradient and they stay in evaluation mode.
        peer_views: how many of the views `forward` is given the peers see, the first ones; 0 for all.

    Attributes:
        preactivations: whether `forward` returns the maps before the last activation of each stage; False at first.
        execution: how the peers are run in training mode; None, as at first and always in evaluation mode, is one after
            the other. See `coterie.cohort.execution`.
        here: which peers live in this process; all, unless `keep` was called.

    Raises:
        ConfigError: no peers, a leader out of range, peers with other class counts, or shared stages that differ.

    Example:
        >>> import torch
        >>> cohort = Cohort([nn.Sequential(nn.Flatten(), nn.Linear(4, 3)) for _ in range(2)])
        >>> [tuple(peer.logits.shape) for peer in cohort(torch.zeros(1, 5, 1, 2, 2))]
        [(5, 3), (5, 3)]
    """

    def __init__(
        self,
        nets: Sequence[nn.Module],
        *,
        leader: int = -1,
        shared: int = 0,
        tree: Sequence[int] = (),
        rescale: bool = False,
        stage_maps: bool = False,
        frozen: Sequence[int] = (),
        peer_views: int = 0,
    ) -> None:
        super().__init__()
        if not nets:
            raise ConfigError("a cohort needs at least one network; give nets=[...]")
        if not -len(nets) <= leader < len(nets):
            raise ConfigError(f"leader {leader} is not one of {len(nets)} peers; give a number below {len(nets)}")
        self.leader = leader % len(nets)
        self.rescale = rescale
        self.stage_maps = stage_maps
        self.preactivations = False
        self.peer_views = peer_views
        self.execution: Execution | None = None
        self.nets = nn.ModuleList(as_tappable(net) for net in nets)
        self.here = range(len(nets))
        self._parked: list[nn.Parameter] = []
        counts = [net.num_classes for net in self]
        if len(set(counts)) > 1:
            raise ConfigError(f"peers have heads of {counts} classes; give all of them the same number")
        self.copies = copies_of_stages(list(self.nets), shared=shared, tree=tree)
        self._share()
        self.frozen = self._freeze(frozen)

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

    @property
    def shared(self) -> int:
        """Stages after the stem that all peers share."""
        return sum(count == 1 for count in self.copies) if len(self) > 1 else 0

    @property
    def divided(self) -> bool:
        """Whether some peers live in other processes."""
        return len(self.here) < len(self)

    def keep(self, peers: range) -> None:
        """Leave the other peers to other processes, which do the same and then run the cohort whenever this one does.

        Modules of peers that live elsewhere stay on the CPU, without gradient: a place where weights can arrive.

        Args:
            peers: that live here.

        Raises:
            ConfigError: they share stages with others.
        """
        self.here = peers
        elsewhere = nn.ModuleList(net for m, net in enumerate(self.nets) if m not in peers)
        own = nn.ModuleList(self.nets[m] for m in peers)
        if not set(own.parameters()).isdisjoint(elsewhere.parameters()):
            raise ConfigError(
                f"peers {list(peers)} share stages with peers of another process; set cohort.shared=0, cut the tree"
                " between them, or set train.peer_ranks=1"
            )
        self._parked = list(filter(_learns, elsewhere.parameters()))
        elsewhere.requires_grad_(False).cpu()

    def keep_all(self, device: torch.device) -> None:
        """Let all peers live here again, with the weights that have last arrived, on a device."""
        for parameter in self._parked:
            parameter.requires_grad_(True)
        self.here, self._parked = range(len(self)), []
        self.to(device)

    def elsewhere(self) -> list[Tensor]:
        """Parameters and buffers of the peers that live in other processes."""
        away = [net for m, net in enumerate(self.nets) if m not in self.here]
        return [tensor for net in away for tensor in (*net.parameters(), *net.buffers())]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Cohort:
        for m, net in enumerate(self.nets):
            net._apply(fn if m in self.here else lambda tensor: fn(tensor).cpu(), recurse)  # type: ignore[no-untyped-call]
        return self

    def train(self, mode: bool = True) -> Cohort:
        """Set the mode of all peers but the frozen ones, which always evaluate."""
        super().train(mode)
        for peer in self.frozen:
            self.nets[peer].eval()
        return self

    def forward(self, views: Tensor) -> list[PeerOutput]:
        """Run all peers; a part that several of them share runs once.

        Args:
            views: `[V, B, C, H, W]`; with V=1 every peer sees the same view, with V=M peer m sees view m. Of views
                beyond `peer_views` no peer sees any.

        Returns:
            M outputs, in order; those of frozen peers, and of peers that live elsewhere, without gradient.
        """
        return told(self._run(views))

    def _run(self, views: Tensor) -> list[PeerOutput]:
        """The outputs of the peers that live here."""
        if self.execution is not None and self.training:
            return self.execution(self, views)
        done: _Done = {}
        notes: list[Notes] = [{} for _ in views]
        return [self.run_peer(m, views, done, notes) for m in self.here]

    def seen(self, views: Tensor) -> list[int]:
        """For each peer the view, of `[V, B, C, H, W]`, that it sees."""
        return [peer % (self.peer_views or views.shape[0]) for peer in range(len(self))]

    def run_peer(self, peer: int, views: Tensor, done: _Done, notes: Sequence[Notes]) -> PeerOutput:
        """Run one peer.

        Args:
            peer: which.
            views: `[V, B, C, H, W]`.
            done: maps after parts that are shared and have been run; added to.
            notes: for each view, what was noted of shared parts; added to.
        """
        view = self.seen(views)[peer]
        net = self.nets[peer]
        with torch.set_grad_enabled(torch.is_grad_enabled() and peer not in self.frozen):
            if not self.copies or not isinstance(net, StagedNet):
                return cast("Tappable", net).tap(views[view], self.stage_maps, self.preactivations)
            if self.preactivations:
                return net.watched(lambda: self._through(net, views[view], view, done), notes[view])
            return self._through(net, views[view], view, done)

    def _through(self, net: StagedNet, image: Tensor, view: int, done: _Done) -> PeerOutput:
        return net.finish(self._trunk(net, image, view, done), self.stage_maps)

    def _trunk(self, net: StagedNet, image: Tensor, view: int, done: _Done) -> list[Tensor]:
        """Maps after the stem and every stage, each part run once for all peers that share the way to it."""
        way: tuple[int, ...] = (view,)
        value, maps = image, list[Tensor]()
        for depth, part in enumerate([net.stem, *net.stages]):
            way = (*way, id(part))
            if way not in done:
                done[way] = self._at_split(part(value), depth)
            value = done[way]
            maps.append(value)
        return maps

    def _at_split(self, value: Tensor, depth: int) -> Tensor:
        """Scale the gradient where peers part, after the stem (`depth` 0) or a stage."""
        if not self.rescale or depth > len(self.copies):
            return value
        counts = (self.copies[0], *self.copies, len(self))
        branches = -(-counts[depth + 1] // counts[depth])
        return rescale_gradient(value, 1 / branches) if branches > 1 else value

    def _share(self) -> None:
        for m, net in enumerate(self.nets):
            for k, count in enumerate(self.copies):
                owner = owner_of(m, count, num_peers=len(self), leader=self.leader)
                self._take(m, k, self.nets[owner], net)

    def _take(self, peer: int, k: int, owner: nn.Module, net: nn.Module) -> None:
        assert isinstance(owner, StagedNet) and isinstance(net, StagedNet)
        check_alike(peer, k, owner, net)
        net.stages[k] = owner.stages[k]
        if k == 0:
            net.stem = owner.stem

    def _freeze(self, peers: Sequence[int]) -> frozenset[int]:
        for peer in peers:
            if not 0 <= peer < len(self) or peer == self.leader:
                others = [m for m in range(len(self)) if m != self.leader]
                raise ConfigError(f"peer {peer} cannot be frozen; name some of {others}, the leader learns")
            for parameter in self.nets[peer].parameters():
                parameter.requires_grad_(False)
        return frozenset(peers)


def note_guilty_peer(error: Exception, cohort: Cohort) -> None:
    """Add to an error that a network's own code has raised whose network it was.

    Args:
        error: while it is handled; its traceback tells.
        cohort: whose peers were run.
    """
    for frame, _ in walk_tb(error.__traceback__):
        if frame.f_code is Cohort.run_peer.__code__:
            peer = frame.f_locals["peer"]
            error.add_note(f"raised by peer {peer}, a {type(cohort.nets[peer]).__name__}")


def _learns(parameter: nn.Parameter) -> bool:
    return parameter.requires_grad
