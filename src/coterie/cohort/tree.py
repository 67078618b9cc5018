"""Which peers share which stages."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import nn

from coterie.core.errors import ConfigError
from coterie.nets import StagedNet, TappedNet


def copies_of_stages(nets: Sequence[nn.Module], *, shared: int, tree: Sequence[int]) -> tuple[int, ...]:
    """Say how many copies of each stage a cohort has.

    Args:
        nets: M networks.
        shared: stages after the stem that all share, used when there is no tree.
        tree: copies of each stage, first to last.

    Returns:
        One number per stage that some peers share, never falling and less than M; empty for separate peers.

    Raises:
        ConfigError: networks that have no stages, too few of them, or numbers that do not make a tree.
    """
    wanted = _wanted(shared, tree)
    if len(nets) == 1 or not wanted:
        return ()
    _check_fits(wanted, nets)
    return tuple(count for count in wanted if count < len(nets))


def _check_fits(wanted: Sequence[int], nets: Sequence[nn.Module]) -> None:
    depth = min(_num_stages(m, net) for m, net in enumerate(nets))
    if len(wanted) > depth or not _rises(wanted, len(nets)):
        raise ConfigError(
            f"{len(nets)} peers of {depth} stages cannot have their first {len(wanted)} in {list(wanted)} copies;"
            " give at most as many numbers as there are stages, rising from 1 to the number of peers"
        )


def _wanted(shared: int, tree: Sequence[int]) -> tuple[int, ...]:
    if shared < 0 or (tree and shared):
        raise ConfigError(f"cohort.shared={shared} and cohort.tree={list(tree)}; give one of them, not below 0")
    return tuple(tree) or (1,) * shared


def _num_stages(peer: int, net: nn.Module) -> int:
    if not isinstance(net, StagedNet):
        kind = type(net.net if isinstance(net, TappedNet) else net).__name__
        raise ConfigError(
            f"peer {peer}, a {kind}, cannot share stages, only staged networks can;"
            " set cohort.shared=0 and no cohort.tree, or use coterie.StagedNet"
        )
    return len(net.stages)


def _rises(counts: Sequence[int], most: int) -> bool:
    return all(1 <= low <= high for low, high in pairwise((*counts, most)))


def owner_of(peer: int, copies: int, *, num_peers: int, leader: int) -> int:
    """Name the peer whose copy of a stage a peer uses: the leader in its own group, the first peer in any other.

    Example:
        >>> [owner_of(m, 2, num_peers=4, leader=3) for m in range(4)]
        [0, 0, 3, 3]
    """
    group = [m for m in range(num_peers) if m * copies // num_peers == peer * copies // num_peers]
    return leader if leader in group else group[0]


def check_alike(peer: int, k: int, owner: StagedNet, net: StagedNet) -> None:
    """Refuse to share stages of different kinds or sizes.

    Raises:
        ConfigError: stem or stage `k` of the two networks differ.
    """
    parts = [(owner.stem, net.stem)] if k == 0 else []
    if any(repr(a) != repr(b) for a, b in [*parts, (owner.stages[k], net.stages[k])]):
        raise ConfigError(
            f"peer {peer} cannot share stage {k + 1} of another network: the two are not alike; lower cohort.shared"
        )
