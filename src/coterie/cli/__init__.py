"""The `coterie` command: one module per verb, and nothing heavy imported before a verb runs."""

from coterie.cli.main import main

__all__ = ["main"]
