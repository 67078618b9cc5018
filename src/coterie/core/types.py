"""What flows through a training step: a batch goes in, peer outputs come out, a method turns them into terms."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from coterie.core.errors import ShapeError

_TENSORS = ("views", "labels", "indices", "epoch", "step")


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """One batch of images, as every peer, method and watcher sees it.

    Attributes:
        views: `[V, B, C, H, W]` floating point, normalised; V independently augmented views of the same B images. Where
            several processes train together these are the views of one share of the images, all else is of all B.
        labels: `[B]` int64, each in `[0, K)`.
        indices: `[B]` int64, each image's row in the training set, in `[0, N)`; no row twice in a batch.
        epoch: `[]` int64, counted from 0, on the device of the views.
        step: `[]` int64, batches drawn before this one since the run began, on the device of the views; with
            `epoch` and `indices` the only source of randomness a method may use (see `coterie.core.draws`).
        teachers: what each teacher says about the images, constants; empty without teachers.
        partners: what networks of other jobs say about them, constants; empty without an exchange and while none is
            heard of.
    """

    views: Tensor
    labels: Tensor
    indices: Tensor
    epoch: Tensor
    step: Tensor
    teachers: tuple[PeerOutput, ...] = ()
    partners: tuple[PartnerOutput, ...] = ()

    @property
    def size(self) -> int:
        """Number of images B."""
        return self.labels.shape[0]

    def on(self, device: torch.device) -> Batch:
        """Copy to a device, without waiting for pinned memory; what teachers and partners say stays where it is."""
        moved = {name: getattr(self, name).to(device, non_blocking=True) for name in _TENSORS}
        return replace(self, **moved)

    def with_views(self, views: Tensor) -> Batch:
        """Copy with other views `[V, B, C, H, W]` of the same images."""
        return replace(self, views=views)


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerOutput:
    """What one peer says about a batch.

    Attributes:
        logits: `[B, K]` raw class scores, with gradient to the peer.
        embedding: `[B, D]` the input of the peer's classifier, with gradient to the peer. D may differ between peers.
        stages: the map after the stem and after each stage, `[B, C_l, H_l, W_l]`, with gradient; empty unless the
            method asks for them with `Needs(stage_maps=True)`.
        preactivations: the map before the last activation of each stage, the stem not counted, with gradient; empty
            unless the method asks for them with `Needs(preactivations=True)`. See `coterie.nets.boundaries`.
    """

    logits: Tensor
    embedding: Tensor
    stages: tuple[Tensor, ...] = ()
    preactivations: tuple[Tensor, ...] = ()

    def tensors(self) -> tuple[Tensor, ...]:
        """All of them in one order: logits, embedding, maps after stages, maps before activations."""
        return self.logits, self.embedding, *self.stages, *self.preactivations


def by_identity(outputs: Iterable[PeerOutput]) -> dict[int, Tensor]:
    """The tensors of peer outputs by `id`, each once: several peers may share a map."""
    return {id(tensor): tensor for output in outputs for tensor in output.tensors()}


@dataclass(frozen=True, slots=True, kw_only=True)
class PartnerOutput:
    """What a network of another job says about a batch; it may be out of date.

    Attributes:
        logits: `[B, K]` raw class scores, constants.
        trust: `[B]` floating point in `[0, 1]`, how far to follow it: less the older it is, 0 for an image about which
            nothing is known.
    """

    logits: Tensor
    trust: Tensor


Peers = Sequence[PeerOutput]


def logits_of(peers: Iterable[PeerOutput]) -> list[Tensor]:
    """The logits of peers, `[B, K]` each, in order and with gradient."""
    return [peer.logits for peer in peers]


@dataclass(frozen=True, slots=True)
class Term:
    """One named part of a loss: the loss adds `weight * value`."""

    name: str
    value: Tensor
    weight: float | Tensor = 1.0


class Terms:
    """The named, weighted losses of a step, in the order they were added.

    Example:
        >>> terms = Terms().add("task", torch.tensor(2.0)).add("mutual", torch.tensor(1.0), weight=0.5)
        >>> float(terms.total())
        2.5
    """

    def __init__(self) -> None:
        self._terms: dict[str, Term] = {}

    def add(self, name: str, value: Tensor, weight: float | Tensor = 1.0) -> Terms:
        """Append a term.

        Args:
            name: what the display and the log call it; unique within a step.
            value: `[]` loss before weighting, with gradient.
            weight: factor in the total; a `[]` tensor for ramp-ups that depend on the epoch.

        Returns:
            This object, so that calls can be chained.

        Raises:
            ShapeError: the value is not a scalar or the name was used before.
        """
        if value.dim() != 0:
            raise ShapeError(f"term {name!r} has shape {tuple(value.shape)}; reduce it to one number first")
        if name in self._terms:
            raise ShapeError(f"term {name!r} was added twice in one step; give each term its own name")
        self._terms[name] = Term(name, value, weight)
        return self

    def total(self) -> Tensor:
        """Sum of `weight * value`, `[]`, with gradient."""
        if not self._terms:
            raise ShapeError("a method returned no terms; add at least one in `losses`")
        return torch.stack([term.weight * term.value for term in self]).sum()

    def __iter__(self) -> Iterator[Term]:
        return iter(self._terms.values())

    def __len__(self) -> int:
        return len(self._terms)
