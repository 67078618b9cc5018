"""Methods from outside: one in a file of its own, one with a view per peer, one with an outer step."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import nn

from coterie.cli import main
from coterie.core import METHODS, Batch, ConfigError, Facts, Method, Needs, Outer, Peers, Terms
from coterie.core.plugins import load_plugins
from coterie.engine import CheckpointStore, fit, load_from
from coterie.experiment import evaluate_run
from coterie.losses.logits import summed_cross_entropy
from coterie.testing import check_method
from tiny import build, run_in_pieces, settings_of, tiny, trace

EXAMPLE = Path(__file__).parents[2] / "examples" / "new_method.py"


@pytest.mark.slow
def test_the_example_trains_resumes_and_keeps_the_contract(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plugin = tmp_path / "my own" / "new_method.py"
    plugin.parent.mkdir()
    plugin.write_text(EXAMPLE.read_text())
    assert sum(bool(line.strip()) for line in EXAMPLE.read_text().splitlines()) <= 60

    words = ["synthetic/mcl_okd", "--plugin", str(plugin), "method=class_centres", *settings_of("class_centres")]
    assert main(["train", *words, "--out", str(tmp_path / "run")]) == 0
    assert "centre " in capsys.readouterr().out
    check_method("class_centres")

    recipe = tiny("class_centres", method__weight=0.5)
    whole = run_in_pieces(recipe, tmp_path / "whole")
    assert run_in_pieces(recipe, tmp_path / "pieces", (2, 6)) == whole
    found = CheckpointStore(tmp_path / "whole" / "checkpoints").load_newest()[1]
    assert found.section("memory")["centres/rows"].norm(dim=1).min() > 0
    assert {name.split(".")[0] for name in found.section("method")} == {"heads"}

    assert main(["check", *words]) == 0
    assert "class_centres" in capsys.readouterr().out
    assert main(["evaluate", str(tmp_path / "run"), "--plugin", str(plugin)]) == 0


def test_the_words_of_a_run_without_its_plugin(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_in_pieces(tiny(), tmp_path / "run")
    recipe = tmp_path / "run" / "recipe.toml"
    recipe.write_text(recipe.read_text().replace('"independent"', '"of_a_plugin"'))
    assert main(["train", "--resume", str(tmp_path / "run")]) == 2
    assert capsys.readouterr().err.startswith("coterie: unknown method 'of_a_plugin'; ")


@METHODS.register("view_per_peer")
class ViewPerPeer(Method):
    """Every peer learns from an augmentation of its own."""

    needs = Needs(min_peers=2, views="per_peer")

    def losses(self, peers: Peers, batch: Batch) -> Terms:
        assert batch.views.shape[0] == len(peers)
        return Terms().add("task", summed_cross_entropy([peer.logits for peer in peers], batch.labels))


class Spy(nn.Module):
    """A network that keeps the images it was shown."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(192, 4)
        self.seen: list[torch.Tensor] = []

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.seen.append(images.clone())
        return self.head(images.flatten(1))


def test_each_peer_sees_the_view_of_its_own() -> None:
    spies = [Spy() for _ in range(3)]
    recipe = tiny("view_per_peer", cohort__nets=("cnn4_w4",) * 3, epochs=1)
    run = build(recipe, nets=list(spies))
    batches = list(run.loader.batches(0))
    fit(run)
    for m, spy in enumerate(spies):
        assert len(spy.seen) == len(batches)
        for seen, batch in zip(spy.seen, batches, strict=True):
            assert torch.equal(seen, batch.views[m])
            assert not torch.equal(seen, batch.views[m - 1])


@pytest.mark.slow
def test_views_of_a_method_and_of_the_recipe(tmp_path: Path) -> None:
    recipe = tiny("view_per_peer", cohort__nets=("cnn4_w4",) * 3, cohort__shared=1)
    whole = run_in_pieces(recipe, tmp_path / "whole")
    assert run_in_pieces(recipe, tmp_path / "pieces", (4,)) == whole
    check_method("view_per_peer")


@METHODS.register("outer_gate")
class OuterGate(Method):
    """Peers weighted by a gate that only the outer step changes, with a momentum of its own kept in a buffer."""

    needs = Needs(outer_every=3)

    @dataclass(frozen=True, kw_only=True)
    class Config(Method.Config):
        """No knobs."""

    def __init__(self, config: Config, facts: Facts) -> None:
        super().__init__(config, facts)
        self.gate = nn.Parameter(torch.zeros(facts.num_peers))
        self.register_buffer("pace", torch.zeros(facts.num_peers))
        self.log: list[tuple[int, list[float], bool]] = []

    def losses(self, peers: Peers, batch: Batch) -> Terms:
        losses = torch.stack([nn.functional.cross_entropy(peer.logits, batch.labels) for peer in peers])
        return Terms().add("task", (self.gate.softmax(0) * losses).sum())

    def outer_parameters(self) -> Iterator[nn.Parameter]:
        yield self.gate

    def outer_step(self, outer: Outer) -> None:
        self.log.append((int(outer.batch.step), self.gate.tolist(), self.gate.grad is None))
        self.losses(outer.forward(outer.batch), outer.batch).total().backward()
        with torch.no_grad():
            self.pace.mul_(0.5).add_(self.gate.grad)
            self.gate.sub_(self.pace)
        for parameter in outer.cohort.parameters():
            parameter.grad = None


