"""Peers in different processes train as in one: to the bit where each holds whole batches, else to rounding."""

from __future__ import annotations

import json
import os
import signal
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn

from coterie.cohort import Cohort
from coterie.config import OptimConfig, TrainConfig
from coterie.core import METHODS, ConfigError, Needs
from coterie.core.across import told, twice
from coterie.core.environment import exactness_lost
from coterie.core.record import RunFolder
from coterie.core.types import PeerOutput
from coterie.core.world import Line, World, inside
from coterie.engine import CheckpointStore, Meters, Precision, Preempted, Stepper, make_optimizer
from coterie.engine.mesh import check_divisible, check_mesh, lines
from coterie.experiment import Experiment
from ranks import WAIT, difference, in_ranks, on_mesh, recipe_for, train
from tiny import signal_after

SHIPPED = [name for name in METHODS if METHODS[name].__module__.startswith("coterie.")]
CLOSE = 1e-10
FOUR = ("cnn4_w4",) * 4

HANDFUL: dict[str, tuple[str, dict[str, object]]] = {
    "banks, frozen Z": ("mcl_okd", {"method__z": "frozen"}),
    "two differentiations": ("l_mcl", {}),
    "stale copies": ("codistillation", {"method__interval": 3, "method__burn_in": 0}),
    "held-out images": ("kdcl", {"method__target": "general"}),
    "maps, a process with teachers only": ("fsp", {"cohort__frozen": (0, 1)}),
    "accumulated, clipped": ("dml", {"optim__accumulate": 2, "optim__clip": 0.5, "optim__name": "adamw"}),
    "networks of two kinds": ("dml", {"cohort__nets": ("cnn4_w4", "cnn4_w8", "cnn4_w4", "cnn4_w8")}),
    "a tree cut between its branches": ("dml", {"cohort__tree": (2, 2)}),
}


def recipe_named(name: str) -> Any:
    method, settings = HANDFUL[name]
    return recipe_for(method, **{"cohort__nets": FOUR, **settings})


def trained(folder: Path, size: int, runs: Callable[[int], dict[str, Any]]) -> None:
    """Train runs in processes that are started once; what each needs: its folder and its recipe."""

    def work(rank: int) -> None:
        for name, recipe in runs(rank).items():
            train(recipe, folder / name)

    assert in_ranks(size, work) == [("ok", None)] * size


