"""Print how far runs of several processes are from those of one, for every method.

    python tests/parallel_table.py [--sizes 2 4] [METHOD ...]

A number is the largest difference, relative above 1, of anything a run keeps or logs: weights, momentum, heads, memory
banks, running statistics, scores, losses, diagnostics. Runs are tiny, in float64, and of two epochs; `1 2 1` is a run
that was begun by one process, went on in two and ended in one.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

import torch

from coterie.core import METHODS
from coterie.engine import Preempted
from ranks import difference, in_ranks, recipe_for, train
from tiny import signal_after

CLOSE = 1e-10


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[2, 4])
    parser.add_argument("methods", nargs="*")
    options = parser.parse_args()
    names = options.methods or [name for name in METHODS if METHODS[name].__module__.startswith("coterie.")]
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        columns = ["one", *(str(size) for size in options.sizes), "1 2 1"]
        failed = [column for column in columns if not fill(names, Path(folder), column)]
        print("".join(f"{word:>16}" for word in ["method", *columns[1:]]))
        gaps = {name: [gap(Path(folder), name, column) for column in columns[1:]] for name in names}
        for name, values in gaps.items():
            print(f"{name:>16}" + "".join(f"{value:>16.1e}" for value in values))
    worst = max(max(values) for values in gaps.values())
    print(f"largest difference {worst:.1e}, at most {CLOSE:.0e} is allowed{f'; failed: {failed}' if failed else ''}")
    return int(bool(failed) or not worst <= CLOSE)


def fill(names: list[str], folder: Path, column: str) -> bool:
    """Train every method as a column says; whether all went well."""

    def whole(rank: int) -> None:
        for name in names:
            train(recipe_for(name), folder / column / name)

    def middle(rank: int) -> None:
        for name in names:
            with signal_after(6), suppress(Preempted):
                train(recipe_for(name), folder / column / name, resume=True)

    if column == "one":
        whole(0)
        return True
    if column != "1 2 1":
        return in_ranks(int(column), whole) == [("ok", None)] * int(column)
    for name in names:
        with signal_after(3), suppress(Preempted):
            train(recipe_for(name), folder / column / name)
    fine = in_ranks(2, middle, tidy=False) == [("ok", None)] * 2
    for name in names:
        train(recipe_for(name), folder / column / name, resume=True)
    return fine


def gap(folder: Path, name: str, column: str) -> float:
    with suppress(AssertionError, OSError, StopIteration):
        return difference(folder / "one" / name, folder / column / name)
    return float("inf")


if __name__ == "__main__":
    sys.exit(main())
