"""From a recipe to the parts of a run: networks, cohort, method. Only wiring."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy
import torch
from torch import nn

from coterie.cohort import Cohort, Teachers
from coterie.config import DataConfig, Recipe, TrainConfig
from coterie.core.allocator import keep_freed_memory
from coterie.core.combined import make_method
from coterie.core.draws import mix
from coterie.core.errors import ConfigError
from coterie.core.method import Facts, Method, PeerFacts
from coterie.data import ClassAwareOrder, EpisodeOrder, Opened, Order, ShuffledOrder, ViewPlan
from coterie.engine.rng_state import restore_rng, rng_tensors, rng_values
from coterie.experiment.weights import load_weights
from coterie.nets import NETS
from coterie.nets.inputs import Sight


@dataclass(frozen=True, slots=True)
class Parts:
    """The built parts of a run that training, evaluation and export share.

    Attributes:
        data: opened.
        cohort: on the device.
        method: on the device.
        device: where the run computes.
        teachers: outside the cohort.
        sight: what the peers see of an image.
        peers: who takes part, by number in the recipe.
        names: their networks.
    """

    data: Opened
    cohort: Cohort
    method: Method
    order: Order
    device: torch.device
    teachers: Teachers
    sight: Sight
    peers: tuple[int, ...]
    names: tuple[str, ...]

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """`(C, H, W)` of what the peers see."""
        channels, size = self.sight.shape(self.data.train.channels, self.data.train.image_size)
        return channels, size, size


def net_names(recipe: Recipe) -> tuple[str, ...]:
    """Name the network of every peer."""
    return recipe.cohort.nets or (recipe.net.name,) * recipe.cohort.peers


def build_nets(recipe: Recipe, *, num_classes: int, channels: int, image_size: int) -> list[nn.Module]:
    """Build the networks of all peers with fresh weights.

    The weights of a peer depend on the seed and on its distance from the leader only, so that the leader of a cohort
    and a network trained alone start equal.

    Raises:
        ConfigError: a network name is unknown or the leader is not one of the peers.
    """
    names = net_names(recipe)
    leader = recipe.cohort.leader
    if not -len(names) <= leader < len(names):
        raise ConfigError(f"cohort.leader is {leader} and there are {len(names)} peers; name one of them")
    nets = []
    for m, name in enumerate(names):
        with fresh(mix(recipe.seed, "net", (m - leader) % len(names))):
            nets.append(NETS[name](num_classes=num_classes, in_channels=channels, image_size=image_size))
    return nets


def build_method(
    recipe: Recipe,
    cohort: Cohort,
    data: Opened,
    *,
    phase: int = 0,
    peers: tuple[PeerFacts, ...] = (),
    teachers: tuple[PeerFacts, ...] = (),
) -> Method:
    """Build the method with fresh heads and memories, and let the cohort give what it needs.

    Args:
        recipe: names the method and its knobs.
        cohort: the peers.
        data: gives the labels.
        phase: 0 for the first cohort of a run; another number gives other fresh weights.
        peers: sizes of the peers' outputs, for methods that learn from teachers.
        teachers: sizes of the teachers' outputs.

    Raises:
        ConfigError: the cohort or the data cannot serve it.
    """
    facts = Facts(
        num_peers=len(cohort),
        leader=cohort.leader,
        num_classes=cohort.num_classes,
        embedding_dims=cohort.embedding_dims,
        labels=data.train.labels,
        num_epochs=recipe.epochs,
        limited=recipe.data.limit > 0,
        seed=mix(recipe.seed, "method"),
        stage_channels=tuple(net.stage_channels for net in cohort),
        shared=cohort.shared,
        frozen=tuple(sorted(cohort.frozen)),
        peers=peers,
        teachers=teachers,
    )
    with fresh(mix(recipe.seed, "heads", phase) if phase else mix(recipe.seed, "heads")):
        method = make_method(recipe.method, recipe.method_config, facts)
        method.attach(cohort)
    _check_views(recipe, method, data)
    needs = method.requirements()
    if needs.held_out and data.validation is None:
        raise ConfigError(f"{recipe.method} learns from held-out images; set data.validation, 0.1 for instance")
    cohort.stage_maps, cohort.rescale, cohort.peer_views = needs.stage_maps, needs.rescale_branches, needs.peer_views
    cohort.preactivations = needs.preactivations
    return method


def build_cohort(
    recipe: Recipe,
    data: Opened,
    shape: tuple[int, int, int],
    *,
    nets: Sequence[nn.Module] | None = None,
    peers: Sequence[int] = (),
) -> Cohort:
    """Build the cohort, from given networks or from those the recipe names.

    Args:
        recipe: names networks, leader and layout.
        data: gives the classes.
        shape: `(C, H, W)` of what the networks see.
        nets: networks in place of those the recipe names.
        peers: who takes part, by number in the recipe; all when empty.

    Raises:
        ConfigError: the heads do not fit the classes of the data, or stages cannot be shared.
    """
    if nets is None:
        nets = build_nets(recipe, num_classes=len(data.classes), channels=shape[0], image_size=shape[1])
    load_weights(nets, recipe.cohort.weights)
    peers = peers or range(len(nets))
    cohort = Cohort(
        [nets[m] for m in peers],
        leader=_place_of_leader(recipe, peers, len(nets)),
        shared=recipe.cohort.shared,
        tree=recipe.cohort.tree,
        frozen=_places_of_frozen(recipe, peers, len(nets)),
    )
    if cohort.num_classes != len(data.classes):
        raise ConfigError(
            f"the networks' heads have {cohort.num_classes} classes and the data {len(data.classes)};"
            " build the networks with as many classes as the data have"
        )
    return cohort


def _place_of_leader(recipe: Recipe, peers: Sequence[int], count: int) -> int:
    leader = recipe.cohort.leader
    return list(peers).index(leader % count) if -count <= leader < count else leader  # the cohort refuses the others


def _places_of_frozen(recipe: Recipe, peers: Sequence[int], count: int) -> list[int]:
    unknown = [m for m in recipe.cohort.frozen if not 0 <= m < count]
    return [place for place, m in enumerate(peers) if m in recipe.cohort.frozen] + unknown


def views_for(recipe: Recipe, method: Method) -> int:
    """Number of views V that the data must give: the method's need or `data.views`, whichever is larger."""
    needed = method.requirements().views
    peers = method.facts.num_peers if needed == "per_peer" else int(needed)
    return max(peers, recipe.data.views)