@pytest.fixture(scope="module")
def two_as_one(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Every run of the handful in one process, and with its peers in two."""
    folder = tmp_path_factory.mktemp("handful")
    for number, name in enumerate(HANDFUL):
        train(recipe_named(name), folder / f"{number}-1")
    trained(folder, 2, lambda rank: {f"{n}-2": on_mesh(recipe_named(name), 2) for n, name in enumerate(HANDFUL)})
    yield folder


def assert_bits(one: Path, other: Path) -> None:
    """All that two runs keep, log and say at their end is equal, to the bit."""
    assert difference(one, other) == 0
    first, second = RunFolder(one), RunFolder(other)
    assert first.metrics.read_bytes() == second.metrics.read_bytes()
    results = [json.loads(folder.result.read_text()) for folder in (first, second)]
    assert results[0]["digest"] == results[1]["digest"] and results[0]["last"] == results[1]["last"]


@pytest.mark.parametrize("name", HANDFUL)
def test_two_processes_to_the_bit(two_as_one: Path, name: str) -> None:
    number = list(HANDFUL).index(name)
    assert_bits(two_as_one / f"{number}-1", two_as_one / f"{number}-2")


@pytest.mark.slow
def test_four_processes(two_as_one: Path) -> None:
    banks, second = (recipe_named(name) for name in list(HANDFUL)[:2])
    trained(
        two_as_one, 4, lambda rank: {"0-4": on_mesh(banks, 4), "1-4": on_mesh(second, 4), "1-22": on_mesh(second, 2)}
    )
    for number in (0, 1):
        assert_bits(two_as_one / f"{number}-1", two_as_one / f"{number}-4")
    assert difference(two_as_one / "1-1", two_as_one / "1-22") < CLOSE


@pytest.mark.slow
@pytest.mark.parametrize(("size", "peer_ranks"), [(2, 2), (4, 4), (4, 2)])
def test_every_method(tmp_path: Path, size: int, peer_ranks: int) -> None:
    names = [name for name in SHIPPED if METHODS[name].needs.shared_stages == 0]
    for name in names:
        train(recipe_for(name, cohort__nets=FOUR), tmp_path / f"{name}-one")
    trained(
        tmp_path, size, lambda rank: {name: on_mesh(recipe_for(name, cohort__nets=FOUR), peer_ranks) for name in names}
    )
    gaps = {name: difference(tmp_path / f"{name}-one", tmp_path / name) for name in names}
    allowed = 0 if size == peer_ranks else CLOSE
    assert {name: gap for name, gap in gaps.items() if gap > allowed} == {}


@pytest.mark.case(25)
def test_resume_by_other_meshes_to_the_bit(tmp_path: Path) -> None:
    recipe = recipe_for("mcl_okd", optim__clip=1.0)
    train(recipe, tmp_path / "whole")

    def first(rank: int) -> None:
        with signal_after(3), suppress(Preempted):
            train(on_mesh(recipe, 2), tmp_path / "pieces")

    def last(rank: int) -> list[str]:
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            train(on_mesh(recipe, 2), tmp_path / "pieces", resume=True)
        return [str(warning.message) for warning in warned]

    assert in_ranks(2, first, tidy=False) == [("ok", None)] * 2
    with warnings.catch_warnings(), signal_after(6), pytest.raises(Preempted):
        warnings.simplefilter("error")  # no bit is lost, so nobody need be told
        train(recipe, tmp_path / "pieces", resume=True)
    assert in_ranks(2, last) == [("ok", [])] * 2
    assert_bits(tmp_path / "whole", tmp_path / "pieces")


@pytest.mark.slow
def test_peers_of_a_process_as_one_network(tmp_path: Path) -> None:
    recipe = recipe_for("dml", cohort__nets=FOUR, cohort__execution="grouped")
    train(recipe, tmp_path / "one")
    trained(tmp_path, 2, lambda rank: {"two": on_mesh(recipe, 2)})
    assert difference(tmp_path / "one", tmp_path / "two") < CLOSE


def test_one_that_is_gone_in_validation_is_named(tmp_path: Path) -> None:
    def work(rank: int) -> None:
        score = Experiment.score

        def scored(self: Experiment, *given: Any) -> Any:
            if rank == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            return score(self, *given)

        Experiment.score = scored  # type: ignore[method-assign] # in a forked child
        train(on_mesh(recipe_for("dml", train__timeout=5), 2), tmp_path / "run")

    (kind, message), _ = in_ranks(2, work)
    assert kind == "ParallelError" and "rank 0 waited in phase 'validation' of step 5" in message
    status = RunFolder(tmp_path / "run").read_status()
    assert status is not None and (status.state, status.exit_code) == ("failed", 6)


@pytest.mark.slow
def test_peers_that_join(tmp_path: Path) -> None:
    recipe = recipe_for("dml", cohort__nets=FOUR, cohort__joins=(1, 1))
    Experiment(recipe, folder=tmp_path / "one", name="tiny", quiet=True).train()

    def work(rank: int) -> None:
        Experiment(on_mesh(recipe, 2), folder=tmp_path / "two", name="tiny", quiet=True).train()

    assert in_ranks(2, work) == [("ok", None)] * 2
    assert_bits(tmp_path / "one", tmp_path / "two")


@pytest.mark.slow
@pytest.mark.case(24, 25)
def test_resume_from_four_in_a_square_by_four_in_a_row(tmp_path: Path) -> None:
    recipe = recipe_for("pcl", cohort__nets=FOUR)
    train(recipe, tmp_path / "whole")

    def first(rank: int) -> None:
        with signal_after(4), suppress(Preempted):
            train(on_mesh(recipe, 2), tmp_path / "pieces")

    def second(rank: int) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            train(on_mesh(recipe, 4), tmp_path / "pieces", resume=True)

    for work in (first, second):
        assert in_ranks(4, work, tidy=False) == [("ok", None)] * 4
    assert 0 < difference(tmp_path / "whole", tmp_path / "pieces") < CLOSE


def on_steps(look: Callable[[Any], object]) -> None:
    """Look at the run after every step of this process."""
    before = Meters.on_step

    def on_step(self: Meters, run: Any, *rest: Any) -> None:
        before(self, run, *rest)
        look(run)

    Meters.on_step = on_step  # type: ignore[method-assign] # in a forked child


@pytest.mark.slow
def test_what_a_process_holds_of_peers_elsewhere(tmp_path: Path) -> None:
    def work(rank: int) -> list[tuple[bool, ...]]:
        found = []

        def look(run: Any) -> None:
            away = run.objective.cohort.nets[1 - rank].parameters()
            own = run.objective.cohort.nets[rank].parameters()
            state = run.stepper.optimizer.state
            held = [parameter.requires_grad or parameter.grad is not None or parameter in state for parameter in away]
            found.append((*held, all(parameter in state for parameter in own)))

        on_steps(look)
        train(on_mesh(recipe_for("dml"), 2), tmp_path / "run")
        return found

    for kind, found in in_ranks(2, work):
        assert kind == "ok" and len(found) == 10
        assert all(not any(away) and own for *away, own in found)


@pytest.mark.slow
def test_what_is_sent_in_a_step(tmp_path: Path) -> None:
    """Predictions and embeddings of the batch, and the four numbers of a meeting; never anything like weights."""
    sent: list[int] = []

    def counting(name: str, place: int) -> None:
        before = getattr(dist, name)

        def counted(*given: Any, **options: Any) -> Any:
            sent.append(given[place].nbytes)
            return before(*given, **options)

        setattr(dist, name, counted)

    def work(rank: int) -> list[tuple[list[int], int]]:
        found = []

        def look(run: Any) -> None:
            found.append((list(sent), sum(p.nbytes for p in run.objective.cohort.nets[rank].parameters())))
            sent.clear()

        for name, place in (("all_gather", 1), ("all_reduce", 0), ("broadcast", 0), ("send", 0)):
            counting(name, place)
        on_steps(look)
        train(on_mesh(recipe_for("mcl_okd", train__checkpoint_every=100), 2), tmp_path / "run")
        return found

    for _, found in in_ranks(2, work):
        steps = [step for number, (step, _) in enumerate(found) if number not in (0, 5)]  # these begin epochs
        said = 8 * 8 * (4 + 8)  # bytes of a number, images, classes and embedding
        assert all(sorted(step) == sorted([said, 4 * 8]) for step in steps), steps
        assert said < found[0][1] / 4


@pytest.mark.slow
def test_networks_that_were_given_come_back_whole(tmp_path: Path) -> None:
    def work(rank: int) -> list[float]:
        torch.manual_seed(0)
        nets = [
            nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(36, 4)) for _ in range(2)
        ]
        recipe = on_mesh(recipe_for("dml", cohort__nets=("a", "b")), 2)
        Experiment(recipe, folder=tmp_path / "run", nets=nets, quiet=True).train()
        assert all(parameter.requires_grad for net in nets for parameter in net.parameters())
        return [float(tensor.double().sum()) for net in nets for tensor in net.state_dict().values()]

    (kind, first), (_, second) = in_ranks(2, work)
    assert kind == "ok" and first == second
    _, last = CheckpointStore(tmp_path / "run" / "checkpoints").load_newest(read_only=True) or (0, None)
    assert last is not None
    saved = [float(tensor.double().sum()) for peer in (0, 1) for tensor in last.section(f"peer{peer}").values()]
    assert sorted(first) == sorted(saved)


def pair(rank: int) -> World:
    """The world of two processes with a peer each, as one of them sees it."""
    return World(rank=rank, size=2, **lines(rank, 2, TrainConfig(peer_ranks=2), timedelta(seconds=WAIT)))


@pytest.mark.slow
def test_an_infinite_gradient_of_one_lets_all_skip_the_step() -> None:
    def work(rank: int) -> tuple[list[float], float]:
        with inside(pair(rank)):
            weight = nn.Parameter(torch.ones(2))
            precision, config = Precision("float16", torch.device("cpu")), OptimConfig(clip=1.0)
            stepper = Stepper(make_optimizer([weight], config), config, precision, batches_per_epoch=2, epochs=1)
            stepper((weight * (torch.inf if rank else 1.0)).sum(), 0, 0)
            kept = weight.tolist()
            stepper((weight * 3.0).sum(), 0, 1)
            return kept, weight.tolist()[0]

    (_, first), (_, second) = in_ranks(2, work)
    assert first[0] == second[0] == [1.0, 1.0]
    rate, momentum, slope = 0.05, 1.9, 3 / (4 * 9) ** 0.5 + 5e-4  # clipped by the norm of both processes' gradients
    assert first[1] == second[1] == pytest.approx(1 - rate * momentum * slope, rel=1e-3)


@pytest.mark.slow
def test_second_derivatives_reach_peers_elsewhere() -> None:
    """The derivative of |d loss / d weights|^2, in which every pair of weights takes part."""

    def penalty(weights: list[torch.Tensor]) -> torch.Tensor:
        outputs = told([PeerOutput(logits=weight.sin()[None], embedding=weight[None]) for weight in weights])
        loss = torch.stack([peer.logits for peer in outputs]).prod(dim=0).sum()
        slopes = torch.autograd.grad(loss, weights, create_graph=True)
        return torch.stack([slope.square().sum() for slope in slopes]).sum()

    values = torch.tensor([[0.3, 0.9], [0.5, -0.4]], dtype=torch.float64)
    every = [value.clone().requires_grad_() for value in values]
    expected = torch.autograd.grad(penalty(every), every)

    def work(rank: int) -> list[float]:
        with inside(pair(rank)), twice():
            own = values[rank].clone().requires_grad_()
            return torch.autograd.grad(penalty([own]), own)[0].tolist()

    for (kind, found), slope in zip(in_ranks(2, work), expected, strict=True):
        assert kind == "ok" and found == pytest.approx(slope.tolist(), rel=1e-12)


@pytest.mark.slow
def test_meshes_that_do_not_fit(tmp_path: Path) -> None:
    refused = {
        "3 peers cannot be split evenly": recipe_for("dml", cohort__nets=FOUR[:3]),
        "share stages with peers of another process": recipe_for("dml", cohort__shared=1),
        "the same, as a tree": recipe_for("mcl_okd", cohort__nets=FOUR, cohort__tree=(1, 2)),
    }
    texts = list(refused)

    def work(rank: int) -> list[str]:
        found = []
        for text in texts:
            with pytest.raises(Exception) as raised:
                train(on_mesh(refused[text], 2), tmp_path / text)
            found.append(str(raised.value))
        return found

    (_, found), _ = in_ranks(2, work)
    assert texts[0] in found[0] and texts[1] in found[1] and texts[1] in found[2]
    for size, ranks in ((1, 2), (4, 3), (2, 0)):
        with pytest.raises(ConfigError, match=f"train.peer_ranks={ranks} and {size} process"):
            check_mesh(TrainConfig(peer_ranks=ranks), size)
    with pytest.raises(ConfigError, match=r"train\.peer_ranks=2 and 1 process train"):
        train(on_mesh(recipe_for("dml"), 2), tmp_path / "alone")
    assert not any((tmp_path / text).exists() for text in (*texts, "alone"))


def test_methods_that_say_they_need_one_place() -> None:
    nets = [nn.Sequential(nn.Flatten(), nn.Linear(4, 3)) for _ in range(4)]
    world = World(size=2, peers=Line(size=2), rows=Line())
    cohort = Cohort(nets, frozen=(0, 1))
    cohort.keep(world.block(4))
    check_divisible("mine", Needs(), cohort, world)
    with pytest.raises(ConfigError, match="mine uses more of its peers than what they say"):
        check_divisible("mine", Needs(one_place=True), cohort, world)
    with pytest.raises(ConfigError, match=r"peers \[0, 1\] are frozen"):
        check_divisible("mine", Needs(outer_every=5), cohort, world)


def test_what_a_change_of_mesh_loses() -> None:
    two = {"processes": 2, "peer_ranks": 2}
    assert exactness_lost({}, two) == [] == exactness_lost(two, {"processes": 4, "peer_ranks": 4})
    assert exactness_lost(two, {"processes": 4, "peer_ranks": 2}) == ["processes that share a batch 1 -> 2"]
