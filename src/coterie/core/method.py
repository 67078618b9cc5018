"""What a method of online distillation is: named losses on the outputs of a cohort, and the state they need."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal, Protocol

import torch
from torch import Tensor, nn

from coterie.core.errors import ConfigError
from coterie.core.registry import Registry
from coterie.core.types import Batch, Peers, Terms, logits_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Paper:
    """Where a method was published."""

    title: str
    authors: str
    year: int
    venue: str
    arxiv: str = ""

    def cite(self) -> str:
        """One line for tables and pages."""
        link = f", arXiv:{self.arxiv}" if self.arxiv else ""
        return f"{self.authors}, {self.title}, {self.venue} {self.year}{link}"

    def cite_briefly(self) -> str:
        """Enough to find it, for tables that tell the year beside it."""
        return f"{self.authors}, {self.title}, {f'arXiv:{self.arxiv}' if self.arxiv else self.venue}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Episode:
    """Batches that are few-shot tasks: images of a few classes, some of each to learn from, others to be classified.

    Attributes:
        ways: classes in an episode.
        shots: images of each class to learn from, the support.
        queries: images of each class to classify.
        per_epoch: episodes in an epoch.
        head: how the method's embeddings are read when classes are new; see `coterie.evaluation.fewshot`.
    """

    ways: int
    shots: int
    queries: int
    per_epoch: int = 100
    head: str = "euclidean"

    @property
    def per_class(self) -> int:
        """Images of each class, support and queries."""
        return self.shots + self.queries

    @property
    def images(self) -> int:
        """Images in an episode."""
        return self.ways * self.per_class


@dataclass(frozen=True, slots=True, kw_only=True)
class Needs:
    """What a method asks of the data, the cohort and the loop; checked before the first step.

    Attributes:
        views: independently augmented views of each image, or `"per_peer"` for one view per peer.
        peer_views: how many of the views the peers see, the first ones; 0 for all. The others are the method's own.
        min_peers: the smallest cohort the method is defined for.
        stage_maps: whether `PeerOutput.stages` is filled.
        preactivations: whether `PeerOutput.preactivations` is filled.
        equal_embeddings: whether all peers must have embeddings of one size, or with `"auxiliary"` all but the leader.
        samples_per_class: images of each class in a batch; 0 for plain shuffling.
        outer_every: call `Method.outer_step` after every so many batches, once their gradients are used; 0 for never.
        held_out: whether `Method.after_epoch` is given the peers' outputs on the validation split.
        rescale_branches: whether gradients are divided by the number of branches where peers part.
        shared_stages: stages after the stem that all peers share at the least.
        teacher: whether there must be a teacher: one of `teacher.*`, or a frozen peer.
        equal_channels: whether a student's stages must have as many channels as its teacher's.
        episode: batches that are episodes, sorted by class, the shots of a class before its queries; None for others.
        partners: whether it learns from other jobs: there must be an `exchange`, which fills `Batch.partners`.
        one_place: whether all peers must live in one process, since the method uses more of them than what they say:
            their weights, or derivatives with respect to other peers' outputs.
    """

    views: int | Literal["per_peer"] = 1
    peer_views: int = 0
    min_peers: int = 1
    stage_maps: bool = False
    preactivations: bool = False
    equal_embeddings: bool | Literal["auxiliary"] = False
    samples_per_class: int = 0
    outer_every: int = 0
    held_out: bool = False
    rescale_branches: bool = False
    shared_stages: int = 0
    teacher: bool = False
    equal_channels: bool = False
    episode: Episode | None = None
    partners: bool = False
    one_place: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerFacts:
    """Sizes of what one network says about an image.

    Attributes:
        embedding_dim: D.
        num_classes: K of its head.
        stages: `(C, H, W)` of the map after the stem and after each stage; empty where unknown.
        preactivations: `(C, H, W)` of the map before the last activation of each stage; empty where unknown.
        norms: weight and bias `[C]`, constants, of the batch norm behind each of these maps; None where there is none
            that makes all of its channels.
    """

    embedding_dim: int
    num_classes: int
    stages: tuple[tuple[int, int, int], ...] = ()
    preactivations: tuple[tuple[int, int, int], ...] = ()
    norms: tuple[tuple[Tensor, Tensor] | None, ...] = field(default=(), compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What a method may know when it is built: sizes and labels, never a loop, a device, a rank or a file.

    Attributes:
        num_peers: M.
        leader: index of the leader in `0 .. M-1`.
        num_classes: K.
        embedding_dims: D of each peer.
        labels: `[N]` int64 on the CPU, the label of every training image.
        num_epochs: length of the run.
        limited: whether `data.limit` keeps only a part of the training set, as in a trial run; then counts that the
            full set could serve are lowered to what is there instead of being refused.
        seed: key for everything the method draws.
        stage_channels: channels of each stage of each peer, the stem not counted; empty where unknown.
        shared: stages after the stem that all peers share: `PeerOutput.stages[shared]` is their last common map.
        frozen: peers that are not trained.
        peers: sizes of each peer's outputs; empty where nothing is known.
        teachers: sizes of each teacher's outputs.
    """

    num_peers: int
    leader: int
    num_classes: int
    embedding_dims: tuple[int, ...]
    labels: Tensor
    num_epochs: int
    limited: bool = False
    seed: int = 0
    stage_channels: tuple[tuple[int, ...], ...] = ()
    shared: int = 0
    frozen: tuple[int, ...] = ()
    peers: tuple[PeerFacts, ...] = ()
    teachers: tuple[PeerFacts, ...] = ()

    @property
    def num_train(self) -> int:
        """N, the number of training images."""
        return self.labels.shape[0]

    @property
    def learning(self) -> tuple[int, ...]:
        """Peers that are trained, all but the frozen ones."""
        return tuple(m for m in range(self.num_peers) if m not in self.frozen)


