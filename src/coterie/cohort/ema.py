"""A copy of a cohort that follows it: refreshed now and then, or a moving average."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from itertools import chain

import torch
from torch import Tensor, nn

from coterie.cohort.cohort import Cohort
from coterie.core.errors import CheckpointError
from coterie.core.types import PeerOutput
from coterie.core.world import gather
from coterie.nets.global_norm import shared_statistics


class CohortCopy:
    """Peers that are never trained and always in evaluation mode; a `Memory` of a method.

    Stages that peers share are shared by their copies too, and kept once.

    Args:
        cohort: what is copied, with its present weights; maps `[V, B, C, H, W]` to M peer outputs.

    Example:
        >>> net = nn.Linear(2, 2)
        >>> follower = CohortCopy(net)
        >>> _ = nn.init.zeros_(net.weight)
        >>> follower.update(net, 0.75)
        >>> bool((net.weight == 0).all()), bool((follower.state()["weight"] == 0).any())
        (True, False)
    """

    def __init__(self, cohort: nn.Module) -> None:
        self._cohort = copy.deepcopy(cohort).eval().requires_grad_(False)
        for asked in ("stage_maps", "preactivations"):
            if hasattr(self._cohort, asked):
                setattr(self._cohort, asked, False)

    @torch.no_grad()
    def __call__(self, views: Tensor) -> list[PeerOutput]:
        """Run the copies on views `[V, B, C, H, W]`; constants, without stage maps."""
        with shared_statistics():
            peers: list[PeerOutput] = self._cohort(views)
        return gather(peers)

    def cohorts(self) -> list[Cohort]:
        """The copied cohorts, whose peers live where those they were copied from do."""
        return _cohorts_in(self._cohort)

    @torch.no_grad()
    def refresh(self, cohort: nn.Module) -> None:
        """Take over weights and running statistics of the cohort it was copied from."""
        torch._foreach_copy_(*_aligned(self._cohort, cohort))

    @torch.no_grad()
    def update(self, cohort: nn.Module, momentum: float | Tensor) -> None:
        """Move towards the cohort: own <- momentum * own + (1 - momentum) * new, running statistics included.

        Args:
            cohort: the one it was copied from.
            momentum: share that stays, from 0 to below 1; a `[]` tensor on the device where it depends on the step.
        """
        own, new = _aligned(self._cohort, cohort, floating=True)
        torch._foreach_mul_(own, momentum)
        torch._foreach_add_(own, torch._foreach_mul(new, 1 - momentum))
        own, new = _aligned(self._cohort, cohort, floating=False)
        if own:  # counters of batch normalisation; torch refuses empty lists
            torch._foreach_copy_(own, new)

    def state(self) -> dict[str, Tensor]:
        """Weights and running statistics by name, shared ones once, not copied."""
        return _tensors(self._cohort)

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take over what `state` returned, keeping device and dtype.

        Raises:
            CheckpointError: the copies were saved for other networks.
        """
        own = self.state()
        for name, tensor in own.items():
            _check_saved(name, state.get(name), tensor)
        _overwrite(own, state)

    def move(self, change: Callable[[Tensor], Tensor]) -> None:
        """Apply a move to another device or dtype to every tensor."""
        self._cohort._apply(change)  # type: ignore[no-untyped-call]


def copies_among(memories: Iterable[object]) -> list[CohortCopy]:
    """The copies of cohorts among the memories of a method."""
    return [memory for memory in memories if isinstance(memory, CohortCopy)]


@torch.no_grad()
def _overwrite(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
    for name, tensor in own.items():
        tensor.copy_(state[name])


def _check_saved(name: str, saved: Tensor | None, own: Tensor) -> None:
    if saved is None or saved.shape != own.shape:
        found = "is missing" if saved is None else f"was saved as {list(saved.shape)}"
        raise CheckpointError(
            f"{name} of the copied peers {found} and is {list(own.shape)} here; continue with the same"
            " cohort, or start a new run"
        )


def _cohorts_in(module: nn.Module) -> list[Cohort]:
    return [part for part in module.modules() if isinstance(part, Cohort)]


def _tensors(cohort: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name."""
    return {name: tensor.detach() for name, tensor in _named(cohort)}


def _tensors_here(cohort: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name, without those of peers that live in other processes."""
    away = set(map(id, chain.from_iterable(map(Cohort.elsewhere, _cohorts_in(cohort)))))
    return {name: tensor.detach() for name, tensor in _named(cohort) if id(tensor) not in away}


def _named(cohort: nn.Module) -> Iterable[tuple[str, Tensor]]:
    return chain(cohort.named_parameters(), cohort.named_buffers())


def _aligned(own: nn.Module, new: nn.Module, *, floating: bool | None = None) -> tuple[list[Tensor], list[Tensor]]:
    """Tensors of both in one order: those that are floating point, those that are not, or all; none from elsewhere."""
    mine, given = _tensors_here(own), _tensors_here(new)
    assert mine.keys() == given.keys(), "a copy is updated from another cohort than it was made of"
    names = [name for name, tensor in mine.items() if _is_wanted(tensor, floating)]
    return [mine[name] for name in names], [given[name] for name in names]


def _is_wanted(tensor: Tensor, floating: bool | None) -> bool:
    return floating is None or tensor.is_floating_point() == floating
