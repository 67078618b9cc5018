"""How a run is computed, not what: the execution of its cohort, compilation, recorded steps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from coterie.cohort import Cohort
from coterie.cohort.execution import fastest, make_execution, possible_executions
from coterie.config import Recipe
from coterie.core.method import Method
from coterie.core.record import RunFolder
from coterie.core.world import world
from coterie.engine import (
    CheckpointKeeper,
    CheckpointStore,
    CudaRecorder,
    Heartbeat,
    ParallelStep,
    RecordedStep,
    Run,
    SharedKeeper,
    SharedStore,
    Step,
    Together,
    check_compiler,
    check_recordable,
    take_step,
)
from coterie.experiment.build import Parts


def prepare_running(recipe: Recipe, cohort: Cohort, method: Method, views: Tensor) -> None:
    """Give the cohort the execution that the recipe names, and find out whether this machine can do what is asked.

    Args:
        recipe: names execution and compilation.
        cohort: on its device.
        method: on its device.
        views: `[V, 2, C, H, W]` of the run's shape, on its device.

    Raises:
        ConfigError: the cohort cannot be run so, there is no compiler, or the steps cannot be recorded.
    """
    if recipe.cohort.execution != "auto":
        cohort.execution = make_execution(recipe.cohort.execution, cohort, views)
    if recipe.train.compile == "default":
        check_compiler(views.device)
    if recipe.train.compile == "graph":
        check_recordable(method, recipe.optim, recipe.train, views.device)


def store_for(folder: RunFolder, together: Together, keep: int = 2, keep_every: int = 0) -> CheckpointStore:
    """Where checkpoints of a run go: one store for all processes that train together."""
    if together.world.alone:
        return CheckpointStore(folder.checkpoints, keep, keep_every)
    return SharedStore(folder.checkpoints, keep, keep_every, together)


def keeper_for(together: Together, **options: Any) -> CheckpointKeeper:  # noqa: ANN401
    """What writes the checkpoints of a run; options are those of `CheckpointKeeper`."""
    return CheckpointKeeper(**options) if together.world.alone else SharedKeeper(together, **options)


def heartbeat_for(folder: RunFolder, together: Together) -> Heartbeat:
    """Where a process of a run shows what it is doing; the first one removes the signs of a run before."""
    heart = Heartbeat(folder.heartbeats, together.world.rank)
    if folder.writes:
        heart.clear()
    return heart


def step_for(recipe: Recipe, parts: Parts, together: Together) -> Step:
    """What takes the steps of a run: the loop's own, a recording of it, or one of several processes together."""
    if not together.world.alone:
        return ParallelStep(together)
    return RecordedStep(CudaRecorder(parts.device)) if recipe.train.compile == "graph" else take_step


def settle_execution(folder: RunFolder, *, recipe: Recipe, parts: Parts, run: Run, begun: bool = False) -> str:
    """Choose the fastest execution under `cohort.execution=auto` on CUDA, and keep to it when the run is continued.

    Every choice is written to `environment.json`, by the peers it was made for: other executions round otherwise, and a
    continued run must end with the bits of an uninterrupted one.

    Args:
        folder: of the run.
        recipe: names the execution.
        parts: data, cohort and method.
        run: gives a batch.
        begun: whether steps were taken with these peers; then nothing is measured any more.

    Returns:
        A line for the console; empty when nothing was chosen.
    """
    if recipe.cohort.execution != "auto" or parts.device.type != "cuda" or not world().alone:
        return ""
    chosen, key = _chosen(folder), " ".join(map(str, parts.peers))
    with run.precision.autocast():
        views = run.objective.prepare(next(iter(run.loader.batches(run.clock.epoch, 0)))).views
        if begun or key in chosen:
            name = chosen.get(key, "loop")
            parts.cohort.execution = make_execution(name, parts.cohort, views)
            return f"peers run as before: {name}"
        ways = possible_executions(parts.cohort, views)
        seconds = fastest(parts.cohort.train(), views, ways)
    name = next(iter(seconds))
    parts.cohort.execution = ways[name]
    folder.add_to_environment(execution={**chosen, key: name})
    listed = ", ".join(f"{way} {1e3 * taken:.1f} ms" for way, taken in seconds.items())
    return f"peers run as: {name} ({listed})"


def _chosen(folder: RunFolder) -> dict[str, str]:
    found = folder.read_environment().get("execution")
    return {key: str(name) for key, name in found.items()} if isinstance(found, Mapping) else {}
