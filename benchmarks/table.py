"""Rows of the table: a figure, its spread, the limit it is held against, and whether it is reached."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.sizes import Setting
from benchmarks.timing import Ratio
from coterie.core.environment import describe_environment

_WIDTHS = (66, 15, 19, 10, 7)
_HEADS = ("figure", "measured", "lowest, highest", "limit", "reached")


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One figure.

    Attributes:
        key: how JSON and tests call it.
        title: how the table calls it.
        measured: value and spread.
        unit: behind the value: `x`, `MiB`, `s`; nothing for a bare number.
        limit: what it is held against; None for a figure that is only told.
        at_least: whether the limit is the smallest good value and not the largest.
        note: what else is to know.
    """

    key: str
    title: str
    measured: Ratio
    unit: str = "x"
    limit: float | None = None
    at_least: bool = False
    note: str = ""

    @property
    def reached(self) -> bool | None:
        """Whether the value is on the right side of its limit; None without one."""
        if self.limit is None:
            return None
        return self.measured.value >= self.limit if self.at_least else self.measured.value <= self.limit

    def cells(self) -> tuple[str, ...]:
        """The texts of a line of the table."""
        unit = "" if self.unit == "x" else f" {self.unit}" * bool(self.unit)
        spread = f"{number(self.measured.low)} to {number(self.measured.high)}"
        limit = "" if self.limit is None else f"{'>=' if self.at_least else '<='} {number(self.limit)}"
        reached = {None: "", True: "yes", False: "NO"}[self.reached]
        return self.title, number(self.measured.value) + unit, spread, limit, reached

    def numbers(self) -> dict[str, object]:
        """The row for JSON."""
        return {**asdict(self), "reached": self.reached}


@dataclass(frozen=True, slots=True)
class Skipped:
    """A figure that cannot be measured here, and why."""

    key: str
    reason: str


Line = Row | Skipped


def number(value: float) -> str:
    """Write a number with three digits that count, small ones with an exponent.

    Example:
        >>> number(1.2345), number(48.21), number(123456.0), number(2.1e-6), number(0.0)
        ('1.23', '48.2', '123456', '2.1e-06', '0')
    """
    if value == 0 or abs(value) >= 100:
        return f"{value:.0f}"
    if abs(value) < 0.01:
        return f"{value:.1e}"
    return f"{value:.3f}" if abs(value) < 0.1 else f"{value:.2f}" if abs(value) < 10 else f"{value:.1f}"


def text_of(line: Line) -> str:
    """One line of the table as text, with its note below."""
    if isinstance(line, Skipped):
        return f"{line.key}: not measured, {line.reason}"
    return _in_columns(line.cells()) + f"\n    {line.note}" * bool(line.note)


def head() -> str:
    """The first line of the table."""
    return _in_columns(_HEADS)


def write_json(path: Path, lines: Iterable[Line], setting: Setting, *, seconds: float) -> None:
    """Write all rows, and what they were measured with.

    Args:
        path: the file.
        lines: rows, and figures that were left out.
        setting: sizes, device and rounds.
        seconds: that all of it took, by the clock.
    """
    kept = list(lines)
    load = [round(value, 2) for value in os.getloadavg()] if hasattr(os, "getloadavg") else []
    report = {
        "environment": describe_environment(),
        "device": str(setting.device),
        "precision": setting.precision,
        "sizes": asdict(setting.sizes),
        "rounds": setting.rounds,
        "load_average": load,
        "seconds": round(seconds, 1),
        "rows": [line.numbers() for line in kept if isinstance(line, Row)],
        "skipped": [asdict(line) for line in kept if isinstance(line, Skipped)],
    }
    path.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def _in_columns(cells: Iterable[str]) -> str:
    return "  ".join(cell.ljust(width) for cell, width in zip(cells, _WIDTHS, strict=True)).rstrip()
