"""A comparison of recipes as a table: for the terminal, as Markdown and as CSV.

Names come from files of strangers. In every form they are shown as text: control and direction marks are dropped, and
what the form would read as markup, as a column border or as a formula is escaped.
"""

from __future__ import annotations

import csv
import io
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.table import Table
from rich.text import Text

from coterie.core.errors import DataError
from coterie.reports.stats import Interval, verdict

NAME_LENGTH = 60
_METHOD, _VERDICT = 1, 6
_LEFT = (0, _METHOD, _VERDICT)  # columns of words; the others hold numbers
_CSV_HEADER = (
    *("recipe", "method", "seeds", "leader_top1_mean", "leader_top1_std"),
    *("difference", "difference_half_width", "paired_seeds", "verdict"),
    *("ensemble_top1_mean", "peers_top1_mean", "seconds_mean"),
)
_FORMULA_STARTS = ("=", "+", "-", "@")
_MARKDOWN_MARKS = str.maketrans({mark: f"\\{mark}" for mark in "\\`*_[]|~$"} | {"<": "&lt;", "&": "&amp;"})


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparisonRow:
    """One recipe over its seeds; accuracies in percent.

    Attributes:
        recipe: name of the recipe.
        method: name of its method.
        leader: top-1 of the leader.
        difference: leader against that of the first recipe, paired by seed; None for the first recipe itself, or when
            the two have no seed in common.
        ensemble: top-1 of the ensemble.
        peers: top-1, mean over all peers.
        seconds: wall time of a run.
    """

    recipe: str
    method: str
    leader: Interval
    difference: Interval | None
    ensemble: Interval
    peers: Interval
    seconds: Interval


@dataclass(frozen=True, slots=True)
class ComparisonTable:
    """Recipes side by side, the first one being what the others are compared with.

    Attributes:
        rows: one per recipe, at least one.

    Raises:
        DataError: no rows.
    """

    rows: Sequence[ComparisonRow]

    def __post_init__(self) -> None:
        if not self.rows:
            raise DataError("nothing to compare; give at least one finished run")

    def to_terminal(self) -> Group:
        """Table for a rich console, then what may be said about each recipe, one line each; fits 80 columns.

        The method has a column when it is not to be read in every recipe's name.
        """
        columns = [position for position in range(_VERDICT) if position != _METHOD or not self._names_tell()]
        table = Table(title=Text(self.title()), title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
        header, *lines = self._cells()
        for position in columns:
            words = position in _LEFT
            table.add_column(
                Text(header[position]), justify="left" if words else "right", overflow="fold", no_wrap=not words
            )
        for cells in lines:
            table.add_row(*(Text(cells[position]) for position in columns))
        verdicts = map(Text, [*self.verdicts(), ""])
        return Group(table, *verdicts, Text(self.caption(), style="dim"))

    def verdicts(self) -> list[str]:
        """One line for every recipe but the first: how its leader does against the first recipe's."""
        names = [plain(row.recipe) for row in self.rows]
        return [f"{name} against {names[0]}: {self._verdict(place)}" for place, name in enumerate(names) if place]

    def to_markdown(self) -> str:
        """Table as GitHub-flavoured Markdown, with a line above and below that say what is shown."""
        header, *lines = ([cell.translate(_MARKDOWN_MARKS) for cell in cells] for cells in self._cells())
        rules = ["---" if position in _LEFT else "---:" for position in range(len(header))]
        table = "\n".join(f"| {' | '.join(cells)} |" for cells in (header, rules, *lines))
        return f"{self.title().translate(_MARKDOWN_MARKS)}\n\n{table}\n\n{self.caption().translate(_MARKDOWN_MARKS)}\n"

    def to_csv(self) -> str:
        """Table with one number per cell, empty where there is none, and the verdict in words."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(_CSV_HEADER)
        for position, row in enumerate(self.rows):
            paired = row.difference
            writer.writerow(
                [_csv_name(row.recipe), _csv_name(row.method), row.leader.count]
                + [_number(row.leader.mean), _number(row.leader.std)]
                + ([_number(paired.mean), _number(paired.half), paired.count] if paired else ["", "", ""])
                + [self._verdict(position), _number(row.ensemble.mean), _number(row.peers.mean)]
                + [_number(row.seconds.mean)]
            )
        return text.getvalue()

    def title(self) -> str:
        """What the table shows."""
        counts = sorted({row.leader.count for row in self.rows})
        seeds = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
        return f"top-1 accuracy on the test set in percent, last epoch, {seeds} seed{'s' * (counts[-1] > 1)}"

    def caption(self) -> str:
        """How the numbers are to be read."""
        return (
            "peers: mean over all of them. +- after a mean: sample standard deviation over seeds;"
            " after a difference: its 95 % interval."
        )

    def _names_tell(self) -> bool:
        """Whether every recipe's name has that of its method in it."""
        return all(row.method in row.recipe for row in self.rows)

    def _cells(self) -> list[list[str]]:
        header = ["recipe", "method", "leader", "ensemble", "peers", "seconds", "leader against the first recipe"]
        lines = [
            [
                plain(row.recipe),
                plain(row.method),
                _with_std(row.leader),
                f"{row.ensemble.mean:.2f}",
                f"{row.peers.mean:.2f}",
                f"{row.seconds.mean:.1f}",
                self._verdict(position),
            ]
            for position, row in enumerate(self.rows)
        ]
        return [header, *lines]

    def _verdict(self, position: int) -> str:
        difference = self.rows[position].difference
        if difference is not None:
            return verdict(difference)
        return "no common seed: no difference" if position else "(first recipe)"


def plain(name: str, length: int = NAME_LENGTH) -> str:
    r"""Make a stranger's name safe to show on one line.

    Args:
        name: any text.
        length: longest result, in characters.

    Returns:
        The name without control, format and direction characters, shortened in its middle when it is too long.

    Example:
        >>> plain("dml\x1b[31m\n"), plain("abcdefghij", length=7)
        ('dml[31m', 'abc…hij')
    """
    shown = "".join(mark for mark in name if unicodedata.category(mark)[0] != "C")
    half = (length - 1) // 2
    return shown if len(shown) <= length else f"{shown[:half]}…{shown[-half:]}"


def _csv_name(name: str) -> str:
    shown = plain(name, length=max(len(name), 1)).strip()
    return f"'{shown}" if shown.startswith(_FORMULA_STARTS) else shown


def _with_std(interval: Interval) -> str:
    return f"{interval.mean:.2f}" if interval.count == 1 else f"{interval.mean:.2f} +- {interval.std:.2f}"


def _number(value: float) -> str:
    return "" if value != value else f"{value:.4f}"
