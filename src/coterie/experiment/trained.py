"""The networks of a run without its data: rebuilt from recipe and checkpoint, once trained and once fresh."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from coterie.config import Recipe
from coterie.core.errors import CheckpointError, ConfigError
from coterie.engine import CheckpointStore, Snapshot, restore_peers
from coterie.engine.snapshot import Tensors, module_tensors
from coterie.experiment.build import build_nets, net_names
from coterie.experiment.experiment import Experiment
from coterie.experiment.phases import peers_in
from coterie.nets import TappedNet
from coterie.nets.tapped import find_head, plain

_SIZES = (32, 64, 28, 84, 224, 96, 8)  # of images, tried for networks whose layers depend on it


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """The peers of a run.

    Attributes:
        names: network of each peer.
        leader: index of the leader.
        trained: networks with the weights of the newest checkpoint.
        fresh: the same networks with weights as they are drawn from the run's seed.
        channels: C of the images they take.
        state: `last_epoch`, or `newest_checkpoint` of a run that is not finished.
    """

    names: tuple[str, ...]
    leader: int
    trained: list[nn.Module]
    fresh: list[nn.Module]
    channels: int
    state: str


def load_trained(experiment: Experiment) -> Trained:
    """Rebuild the networks of a run and give them the weights of its newest checkpoint; its data are not opened.

    The number of classes, of channels and, where it matters, the size of images are read off the saved weights.

    Args:
        experiment: what `open_run` returned.

    Raises:
        ConfigError: the run has no checkpoint, or its networks are not known here.
        CheckpointError: the checkpoint is damaged or is not of these networks.
    """
    recipe, folder = experiment.recipe, experiment.folder
    found = CheckpointStore(folder.checkpoints).load_newest(read_only=True)
    if found is None:
        raise ConfigError(f"{folder.path} has no checkpoint yet; train it first")
    nets, channels = _rebuild(recipe, found[1])
    fresh, _ = _rebuild(recipe, found[1])
    restore_peers([plain(net) for net in nets], found[1])
    names, peers = net_names(recipe), peers_in(found[1], recipe)
    return Trained(
        names=tuple(names[m] for m in peers),
        leader=peers.index(recipe.cohort.leader % len(names)),
        trained=nets,
        fresh=fresh,
        channels=channels,
        state="last_epoch" if found[1].value("epoch") == recipe.epochs else "newest_checkpoint",
    )


def _rebuild(recipe: Recipe, snapshot: Snapshot) -> tuple[list[nn.Module], int]:
    """Fresh networks that the saved weights fit, and the channels of their images."""
    saved = dict(snapshot.section("peer0"))
    reason: Exception = CheckpointError("the checkpoint is not of the networks of its recipe; train the run again")
    for size in (recipe.data.image_size,) if recipe.data.image_size else _SIZES:
        try:
            (trial, *_) = build_nets(recipe, num_classes=2, channels=3, image_size=size)
            for channels in _channels(trial, saved):
                built = build_nets(recipe, num_classes=_classes(trial, saved), channels=channels, image_size=size)
                nets = [built[m] for m in peers_in(snapshot, recipe)]
                if all(_fits(net, snapshot, m) for m, net in enumerate(nets)):
                    return nets, channels
        except ConfigError as error:  # too small an image, say
            reason = error
    raise reason


def _channels(net: nn.Module, saved: Tensors) -> Iterator[int]:
    """Channels of the images: what the first convolution has, or a guess where there is none."""
    own = module_tensors(plain(net))
    kernels = [saved[name] for name, tensor in own.items() if tensor.dim() == 4 and name in saved]
    yield from [kernels[0].shape[1]] if kernels else (3, 1)


def _classes(net: nn.Module, saved: Tensors) -> int:
    head = net.head_name if isinstance(net, TappedNet) else find_head(net)
    weight = saved.get(f"{head}.weight")
    if weight is None:
        raise CheckpointError(f"the checkpoint has no classifier {head!r}; train the run again")
    return weight.shape[0]


def _fits(net: nn.Module, snapshot: Snapshot, peer: int) -> bool:
    saved = snapshot.section(f"peer{peer}")
    own = module_tensors(plain(net))
    return own.keys() == saved.keys() and all(own[name].shape == saved[name].shape for name in own)
