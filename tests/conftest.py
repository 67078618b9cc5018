"""Options of the suite."""

from importlib.util import find_spec
from pathlib import Path

import pytest

from coterie.core.plugins import load_plugins


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--plugin",
        action="append",
        default=[],
        type=Path,
        help="Python file that registers a method, a network or a data set; the contract suites then run over it too",
    )
    parser.addoption("--soak", type=float, default=0.0, help="seconds of random kills in tests/experiment/test_soak.py")
    parser.addoption("--kills", type=int, default=20, help="kills in tests/experiment/test_pair_kills.py")
    parser.addoption("--soak-seed", type=int, default=0, help="first seed of these kills, to repeat them")


def pytest_configure(config: pytest.Config) -> None:
    load_plugins(config.getoption("--plugin"))
    if find_spec("hypothesis"):  # the environment of the vision packages has none
        _make_hypothesis_repeatable()


def _make_hypothesis_repeatable() -> None:
    from hypothesis import settings

    settings.register_profile("suite", derandomize=True, deadline=None)
    settings.load_profile("suite")
