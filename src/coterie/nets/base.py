"""Networks as stages: a stem, stages, a neck and a head, so that a cohort can tap, share or split them from outside."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Protocol

from torch import Tensor, nn

from coterie.core.errors import ConfigError
from coterie.core.registry import Registry
from coterie.core.types import PeerOutput
from coterie.nets.boundaries import Boundary, Notes, find_boundaries, noting


class StagedNet(nn.Module):
    """A classifier in four parts, run one after the other.

    Args:
        stem: images `[B, C, H, W]` to the first map.
        stages: each maps `[B, C_l, H_l, W_l]` to the next map.
        neck: the last map to the embedding `[B, D]`: final normalisation, pooling, flattening.
        head: the embedding to logits `[B, K]`; a linear layer, whose input size is the embedding's.

    Attributes:
        embedding_dim: D.
        num_classes: K.
        stage_channels: channels of each stage's map, when known; empty otherwise.
    """

    def __init__(
        self,
        *,
        stem: nn.Module,
        stages: Sequence[nn.Module],
        neck: nn.Module,
        head: nn.Linear,
        stage_channels: Sequence[int] = (),
    ) -> None:
        super().__init__()
        self.stem = stem
        self.stages = nn.ModuleList(stages)
        self.neck = neck
        self.head = head
        self._stage_channels = tuple(stage_channels)

    @property
    def stage_channels(self) -> tuple[int, ...]:
        """Channels of each stage's map; empty when unknown."""
        return self._stage_channels

    @property
    def embedding_dim(self) -> int:
        """D, the size of the embedding."""
        return self.head.in_features

    @property
    def num_classes(self) -> int:
        """K, the number of classes."""
        return self.head.out_features

    def forward(self, images: Tensor) -> Tensor:
        """Map images `[B, C, H, W]` to logits `[B, K]`."""
        return self.tap(images).logits

    def tap(self, images: Tensor, stage_maps: bool = False, preactivations: bool = False) -> PeerOutput:
        """Map images `[B, C, H, W]` to logits, embedding and, on request, maps after stages and before activations.

        Raises:
            ConfigError: maps before activations were asked for and cannot be found.
        """
        if preactivations:
            return self.watched(lambda: self.tap(images, stage_maps), {})
        return self.finish(self.trunk(images, 0), stage_maps)

    def boundaries(self) -> tuple[Boundary, ...]:
        """Where the map before the last activation of each stage is found; empty where one is not."""
        return find_boundaries(list(self.stages), self.neck)

    def watched(self, run: Callable[[], PeerOutput], notes: Notes) -> PeerOutput:
        """Run a pass through this network and add the maps before the last activation of each stage.

        Args:
            run: runs the network, or what is left to run of it.
            notes: what was noted in the parts that `run` leaves out; the new notes are added.

        Raises:
            ConfigError: these maps cannot be found.
        """
        boundaries = self.boundaries()
        if not boundaries:
            raise ConfigError(
                "this method reads maps before activations, and a stage does not end with batch norm and activation;"
                " choose networks of `coterie list nets`"
            )
        with noting(boundaries, notes):
            output = run()
        return replace(output, preactivations=tuple(boundary.read(notes) for boundary in boundaries))

    def trunk(self, images: Tensor, depth: int) -> list[Tensor]:
        """Run the stem and the first `depth` stages: the part that branch-based peers share.

        Args:
            images: `[B, C, H, W]`.
            depth: how many stages to run after the stem.

        Returns:
            The map after the stem and after each of these stages, `depth + 1` tensors `[B, C_l, H_l, W_l]`.
        """
        maps = [self.stem(images)]
        for stage in self.stages[:depth]:
            maps.append(stage(maps[-1]))
        return maps

    def finish(self, maps: Sequence[Tensor], stage_maps: bool = False) -> PeerOutput:
        """Run what comes after a trunk.

        Args:
            maps: what `trunk` returned, of this network or of another one with the same first stages.
            stage_maps: whether the output carries the maps, the stem's first.

        Returns:
            Logits, embedding and, on request, the maps after the stem and after every stage.
        """
        maps = list(maps)
        for stage in self.stages[len(maps) - 1 :]:
            maps.append(stage(maps[-1]))
        embedding: Tensor = self.neck(maps[-1])
        return PeerOutput(logits=self.head(embedding), embedding=embedding, stages=tuple(maps) if stage_maps else ())


class Tappable(Protocol):
    """What a cohort asks of a network: `StagedNet` is one, `TappedNet` makes one of any module."""

    @property
    def embedding_dim(self) -> int:
        """D, the size of the embedding."""

    @property
    def num_classes(self) -> int:
        """K, the number of classes."""

    @property
    def stage_channels(self) -> tuple[int, ...]:
        """Channels of each stage's map; empty when unknown."""

    def tap(self, images: Tensor, stage_maps: bool = False, preactivations: bool = False) -> PeerOutput:
        """Map images `[B, C, H, W]` to logits, embedding and, on request, maps after stages and before activations."""


class NetBuilder(Protocol):
    """A registered network: a function that builds it with fresh weights from torch's global generator."""

    def __call__(self, *, num_classes: int, in_channels: int = 3, image_size: int = 32) -> nn.Module:
        """Build the network for images `[in_channels, image_size, image_size]` and `num_classes` classes."""


class NetRegistry(Registry[NetBuilder]):
    """Networks by name, and sources that know many more: `SOURCE/NAME` is asked of the source when it is needed."""

    def __init__(self) -> None:
        super().__init__("network")
        self._sources: dict[str, Callable[[str], NetBuilder]] = {}

    def add_source(self, prefix: str, find: Callable[[str], NetBuilder]) -> None:
        """Ask `find` for every name that begins with `prefix` and a slash.

        Args:
            prefix: what the names of the source begin with.
            find: maps the rest of a name to a builder, or raises `ConfigError`; called when a name is used.
        """
        self._sources[prefix] = find

    @property
    def sources(self) -> dict[str, Callable[[str], NetBuilder]]:
        """What was added by `add_source`, by prefix."""
        return dict(self._sources)

    def __getitem__(self, name: str) -> NetBuilder:
        """Return the builder, or raise `UnknownName` with the nearest known name."""
        prefix, slash, rest = name.partition("/")
        if slash and prefix in self._sources:
            return self._sources[prefix](rest)
        return super().__getitem__(name)


NETS = NetRegistry()


class MeanPool(nn.Module):
    """The mean over all positions, `[B, D, H, W]` to `[B, D]`; unlike adaptive pooling, deterministic everywhere."""

    def forward(self, maps: Tensor) -> Tensor:
        """Average maps `[B, D, H, W]` to `[B, D]`."""
        return maps.mean(dim=(2, 3))


def pooled(*before: nn.Module) -> nn.Sequential:
    """A neck: the given layers, then `MeanPool`."""
    return nn.Sequential(*before, MeanPool())
