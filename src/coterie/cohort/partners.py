"""Partners: networks of other jobs, or what they said about shared images, kept until something newer arrives."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor, nn

from coterie.core.types import Batch, PartnerOutput, PeerOutput
from coterie.core.world import gather
from coterie.nets import Tappable, as_tappable
from coterie.nets.tapped import plain

ANY = "any"
"""Name of the network of a partner that is known by its scores only."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Adopted:
    """What is known of the partner in a slot.

    Attributes:
        job: its name.
        step: its own count of batches when it said this.
        blob: name of what it said, which holds a hash of it.
        net: name of its network.
    """

    job: str
    step: int
    blob: str
    net: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Ageing:
    """How trust falls with age, the batches that a partner is behind the own run.

    Attributes:
        fresh: up to this age a partner is trusted fully.
        max_age: from this age on it is not trusted at all; above `fresh`.
    """

    fresh: int
    max_age: int

    def trust(self, ages: Tensor) -> Tensor:
        """Trust in `[0, 1]` for ages in batches, float32 of the same shape; ages below 0 are those of partners ahead.

        Example:
            >>> Ageing(fresh=100, max_age=300).trust(torch.tensor([-5, 100, 200, 300, 999])).tolist()
            [1.0, 1.0, 0.5, 0.0, 0.0]
        """
        return ((self.max_age - ages) / (self.max_age - self.fresh)).clamp(0, 1).to(torch.float32)


class Partners(nn.Module):
    """Slots for the partners of a job; a subclass says what is kept of each and how it speaks about a batch.

    Nothing here is trained. Which partners are heard is decided between steps, on the host, by `aim`; how far each is
    trusted is computed from the step of the batch, so that no step waits for the device.

    Args:
        slots: partners at most.
        ageing: how trust falls.

    Attributes:
        known: what each slot holds; None for an empty one.
        steps: `[slots]` int64, the partners' own counts of batches.
        spoken: slots that are heard.
    """

    steps: Tensor

    def __init__(self, slots: int, ageing: Ageing) -> None:
        super().__init__()
        self.ageing = ageing
        self.known: list[Adopted | None] = [None] * slots
        self.spoken: tuple[int, ...] = ()
        self.register_buffer("steps", torch.zeros(slots, dtype=torch.int64), persistent=False)

    def aim(self, step: int) -> None:
        """Choose who is heard from a step on: those that are known and not too old."""
        limit = self.ageing.max_age
        self.spoken = tuple(slot for slot, said in self.taken().items() if step - said.step < limit)

    def taken(self) -> dict[int, Adopted]:
        """The slots that hold a partner, and what they hold."""
        return {slot: said for slot, said in enumerate(self.known) if said}

    def slot_for(self, job: str, step: int) -> int:
        """Where a job is kept, or would be: an empty slot, or that of the partner that is furthest behind."""
        jobs = [said.job if said else "" for said in self.known]
        if job in jobs:
            return jobs.index(job)
        return min(range(len(jobs)), key=lambda slot: said.step if (said := self.known[slot]) else -1 - step)

    @torch.no_grad()
    def adopt(self, slot: int, said: Adopted, tensors: Mapping[str, Tensor]) -> None:
        """Take over what a partner said; its tensors have been checked."""
        self.take(slot, said, tensors)
        self.known[slot] = said
        self.steps[slot] = said.step

    @torch.no_grad()
    def forward(self, batch: Batch) -> Batch:
        """Add what the partners that are heard say about a batch, whose views are as the peers see them.

        Weights that are finite can give scores that are not; an image for which they do is one that is not known.
        """
        if batch.partners or not self.spoken:
            return batch
        trust = self.ageing.trust(batch.step - self.steps)
        said = self.say(batch)
        pairs = zip(self.spoken, said, strict=True)
        return replace(batch, partners=tuple(_finite(part, trust[slot]) for slot, part in pairs))

    def take(self, slot: int, said: Adopted, tensors: Mapping[str, Tensor]) -> None:
        """Keep the tensors of a slot."""
        raise NotImplementedError

    def say(self, batch: Batch) -> Sequence[PartnerOutput]:
        """What each partner of `spoken` says about a batch, with the trust `[B]` there is in it before ageing."""
        raise NotImplementedError

    def tensors(self, slot: int) -> Mapping[str, Tensor]:
        """What is kept of a slot, as `take` was given it."""
        raise NotImplementedError

    def kinds(self) -> dict[str, Mapping[str, Tensor]]:
        """Tensors like those that a slot may be given, by name of the partner's network."""
        raise NotImplementedError


