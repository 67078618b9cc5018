"""Recipes on file: TOML tables of differences from the defaults, read strictly, written back in full."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any, get_type_hints

from coterie.config.convert import Unfit, convert, parse_text
from coterie.config.limits import outside
from coterie.config.schema import Recipe
from coterie.core.combined import CombinedConfig, split_name
from coterie.core.errors import ConfigError, CoterieError, UnknownName, suggestion
from coterie.core.method import METHODS

COMMAND_LINE = "command line"


@dataclass(frozen=True, slots=True)
class _Entry:
    """One setting as it was written: TOML value or text, and where it stood."""

    value: object
    origin: str


@dataclass(slots=True)
class _Problems:
    """Everything that is wrong, collected so that all of it is reported at once."""

    found: list[str] = field(default_factory=list)

    def add(self, entry: _Entry | None, key: str, what: str) -> None:
        origin = f"{entry.origin}: " if entry else ""
        self.found.append(f"{origin}{key} {what}")

    def raise_if_any(self) -> None:
        if self.found:
            raise ConfigError("\n".join(self.found))


def recipe_names() -> list[str]:
    """Name every recipe that ships with the package, such as `digits/mcl_okd`."""
    with as_file(files("coterie") / "recipes") as root:
        return sorted(path.relative_to(root).with_suffix("").as_posix() for path in root.rglob("*.toml"))


def find_recipe(name: str) -> Path:
    """Find a recipe by the name it ships under, or take a file.

    Args:
        name: `digits/mcl_okd`, or the path of a TOML file.

    Returns:
        The path of a readable file.

    Raises:
        ConfigError: there is neither.
    """
    path = Path(name)
    if path.is_file():
        return path
    if path.suffix == ".toml" or path.is_dir():
        raise ConfigError(f"no recipe file {name}; give a TOML file or one of: coterie list recipes")
    with as_file(files("coterie") / "recipes") as root:
        shipped = root / f"{name}.toml"
        if name in recipe_names():
            return shipped
    raise UnknownName("recipe", name, recipe_names())


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe file and settings that take precedence over it.

    Args:
        path: a TOML file of differences from the defaults.
        overrides: `key=value` texts, such as `optim.lr=0.1`; later ones win.

    Returns:
        The whole recipe.

    Raises:
        ConfigError: with one line for each thing that is wrong: file or command line, key, remedy.
    """
    try:
        tree = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read recipe {path}: {error}") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not TOML: {error}") from None
    return resolve(tree, overrides, origin=str(path))


def resolve(tree: Mapping[str, object], overrides: Sequence[str] = (), *, origin: str = "recipe") -> Recipe:
    """Build a recipe from a tree of differences; see `load_recipe`."""
    written = {key: _Entry(value, origin) for key, value in _flatten(tree)}
    typed = dict(map(_split, overrides))
    method = _method_name(written, typed)
    entries = _knobs(written, typed, method)
    problems = _Problems()
    values = _convert_all(entries, _known(split_name(method)), problems)
    for key, what in outside(values):
        problems.add(entries.get(key), key, what)
    problems.raise_if_any()
    return _build(method, values)


def to_toml(recipe: Recipe) -> str:
    """Write a recipe in full; the text loads back to an equal recipe."""
    single: list[str] = []
    tables = list(_method_tables(recipe))
    for key in _parts():
        value = getattr(recipe, key)
        if is_dataclass(value):
            tables.append([f"[{key}]", *_lines(value)])
        else:
            single.append(f"{key} = {_literal(value)}")
    return "\n".join("\n".join(lines) + "\n" for lines in [single, *tables])


def _method_tables(recipe: Recipe) -> Iterator[list[str]]:
    config = recipe.method_config
    if not isinstance(config, CombinedConfig):
        yield ["[method]", f"name = {json.dumps(recipe.method)}", *_lines(config)]
        return
    yield ["[method]", f"name = {_literal(split_name(recipe.method))}"]
    for name, part in config.parts:
        yield [f"[method.{name}]", *_lines(part)]


