"""Learning from teachers: networks that are trained already and stay as they are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from coterie.core.errors import ConfigError
from coterie.core.knobs import check_knobs
from coterie.core.method import Facts, Memory, Method, Needs, PeerFacts
from coterie.core.types import Batch, PeerOutput, Peers, Terms
from coterie.losses.logits import summed_cross_entropy


class Link(nn.Module):
    """What one student takes from one teacher: the loss between their outputs and all that it needs.

    Trainable parts (connectors, heads, critics) are ordinary submodules. Memories go into `self.memories`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.memories: dict[str, Memory] = {}

    def forward(self, student: PeerOutput, teacher: PeerOutput, batch: Batch) -> Tensor:
        """Compute the loss.

        Args:
            student: outputs of the student, with gradient.
            teacher: outputs of the teacher, constants.
            batch: the images both saw.

        Returns:
            `[]`, before weighting; or `[P]`, a value for each of the method's `parts`.
        """
        raise NotImplementedError

    def after_step(self, student: PeerOutput, teacher: PeerOutput, batch: Batch) -> None:
        """Update memories after the optimiser step; runs without gradient, on the outputs of that step."""

    def describe(self) -> str:
        """What was built to make the outputs comparable, in words; empty when nothing was."""
        return ""


class TeacherMethod(Method):
    """Base of the methods in which students learn from teachers: a subclass says what a `Link` is.

    Teachers are the networks of `teacher.*` and the frozen peers of the cohort. Every student is linked to every
    teacher; the links of a student are averaged over its teachers, those of several students summed.

    Alone, such a method trains its students with labels as well; behind another method it adds its term only.

    Args:
        config: its knobs.
        facts: sizes and labels of the run.

    Raises:
        ConfigError: there is no teacher, or one does not fit.

    Attributes:
        pairs: student and teacher of each link; teachers are counted after the peers.
        links: one `Link` for each pair.
        term: what the term is called in displays and logs.
    """

    needs = Needs(teacher=True)
    term: ClassVar[str] = "teacher"

    @dataclass(frozen=True, kw_only=True)
    class Config(Method.Config):
        """Knobs that all these methods have; a subclass sets its paper's defaults.

        Attributes:
            weight: factor of what is taken from the teachers.
            task: factor of the cross-entropy with the labels; behind another method that one's cross-entropy counts.
            students: who learns from the teachers, the `leader` only or `all` peers that learn.
            initial_epochs: epochs at the beginning in which students only imitate the teacher; after them, only the
                labels count, which teach the other peers all the time. 0 for both at once, throughout.
        """

        weight: float = 1.0
        task: float = 1.0
        students: Literal["leader", "all"] = "leader"
        initial_epochs: int = 0

        def __post_init__(self) -> None:
            check_knobs(self, not_negative=("initial_epochs", "weight", "task"))

    config: Config

    def __init__(self, config: Config, facts: Facts) -> None:
        super().__init__(config, facts)
        _check_initial(config, facts)
        self.pairs = tuple(product(_students(config, facts), _teachers(facts)))
        known = (*facts.peers, *facts.teachers)
        self.links = nn.ModuleList(self.link(known[s], known[t]) for s, t in self.pairs)
        for (student, teacher), link in self._linked():
            for key, memory in link.memories.items():
                self.memories[f"{key}-{student}-{teacher}"] = memory

    def link(self, student: PeerFacts, teacher: PeerFacts) -> Link:
        """Build what connects a student to a teacher, with fresh weights from torch's global generator.

        Raises:
            ConfigError: their outputs cannot be compared in this way.
        """
        raise NotImplementedError

    def parts(self) -> Mapping[str, float]:
        """Name and factor of each term that comes from the links, in the order of the values they return.

        One term of the method's name by default; all factors are multiplied by `weight`.
        """
        return {self.term: 1.0}

    def losses(self, peers: Peers, batch: Batch) -> Terms:
        """Term `task`, cross-entropy of the peers that learn, and what `added_losses` returns.

        With an initial stage, peers that are no students have a term of their own, `others`: labels teach them
        throughout.
        """
        task, weight = self.weights(batch)
        taught, others = self._staged() if isinstance(task, Tensor) else (self.facts.learning, ())
        terms = Terms().add("task", _cross_entropy(peers, taught, batch), task)
        if others:
            terms.add("others", _cross_entropy(peers, others, batch), self.config.task)
        return self._add_parts(terms, peers, batch, weight)

    def _staged(self) -> tuple[Sequence[int], Sequence[int]]:
        """Peers whose labels wait for the initial stage to end, and those that learn from labels throughout."""
        learning, students = self.facts.learning, self._taught
        return [m for m in learning if m in students], [m for m in learning if m not in students]

    def added_losses(self, peers: Peers, batch: Batch) -> Terms:
        """A term for each part, with gradient to the students and to the links."""
        return self._add_parts(Terms(), peers, batch, self.weights(batch)[1])

    def after_step(self, peers: Peers, batch: Batch) -> None:
        """Update the memories of all links."""
        known = (*peers, *batch.teachers)
        for (student, teacher), link in self._linked():
            link.after_step(known[student], known[teacher], batch)

    def ensemble(self, peers: Peers) -> Tensor:
        """Mean logits `[B, K]` of the peers that learn."""
        return super().ensemble([peers[m] for m in self.facts.learning])

    def describe(self) -> dict[str, str]:
        """What each link has built."""
        built = {f"link {s} <- {t}": text for (s, t), link in self._linked() if (text := link.describe())}
        return {"teachers": f"{self._num_teachers}, for peers {sorted(self._taught)}", **built}

    @property
    def _taught(self) -> set[int]:
        return {student for student, _ in self.pairs}

    @property
    def _num_teachers(self) -> int:
        return len({teacher for _, teacher in self.pairs})

    def _add_parts(self, terms: Terms, peers: Peers, batch: Batch, weight: float | Tensor) -> Terms:
        known = (*peers, *batch.teachers)
        values = [link(known[student], known[teacher], batch) for (student, teacher), link in self._linked()]
        total = torch.stack(values).sum(dim=0) / self._num_teachers
        for (name, factor), value in zip(self.parts().items(), total.view(-1), strict=True):
            terms.add(name, value, factor * weight)
        return terms

    def weights(self, batch: Batch) -> tuple[float | Tensor, float | Tensor]:
        """Factors of task and transfer in the epoch of a batch: one of them is 0 with an initial stage."""
        config = self.config
        if not config.initial_epochs:
            return config.task, config.weight
        early = (batch.epoch < config.initial_epochs).to(torch.float32)
        return config.task * (1 - early), config.weight * early

    def _linked(self) -> Iterator[tuple[tuple[int, int], Link]]:
        for pair, link in zip(self.pairs, self.links, strict=True):
            assert isinstance(link, Link)
            yield pair, link


