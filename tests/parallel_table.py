"""Print how far runs of several processes are from those of one, for every method.

    python tests/parallel_table.py [--columns 2 4 2x1 2x2 4x1 ...] [METHOD ...]

A column is a number of processes that share the batches, or a mesh, `2x1`: peers in two processes, each batch in one.
Several of them, `2x1,1,1x2`, are a run that went on from one to the next. A number is the largest difference, relative
above 1, of anything a run keeps or logs: weights, momentum, heads, memory banks, running statistics, scores, losses,
diagnostics; `bits` is no difference at all, to the last byte of the log. Runs are tiny, of four peers, in float64, and
of two epochs. Methods that a mesh cannot take say why.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import torch

from coterie.config import Recipe
from coterie.core import METHODS, ConfigError
from coterie.core.errors import FailedElsewhere
from coterie.core.files import RecordWarning
from coterie.core.record import RunFolder
from coterie.engine import Preempted
from ranks import difference, in_ranks, on_mesh, recipe_for, train
from tiny import signal_after

CLOSE = 1e-10
COLUMNS = ["2", "4", "2x1", "4x1", "2x2", "1,2,1", "2x1,1,2", "2x2,4x1"]
STOPS = {1: (), 2: (4,), 3: (3, 6)}  # batches after which a run goes on elsewhere


@dataclass
class Column:
    """Runs of all methods on one mesh after the other, and what was refused."""

    name: str
    folder: Path
    refused: dict[str, str] = field(default_factory=dict)

    @property
    def meshes(self) -> list[tuple[int, int]]:
        """Peer ranks and data ranks, in order."""
        sides = [part.split("x") for part in self.name.split(",")]
        return [(int(side[0]) if len(side) == 2 else 1, int(side[-1])) for side in sides]

    @property
    def exact(self) -> bool:
        """Whether no batch is shared, so that no bit may differ."""
        return all(data == 1 for _, data in self.meshes)

    def fill(self, names: list[str]) -> bool:
        """Train; whether all went well."""
        stops = [*STOPS[len(self.meshes)], None]
        return all(self._go_on(names, number, stop) for number, stop in enumerate(stops))

    def _go_on(self, names: list[str], number: int, stop: int | None) -> bool:
        peer, data = self.meshes[number]

        def work(rank: int) -> dict[str, str]:
            refused = {}
            for name in (name for name in names if name not in self.refused):
                try:
                    self._train(on_mesh(recipe_named(name), peer), name, resume=number > 0, stop=stop)
                except (ConfigError, FailedElsewhere) as error:
                    refused[name] = str(error)
            return refused

        found = in_ranks(peer * data, work, tidy=stop is None) if peer * data > 1 else [("ok", work(0))]
        fine = {kind for kind, _ in found} == {"ok"}
        self.refused |= found[0][1] if fine else {}
        return fine

    def _train(self, recipe: Recipe, name: str, *, resume: bool, stop: int | None) -> None:
        train_it: Callable[[], object] = lambda: train(recipe, self.folder / self.name / name, resume=resume)  # noqa: E731
        if stop is None:
            train_it()
            return
        with signal_after(stop), suppress(Preempted):
            train_it()

    def cell(self, name: str) -> tuple[str, float]:
        """What the table says of a method, and how far its run is from the one of one process."""
        if name in self.refused:
            return "refused", 0.0
        one, other = self.folder / "one" / name, self.folder / self.name / name
        with suppress(AssertionError, OSError, StopIteration, ValueError):
            gap = difference(one, other)
            same_log = RunFolder(one).metrics.read_bytes() == RunFolder(other).metrics.read_bytes()
            if gap == 0 and same_log:
                return "bits", 0.0
            return f"{gap:.1e}", float("inf") if self.exact else gap
        return "failed", float("inf")


def recipe_named(name: str) -> Recipe:
    """A tiny run of four peers."""
    return recipe_for(name, cohort__nets=("cnn4_w4",) * 4)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--columns", nargs="+", default=COLUMNS)
    parser.add_argument("methods", nargs="*")
    options = parser.parse_args()
    names = options.methods or [name for name in METHODS if METHODS[name].__module__.startswith("coterie.")]
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", RecordWarning)  # that bits may be lost is what the table is about
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            train(recipe_named(name), Path(folder) / "one" / name)
        columns = [Column(name, Path(folder)) for name in options.columns]
        failed = [column.name for column in columns if not column.fill(names)]
        print(f"{'method':>20}" + "".join(f"{column.name:>16}" for column in columns))
        gaps = [0.0]
        for name in names:
            texts, values = zip(*(column.cell(name) for column in columns), strict=True)
            print(f"{name:>20}" + "".join(f"{text:>16}" for text in texts), flush=True)
            gaps.extend(values)
    for name, why in {name: why for column in columns for name, why in column.refused.items()}.items():
        print(f"{name}: {why}")
    print(f"largest difference {max(gaps):.1e}, at most {CLOSE:.0e} is allowed, none where no batch is shared")
    print(f"failed: {', '.join(failed)}" if failed else "all as they should be" * (max(gaps) <= CLOSE))
    return int(bool(failed) or not max(gaps) <= CLOSE)


if __name__ == "__main__":
    sys.exit(main())
