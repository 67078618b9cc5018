from __future__ import annotations

import types
from pathlib import Path

import pytest

from coterie.core import ConfigError, Registry, UnknownName
from coterie.core.registry import import_siblings


class Thing:
    """Something to register."""


def test_a_registry_is_a_sorted_mapping() -> None:
    registry: Registry[object] = Registry("thing")
    assert registry.register("beta")(Thing) is Thing
    registry.add("alpha", 1)
    assert list(registry) == ["alpha", "beta"]
    assert (len(registry), "beta" in registry, "gamma" in registry, registry["beta"]) == (2, True, False, Thing)
    assert dict(registry) == {"alpha": 1, "beta": Thing}


@pytest.mark.case(68)
def test_a_miss_suggests_the_nearest_name() -> None:
    registry: Registry[int] = Registry("colour")
    registry.add("red", 1)
    registry.add("Green", 2)
    with pytest.raises(UnknownName, match=r"^unknown colour 'grean'; did you mean 'Green'\?$"):
        registry["grean"]
    with pytest.raises(UnknownName, match=r"^unknown colour 'xyz'; known: Green, red$"):
        registry["xyz"]


def test_two_things_of_one_name_are_refused() -> None:
    registry: Registry[object] = Registry("thing")
    registry.add("one", Thing)
    registry.add("one", Thing)
    with pytest.raises(ConfigError, match="thing 'one' is registered twice; give one of them another name"):
        registry.add("one", Path)
    assert registry["one"] is Thing


def test_a_module_that_is_read_again_replaces_what_it_defined() -> None:
    registry: Registry[type] = Registry("thing")
    first, second = (type("Same", (), {"__module__": "plugin"}) for _ in range(2))
    registry.add("same", first)
    registry.add("same", second)
    assert registry["same"] is second


def test_siblings_are_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "family_of_test"
    package.mkdir()
    (package / "__init__.py").write_text("found = []\n")
    for name in ("anna", "ben"):
        (package / f"{name}.py").write_text(f"from family_of_test import found\nfound.append({name!r})\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    import family_of_test

    assert isinstance(family_of_test, types.ModuleType)
    import_siblings(family_of_test)
    assert family_of_test.found == ["anna", "ben"]
