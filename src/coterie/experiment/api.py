"""The same in a few lines of Python: your own networks, your own data sets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn
from torch.utils.data import Dataset

import coterie.methods  # noqa: F401 (registers them)
from coterie.config import Recipe, resolve
from coterie.core.errors import ConfigError
from coterie.data import Normalisation, from_dataset
from coterie.experiment.experiment import Experiment
from coterie.experiment.runs import OWN_DATA, new_folder
from coterie.nets.tapped import plain


@dataclass(frozen=True, slots=True)
class Outcome:
    """What training gives back.

    Attributes:
        leader: the network that is kept, trained; the very module that was given.
        nets: all trained networks, in order.
        result: scores as in `result.json`.
        folder: the run: log, checkpoints, result.
    """

    leader: nn.Module
    nets: tuple[nn.Module, ...]
    result: Mapping[str, Any]
    folder: Path


def train(
    nets: Sequence[nn.Module],
    train_set: Dataset[Any],
    test_set: Dataset[Any],
    *,
    method: str = "mcl_okd",
    settings: Mapping[str, object] | None = None,
    normalisation: Normalisation | None = None,
    out: str | Path | None = None,
    resume: bool = False,
) -> Outcome:
    """Train networks together and keep the last one, or the one that `cohort.leader` names.

    Args:
        nets: M networks, each mapping images `[B, C, H, W]` to logits `[B, K]` through a final linear layer; they are
            trained in place. Wrap one in `coterie.TappedNet(net, head="name")` when its classifier is not found.
        train_set: items (image, label); PIL or uint8 images are cropped, flipped and normalised, floating point images
            are taken as finished. A tenth is held out for validation unless `data.validation` says otherwise.
        test_set: items for the evaluation after the last epoch.
        method: a registered method, see `coterie list methods`.
        settings: knobs by dotted name, such as `{"epochs": 30, "optim.lr": 0.1, "method.beta": 0.05}`.
        normalisation: of PIL and uint8 images; mean and deviation 0.5 by default.
        out: folder of the run; `runs/NAME` by default.
        resume: go on with the run in `out`.

    Returns:
        The leader and what was measured of it.

    Raises:
        CoterieError: one line on what is wrong with networks, data or settings, before the first step.
    """
    if resume and out is None:
        raise ConfigError("resume=True needs the folder of the run; give out=...")
    recipe = recipe_for(nets, method, settings or {})
    folder = Path(out) if out is not None else new_folder(method)
    source = from_dataset(train_set, test_set, normalisation=normalisation)
    experiment = Experiment(recipe, folder=folder, nets=nets, source=source)
    result = experiment.train(resume=resume)
    own = tuple(map(plain, nets))
    return Outcome(leader=own[recipe.cohort.leader], nets=own, result=result, folder=folder)


def recipe_for(nets: Sequence[nn.Module], method: str, settings: Mapping[str, object]) -> Recipe:
    """Write the recipe of given networks: settings over defaults, peers named after their classes.

    Raises:
        ConfigError: a setting is wrong, or there are no networks.
    """
    if not nets:
        raise ConfigError("a cohort needs at least one network; give nets=[...]")
    recipe = resolve({**_tree(settings), "method": {"name": method, **_method_knobs(settings)}}, origin="settings")
    names = tuple(type(plain(net)).__name__ for net in nets)
    return replace(recipe, cohort=replace(recipe.cohort, nets=names), data=replace(recipe.data, name=OWN_DATA))


def _tree(settings: Mapping[str, object]) -> dict[str, object]:
    return {key: value for key, value in settings.items() if not key.startswith("method.")}


def _method_knobs(settings: Mapping[str, object]) -> dict[str, object]:
    return {key.removeprefix("method."): value for key, value in settings.items() if key.startswith("method.")}
