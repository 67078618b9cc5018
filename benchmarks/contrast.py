"""Figures on the contrastive core alone: its cost, its exactness, and what sharing negatives does to the gradient."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import sqrt
from statistics import mean

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.naive import naive_contrast
from benchmarks.sizes import Setting
from benchmarks.table import Row
from benchmarks.timing import Ratio, Step, ratio, take_turns, timer_for
from coterie.losses.candidates import Candidates
from coterie.losses.contrast import contrast_pairs, nce_embeddings
from coterie.memory.negatives import Negatives

_GROUPS = 4  # parts of the draws, whose ratios are the spread of the noise figure


@dataclass(frozen=True, slots=True)
class Scene:
    """What a contrastive loss looks at.

    Attributes:
        embeddings: `[M, B, D]` of length 1, with gradient.
        banks: `[M, N, D]` of length 1.
        shared: one set of negatives for the batch.
        own: a set of negatives for each anchor.
    """

    embeddings: Tensor
    banks: Tensor
    shared: Candidates
    own: Candidates

    @property
    def pairs(self) -> tuple[tuple[int, int], ...]:
        """All ordered pairs of peers."""
        return contrast_pairs(self.embeddings.shape[0])

    def naive(self) -> Tensor:
        """Gradient `[M, B, D]` by the naive reference, from the negatives of each anchor.

        One pair is differentiated after the other: kept together, as published code keeps them, their graphs fill many
        gigabytes, and what is timed is how the machine hands out memory.
        """
        rows = self.own.positives, self.own.negatives
        total = torch.zeros_like(self.embeddings)
        for pair in self.pairs:
            total += self._gradient(naive_contrast(self.embeddings, self.banks, *rows, pairs=[pair]))
        return total

    def core(self, candidates: Candidates, banks: Tensor) -> Tensor:
        """Gradient `[M, B, D]` by the library."""
        return self._gradient(nce_embeddings(self.embeddings, banks, candidates, pairs=self.pairs).loss)

    def _gradient(self, loss: Tensor) -> Tensor:
        (gradient,) = torch.autograd.grad(loss, self.embeddings)
        return gradient


def make_scene(setting: Setting, *, dtype: torch.dtype = torch.float32) -> Scene:
    """Draw unit rows at random, a batch of a training set and its negatives in both ways.

    Args:
        setting: sizes and device.
        dtype: of embeddings and banks.
    """
    sizes = setting.sizes
    torch.manual_seed(0)
    indices = torch.randperm(sizes.num_train)[: sizes.batch]
    embeddings = F.normalize(torch.randn(sizes.peers, sizes.batch, sizes.dim, dtype=dtype), dim=-1)
    banks = torch.randn(sizes.peers, sizes.num_train, sizes.dim, dtype=dtype)
    banks = F.normalize(banks, dim=-1, out=banks)
    shared, own = draw_both(setting, indices, step=0)
    on = setting.device
    return Scene(embeddings.to(on).requires_grad_(), banks.to(on), shared, own)


def draw_both(setting: Setting, indices: Tensor, *, step: int) -> tuple[Candidates, Candidates]:
    """Draw negatives `[S]` shared by a batch, masked by class, and `[B, S]` for each anchor.

    Args:
        setting: sizes and device.
        indices: `[B]` rows of the batch.
        step: what the draw depends on.
    """
    sizes = setting.sizes
    draws = Negatives(sizes.labels, sizes.negatives)
    draws.move(lambda table: table.to(setting.device))
    rows, labels = indices.to(setting.device), sizes.labels[indices].to(setting.device)
    clock = torch.tensor(step, device=setting.device)
    negatives, same_class = draws.shared(labels, clock)
    shared = Candidates(positives=rows, negatives=negatives, same_class=same_class)
    return shared, Candidates(positives=rows, negatives=draws.per_sample(labels, rows, clock))


def core(setting: Setting) -> Iterator[Row]:
    """Time the naive reference, and the core with shared and own negatives, from float32 and bfloat16 banks."""
    scene = make_scene(setting)
    half = scene.banks.bfloat16()
    kinds = {"shared": (scene.shared, 40.0, 80.0), "per_sample": (scene.own, 10.0, 20.0)}
    sides: dict[str, Step] = {"naive": scene.naive}
    limits = {}
    for kind, (candidates, *least) in kinds.items():
        for dtype, banks, limit in zip(("float32", "bfloat16"), (scene.banks, half), least, strict=True):
            sides[f"{kind}.{dtype}"] = _core_of(scene, candidates, banks)
            limits[f"{kind}.{dtype}"] = limit
    times = take_turns(sides, rounds=setting.rounds, timer=timer_for(setting.device))
    for side, limit in limits.items():
        kind, dtype = side.split(".")
        yield Row(
            key=f"core.{side}",
            title=f"contrastive core, {kind.replace('_', ' ')}, {dtype} bank: naive / ours",
            measured=ratio(times["naive"], times[side]),
            limit=limit,
            at_least=True,
            note=f"{_median(times['naive']):.0f} ms / {_median(times[side]):.1f} ms",
        )


def exact(setting: Setting) -> Iterator[Row]:
    """Compare gradients with the naive reference for the same rows, in float32 and in float64 at a smaller S."""
    scene = make_scene(setting)
    gap = _difference(scene.core(scene.own, scene.banks), scene.naive())
    title = "exact mode: gradient against naive, relative, float32"
    yield Row(key="exact.float32", title=title, measured=Ratio(gap, gap, gap), unit="", limit=1e-5)
    fewer = replace(setting.sizes, negatives=max(1, setting.sizes.negatives // 16))
    scene = make_scene(replace(setting, sizes=fewer), dtype=torch.float64)
    gap = _difference(scene.core(scene.own, scene.banks), scene.naive())
    title = f"the same, float64, S={fewer.negatives}"
    yield Row(key="exact.float64", title=title, measured=Ratio(gap, gap, gap), unit="", limit=1e-10)


def noise(setting: Setting) -> Iterator[Row]:
    """Compare the gradient of a shared projection between draws of negatives of both kinds.

    Features are clustered by class. The noise is the root mean square distance of a draw's gradient from the mean of
    its kind; the bias is the difference of the two means along the mean gradient, in standard errors.
    """
    found = parameter_gradients(setting)
    yield Row(
        key="noise.ratio",
        title="shared / per sample: noise of a parameter gradient",
        measured=_noise_ratio(found["shared"], found["per_sample"]),
        limit=1.35,
        note=f"{setting.sizes.draws} draws of each, spread over {_GROUPS} parts of them",
    )
    share, error = _bias(found["shared"], found["per_sample"])
    yield Row(
        key="noise.bias",
        title="bias of shared against per sample, in standard errors",
        measured=Ratio(abs(share) / error, abs(share) / error, abs(share) / error),
        unit="",
        limit=3.0,
        note=f"{100 * share:+.4f} % of the gradient, standard error {100 * error:.4f} %",
    )


def parameter_gradients(setting: Setting) -> dict[str, Tensor]:
    """Gradients of a projection `[D, D]` that all peers share, flat, one for each draw of negatives.

    Returns:
        `shared` and `per_sample`, each `[draws, D * D]`.
    """
    sizes = replace(setting.sizes, peers=setting.sizes.noise_peers)
    there = replace(setting, sizes=sizes)
    torch.manual_seed(0)
    centres = torch.randn(sizes.peers, sizes.classes, sizes.dim)
    banks = F.normalize(centres[:, sizes.labels] + torch.randn(sizes.peers, sizes.num_train, sizes.dim), dim=-1)
    indices = torch.randperm(sizes.num_train)[: sizes.batch]
    features = centres[:, sizes.labels[indices]] + torch.randn(sizes.peers, sizes.batch, sizes.dim)
    weight = (torch.eye(sizes.dim) + 0.1 * torch.randn(sizes.dim, sizes.dim)).to(setting.device).requires_grad_()
    inputs, rows = features.to(setting.device), banks.to(setting.device)
    found: dict[str, list[Tensor]] = {"shared": [], "per_sample": []}
    for step in range(sizes.draws):
        for kind, candidates in zip(found, draw_both(there, indices, step=step), strict=True):
            embeddings = F.normalize(inputs @ weight, dim=-1)
            loss = nce_embeddings(embeddings, rows, candidates, pairs=contrast_pairs(sizes.peers)).loss
            found[kind].append(torch.autograd.grad(loss, weight)[0].flatten().double())
    return {kind: torch.stack(gradients) for kind, gradients in found.items()}


def large(setting: Setting) -> Iterator[Row]:
    """Time the core with shared negatives over banks of a large data set and of a small one."""
    small = make_scene(setting)
    there = replace(setting, sizes=replace(setting.sizes, num_train=setting.sizes.large_train))
    many = make_scene(there)
    for dtype in (torch.float32, torch.bfloat16):
        banks = {"small": small.banks.to(dtype), "large": many.banks.to(dtype)}
        sides = {
            "small": _core_of(small, small.shared, banks["small"]),
            "large": _core_of(many, many.shared, banks["large"]),
        }
        times = take_turns(sides, rounds=max(setting.rounds, 7), timer=timer_for(setting.device), warm_up=2)
        name = str(dtype).removeprefix("torch.")
        yield Row(
            key=f"large.{name}",
            title=f"core, {name} bank: N={setting.sizes.large_train} / N={setting.sizes.num_train}",
            measured=ratio(times["large"], times["small"]),
            limit=1.3,
            note=f"{_median(times['large']):.1f} ms / {_median(times['small']):.1f} ms",
        )


def _core_of(scene: Scene, candidates: Candidates, banks: Tensor) -> Step:
    return lambda: scene.core(candidates, banks)


def _median(times: list[float]) -> float:
    return sorted(times)[len(times) // 2]


def _difference(ours: Tensor, reference: Tensor) -> float:
    return float((ours - reference).norm() / reference.norm())


def _noise_of(gradients: Tensor) -> float:
    """Root mean square distance from the mean, the degree of freedom that the mean takes left out."""
    count = gradients.shape[0]
    return sqrt(float((gradients - gradients.mean(dim=0)).square().sum()) / (count - 1))


def _noise_ratio(shared: Tensor, own: Tensor) -> Ratio:
    parts = zip(shared.chunk(_GROUPS), own.chunk(_GROUPS), strict=True)
    single = [_noise_of(one) / _noise_of(other) for one, other in parts]
    return Ratio(_noise_of(shared) / _noise_of(own), min(single), max(single))


def _bias(shared: Tensor, own: Tensor) -> tuple[float, float]:
    """Difference of the means along the mean gradient, and its standard error, both as a share of its length."""
    direction = torch.cat([shared, own]).mean(dim=0)
    length = float(direction.norm())
    along = [(gradients @ direction / length / length).tolist() for gradients in (shared, own)]
    errors = [float(torch.tensor(values).var()) / len(values) for values in along]
    return mean(along[0]) - mean(along[1]), sqrt(sum(errors))
