"""Options of the suite."""

from pathlib import Path

import pytest
from hypothesis import settings

from coterie.core.plugins import load_plugins


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--plugin",
        action="append",
        default=[],
        type=Path,
        help="Python file that registers a method, a network or a data set; the contract suites then run over it too",
    )


def pytest_configure(config: pytest.Config) -> None:
    load_plugins(config.getoption("--plugin"))
    settings.register_profile("suite", derandomize=True, deadline=None)
    settings.load_profile("suite")
