"""Teachers of a run: found, loaded, and measured before anybody learns from them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

import torch
from torch import Tensor, nn

from coterie.cohort import Cohort, Teachers
from coterie.cohort.facts import facts_of
from coterie.config import Recipe, load_recipe
from coterie.core.errors import CheckpointError, ConfigError
from coterie.core.method import PeerFacts
from coterie.core.record import RunFolder
from coterie.data import Opened
from coterie.engine import Snapshot, digest
from coterie.engine.snapshot import module_tensors, restore_module
from coterie.experiment.weights import leader_of, read_weights
from coterie.nets import NETS
from coterie.nets.inputs import Sight, sight_for
from coterie.nets.tapped import plain
from coterie.nets.vision import pretrained

_BATCH = 256


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
            f"teacher.nets names {', '.join(config.nets)}, and teacher.weights {len(config.weights)} sources; give the"
            " weights of each, with teacher.weights=RUN_OR_FILE for one"
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
    return tuple(facts_of(net, shape) for net in cohort.nets) if taught else ()


def teacher_facts(teachers: Teachers, data: Opened) -> tuple[PeerFacts, ...]:
    """Find the sizes of the teachers' outputs, by running each on an empty image.

    Args:
        teachers: on the CPU.
        data: what they will look at.
    """
    shapes = [sight.shape(data.train.channels, data.train.image_size) for sight in teachers.sees]
    return tuple(facts_of(net, (c, size, size)) for net, (c, size) in zip(teachers.nets, shapes, strict=True))


def teacher_scores(teachers: Teachers, batches: Iterable[tuple[Tensor, Tensor]]) -> list[float]:
    """Measure the top-1 accuracy of each teacher, in per cent.

    Args:
        teachers: at least one, on the device of the images.
        batches: images `[B, C, H, W]` as the data give them, and labels `[B]`; at least one.
    """
    right, images_seen = torch.zeros(len(teachers), dtype=torch.float64), 0
    for images, labels in batches:
        found = [(output.logits.argmax(dim=1) == labels).sum() for output in teachers.look(images)]
        right += torch.stack(found).cpu()
        images_seen += labels.shape[0]
    accuracies: list[float] = (right * 100 / images_seen).tolist()
    return accuracies


def digest_of(teachers: Teachers) -> str:
    """SHA-256 over the weights of all teachers: a run goes on with the teachers it was begun with, or not at all."""
    return digest(Snapshot(tensors={f"teacher{t}": module_tensors(net) for t, net in enumerate(teachers.nets)}))


def _source(weights: str, net: str, sees: str) -> _Source:
    place, _, number = weights.partition("#")
    if Path(place).is_dir():
        recipe = load_recipe(RunFolder(Path(place)).existing().recipe)
        return _Source(weights, net or _net_of_run(Path(place), recipe, number), sees or recipe.net.input)
    if not net and not _is_model(weights):
        raise ConfigError(f"teacher {weights!r} is no folder of a run; name its network with teacher.nets")
    return _Source(weights, net, sees or "image")


def _net_of_run(folder: Path, recipe: Recipe, number: str) -> str:
    """Name the network of a peer, or of the leader where no number is given."""
    names = recipe.cohort.nets or (recipe.net.name,) * recipe.cohort.peers
    peer = int(number) if number.isdecimal() else leader_of(folder, len(names))
    return names[min(peer, len(names) - 1)]


def _is_model(name: str) -> bool:
    """Whether a source is a model of a package, with the weights that the package offers."""
    return name.partition("/")[0] in NETS.sources and not Path(name).exists()


def _load(source: _Source, sight: Sight, data: Opened) -> nn.Module:
    channels, size = sight.shape(data.train.channels, data.train.image_size)
    if _is_model(source.weights):
        return pretrained(source.weights, in_channels=channels, image_size=size)
    tensors = read_weights(source.weights)
    matrices = [tensor for tensor in tensors.values() if tensor.dim() == 2]
    classes = matrices[-1].shape[0] if matrices else len(data.classes)
    net = NETS[source.net](num_classes=classes, in_channels=channels, image_size=size)
    try:
        restore_module(plain(net), tensors, what=f"teacher {source.net}, given {source.weights},")
    except CheckpointError as error:
        raise ConfigError(f"{str(error).partition(';')[0]}; name its network with teacher.nets") from None
    return net
