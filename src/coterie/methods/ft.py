"""Factor transfer: the teacher's last map is paraphrased by factors, which a translator of the student's reproduces."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from coterie.cohort import Link, TeacherMethod
from coterie.cohort.connectors import Shape, in_words, map_pairs, pools_in_words
from coterie.core import METHODS, Batch, ConfigError, Paper, PeerFacts, PeerOutput, Peers, Terms
from coterie.core.knobs import check_knobs
from coterie.losses.feature_maps import ft_loss
from coterie.losses.logits import at_least_float32


class Factors(Link):
    """The difference of the student's factors from the teacher's, and how well the teacher's can be undone.

    The batch norms of the paraphraser always use the statistics of the batch. Its factors are then the same whatever
    common size its weights have, so that weight decay does not change them once it is no longer trained.

    Args:
        student: shape of its last map.
        teacher: shape of its last map.
        share: channels of the factors, as a share of the teacher's.

    Raises:
        ConfigError: a map has a single position.

    Attributes:
        reconstruction: `[]`, mean squared error of the last batch's maps after the paraphraser's way there and back,
            with gradient to the paraphraser; None before the first one.
    """

    def __init__(self, student: Shape, teacher: Shape, share: float) -> None:
        super().__init__()
        if min(*student[1:], *teacher[1:]) < 2:
            raise ConfigError(
                f"ft compares positions of the last maps, {in_words(student, teacher)}, and one of them has a single"
                " position; choose networks or images with larger maps"
            )
        self.pair = student, teacher
        full, self.channels = teacher[0], max(1, int(teacher[0] * share))
        self.encoder = _body(nn.Conv2d, (full, full, self.channels, self.channels), tracks=False)
        self.decoder = _body(nn.ConvTranspose2d, (self.channels, self.channels, full, full), tracks=False)
        self.translator = _body(nn.Conv2d, (student[0], student[0], self.channels, self.channels), tracks=True)
        self.reconstruction: Tensor | None = None

    def forward(self, student: PeerOutput, teacher: PeerOutput, batch: Batch) -> Tensor:
        """Compute the difference of factors `[]`, with gradient to the student's map and the translator."""
        seen = teacher.stages[-1].detach()
        factors = self.encoder(seen)
        undone = at_least_float32(self.decoder(factors))
        self.reconstruction = F.mse_loss(undone, seen.to(undone.dtype))
        return ft_loss(self.translator(student.stages[-1]), factors)

    def describe(self) -> str:
        """Paraphraser and translator, and whether factors are pooled."""
        student, teacher = self.pair
        built = f"paraphraser {teacher[0]} to {self.channels} channels, translator {student[0]} to {self.channels}"
        return "; ".join(filter(None, [built, pools_in_words([self.pair])]))


@METHODS.register("ft")
class FactorTransfer(TeacherMethod):
    """Cross-entropy and the difference of factors, after epochs in which the paraphraser is trained beside the labels.

    In the first `initial_epochs` the paraphraser learns to undo its own factors while the student learns from labels
    only; from then on it stays as it is, and the student's factors follow. With 0 all is learned at once.
    """

    paper = Paper(
        title="Paraphrasing Complex Network: Network Compression via Factor Transfer",
        authors="Kim, Park and Kwak",
        year=2018,
        venue="NeurIPS",
        arxiv="1802.04977",
    )
    needs = replace(TeacherMethod.needs, stage_maps=True)
    term = "ft"

    @dataclass(frozen=True, kw_only=True)
    class Config(TeacherMethod.Config):
        """Knobs of FT.

        Attributes:
            initial_epochs: epochs at the beginning in which the paraphraser is trained, and the student with labels
                only; 0 for all at once, throughout.
            share: channels of the factors, as a share of the teacher's.
        """

        weight: float = 200.0
        initial_epochs: int = 30
        share: float = 0.5

        def __post_init__(self) -> None:
            TeacherMethod.Config.__post_init__(self)
            check_knobs(self, positive=("share",))

    config: Config

    def link(self, student: PeerFacts, teacher: PeerFacts) -> Link:
        """Compare the maps of the last stages; sizes and channels may differ."""
        return Factors(*map_pairs("ft", student, teacher)[-1], self.config.share)

    def weights(self, batch: Batch) -> tuple[float | Tensor, float | Tensor]:
        """Factors of task, which always counts, and transfer, which is 0 in the initial stage."""
        config = self.config
        return config.task, config.weight * (1 - self._early(batch)) if config.initial_epochs else config.weight

    def losses(self, peers: Peers, batch: Batch) -> Terms:
        """Terms `task` and `ft` as in all teachers' methods, and `paraphraser`."""
        return self._with_paraphraser(super().losses(peers, batch), batch)

    def added_losses(self, peers: Peers, batch: Batch) -> Terms:
        """Terms `ft` and `paraphraser`, with gradient to the students and to the links."""
        return self._with_paraphraser(super().added_losses(peers, batch), batch)

    def _with_paraphraser(self, terms: Terms, batch: Batch) -> Terms:
        weight = self._early(batch) if self.config.initial_epochs else 1.0
        return terms.add("paraphraser", torch.stack(self._reconstructions()).sum(), weight)

    def _reconstructions(self) -> list[Tensor]:
        errors = [link.reconstruction for link in self.links if isinstance(link, Factors)]
        return [error for error in errors if error is not None]

    def _early(self, batch: Batch) -> Tensor:
        return (batch.epoch < self.config.initial_epochs).to(torch.float32)


def _body(kind: type[nn.Conv2d | nn.ConvTranspose2d], channels: tuple[int, ...], *, tracks: bool) -> nn.Sequential:
    """3x3 convolutions, each with batch norm and leaky ReLU."""
    layers: list[nn.Module] = []
    for before, after in pairwise(channels):
        norm = nn.BatchNorm2d(after, track_running_stats=tracks)
        layers += [kind(before, after, 3, padding=1, bias=False), norm, nn.LeakyReLU(0.1, inplace=True)]
    return nn.Sequential(*layers)
