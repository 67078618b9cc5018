"""Named things: methods, networks and data sets register themselves and are found by name."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterator, Mapping
from types import ModuleType
from typing import TypeVar

from coterie.core.errors import ConfigError, UnknownName

T = TypeVar("T")


class Registry(Mapping[str, T]):
    """A mapping from names to registered things that suggests the nearest name on a miss.

    Args:
        kind: what the entries are, used in messages: `method`, `network`, `data set`.

    Example:
        >>> colours: Registry[int] = Registry("colour")
        >>> _ = colours.add("red", 1)
        >>> colours["red"]
        1
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Decorator that stores what it decorates under `name`.

        Args:
            name: the public name; lower case, digits and underscores.

        Returns:
            A decorator that returns its argument unchanged.

        Raises:
            ConfigError: another thing already has this name.
        """

        def store(thing: T) -> T:
            return self.add(name, thing)

        return store

    def add(self, name: str, thing: T) -> T:
        """Store `thing` under `name` and return it; see `register`."""
        known = self._entries.get(name)
        if known is not None and _origin(known) != _origin(thing):
            raise ConfigError(f"{self.kind} {name!r} is registered twice; give one of them another name")
        self._entries[name] = thing
        return thing

    def __getitem__(self, name: str) -> T:
        """Return the entry, or raise `UnknownName` with the nearest known name."""
        if name not in self._entries:
            raise UnknownName(self.kind, name, self._entries)
        return self._entries[name]

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._entries))

    def __len__(self) -> int:
        return len(self._entries)


def _origin(thing: object) -> tuple[str, str]:
    return getattr(thing, "__module__", ""), getattr(thing, "__qualname__", repr(thing))


def import_siblings(package: ModuleType) -> None:
    """Import every module of a package, so that each registers what it defines.

    Args:
        package: an imported package; its own `__init__` calls this with itself.
    """
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{package.__name__}.{module.name}")
