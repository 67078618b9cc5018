"""How a run is computed: executions, their recorded choice, compilation, and what is refused before the first step."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from coterie.core.environment import describe_environment
from coterie.core.errors import CheckpointError, ConfigError
from coterie.core.record import RunFolder
from coterie.engine import RecordedStep, Run, check_compiler
from coterie.experiment import Experiment, make_plan
from coterie.experiment.build import Parts
from coterie.experiment.running import settle_execution
from tiny import build, run_in_pieces, tiny

CUDA = torch.device("cuda")
OWN_WARNINGS = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # torch's, about itself


def test_a_grouped_run_is_continued_to_the_bit(tmp_path: Path) -> None:
    recipe = tiny("mcl_okd", cohort__execution="grouped")
    whole = run_in_pieces(recipe, tmp_path / "whole")
    assert run_in_pieces(recipe, tmp_path / "pieces", (3, 7)) == whole


def test_a_grouped_run_learns_what_a_loop_learns(tmp_path: Path) -> None:
    loop = run_in_pieces(tiny("mcl_okd"), tmp_path / "loop")
    grouped = run_in_pieces(tiny("mcl_okd", cohort__execution="grouped"), tmp_path / "grouped")
    ours, theirs = (json.loads(trace.metrics.splitlines()[0])["loss"] for trace in (grouped, loop))
    assert ours == pytest.approx(theirs, rel=1e-4)


def test_auto_on_a_cpu_is_the_loop_to_the_bit(tmp_path: Path) -> None:
    auto = run_in_pieces(tiny("mcl_okd"), tmp_path / "auto")
    loop = run_in_pieces(tiny("mcl_okd", cohort__execution="loop"), tmp_path / "loop")
    assert auto == loop
    assert "execution" not in RunFolder(tmp_path / "auto").read_environment()


def test_another_execution_does_not_continue_a_run(tmp_path: Path) -> None:
    run_in_pieces(tiny(), tmp_path / "run")
    with pytest.raises(CheckpointError, match=r"cohort\.execution 'auto' -> 'grouped'"):
        Experiment(tiny(cohort__execution="grouped"), folder=tmp_path / "run", quiet=True).train(resume=True)


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"cohort__execution": "streams"}, "cannot run on cpu, only on CUDA"),
        ({"cohort__execution": "grouped", "cohort__nets": "cnn4_w4,cnn4_w8"}, "networks of different kinds"),
        ({"cohort__execution": "grouped", "cohort__nets": "tiny_noisy,tiny_noisy"}, "no plain StagedNet"),
        ({"cohort__execution": "grouped", "cohort__shared": 1}, "peers that share stages"),
        ({"train__compile": "graph"}, "cannot record on cpu, only on CUDA"),
    ],
)
def test_refusals_come_before_the_first_step(tmp_path: Path, settings: dict[str, Any], line: str) -> None:
    recipe = tiny("mcl_okd", train__device="cpu", **settings)
    with pytest.raises(ConfigError, match=line) as refusal:
        Experiment(recipe, folder=tmp_path / "run", quiet=True).train()
    assert "\n" not in str(refusal.value)
    assert not (tmp_path / "run").exists()
    with pytest.raises(ConfigError, match=line):
        make_plan(recipe)


@pytest.mark.slow
@OWN_WARNINGS
def test_no_compiler_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    torch._dynamo.reset()
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(torch._inductor.config.cpp, "cxx", (None, "no-such-compiler"))
    with pytest.raises(ConfigError, match=r"^train\.compile=default finds no working compiler for cpu \(") as refusal:
        check_compiler(torch.device("cpu"))
    assert "\n" not in str(refusal.value) and "no-such-compiler" in str(refusal.value)
    torch._dynamo.reset()


@OWN_WARNINGS
@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
@pytest.mark.parametrize("execution", ["loop", "grouped"])
def test_a_compiled_run_learns_what_a_loop_learns(tmp_path: Path, execution: str) -> None:
    torch._dynamo.reset()
    loop = run_in_pieces(tiny("mcl_okd"), tmp_path / "loop")
    recipe = tiny("mcl_okd", train__compile="default", cohort__execution=execution)
    compiled = run_in_pieces(recipe, tmp_path / "compiled")
    ours, theirs = (json.loads(trace.metrics.splitlines()[0])["loss"] for trace in (compiled, loop))
    assert ours == pytest.approx(theirs, rel=1e-4)
    assert run_in_pieces(recipe, tmp_path / "pieces", (3,)) == compiled


@pytest.fixture
def begun(tmp_path: Path) -> tuple[RunFolder, Parts, Run]:
    """A run that believes to be on CUDA, where executions are chosen."""
    recipe = tiny("mcl_okd")
    folder = RunFolder(tmp_path / "run").create()
    folder.write_environment("tiny")
    parts = Experiment(recipe, folder=tmp_path / "run", quiet=True).build()
    run = build(recipe)
    run.objective.cohort, run.objective.method = parts.cohort, parts.method
    return folder, replace(parts, device=CUDA), run


def test_the_measured_choice_is_recorded_and_kept(begun: tuple[RunFolder, Parts, Run]) -> None:
    folder, parts, run = begun
    line = settle_execution(folder, recipe=tiny("mcl_okd"), parts=parts, run=run)
    found = folder.read_environment()
    assert found["execution"]["0 1"] in ("loop", "grouped")
    assert found["name"] == "tiny" and found["torch"] == describe_environment()["torch"]
    assert line.startswith(f"peers run as: {found['execution']['0 1']} (") and line.count(" ms") == 2
    folder.add_to_environment(execution={"0 1": "grouped"})
    parts.cohort.execution = None
    again = settle_execution(folder, recipe=tiny("mcl_okd"), parts=parts, run=run, begun=True)
    assert again == "peers run as before: grouped"
    assert parts.cohort.execution is not None


@pytest.mark.case(73)
def test_a_run_of_an_earlier_version_stays_a_loop(begun: tuple[RunFolder, Parts, Run]) -> None:
    folder, parts, run = begun
    line = settle_execution(folder, recipe=tiny("mcl_okd"), parts=parts, run=run, begun=True)
    assert line == "peers run as before: loop"
    assert parts.cohort.execution is None and "execution" not in folder.read_environment()


@pytest.mark.parametrize("settings", [{"cohort__execution": "loop"}, {}])
def test_nothing_is_measured_elsewhere(begun: tuple[RunFolder, Parts, Run], settings: dict[str, str]) -> None:
    folder, parts, run = begun
    parts = parts if settings else replace(parts, device=torch.device("cpu"))
    assert settle_execution(folder, recipe=tiny("mcl_okd", **settings), parts=parts, run=run) == ""
    assert "execution" not in folder.read_environment()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_runs_on_cuda_are_continued_to_the_bit(tmp_path: Path) -> None:
    for number, settings in enumerate(({}, {"train__compile": "graph"}, {"cohort__execution": "streams"})):
        recipe = tiny("mcl_okd", train__device="cuda", **settings)
        whole = run_in_pieces(recipe, tmp_path / f"whole{number}")
        environment = RunFolder(tmp_path / f"whole{number}").read_environment()
        pieces = RunFolder(tmp_path / f"pieces{number}").create()
        pieces.write_environment("tiny")
        if "execution" in environment:  # the choice of the first run, whatever a second measurement would say
            recipe = replace(recipe, cohort=replace(recipe.cohort, execution=environment["execution"]["0 1"]))
            whole = run_in_pieces(recipe, tmp_path / f"again{number}")
        assert run_in_pieces(recipe, tmp_path / f"pieces{number}", (3, 7)) == whole
    assert RecordedStep is not None
