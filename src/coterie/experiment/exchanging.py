"""From a recipe to its exchange with other jobs: names and networks are checked, partners, courier and blobs wired."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from coterie.cohort.facts import evaluating
from coterie.cohort.partners import ANY, Ageing, PartnerNets, Partners, PartnerScores
from coterie.config import ExchangeConfig, Recipe
from coterie.core.draws import mix, permutation
from coterie.core.errors import ConfigError
from coterie.core.method import Needs
from coterie.core.record import RunFolder, read_metrics
from coterie.data import Split, evaluation_batches
from coterie.data.fingerprint import digest
from coterie.engine import Run, Together
from coterie.engine.blobs import JOB, Expected, layout_of
from coterie.engine.courier import Courier, Mail, Parcel, Route
from coterie.engine.exchange import Exchange
from coterie.engine.places import open_place
from coterie.engine.replay import Replay
from coterie.engine.snapshot import module_tensors
from coterie.experiment.build import Parts, fresh, net_names
from coterie.nets import NETS, Tappable

_BATCH = 256


def check_exchange(recipe: Recipe, needs: Needs) -> None:
    """Refuse an exchange that cannot work, before anything is written.

    Args:
        recipe: names it.
        needs: of the method.

    Raises:
        ConfigError: with the remedy.
    """
    if recipe.exchange.folder:
        _check_given(recipe, needs)
    elif needs.partners:
        raise ConfigError(
            f"{recipe.method} learns from other jobs and there is no exchange; give exchange.folder=FOLDER_OR_URL"
            " exchange.job=NAME"
        )


def _check_given(recipe: Recipe, needs: Needs) -> None:
    config = recipe.exchange
    if not needs.partners:
        raise ConfigError(
            f"exchange.folder is given and {recipe.method} learns from no other job; leave it out, or add a method that"
            f" does, as in method={recipe.method}+codistillation_jobs"
        )
    _check_names(config)
    if config.max_age <= 2 * config.every:
        raise ConfigError(
            f"exchange.max_age={config.max_age} is over before news can come with exchange.every={config.every}; give"
            f" more than {2 * config.every}"
        )
    _check_speaker(recipe)
    if recipe.train.compile == "graph":
        raise ConfigError("train.compile=graph repeats one step, and partners come and go; set train.compile=none")


def _check_speaker(recipe: Recipe) -> None:
    peers, ranks = len(net_names(recipe)), recipe.train.peer_ranks
    leader = recipe.cohort.leader % peers
    if leader >= peers // ranks:
        raise ConfigError(
            f"the first process speaks for the leader, and with train.peer_ranks={ranks} peer {leader} lives in another"
            " one; set cohort.leader=0"
        )


def _check_names(config: ExchangeConfig) -> None:
    _check_name("job", config.job)
    for name in config.partners:
        _check_name("partners", name)
    _check_distinct((config.job, *config.partners))
    for net in config.nets:
        NETS[net]


def _check_name(key: str, name: str) -> None:
    if not JOB.fullmatch(name):
        raise ConfigError(
            f"exchange.{key} is {name!r}; give 1 to 64 small letters, digits, _ and -, they become names of files"
        )


def _check_distinct(names: Sequence[str]) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigError(f"exchange names job {twice[0]!r} twice; name each partner once and the own job not at all")


def check_place(recipe: Recipe) -> None:
    """Refuse a place that this machine cannot open, or a run to be repeated that is not there; nothing is read.

    Raises:
        ConfigError: with the remedy.
    """
    config = recipe.exchange
    if config.folder:
        open_place(config.folder)
    if config.replay:
        RunFolder(Path(config.replay)).existing()


def partners_for(recipe: Recipe, parts: Parts) -> Partners | None:
    """Make the slots for partners; None without an exchange.

    Args:
        recipe: names the exchange.
        parts: of the run, on their device.
    """
    config = recipe.exchange
    if not config.folder:
        return None
    ageing = Ageing(fresh=2 * config.every, max_age=config.max_age)
    slots = len(config.partners) or config.max_partners
    make = {"weights": _partner_nets, "predictions": _partner_scores}[config.what]
    return make(recipe, parts, slots, ageing).to(parts.device)


def _partner_nets(recipe: Recipe, parts: Parts, slots: int, ageing: Ageing) -> Partners:
    return PartnerNets(slots, ageing, templates=_templates(recipe, parts), view=parts.cohort.leader)


def _partner_scores(recipe: Recipe, parts: Parts, slots: int, ageing: Ageing) -> Partners:
    rows = _rows_of(parts, _shared_rows(recipe.exchange, parts))
    sizes = {"shared": _num_shared(recipe.exchange, parts), "num_classes": parts.cohort.num_classes}
    return PartnerScores(slots, ageing, rows=rows, **sizes)


def exchange_for(
    recipe: Recipe,
    parts: Parts,
    run: Run,
    *,
    emit: Callable[[dict[str, Any]], None],
    keep: Callable[[dict[str, Any]], None],
    together: Together,
) -> Exchange | None:
    """Make what exchanges with other jobs, and let the steps of the run begin with it; None without an exchange.

    Args:
        recipe: names the exchange.
        parts: of the run, on their device.
        run: whose objective has slots for partners.
        emit: takes rows of the log.
        keep: takes the counters, for the next checkpoint.
        together: the processes that train together.

    Raises:
        ConfigError: the place cannot be opened on this machine.
    """
    config, partners = recipe.exchange, run.objective.partners
    if partners is None:
        return None
    say = partial({"weights": _weights, "predictions": _scores}[config.what], recipe, parts)
    agreed = _agreed(recipe, parts)
    facts = {"net": _net_name(recipe, parts), **agreed}
    exchange = Exchange(
        partners=partners,
        mail=_mail(config, partners, agreed),
        every=config.every,
        say=lambda run: Parcel(run.batches, say(), facts),
        emit=emit,
        keep=keep,
        together=together,
    )
    run.step = exchange.around(run.step)
    return exchange


def _mail(config: ExchangeConfig, partners: Partners, facts: Mapping[str, str]) -> Mail:
    layouts = {name: layout_of(tensors) for name, tensors in partners.kinds().items()}
    route = Route(
        place=open_place(config.folder),
        job=config.job,
        partners=config.partners,
        most=len(partners.known),
        max_age=config.max_age,
        keep=config.keep,
        expected=Expected(kind=config.what, layouts=layouts, facts=facts),
        timeout=config.timeout,
    )
    if config.replay:
        return Replay(route, read_metrics(RunFolder(Path(config.replay)).existing().metrics))
    return Courier(route)


def _net_name(recipe: Recipe, parts: Parts) -> str:
    """What an own blob calls its network."""
    return {"weights": parts.names[parts.cohort.leader], "predictions": ANY}[recipe.exchange.what]


def _agreed(recipe: Recipe, parts: Parts) -> dict[str, str]:
    """Words beside the tensors of an own blob that must be those of partners too."""
    shape = "x".join(map(str, parts.image_shape))
    words = {"classes": digest(shape, *parts.data.classes)}
    if recipe.exchange.what == "predictions":
        shared = str(_num_shared(recipe.exchange, parts))
        words["data"] = digest(_whole(parts).fingerprint(), shared)
    return words


def _templates(recipe: Recipe, parts: Parts) -> dict[str, nn.Module]:
    """A network of each kind that partners may have: the leader's own, or what the recipe names."""
    own = parts.names[parts.cohort.leader]
    return {name: _template(name, parts) for name in recipe.exchange.nets or (own,)}


