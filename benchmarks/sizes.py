"""How large everything is that is measured, and where it is measured."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """Sizes of all figures; the defaults are those of the paper for CIFAR-100.

    Attributes:
        peers: M.
        many_peers: M of the figure on large cohorts.
        batch: B.
        large_batch: B of the second figure on memory.
        num_train: N, rows of the banks.
        large_train: N of the figures on large data sets.
        negatives: S.
        classes: K.
        dim: D of embeddings and banks.
        image: side of an image in pixels.
        net: network of every peer.
        student: network that learns from a teacher.
        teacher: network that teaches.
        loaded_batch: B of the figure on augmentation.
        loaded_images: images it takes them from.
        draws: draws of negatives that tell noise and bias.
        noise_peers: M of the figure on noise.
        iterations: of Sinkhorn.
    """

    peers: int = 4
    many_peers: int = 8
    batch: int = 64
    large_batch: int = 128
    num_train: int = 50_000
    large_train: int = 1_280_000
    negatives: int = 16_384
    classes: int = 100
    dim: int = 128
    image: int = 32
    net: str = "resnet32"
    student: str = "resnet20"
    teacher: str = "resnet56"
    loaded_batch: int = 128
    loaded_images: int = 10_000
    draws: int = 24
    noise_peers: int = 3
    iterations: int = 50

    @property
    def labels(self) -> torch.Tensor:
        """`[N]` int64, classes of the training set, all equally large."""
        return torch.arange(self.num_train) % self.classes


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """Where and how a figure is measured.

    Attributes:
        sizes: of everything.
        device: where steps run.
        rounds: measurements of each side that count.
        precision: of full and plain steps: `float32`, or autocast to `bfloat16`.
        methods: names of the methods to measure; all when empty.
    """

    sizes: Sizes = field(default_factory=Sizes)
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    rounds: int = 5
    precision: str = "float32"
    methods: tuple[str, ...] = ()
