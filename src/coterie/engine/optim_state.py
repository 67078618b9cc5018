"""The state of an optimiser by the names of its parameters: readable, splittable by peer, and checked when restored."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from coterie.core.errors import CheckpointError
from coterie.core.files import JsonValue
from coterie.core.shards import cut_as, whole_of
from coterie.engine.snapshot import Plain, Tensors, as_list, as_mapping

_KEYS = ("momentum_buffer", "exp_avg", "exp_avg_sq", "step")  # of SGD, Adam and AdamW
Names: TypeAlias = Mapping[Tensor, str]

# What a group holds beside its options: the parameters, and how this machine computes.
_NO_OPTIONS = frozenset({"params", "foreach", "fused", "capturable", "differentiable"})


def parameter_names(peers: Plain, method: nn.Module | None = None) -> dict[Tensor, str]:
    """Name every parameter of a cohort and of a method's heads: `peer0.stem.0.weight`, `method.heads.0.weight`.

    A parameter that peers share has the name it has in the first of them.
    """
    owners: list[tuple[str, nn.Module]] = [(f"peer{m}", peers[m]) for m in range(len(peers))]
    owners += [("method", method)] if method is not None else []
    names: dict[Tensor, str] = {}
    for owner, module in owners:
        for name, parameter in module.named_parameters():
            names.setdefault(parameter, f"{owner}.{name}")
    return names


def optimizer_tensors(optimizer: torch.optim.Optimizer, names: Names) -> Tensors:
    """State tensors under `parameter/key`, for instance `peer0.head.weight/momentum_buffer`; AdamW's `step` is `[]`.

    Args:
        optimizer: any optimiser whose state per parameter is tensors of the parameter's shape, and `step`.
        names: name of every parameter the optimiser changes.

    Returns:
        The tensors, not copied. A parameter that was never changed has none.

    Raises:
        CheckpointError: a state that could not be restored with certainty.
    """
    tensors: Tensors = {}
    for parameter, state in optimizer.state.items():
        name = _name(names, parameter)
        for key, value in state.items():
            if value is None:
                continue
            _require_tensor(value, f"{type(optimizer).__name__} keeps {key!r} of {name}")
            _check(value, parameter, name, key)
            tensors[f"{name}/{key}"] = whole_of(value.detach())
    return tensors


def optimizer_values(optimizer: torch.optim.Optimizer, names: Names) -> JsonValue:
    """Kind and parameter groups of an optimiser: names in order, options such as `lr` and `betas`."""
    groups: list[JsonValue] = [
        {
            "names": _names_of(group, names),
            "options": {key: _plain(value) for key, value in _options(group).items()},
        }
        for group in optimizer.param_groups
    ]
    return {"kind": type(optimizer).__name__, "groups": groups}


def restore_optimizer(
    optimizer: torch.optim.Optimizer, names: Names, tensors: Mapping[str, Tensor], values: JsonValue
) -> None:
    """Give an optimiser the state and the options that were saved.

    torch takes a momentum of shape (3, 4) for a weight of (3, 9) without a word; here every shape and dtype is checked
    first. Options that choose an implementation (`foreach`, `fused`, ...) stay as they are.

    Args:
        optimizer: of the same kind, over the same parameters in the same groups.
        names: name of every parameter.
        tensors: what `optimizer_tensors` returned; copied.
        values: what `optimizer_values` returned.

    Raises:
        CheckpointError: kind, groups, names, shapes or dtypes differ; then nothing was changed.
    """
    saved = as_mapping(values)
    if saved.get("kind") != type(optimizer).__name__:
        raise CheckpointError(
            f"the checkpoint holds the state of {saved.get('kind')!r} and the recipe asks for"
            f" {type(optimizer).__name__!r}; resume with the optimiser of the run"
        )
    groups = _restored_groups(optimizer, names, [as_mapping(group) for group in as_list(saved.get("groups"))])
    state = _restored_state(optimizer, names, tensors)
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def adopt_optimizer(
    optimizer: torch.optim.Optimizer, names: Names, tensors: Mapping[str, Tensor], renamed: Mapping[str, str]
) -> None:
    """Give an optimiser the state of those parameters that it has had before under other names; the rest stays fresh.

    Args:
        optimizer: over the parameters of another cohort.
        names: name of every parameter.
        tensors: what `optimizer_tensors` returned for the cohort before.
        renamed: name of a parameter now to its name then.
    """
    changed = {parameter for group in optimizer.param_groups for parameter in group["params"]}
    shapes = {name: parameter.shape for parameter, name in names.items() if parameter in changed}
    kept: Tensors = {}
    for now in renamed.keys() & shapes.keys():
        kept |= _fitting(tensors, renamed[now], now, shapes[now])
    state = _restored_state(optimizer, names, kept)
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})


def _fitting(tensors: Mapping[str, Tensor], then: str, now: str, shape: torch.Size) -> Tensors:
    """State of one parameter under its name now; nothing when the parameter had another shape."""
    found = {key: tensors[f"{then}/{key}"] for key in _KEYS if f"{then}/{key}" in tensors}
    same = all(found[key].shape == shape for key in found.keys() - {"step"})
    return {f"{now}/{key}": tensor for key, tensor in found.items()} if same else {}


def by_owner(tensors: Mapping[str, Tensor], suffix: str = ".optim") -> dict[str, Tensors]:
    """Split tensors by the first part of their names, one section per peer.

    Example:
        >>> sections = by_owner({"peer0.w/step": torch.tensor(1.0), "method.w/step": torch.tensor(1.0)})
        >>> {stem: list(section) for stem, section in sections.items()}
        {'peer0.optim': ['w/step'], 'method.optim': ['w/step']}
    """
    sections: dict[str, Tensors] = {}
    for name, tensor in tensors.items():
        owner, _, rest = name.partition(".")
        sections.setdefault(owner + suffix, {})[rest] = tensor
    return sections


def joined_owners(sections: Mapping[str, Mapping[str, Tensor]], suffix: str = ".optim") -> Tensors:
    """Undo `by_owner`; sections without the suffix are left out."""
    return {
        f"{stem.removesuffix(suffix)}.{name}": tensor
        for stem, section in sections.items()
        if stem.endswith(suffix)
        for name, tensor in section.items()
    }


def _restored_groups(
    optimizer: torch.optim.Optimizer, names: Names, saved: list[Mapping[str, JsonValue]]
) -> list[dict[str, Any]]:
    if len(saved) != len(optimizer.param_groups):
        raise CheckpointError(
            f"the checkpoint has {len(saved)} parameter groups and the optimiser {len(optimizer.param_groups)};"
            " resume with the recipe of the run that wrote it"
        )
    groups, first = [], 0
    for group, stored in zip(optimizer.param_groups, saved, strict=True):
        _check_names(_names_of(group, names), as_list(stored.get("names")))
        options = _restored_options(_options(group), as_mapping(stored.get("options")))
        numbers = list(range(first, first + len(group["params"])))
        first += len(numbers)
        groups.append({**group, **options, "params": numbers})
    return groups


def _restored_options(current: Mapping[str, Any], saved: Mapping[str, JsonValue]) -> dict[str, Any]:
    if saved.keys() != current.keys():
        different = ", ".join(sorted(saved.keys() ^ current.keys()))
        raise CheckpointError(f"options of the optimiser differ ({different}); resume with the optimiser of the run")
    return {key: _like(saved[key], current[key], key) for key in saved}


def _restored_state(
    optimizer: torch.optim.Optimizer, names: Names, tensors: Mapping[str, Tensor]
) -> dict[int, dict[str, Tensor]]:
    numbered = _numbered(optimizer, names)
    state: dict[int, dict[str, Tensor]] = {}
    for entry, tensor in tensors.items():
        name, _, key = entry.rpartition("/")
        if name not in numbered:
            raise CheckpointError(f"the checkpoint has state of {name!r}, which the optimiser does not change")
        number, parameter = numbered[name]
        _check(tensor, parameter, name, key)
        copied = tensor.clone() if key == "step" else torch.empty_like(parameter).copy_(cut_as(tensor, parameter))
        state.setdefault(number, {})[key] = copied.detach()
    return state


def _numbered(optimizer: torch.optim.Optimizer, names: Names) -> dict[str, tuple[int, Tensor]]:
    """Every parameter by name, with the number that torch gives it in a state dict."""
    parameters = (parameter for group in optimizer.param_groups for parameter in group["params"])
    return {_name(names, parameter): (number, parameter) for number, parameter in enumerate(parameters)}


def _require_tensor(value: object, found: str) -> None:
    if not isinstance(value, Tensor):
        raise CheckpointError(
            f"{found} as a {type(value).__name__}; use an optimiser whose state is tensors, such as sgd, adam or adamw"
        )


def _check(tensor: Tensor, parameter: Tensor, name: str, key: str) -> None:
    shape: tuple[int, ...] = tuple(parameter.shape)
    dtypes: tuple[torch.dtype, ...] = (parameter.dtype,)
    if key == "step":
        shape, dtypes = (), (torch.float32, torch.float64)
    if tuple(tensor.shape) != shape or tensor.dtype not in dtypes:
        raise CheckpointError(
            f"{key!r} of {name} has shape {tuple(tensor.shape)} in {tensor.dtype} and must have {shape}"
            f" in {dtypes[0]}; resume with the networks and the optimiser of the run"
        )


def _check_names(expected: Iterable[str], given: Iterable[JsonValue]) -> None:
    expected, given = list(expected), list(given)
    if expected != given:
        different = sorted({*map(str, given)} ^ set(expected)) or ["their order"]
        raise CheckpointError(
            f"the optimiser changes other parameters than the checkpoint: {', '.join(different[:3])};"
            " resume with the recipe of the run that wrote it"
        )


def _names_of(group: Mapping[str, Any], names: Names) -> list[str]:
    return [_name(names, parameter) for parameter in group["params"]]


def _name(names: Names, parameter: Tensor) -> str:
    if parameter not in names:
        raise CheckpointError(f"a parameter of shape {tuple(parameter.shape)} has no name; list it in `names`")
    return names[parameter]


def _options(group: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in group.items() if key not in _NO_OPTIONS}


def _plain(value: Any) -> JsonValue:  # noqa: ANN401 - options of an optimiser have no type
    if isinstance(value, Tensor):
        return float(value)
    if isinstance(value, tuple):
        return list(map(_plain, value))
    if isinstance(value, bool | int | float | str | None):
        return value
    raise CheckpointError(f"an option of the optimiser is a {type(value).__name__}; give numbers, words or tuples")


def _like(saved: JsonValue, current: Any, key: str) -> Any:  # noqa: ANN401 - options of an optimiser have no type
    if isinstance(current, Tensor) and isinstance(saved, int | float):
        return torch.full_like(current, saved)
    if isinstance(current, tuple):
        return _like_items(saved, current, key)
    if isinstance(saved, str | Mapping | list) and not isinstance(current, str):
        raise _unfit(saved, key)
    return saved


def _like_items(saved: JsonValue, current: tuple[Any, ...], key: str) -> tuple[Any, ...]:
    items = as_list(saved)
    if len(items) != len(current):
        raise _unfit(saved, key)
    return tuple(_like(item, old, key) for item, old in zip(items, current, strict=True))


def _unfit(saved: JsonValue, key: str) -> CheckpointError:
    return CheckpointError(f"option {key!r} of the optimiser cannot be {saved!r}; restore the checkpoint")