def _check_views(recipe: Recipe, method: Method, data: Opened) -> None:
    config, views = recipe.data, views_for(recipe, method)
    plan = ViewPlan.of(config, data.normalisation, seed=recipe.seed)
    if views > 1 and not (plan.padding or plan.flip or getattr(data.train, "varies", False)):
        cause, remedy = _why_alike(config)
        raise ConfigError(f"{views} views of each image are asked for and {cause} makes them all alike; set {remedy}")


def _why_alike(config: DataConfig) -> tuple[str, str]:
    """The settings that make all views of an image alike, and the one that changes it."""
    if config.augment == "none":
        return "data.augment='none'", "data.augment=crop"
    return "data.padding=0 with data.flip=false", "data.padding=4"


def order_for(recipe: Recipe, method: Method, data: Opened) -> Order:
    """Choose the order of the images: episodes, by class when the method needs several of each in a batch, or shuffled.

    Raises:
        CoterieError: such batches cannot be made of the data.
    """
    labels, key, needs = data.train.labels, mix(recipe.seed, "order"), method.requirements()
    per_class, episode = needs.samples_per_class, needs.episode
    if episode is not None:
        if episode.per_class < per_class:
            raise ConfigError(
                f"{recipe.method} needs {per_class} images of each class and an episode has {episode.per_class};"
                " raise its queries"
            )
        return EpisodeOrder(labels, episode, key)
    if per_class:
        return ClassAwareOrder(labels, recipe.data.batch_size, per_class, key)
    return ShuffledOrder(len(labels), recipe.data.batch_size, key)


def images_per_batch(recipe: Recipe, method: Method) -> int:
    """Number of images B in a training batch: those of an episode, or `data.batch_size`."""
    episode = method.requirements().episode
    return recipe.data.batch_size if episode is None else episode.images


def pick_device(name: str) -> torch.device:
    """Turn `auto` or a device name into a device.

    Raises:
        ConfigError: no such device on this machine.
    """
    if name == "auto":
        return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"train.device is {name!r}: {reason}; try train.device=auto") from None
    return device


@contextmanager
def runtime(config: TrainConfig, seed: int) -> Iterator[None]:
    """Context with the threads, the determinism and the global generators of a run; all are put back afterwards.

    The process keeps the memory it frees from then on, see `keep_freed_memory`.

    Args:
        config: threads and determinism.
        seed: of the global generators of torch, numpy and Python, which only a user's own modules draw from.
    """
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    tensors, values = rng_tensors(), rng_values()
    keep_freed_memory()
    torch.set_num_threads(config.threads or threads)
    if config.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it CUDA refuses to be deterministic
    torch.use_deterministic_algorithms(config.deterministic)
    torch.manual_seed(seed)
    numpy.random.seed(seed % 2**32)
    random.seed(seed)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic)
        restore_rng(tensors, values)


@contextmanager
def fresh(seed: int) -> Iterator[None]:
    """Context in which fresh weights are drawn under a seed of their own; torch's generator is put back afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