def _check_initial(config: TeacherMethod.Config, facts: Facts) -> None:
    if 0 < facts.num_epochs <= config.initial_epochs:
        raise ConfigError(
            f"initial_epochs={config.initial_epochs} leaves none of {facts.num_epochs} epochs for what follows;"
            " give fewer with method.initial_epochs, or raise epochs"
        )


def _students(config: TeacherMethod.Config, facts: Facts) -> list[int]:
    if config.students == "leader":
        return [facts.leader]
    return list(facts.learning)


def _teachers(facts: Facts) -> list[int]:
    return [*facts.frozen, *range(facts.num_peers, facts.num_peers + len(facts.teachers))]


def _cross_entropy(peers: Peers, chosen: Sequence[int], batch: Batch) -> Tensor:
    return summed_cross_entropy([peers[m].logits for m in chosen], batch.labels)


def require_same_classes(name: str, student: PeerFacts, teacher: PeerFacts) -> None:
    """Refuse a teacher of other classes.

    Args:
        name: of the method that compares class scores.
        student: sizes of its outputs.
        teacher: sizes of its outputs.

    Raises:
        ConfigError: the numbers of classes differ.
    """
    if student.num_classes != teacher.num_classes:
        raise ConfigError(
            f"{name} compares class scores, but the teacher knows {teacher.num_classes} classes and the student"
            f" {student.num_classes}; give a teacher of the same classes, or a method that compares embeddings"
        )