def _flatten(tree: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, object]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _split(text: str) -> tuple[str, _Entry]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise ConfigError(f"{text!r} is not a setting; write key=value, for instance optim.lr=0.1")
    key = {"method": "method.name"}.get(key.strip(), key.strip().replace("-", "_"))
    return key, _Entry(value.strip(), COMMAND_LINE)


def _given_method(written: Mapping[str, _Entry]) -> str | None:
    entry = written.get("method.name") or written.get("method")
    return None if entry is None else _joined_name(entry.value)


def _method_name(written: Mapping[str, _Entry], typed: Mapping[str, _Entry]) -> str:
    name = _joined_name(typed["method.name"].value) if "method.name" in typed else _given_method(written)
    return Recipe().method if name is None else name


def _joined_name(value: object) -> str:
    """One text for one method or for several, which a file writes as a list and a command line with `+` or commas."""
    parts = value if isinstance(value, list) else str(value).strip("[] ").replace(",", "+").split("+")
    return "+".join(str(part).strip(" '\"") for part in parts)


def _knobs(written: Mapping[str, _Entry], typed: Mapping[str, _Entry], method: str) -> dict[str, _Entry]:
    """All settings but the method's name; the knobs of a file go with its method when another one was typed."""
    if "method.name" in typed and _given_method(written) != method:
        written = {key: entry for key, entry in written.items() if not key.startswith("method")}
    return {key: entry for key, entry in {**written, **typed}.items() if key not in ("method", "method.name")}


def _convert_all(entries: Mapping[str, _Entry], kinds: Mapping[str, Any], problems: _Problems) -> dict[str, object]:
    values: dict[str, object] = {}
    for key, entry in entries.items():
        if key not in kinds:
            problems.add(entry, f"unknown option {key!r};", suggestion(key, kinds))
            continue
        try:
            values[key] = _read(entry, kinds[key])
        except Unfit as unfit:
            problems.add(entry, key, str(unfit))
    return values


def _read(entry: _Entry, kind: Any) -> object:  # noqa: ANN401
    if entry.origin == COMMAND_LINE:
        return parse_text(str(entry.value), kind)
    return convert(entry.value, kind)


def _parts() -> dict[str, Any]:
    return {key: kind for key, kind in get_type_hints(Recipe).items() if key not in ("method", "method_config")}


def _known(names: Sequence[str]) -> dict[str, Any]:
    kinds: dict[str, Any] = {}
    for name in names:
        kinds |= _fields_of(_method_table(name, names), METHODS[name].Config)
    for key, kind in _parts().items():
        kinds |= _fields_of(key, kind) if is_dataclass(kind) else {key: kind}
    return kinds


def _method_table(name: str, names: Sequence[str]) -> str:
    return "method" if len(names) == 1 else f"method.{name}"


def _fields_of(table: str, config: Any) -> dict[str, Any]:  # noqa: ANN401
    return {f"{table}.{name}": kind for name, kind in get_type_hints(config).items()}


def _build(method: str, values: Mapping[str, object]) -> Recipe:
    def inside(table: str) -> dict[str, Any]:
        return {key.removeprefix(f"{table}."): value for key, value in values.items() if key.startswith(f"{table}.")}

    names = split_name(method)
    knobs = tuple((name, METHODS[name].Config(**inside(_method_table(name, names)))) for name in names)
    config = knobs[0][1] if len(knobs) == 1 else CombinedConfig(parts=knobs)
    parts: dict[str, Any] = {"method": "+".join(names), "method_config": config}
    for key, kind in _parts().items():
        if is_dataclass(kind) and isinstance(kind, type):
            parts[key] = kind(**inside(key))
        elif key in values:
            parts[key] = values[key]
    return Recipe(**parts)


def _lines(config: object) -> Iterator[str]:
    if not is_dataclass(config):
        raise CoterieError(f"{config!r} is not a configuration")
    for part in fields(config):
        value = getattr(config, part.name)
        if value is not None:
            yield f"{part.name} = {_literal(value)}"


def _literal(value: object) -> str:
    if isinstance(value, tuple):
        return "[" + ", ".join(map(_literal, value)) + "]"
    return repr(value) if isinstance(value, float) else json.dumps(value)