class PartnerNets(Partners):
    """Partners as networks, run in evaluation mode on the view that the leader sees.

    Args:
        slots: partners at most.
        ageing: how trust falls.
        templates: a network of each kind that partners may have, by name, on the CPU.
        view: which of the views they see; the leader's.
    """

    def __init__(self, slots: int, ageing: Ageing, *, templates: Mapping[str, nn.Module], view: int = 0) -> None:
        super().__init__(slots, ageing)
        self.templates = {name: copy.deepcopy(net) for name, net in templates.items()}
        self.view = view
        self.nets = nn.ModuleList(nn.Identity() for _ in range(slots))

    def train(self, mode: bool = True) -> PartnerNets:
        """Stay in evaluation mode, whatever is asked."""
        super().train(False)
        return self

    def take(self, slot: int, said: Adopted, tensors: Mapping[str, Tensor]) -> None:
        """Load weights into the network of a slot, which is built when the slot held another kind."""
        before = self.known[slot]
        if before is None or before.net != said.net:
            net = as_tappable(copy.deepcopy(self.templates[said.net]))
            self.nets[slot] = net.eval().requires_grad_(False).to(self.steps.device)
        plain(self.nets[slot]).load_state_dict(dict(tensors), strict=True)

    def say(self, batch: Batch) -> list[PartnerOutput]:
        """Run the networks; what all ranks' networks say about their shares is put together."""
        images = batch.views[self.view % batch.views.shape[0]]
        found = [cast("Tappable", self.nets[slot]).tap(images).logits for slot in self.spoken]
        whole = gather([PeerOutput(logits=logits, embedding=logits) for logits in found])
        return [PartnerOutput(logits=said.logits, trust=said.logits.new_ones(batch.size)) for said in whole]

    def tensors(self, slot: int) -> Mapping[str, Tensor]:
        """Weights and running statistics of a slot's network."""
        return _state(self.nets[slot])

    def kinds(self) -> dict[str, Mapping[str, Tensor]]:
        """Weights and running statistics of every network that a partner may have."""
        return {name: _state(net) for name, net in self.templates.items()}


class PartnerScores(Partners):
    """Partners as scores for a number of images that all jobs know; about other images they say nothing.

    Args:
        slots: partners at most.
        ageing: how trust falls.
        rows: `[N]` int64, for each training image its row among the shared images, or -1.
        shared: number of shared images S.
        num_classes: K.
    """

    rows: Tensor
    scores: Tensor

    def __init__(self, slots: int, ageing: Ageing, *, rows: Tensor, shared: int, num_classes: int) -> None:
        super().__init__(slots, ageing)
        self.register_buffer("rows", rows, persistent=False)
        self.register_buffer("scores", torch.zeros(slots, shared, num_classes), persistent=False)

    def take(self, slot: int, said: Adopted, tensors: Mapping[str, Tensor]) -> None:
        """Keep the scores `[S, K]` of a slot."""
        self.scores[slot].copy_(tensors["logits"])

    def say(self, batch: Batch) -> list[PartnerOutput]:
        """Look the images of a batch up."""
        rows = self.rows[batch.indices]
        known = (rows >= 0).to(self.scores.dtype)
        rows = rows.clamp(min=0)
        return [PartnerOutput(logits=self.scores[slot][rows], trust=known) for slot in self.spoken]

    def tensors(self, slot: int) -> Mapping[str, Tensor]:
        """The scores of a slot."""
        return {"logits": self.scores[slot]}

    def kinds(self) -> dict[str, Mapping[str, Tensor]]:
        """Scores `[S, K]`, whatever the network."""
        return {ANY: {"logits": self.scores[0]}}


def _finite(said: PartnerOutput, trust: Tensor) -> PartnerOutput:
    fine = said.logits.isfinite().all(dim=1)
    logits = said.logits.masked_fill(~fine[:, None], 0)
    return PartnerOutput(logits=logits, trust=said.trust * fine * trust)


def _state(net: nn.Module) -> dict[str, Tensor]:
    state: dict[str, Tensor] = plain(net).state_dict()
    return state