def _template(name: str, parts: Parts) -> nn.Module:
    if name == parts.names[parts.cohort.leader]:
        return parts.cohort.nets[parts.cohort.leader]
    channels, size, _ = parts.image_shape
    with fresh(0):  # its weights are replaced before it is run
        return NETS[name](num_classes=parts.cohort.num_classes, in_channels=channels, image_size=size)


def _whole(parts: Parts) -> Split:
    """The data set before limit and validation split."""
    assert parts.data.whole is not None
    return parts.data.whole


def _num_shared(config: ExchangeConfig, parts: Parts) -> int:
    return min(config.images, len(_whole(parts).labels))


def _shared_rows(config: ExchangeConfig, parts: Parts) -> Tensor:
    """Rows `[S]` of the data set, rising: the same for every job, whatever its seed, limit and validation split."""
    chosen = permutation(mix("exchange"), len(_whole(parts).labels))[: config.images]
    return chosen.sort().values


def _rows_of(parts: Parts, shared: Tensor) -> Tensor:
    """For each training image of this run its row among the shared ones, `[N]` int64; -1 where it is none of them."""
    assert parts.data.rows is not None
    place = torch.full((len(_whole(parts).labels),), -1)
    place[shared] = torch.arange(len(shared))
    return place[parts.data.rows]


def _weights(recipe: Recipe, parts: Parts) -> dict[str, Tensor]:
    """The leader's weights and running statistics, copied to the CPU."""
    return {name: _copied(tensor) for name, tensor in module_tensors(parts.cohort.leader_net).items()}


@torch.no_grad()
def _scores(recipe: Recipe, parts: Parts) -> dict[str, Tensor]:
    """The leader's scores `[S, K]` of the shared images, as evaluation sees them."""
    data, leader = parts.data, parts.cohort.nets[parts.cohort.leader]
    batches = evaluation_batches(
        _whole(parts).select(_shared_rows(recipe.exchange, parts)),
        batch_size=_BATCH,
        normalisation=data.normalisation,
        device=parts.device,
        workers=recipe.data.workers,
        channels_last=recipe.train.channels_last,
    )
    with evaluating(leader):
        said = [_tap(leader, parts.sight(images)) for images, _ in batches]
    return {"logits": _copied(torch.cat(said).to(torch.float32))}


def _tap(net: nn.Module, images: Tensor) -> Tensor:
    return cast("Tappable", net).tap(images).logits


def _copied(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True).contiguous()
