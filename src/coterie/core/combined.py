"""Several methods as one: the first trains the cohort, the others add their terms to its loss."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from torch import Tensor, nn

from coterie.core.errors import ConfigError
from coterie.core.method import METHODS, Episode, Facts, Memory, Method, Needs, Outer
from coterie.core.types import Batch, Peers, Term, Terms

_SIGN = "+"


@dataclass(frozen=True, kw_only=True)
class CombinedConfig(Method.Config):
    """The knobs of several methods.

    Attributes:
        parts: name and knobs of each, the one that trains the cohort first.
    """

    parts: tuple[tuple[str, Method.Config], ...]


class Combined(Method):
    """The terms of a method and what others add to them, such as a teacher's; see `Method.added_losses`.

    Terms of one name are told apart by the name of the method behind it. What the cohort's ensemble is, the first
    method says.

    Args:
        config: name and knobs of each method.
        facts: sizes and labels of the run.

    Raises:
        ConfigError: a method after the first one adds nothing to another, two of them need an outer step, or the
            cohort or the data cannot serve one of them; two of them ask for different episodes.

    Attributes:
        parts: the methods, in order.
    """

    config: CombinedConfig
    _needs = Needs()

    def __init__(self, config: CombinedConfig, facts: Facts) -> None:
        super().__init__(config, facts)
        self.names = tuple(name for name, _ in config.parts)
        self.parts = nn.ModuleList(METHODS[name](knobs, facts) for name, knobs in config.parts)
        self._check_added()
        self._needs = _joined([part.requirements() for part in self._methods()])
        self.memories = self._memories_of_parts()

    def requirements(self) -> Needs:
        """What all methods together need."""
        return self._needs

    def attach(self, cohort: nn.Module) -> None:
        """Show the cohort to every method."""
        for part in self._methods():
            part.attach(cohort)
        self.memories.update(self._memories_of_parts())

    def losses(self, peers: Peers, batch: Batch) -> Terms:
        """Terms of the first method, then what the others add."""
        first, *others = self._methods()
        terms = first.losses(peers, batch)
        taken = {term.name for term in terms}
        for name, part in zip(self.names[1:], others, strict=True):
            for term in part.added_losses(peers, batch) or ():
                terms.add(_free_name(term, name, taken), term.value, term.weight)
                taken.add(term.name)
        return terms

    def after_step(self, peers: Peers, batch: Batch) -> None:
        """Update the memories of every method."""
        for part in self._methods():
            part.after_step(peers, batch)

    def outer_step(self, outer: Outer) -> None:
        """Take the outer step of the method that has one."""
        for part in self._methods():
            if part.requirements().outer_every:
                part.outer_step(outer)

    def after_epoch(self, held_out: Iterable[tuple[Sequence[Tensor], Tensor]]) -> None:
        """Let every method that asks for it look at the held-out images."""
        for part in self._methods():
            part.after_epoch(held_out if part.requirements().held_out else ())

    def outer_parameters(self) -> Iterator[nn.Parameter]:
        """Parameters that only an outer step may change."""
        for part in self._methods():
            yield from part.outer_parameters()

    def ensemble(self, peers: Peers) -> Tensor:
        """The ensemble `[B, K]` of the first method."""
        return self._methods()[0].ensemble(peers)

    def describe(self) -> dict[str, str]:
        """The lines of every method, and where it was published."""
        lines = {}
        for name, part in zip(self.names, self._methods(), strict=True):
            paper = {name: part.paper.cite()} if part.paper else {}
            lines.update({**paper, **{f"{name}: {title}": text for title, text in part.describe().items()}})
        return lines

    def _check_added(self) -> None:
        for name, part in zip(self.names[1:], self._methods()[1:], strict=True):
            if type(part).added_losses is Method.added_losses:
                raise ConfigError(
                    f"{name} adds nothing to {self.names[0]}, as it trains a cohort of its own; put it first,"
                    " or choose methods that learn from a teacher, such as kd"
                )

    def _memories_of_parts(self) -> dict[str, Memory]:
        return {
            f"{name}/{key}": memory
            for name, part in zip(self.names, self._methods(), strict=True)
            for key, memory in part.memories.items()
        }

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Method:
        return nn.Module._apply(self, fn, recurse)  # type: ignore[no-untyped-call, no-any-return] # parts move theirs

    def _methods(self) -> list[Method]:
        return [part for part in self.parts if isinstance(part, Method)]


def split_name(name: str) -> tuple[str, ...]:
    """Names of the methods that stand in one text.

    Args:
        name: `mcl_okd`, or `mcl_okd+kd` for two.

    Raises:
        ConfigError: one of them stands there twice.

    Example:
        >>> split_name("mcl_okd+kd")
        ('mcl_okd', 'kd')
    """
    names = tuple(part.strip() for part in name.split(_SIGN))
    if len(set(names)) < len(names):
        raise ConfigError(f"method {name!r} names one method twice; name each once")
    return names


def make_method(name: str, config: Method.Config, facts: Facts) -> Method:
    """Build a method, or several as one.

    Args:
        name: what `split_name` takes apart.
        config: the knobs of the method, or a `CombinedConfig` of several.
        facts: sizes and labels of the run.

    Raises:
        ConfigError: a name is unknown, or the cohort or the data cannot serve a method.
    """
    if isinstance(config, CombinedConfig):
        return Combined(config, facts)
    return METHODS[name](config, facts)


def _free_name(term: Term, method: str, taken: set[str]) -> str:
    return f"{method}.{term.name}" if term.name in taken else term.name


def _joined(needs: Sequence[Needs]) -> Needs:
    """The needs of all: whatever one of them asks for, in the largest number."""
    if sum(need.outer_every > 0 for need in needs) > 1:
        raise ConfigError("two of the methods need outer steps of their own; combine at most one of them")
    numbers = {part.name: [getattr(need, part.name) for need in needs] for part in fields(Needs)}
    del numbers["equal_embeddings"]  # each method checks its own
    del numbers["episode"]
    return Needs(**{name: _largest(values) for name, values in numbers.items()}, episode=_episode(needs))


def _episode(needs: Sequence[Needs]) -> Episode | None:
    asked = {need.episode for need in needs if need.episode is not None}
    if len({replace(episode, head="") for episode in asked}) > 1:
        raise ConfigError(
            "two of the methods ask for different episodes; give both the same ways, shots, queries and episodes"
        )
    return next((need.episode for need in needs if need.episode is not None), None)


def _largest(values: Sequence[int | str]) -> Any:  # noqa: ANN401
    return "per_peer" if "per_peer" in values else max(values)
