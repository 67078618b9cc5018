"""Several recipes on equal data, budget and seeds: every run in a folder of its own, one table at the end."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

import coterie.methods  # noqa: F401 (registers them)
from coterie.config import Recipe, find_recipe, load_recipe, to_toml
from coterie.core.environment import describe_environment
from coterie.core.errors import ConfigError, CoterieError
from coterie.core.files import write_text_atomically
from coterie.core.plugins import load_plugins
from coterie.core.record import RunFolder
from coterie.engine import stop_with
from coterie.experiment.changes import differences
from coterie.experiment.experiment import Experiment
from coterie.reports import ComparisonTable, RunResult, compare_runs, curves_of, learning_curves, read_run

_EQUAL = ("data.", "fewshot.", "optim.", "epochs", "train.precision", "train.deterministic", "seed")


@dataclass(frozen=True, slots=True)
class _Task:
    name: str
    recipe: Recipe
    folder: Path
    plugins: tuple[Path, ...]
    threads: int


@dataclass(frozen=True, slots=True)
class _Outcome:
    task: _Task
    message: str = ""
    exit_code: int = 0

    def error(self) -> CoterieError:
        """The error of the run, which could not cross the border between processes as it was."""
        error = CoterieError(f"{self.task.name}, seed {self.task.recipe.seed}: {self.message}")
        error.exit_code = self.exit_code
        return error


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """What is compared, and how.

    Attributes:
        recipes: names or files, the baseline first.
        settings: `key=value` settings applied to all of them.
        seeds: number of paired seeds, counted from the first recipe's seed.
        jobs: runs at a time, each in a process of its own.
        out: folder for runs, table and curves.
        plugins: Python files that register what the recipes name.
        unequal: compare although data, budget or optimiser differ.
    """

    recipes: tuple[str, ...]
    out: Path
    settings: tuple[str, ...] = ()
    seeds: int = 5
    jobs: int = 1
    plugins: tuple[Path, ...] = ()
    unequal: bool = False

    def run(self, console: Console | None = None) -> ComparisonTable:
        """Train what is not trained yet, then write `comparison.md`, `comparison.csv` and `curves.png`.

        A comparison that was interrupted goes on where it stopped when it is run again with the same `out`.

        Args:
            console: where progress and table are printed; nowhere when None.

        Raises:
            CoterieError: the recipes cannot be compared, or a run has failed; finished runs are kept.
        """
        console = console or Console(quiet=True)
        tasks = self._tasks()
        for number, outcome in enumerate(_finish(tasks, self.jobs), start=1):
            task = outcome.task
            if outcome.message:
                raise outcome.error()
            leader = read_run(task.folder).leader
            line = f"[{number}/{len(tasks)}] {task.name} seed {task.recipe.seed}: leader {leader:.2f} %"
            console.print(line, highlight=False, soft_wrap=True, markup=False)
        table = self._write([read_run(task.folder) for task in tasks])
        console.print(table.to_terminal())
        console.print(f"table, curves and runs are in {self.out}", highlight=False, soft_wrap=True, markup=False)
        return table

    def folder(self, recipe: str, seed: int) -> Path:
        """The folder of one run."""
        return self.out / recipe.removesuffix(".toml").strip("./").replace("/", "-") / f"seed-{seed}"

    def _tasks(self) -> list[_Task]:
        load_plugins(self.plugins)
        self._check_numbers()
        recipes = {name: load_recipe(find_recipe(name), self.settings) for name in self.recipes}
        if not self.unequal:
            _check_equal(recipes)
        first = recipes[self.recipes[0]].seed
        return [
            self._task(name, replace(recipe, seed=seed))
            for seed in range(first, first + self.seeds)
            for name, recipe in recipes.items()
        ]

    def _task(self, name: str, recipe: Recipe) -> _Task:
        threads = max(1, (os.cpu_count() or 1) // self.jobs)
        return _Task(name, recipe, self.folder(name, recipe.seed), self.plugins, threads)

    def _check_numbers(self) -> None:
        if len(self.recipes) < 2 or len(set(self.recipes)) < len(self.recipes):
            raise ConfigError(f"compare needs two or more different recipes and got {list(self.recipes)}")
        if min(self.seeds, self.jobs) < 1:
            raise ConfigError(f"--seeds is {self.seeds} and --jobs {self.jobs}; give at least 1 of each")

    def _write(self, runs: Sequence[RunResult]) -> ComparisonTable:
        table = compare_runs(runs)
        environment: dict[str, Any] = dict(describe_environment())
        where = ", ".join(f"{key} {environment[key]}" for key in ("coterie", "torch", "python", "cpu"))
        page = f"{table.to_markdown()}\nMeasured with {where}; {self.jobs} runs at a time.\n"
        write_text_atomically(self.out / "comparison.md", page)
        write_text_atomically(self.out / "comparison.csv", table.to_csv())
        learning_curves(curves_of(runs), self.out / "curves.png")
        return table


def _check_equal(recipes: dict[str, Recipe]) -> None:
    (first, baseline), *others = recipes.items()
    for name, recipe in others:
        if unequal := _unequal(baseline, recipe):
            listed = ", ".join(f"{key} {old!r} and {new!r}" for key, (old, new) in unequal.items())
            raise ConfigError(
                f"{first} and {name} differ in more than the method ({listed});"
                " set these keys for all, or add --unequal"
            )


def _unequal(baseline: Recipe, recipe: Recipe) -> dict[str, tuple[object, object]]:
    changed = differences(to_toml(baseline), to_toml(recipe))
    return {key: values for key, values in changed.items() if key.startswith(_EQUAL)}


def _finish(tasks: Sequence[_Task], jobs: int) -> Iterator[_Outcome]:
    if jobs == 1:
        yield from map(_train, tasks)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, context, initializer=stop_with, initargs=(os.getpid(),)) as pool:
        futures = [pool.submit(_train_for, os.getpid(), task) for task in tasks]
        try:
            for future in as_completed(futures):
                yield future.result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _train_for(parent: int, task: _Task) -> _Outcome:
    outcome = _train(task)
    if os.getppid() != parent:
        os._exit(outcome.exit_code)  # nobody is left to read the outcome; the pool would wait for ever
    return outcome


def _train(task: _Task) -> _Outcome:
    load_plugins(task.plugins)
    folder = RunFolder(task.folder)
    recipe = _with_threads(task.recipe, folder, task.threads)
    try:
        if not _is_trained(folder, recipe):
            experiment = Experiment(recipe, folder=task.folder, name=task.name, quiet=True)
            experiment.train(resume=folder.recipe.exists())
    except CoterieError as error:
        return _Outcome(task, str(error), error.exit_code)
    return _Outcome(task)


def _with_threads(recipe: Recipe, folder: RunFolder, threads: int) -> Recipe:
    """A run that was begun keeps its threads, on which last bits depend, whatever the number of jobs is now."""
    if folder.recipe.exists() and not recipe.train.threads:
        threads = load_recipe(folder.recipe).train.threads
    return replace(recipe, train=replace(recipe.train, threads=recipe.train.threads or threads))


def _is_trained(folder: RunFolder, recipe: Recipe) -> bool:
    stored = folder.recipe.exists() and folder.result.exists()
    return stored and not differences(folder.recipe.read_text(), to_toml(recipe))
