"""Errors that a user can mend: one line that says what was given, what was expected and what to do."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class CoterieError(Exception):
    """Base of every error that bad input or a bad environment can cause.

    The command line prints it as one line and leaves with `exit_code`; a traceback means a mistake of ours.
    """

    exit_code = 2


class ConfigError(CoterieError):
    """A recipe, an option or an argument is wrong (exit 2)."""


class DataError(CoterieError):
    """Images, labels or splits cannot be used (exit 2)."""


class ShapeError(CoterieError):
    """Tensors that must fit together do not (exit 2)."""


class CheckpointError(CoterieError):
    """A run folder or a checkpoint cannot be written, read or continued (exit 4)."""

    exit_code = 4


class NumericError(CoterieError):
    """A loss or a gradient is no longer finite (exit 5)."""

    exit_code = 5


class ParallelError(CoterieError):
    """Processes that train together have lost each other or disagree (exit 6)."""

    exit_code = 6


class FailedElsewhere(CoterieError):
    """Another process of the run has failed and says why; this one ends with it.

    Args:
        message: what the other one said.
        exit_code: that of its error.
    """

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class MissingExtra(CoterieError):
    """An optional dependency is not installed.

    Args:
        package: the module that could not be imported.
        extra: the extra of this project that installs it.
    """

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(f"{package} is not installed; run: pip install 'coterie[{extra}]'")


class UnknownName(ConfigError):
    """A name that no registry or schema holds; the nearest known names are suggested.

    Args:
        kind: what was looked up, for instance `method`.
        given: the name as it was written.
        known: every name that would have been accepted.

    Example:
        >>> print(UnknownName("method", "dmll", ["dml", "independent"]))
        unknown method 'dmll'; did you mean 'dml'?
    """

    def __init__(self, kind: str, given: str, known: Iterable[str]) -> None:
        super().__init__(f"unknown {kind} {given!r}; {suggestion(given, known)}")


def one_line(error: Exception) -> str:
    """What an error says, on one line of at most 200 characters, then its notes; its kind where it says nothing."""
    said = " ".join(str(error).split())[:200] or type(error).__name__
    return said + "".join(f" ({' '.join(note.split())})" for note in getattr(error, "__notes__", ()))


def suggestion(given: str, known: Iterable[str]) -> str:
    """Say which known name was probably meant, or list them all.

    Args:
        given: the name as it was written.
        known: every name that would have been accepted.

    Returns:
        `did you mean 'x'?` or `known: a, b, c`.
    """
    names = sorted(known)
    by_lower = {name.lower(): name for name in names}
    near = get_close_matches(given.lower(), by_lower, n=1, cutoff=0.6)
    return f"did you mean {by_lower[near[0]]!r}?" if near else f"known: {', '.join(names)}"
