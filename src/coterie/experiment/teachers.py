"""Teachers of a run: found, loaded, and measured before anybody learns from them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

import torch
from torch import Tensor, nn

from coterie.cohort import Cohort, Teachers
from coterie.config import Recipe, load_recipe
from coterie.core.errors import ConfigError
from coterie.core.method import PeerFacts
from coterie.core.record import RunFolder
from coterie.data import Opened
from coterie.engine.snapshot import restore_module
from coterie.experiment.weights import leader_of, read_weights
from coterie.nets import NETS, Tappable
from coterie.nets.inputs import Sight, sight_for


@dataclass(frozen=True, slots=True)
class _Source:
    """Where one teacher comes from: weights, the name of its network, and what it sees."""

    weights: str
    net: str
    sees: str


def build_teachers(recipe: Recipe, data: Opened, *, view: int = 0) -> Teachers:
    """Load the teachers that a recipe names.

    Args:
        recipe: names them.
        data: what they will look at.
        view: which of the views of an image they see.

    Raises:
        ConfigError: a source does not exist, a network is not named, or names do not match sources.
        CheckpointError: weights are damaged, are of another network, or are no plain tensors.
    """
    config = recipe.teacher
    if len(config.nets) > len(config.weights):
        raise ConfigError(
            f"teacher.nets names {len(config.nets)} networks and teacher.weights {len(config.weights)} sources;"
            " give the weights of each"
        )
    sources = [
        _source(weights, net, sees)
        for weights, net, sees in zip_longest(config.weights, config.nets, config.inputs, fillvalue="")
    ]
    sights = [sight_for(source.sees, data.normalisation.mean, data.normalisation.std) for source in sources]
    nets = [_load(source, sight, data) for source, sight in zip(sources, sights, strict=True)]
    return Teachers(nets, sights=sights, view=view)


def cohort_facts(cohort: Cohort, teachers: Teachers, shape: tuple[int, int, int]) -> tuple[PeerFacts, ...]:
    """Find the sizes of the peers' outputs; nothing is run when nobody teaches from outside or frozen.

    Args:
        cohort: the peers, on the CPU.
        teachers: outside the cohort.
        shape: `(C, H, W)` of what the peers see.
    """
    taught = bool(cohort.frozen or len(teachers))
    return tuple(_facts_of(net, shape) for net in cohort) if taught else ()


def teacher_facts(teachers: Teachers, data: Opened) -> tuple[PeerFacts, ...]:
    """Find the sizes of the teachers' outputs, by running each on an empty image.

    Args:
        teachers: on the CPU.
        data: what they will look at.
    """
    shapes = [sight.shape(data.train.channels, data.train.image_size) for sight in teachers.sees]
    return tuple(_facts_of(net, (c, size, size)) for net, (c, size) in zip(teachers, shapes, strict=True))


def teacher_scores(teachers: Teachers, batches: Iterator[tuple[Tensor, Tensor]]) -> list[float]:
    """Measure the top-1 accuracy of each teacher in percent; -1 for one whose classes are others.

    Args:
        teachers: on the device of the images.
        batches: images `[B, C, H, W]` as the data give them, and labels `[B]`.
    """
    right: Tensor | None = None
    count = 0
    for images, labels in batches:
        found = torch.stack([(out.logits.argmax(dim=1) == labels).sum() for out in teachers.look(images)])
        right = found if right is None else right + found
        count += labels.shape[0]
    return [] if right is None else (right.double() * 100 / count).tolist()


def _source(weights: str, net: str, sees: str) -> _Source:
    place, _, number = weights.partition("#")
    if not Path(place).is_dir():
        if not net:
            raise ConfigError(f"teacher {weights!r} is no folder of a run; name its network with teacher.nets")
        return _Source(weights, net, sees or "image")
    recipe = load_recipe(RunFolder(Path(place)).existing().recipe)
    names = recipe.cohort.nets or (recipe.net.name,) * recipe.cohort.peers
    peer = int(number) if number.isdecimal() else leader_of(Path(place), len(names))
    return _Source(weights, net or names[min(peer, len(names) - 1)], sees or recipe.net.input)


def _load(source: _Source, sight: Sight, data: Opened) -> nn.Module:
    tensors = read_weights(source.weights)
    matrices = [tensor for tensor in tensors.values() if tensor.dim() == 2]
    classes = matrices[-1].shape[0] if matrices else len(data.classes)
    channels, size = sight.shape(data.train.channels, data.train.image_size)
    net = NETS[source.net](num_classes=classes, in_channels=channels, image_size=size)
    restore_module(net, tensors, what=f"teacher {source.net}, given {source.weights},")
    return net


@torch.no_grad()
def _facts_of(net: Tappable, shape: tuple[int, int, int]) -> PeerFacts:
    assert isinstance(net, nn.Module)
    modes = {module: module.training for module in net.modules()}
    net.eval()
    output = net.tap(torch.zeros(2, *shape), bool(net.stage_channels))
    for module, mode in modes.items():
        module.training = mode
    stages = tuple((stage.shape[1], stage.shape[2], stage.shape[3]) for stage in output.stages)
    return PeerFacts(embedding_dim=net.embedding_dim, num_classes=net.num_classes, stages=stages)
