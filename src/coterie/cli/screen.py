"""Where verbs print: as wide as the terminal, or wide enough for whole lines when the output goes to a file."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

_WIDE = 400


def make_console() -> Console:
    """A console on standard output; without a terminal, and unless `COLUMNS` is set, lines are not cut at 80."""
    from rich.console import Console

    fitted = sys.stdout.isatty() or "COLUMNS" in os.environ
    return Console(width=None if fitted else _WIDE)
