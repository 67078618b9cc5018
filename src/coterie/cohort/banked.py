"""Links that contrast embeddings: heads bring both sides to one size, memory banks remember what they said."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from coterie.cohort.teaching import Link, TeacherMethod
from coterie.core.knobs import check_knobs
from coterie.core.method import Facts, PeerFacts
from coterie.core.types import Batch, PeerOutput
from coterie.losses.candidates import Candidates
from coterie.memory.bank import BankDtype, MemoryBank
from coterie.memory.negatives import Negatives
from coterie.nets.heads import LinearHead

How = Literal["shared", "per_sample"]


def draw_candidates(
    draws: Negatives,
    batch: Batch,
    *,
    negatives: How = "shared",
    positives: Literal["exact", "relax"] = "exact",
    unlabelled: bool = False,
) -> Candidates:
    """Draw the rows of memory banks that a batch is contrasted with.

    Args:
        draws: where negatives come from; with `unlabelled` one that takes every image for a class of its own.
        batch: anchors; the draw is a function of its step and, per sample, of its rows.
        negatives: one set `shared` by the batch and masked by class, or one of other classes for each anchor.
        positives: the row of the image itself, or that of an image of its class.
        unlabelled: whether a row is the class of its image; labels are not looked at then.

    Returns:
        Rows on the device of the batch.

    Example:
        >>> zero = torch.tensor(0)
        >>> batch = Batch(views=torch.zeros(1, 2, 1, 1, 1), labels=zero.expand(2), indices=torch.tensor([3, 4]),
        ...               epoch=zero, step=zero)
        >>> draw_candidates(Negatives(torch.arange(9)), batch, unlabelled=True).same_class.shape
        torch.Size([2, 8])
    """
    classes = batch.indices if unlabelled else batch.labels
    where = classes, batch.indices, batch.step
    own = batch.indices if positives == "exact" else draws.same_class(*where)
    if negatives == "per_sample":
        return Candidates(positives=own, negatives=draws.per_sample(*where))
    rows, same_class = draws.shared(classes, batch.step)
    return Candidates(positives=own, negatives=rows, same_class=same_class)


@dataclass(frozen=True, kw_only=True)
class BankedConfig(TeacherMethod.Config):
    """Knobs of heads and banks.

    Attributes:
        embedding_dim: D of heads and banks.
        num_negatives: S per anchor; by default the method's own number, or all images it may be contrasted with where
            these are fewer. A number that is given and exceeds them is refused, unless `data.limit` is what makes them
            few.
        bank_momentum: share of a bank row that stays when its image is seen.
        bank_dtype: how bank rows are stored: `bfloat16` halves them, and is faster where the device multiplies it.
        unlabelled: draw negatives among all other images, without looking at labels; with `task=0` no label is used.
    """

    embedding_dim: int = 128
    num_negatives: int | None = None
    bank_momentum: float = 0.5
    bank_dtype: BankDtype = "float32"
    unlabelled: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_knobs(self, share=("bank_momentum",), count=("embedding_dim",))


class BankedLink(Link):
    """Two linear heads with L2 norm, both trained, and where asked for a memory bank for each of them.

    A step reads the banks as they were before it; `after_step` then moves the rows of the batch towards the very
    embeddings the loss has used, which wait on the link in between and belong to no checkpoint.

    Args:
        student: sizes of its outputs.
        teacher: sizes of its outputs; its classes may be others.
        config: D, S and momentum.
        facts: labels and seed.

    Attributes:
        heads: those of the student and of the teacher.
        bank: rows `[2, N, D]` of the student and of the teacher; None until `remember` is called.
        draws: draws rows to contrast with; None until `remember` is called.
    """

    bank: MemoryBank | None = None
    draws: Negatives | None = None

    def __init__(self, student: PeerFacts, teacher: PeerFacts, config: BankedConfig, facts: Facts) -> None:
        super().__init__()
        self.config: BankedConfig = config
        self.facts = facts
        dim = config.embedding_dim
        self.heads = nn.ModuleList(LinearHead(side.embedding_dim, dim) for side in (student, teacher))
        self.sizes = f"heads {student.embedding_dim} -> {dim} <- {teacher.embedding_dim}"
        self._used: Tensor | None = None

    def remember(self, *, most: int) -> tuple[MemoryBank, Negatives]:
        """Make banks and the draw of negatives.

        Args:
            most: S when the configuration gives none and the data allow it.

        Raises:
            ConfigError: fewer than two classes, or more negatives than there are images.
        """
        config, facts = self.config, self.facts
        classes = torch.arange(facts.num_train) if config.unlabelled else facts.labels
        self.draws = Negatives(classes, config.num_negatives, seed=facts.seed, most=most, lower=facts.limited)
        share, dtype = config.bank_momentum, config.bank_dtype
        self.bank = MemoryBank(2, facts.num_train, config.embedding_dim, momentum=share, seed=facts.seed, dtype=dtype)
        self.memories = {"bank": self.bank, "negatives": self.draws}
        return self.bank, self.draws

    def embed(self, student: PeerOutput, teacher: PeerOutput) -> tuple[Tensor, Tensor]:
        """Unit rows of student and teacher, `[B, D]` each, with gradient to the student and to both heads."""
        own, other = self.heads[0](student.embedding), self.heads[1](teacher.embedding.detach())
        if self.bank is not None:
            self._used = torch.stack([own.detach(), other.detach()])
        return own, other

    def after_step(self, student: PeerOutput, teacher: PeerOutput, batch: Batch) -> None:
        """Move the batch's bank rows towards the embeddings of this step."""
        if self.bank is not None and self._used is not None:
            self.bank.update(batch.indices, self._used)
        self._used = None

    def describe(self) -> str:
        """Sizes of heads and banks, and how many negatives there are."""
        if self.bank is None or self.draws is None:
            return self.sizes
        _, rows, dim = self.bank.rows.shape
        return (
            f"{self.sizes}, banks 2 x {rows} x {dim} ({self.bank.mebibytes:.1f} MiB),"
            f" {self.draws.num_negatives} negatives per anchor"
        )