@pytest.mark.parametrize(("accumulate", "after"), [(1, [2, 5, 8]), (2, [3, 6, 8])])
def test_the_outer_step_comes_every_so_many_batches(accumulate: int, after: list[int]) -> None:
    run = build(tiny("outer_gate", optim__accumulate=accumulate))
    gate = run.objective.method
    fit(run)
    assert [step for step, _, _ in gate.log] == after  # the batch that was just taken
    assert all(cleared for _, _, cleared in gate.log)
    assert gate.log[0][1] == [0.0, 0.0]  # nothing but the outer step has changed it
    assert gate.gate.tolist() != [0.0, 0.0]
    assert all(math.isfinite(value) for value in gate.gate.tolist())
    optimised = {id(p) for group in run.stepper.optimizer.param_groups for p in group["params"]}
    assert id(gate.gate) not in optimised


@pytest.mark.slow
def test_the_state_of_the_outer_step_survives(tmp_path: Path) -> None:
    for settings in ({}, {"optim__accumulate": 2}, {"optim__name": "adamw", "train__checkpoint_every": 1}):
        recipe = tiny("outer_gate", **settings)
        name = "-".join(settings) or "plain"
        whole = run_in_pieces(recipe, tmp_path / name / "whole")
        assert run_in_pieces(recipe, tmp_path / name / "pieces", (4, 7)) == whole
    state = CheckpointStore(tmp_path / "plain" / "pieces" / "checkpoints").load_newest()[1].section("method")
    assert set(state) == {"gate", "pace"}
    assert trace(tmp_path / "plain" / "pieces").result["digest"]


@METHODS.register("asks_by_knob")
class AsksByKnob(Method):
    """What it needs depends on its knobs; its ensemble on a weight that is trained."""

    @dataclass(frozen=True, kw_only=True)
    class Config(Method.Config):
        """Stage maps, peers, images per class."""

        maps: bool = False
        peers: int = 1
        per_class: int = 0

    config: Config

    def __init__(self, config: Config, facts: Facts) -> None:
        super().__init__(config, facts)
        self.tilt = nn.Parameter(torch.zeros(facts.num_peers))

    def requirements(self) -> Needs:
        config = self.config
        return Needs(stage_maps=config.maps, min_peers=config.peers, samples_per_class=config.per_class)

    def losses(self, peers: Peers, batch: Batch) -> Terms:
        assert all(bool(peer.stages) == self.config.maps for peer in peers)
        mixed = self.ensemble(peers)
        own = summed_cross_entropy([peer.logits for peer in peers], batch.labels)
        return Terms().add("task", own + 10 * nn.functional.cross_entropy(mixed, batch.labels))

    def ensemble(self, peers: Peers) -> torch.Tensor:
        return (self.tilt.softmax(0)[:, None, None] * torch.stack([peer.logits for peer in peers])).sum(dim=0)


def test_needs_may_depend_on_knobs(tmp_path: Path) -> None:
    run_in_pieces(tiny("asks_by_knob", method__maps=True), tmp_path / "maps")
    with pytest.raises(ConfigError, match="AsksByKnob needs at least 3 peers and got 2"):
        run_in_pieces(tiny("asks_by_knob", method__peers=3), tmp_path / "peers")
    run_in_pieces(tiny("asks_by_knob", method__per_class=2), tmp_path / "classes")
    with pytest.raises(ConfigError, match="batch_size=8"):
        run_in_pieces(tiny("asks_by_knob", method__per_class=3), tmp_path / "odd")


def test_the_best_ensemble_is_that_of_its_own_epoch(tmp_path: Path) -> None:
    done = run_in_pieces(tiny("asks_by_knob", epochs=4, optim__lr=0.5), tmp_path / "run")
    best = done.result["best_on_validation"]
    assert best["epoch"] < 4
    found, last = load_from(tmp_path / "run" / "best")[1], CheckpointStore(tmp_path / "run" / "checkpoints")
    assert not torch.equal(found.section("method")["tilt"], last.load_newest()[1].section("method")["tilt"])
    assert evaluate_run(tmp_path / "run")["best_on_validation"] == best["test"]
    assert evaluate_run(tmp_path / "run")["last_epoch"] == done.result["last"]["test"]


def test_a_file_is_run_once() -> None:
    load_plugins([EXAMPLE])
    first = METHODS["class_centres"]
    load_plugins([EXAMPLE])
    assert METHODS["class_centres"] is first