class Memory(Protocol):
    """State that is neither trained nor averaged between processes: memory banks, queues, momentum copies."""

    def state(self) -> dict[str, Tensor]:
        """Every tensor that must survive a restart."""

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take over what `state` returned, checking shapes."""

    def move(self, change: Callable[[Tensor], Tensor]) -> None:
        """Apply a move to another device or dtype to every tensor."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outer:
    """What `Method.outer_step` works with.

    Attributes:
        batch: the batch of the step that was just taken.
        cohort: the module that maps `[V, B, C, H, W]` views to peers; its parameters may be stepped and rolled back.
        forward: the cohort's forward pass on a batch, with gradient.
        optimizer: the optimiser of cohort and heads.
    """

    batch: Batch
    cohort: nn.Module
    forward: Callable[[Batch], Peers]
    optimizer: torch.optim.Optimizer


class Method(nn.Module):
    """Turns the outputs of M peers into named losses.

    A subclass is one file: paper, `Config`, `needs`, `losses`. Trainable parts (heads, gates) are ordinary submodules
    and are optimised together with the peers. Memories go into `self.memories`, by name. Everything a run must keep
    is then listed by `state_dict()` and `memories`, so a method never writes checkpoint code.

    Args:
        config: the method's own `Config`.
        facts: sizes and labels of the run.

    Raises:
        ConfigError: the cohort or the data cannot serve this method.
    """

    paper: ClassVar[Paper | None] = None
    needs: ClassVar[Needs] = Needs()

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """Knobs of the method; every subclass that has some derives its own."""

    def __init__(self, config: Config, facts: Facts) -> None:
        super().__init__()
        self.config = config
        self.facts = facts
        self.memories: dict[str, Memory] = {}
        self._check(self.requirements())

    def requirements(self) -> Needs:
        """Needs of this very configuration; override when a knob in `self.config` changes them."""
        return self.needs

    def attach(self, cohort: nn.Module) -> None:
        """See the cohort once, when a run is built: a method that keeps copies of the peers makes them here.

        Args:
            cohort: maps `[V, B, C, H, W]` views to peers; hold no reference to it, only copies, and keep them in a
                memory, so that they are neither trained nor averaged but saved.
        """

    def losses(self, peers: Peers, batch: Batch) -> Terms:
        """Compute the named losses of a step.

        Args:
            peers: outputs of the M peers, in order, with gradient.
            batch: the images they saw.

        Returns:
            Terms; `total()` is what is differentiated.
        """
        raise NotImplementedError

    def added_losses(self, peers: Peers, batch: Batch) -> Terms | None:
        """Compute the terms that this method adds to another one, without the cross-entropy both have.

        Returns:
            Terms as `losses` does, or None for a method that only stands alone or first; such a method leaves this
            as it is.
        """

    def after_step(self, peers: Peers, batch: Batch) -> None:
        """Update memories after the optimiser step; runs without gradient, on the outputs of that step."""

    def outer_step(self, outer: Outer) -> None:
        """Take an outer step of a bilevel method; called every `needs.outer_every` batches, outer gradients cleared.

        What it keeps between two calls, momentum for instance, belongs into buffers or memories.
        """

    def after_epoch(self, held_out: Iterable[tuple[Sequence[Tensor], Tensor]]) -> None:
        """Re-estimate what depends on how good the peers are; called after every epoch, without gradient.

        Args:
            held_out: with `Needs(held_out=True)` the peers' logits, M times `[B, K]`, and labels `[B]` on the
                validation split, batch by batch, in evaluation mode; otherwise empty.
        """

    def outer_parameters(self) -> Iterable[nn.Parameter]:
        """Parameters that only `outer_step` may change; the main optimiser leaves them alone."""
        return ()

    def ensemble(self, peers: Peers) -> Tensor:
        """Combine the outputs of all peers to logits `[B, K]`: the mean of their logits unless overridden."""
        return torch.stack(logits_of(peers)).mean(dim=0)

    def describe(self) -> dict[str, str]:
        """Lines for `coterie check`: what this method builds and keeps, by name."""
        return {}

    def _check(self, needs: Needs) -> None:
        if self.facts.num_peers < needs.min_peers:
            raise ConfigError(
                f"{type(self).__name__} needs at least {needs.min_peers} peers and got {self.facts.num_peers};"
                " raise cohort.peers, or name more in cohort.nets"
            )
        if self.facts.shared < needs.shared_stages:
            raise ConfigError(
                f"{type(self).__name__} needs peers that share their first stages, at least {needs.shared_stages}, and"
                f" got {self.facts.shared}; set cohort.shared={needs.shared_stages}"
            )
        if needs.teacher and not (self.facts.frozen or self.facts.teachers):
            raise ConfigError(
                f"{type(self).__name__} learns from a teacher and there is none; give teacher.weights=RUN_OR_FILE,"
                " or freeze a peer with cohort.frozen"
            )
        self._check_embeddings(needs)

    def _check_embeddings(self, needs: Needs) -> None:
        dims, leader = self.facts.embedding_dims, self.facts.leader
        spared = needs.equal_embeddings == "auxiliary"
        asked = dims[:leader] + dims[leader + 1 :] if spared else dims
        if needs.equal_embeddings and len(set(asked)) > 1:
            raise ConfigError(
                f"{type(self).__name__} needs {'auxiliary ' if spared else ''}peers with embeddings of one size and got"
                f" {list(asked)}; choose networks of one width{f' for all but peer {leader}, the leader' * spared}"
            )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Method:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for memory in self.memories.values():
            memory.move(fn)
        return self


METHODS: Registry[type[Method]] = Registry("method")
