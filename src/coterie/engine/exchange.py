"""Codistillation between jobs, as a run sees it: when to speak, whom to hear, and what has come of it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from coterie.cohort.partners import Adopted, Partners
from coterie.core.files import JsonValue, RecordWarning
from coterie.core.types import Batch
from coterie.engine.blobs import parse_name
from coterie.engine.courier import Arrival, Event, Mail, Parcel
from coterie.engine.loop import Done, Run, Step
from coterie.engine.shared_store import hand_out
from coterie.engine.snapshot import Snapshot, as_count, as_list, as_mapping
from coterie.engine.together import Together

_JOBS = 64  # that have counters of their own


class ExchangeWarning(RecordWarning):
    """A blob was refused, or the place of exchange cannot be reached; training goes on."""


@dataclass(slots=True)
class PartnerCounts:
    """What has come of a partner.

    Attributes:
        fetched: blobs that were read and found right.
        adopted: of these, those that were learnt from.
        refused: number of blobs by reason.
        stale: own steps during which it was too far behind to be heard.
        step: its count of batches when it said what was adopted last.
        age: how many batches that was behind the own run then.
    """

    fetched: int = 0
    adopted: int = 0
    refused: dict[str, int] = field(default_factory=dict)
    stale: int = 0
    step: int = 0
    age: int = 0

    def note(self, event: Event) -> None:
        """Count an event of this partner."""
        self.fetched += event.what == "fetched"
        if event.what == "refused":
            self.refused[event.reason] = self.refused.get(event.reason, 0) + 1


@dataclass(slots=True)
class Counts:
    """What has come of an exchange.

    Attributes:
        published: own blobs.
        errors: errands that the place did not let be done.
        alone: own steps during which no partner was heard.
        partners: of each job, by name.
    """

    published: int = 0
    errors: int = 0
    alone: int = 0
    partners: dict[str, PartnerCounts] = field(default_factory=dict)

    def of(self, job: str) -> PartnerCounts:
        """Counters of a job; all jobs beyond the first 64 share one entry."""
        known = job if job in self.partners or len(self.partners) < _JOBS else "others"
        return self.partners.setdefault(known, PartnerCounts())

    def note(self, event: Event) -> None:
        """Count an event."""
        self.published += event.what == "published"
        self.errors += event.what == "error"
        if event.what in ("fetched", "refused"):
            self.of(event.job).note(event)

    def as_dict(self) -> dict[str, Any]:
        """Plain values for checkpoints, logs and results."""
        return asdict(self)

    def load(self, values: Mapping[str, JsonValue]) -> None:
        """Take over what `as_dict` returned; what is not a number stays as it is."""
        for name in ("published", "errors", "alone"):
            setattr(self, name, as_count(values.get(name)))
        for job, found in as_mapping(values.get("partners")).items():
            self.partners[job] = _partner_counts(as_mapping(found))


class Exchange:
    """Speaks to other jobs and hears them, every so many batches of a run; never waits for any.

    Before a batch whose number is a multiple of `every`, what has arrived is adopted and the own network is published.
    Half-way between, the courier is sent to look for news. All of that is recorded in the log, so that the run can be
    repeated; see `coterie.engine.replay`.

    Args:
        partners: the slots; a part of the run's objective.
        mail: brings and takes; the one of rank 0 is used.
        every: batches between two moments of exchange.
        say: gives what is to be published, copied to the CPU.
        emit: takes rows of the log.
        keep: takes the counters, for the next checkpoint.
        together: the processes that train together.

    Attributes:
        counts: what has come of it.
    """

    def __init__(
        self,
        *,
        partners: Partners,
        mail: Mail,
        every: int,
        say: Callable[[Run], Parcel],
        emit: Callable[[dict[str, Any]], None],
        keep: Callable[[dict[str, Any]], None],
        together: Together,
    ) -> None:
        self.partners = partners
        self.mail = mail
        self.every = every
        self.counts = Counts()
        self._say, self._emit, self._keep, self._together = say, emit, keep, together

    @property
    def _speaks(self) -> bool:
        return self._together.world.writes

    def begin(self, run: Run, *, anew: bool) -> None:
        """Open the place and look for news.

        Args:
            run: at its first step, or restored.
            anew: whether the run begins.

        Raises:
            ConfigError: the place cannot be used; only of a run that begins, since a place may be down for a while.
        """
        if self._speaks:
            self.mail.begin({said.job: said.blob for said in self.partners.taken().values()}, anew=anew)
            self.mail.look(run.batches)

    def around(self, step: Step) -> Step:
        """A step before which the exchange has its turn."""

        def exchanging(run: Run, images: Batch) -> Done:
            self.before_step(run)
            return step(run, images)

        return exchanging

    def before_step(self, run: Run) -> None:
        """Adopt, publish and look when it is time, and count the partners that are not heard in the step to come."""
        done = run.batches
        if done % self.every == 0:
            self._adopt(run)
            self._publish(run)
        if self._speaks and done % self.every == self.every // 2:
            self.mail.look(done)
        self.partners.aim(done)
        self._count_unheard()
        self._keep(self.counts.as_dict())

    def _count_unheard(self) -> None:
        spoken = self.partners.spoken
        self.counts.alone += not spoken
        for slot, said in self.partners.taken().items():
            if slot not in spoken:
                self.counts.of(said.job).stale += 1

    def finish(self, run: Run, patience: float) -> dict[str, Any]:
        """Publish the last weights, and close.

        Args:
            run: after its last step.
            patience: seconds to wait for the place.

        Returns:
            The counters.
        """
        self._publish(run)
        self.close(patience)
        if self._speaks:
            self._note(run, self.mail.collect(run.batches)[1], (), last=True)
        return self.counts.as_dict()

    def close(self, patience: float = 1.0) -> None:
        """End what was started; harmless when called again."""
        if self._speaks:
            self.mail.close(patience)

    def _publish(self, run: Run) -> None:
        if self._speaks and run.batches:
            self.mail.send(self._say(run))

    def _adopt(self, run: Run) -> None:
        found, events = self.mail.collect(run.batches) if self._speaks else ([], [])
        arrivals = self._shared(found, run.batches)
        adopted = [self._take(arrival, run.batches) for arrival in arrivals]
        self._note(run, events, adopted)

    def _take(self, arrival: Arrival, step: int) -> Adopted:
        name = arrival.name
        said = Adopted(job=name.job, step=name.step, blob=str(name), net=arrival.net)
        self.partners.adopt(self.partners.slot_for(name.job, step), said, arrival.tensors)
        counts = self.counts.of(name.job)
        counts.adopted, counts.step, counts.age = counts.adopted + 1, name.step, step - name.step
        return said

    def _note(self, run: Run, events: Sequence[Event], adopted: Sequence[Adopted], *, last: bool = False) -> None:
        for event in events:
            self.counts.note(event)
            if event.line:
                warnings.warn(event.line, ExchangeWarning, stacklevel=4)
        told = [event for event in events if event.what in ("refused", "error", "back")]
        if any((told, adopted, last)):
            self._log(run, told, adopted)

    def _log(self, run: Run, told: Sequence[Event], adopted: Sequence[Adopted]) -> None:
        taken = [{"job": said.job, "step": said.step, "blob": said.blob} for said in adopted]
        news = [{"what": event.what, "job": event.job, "reason": event.reason} for event in told]
        place = {"epoch": run.clock.epoch, "step": run.batches}
        self._emit({"kind": "exchange", **place, "adopted": taken, "news": news, "counts": self.counts.as_dict()})

    def _shared(self, arrivals: list[Arrival], step: int) -> list[Arrival]:
        """Give all ranks what has arrived at rank 0."""
        if self._together.world.alone:
            return arrivals
        own = (0, _snapshot_of(arrivals)) if self._speaks else None
        with self._together.phase("step", step):  # a rank that fails here leaves, and the others notice
            found = hand_out(own, self._together)
        assert found is not None
        return list(_arrivals(found[1]))


def _snapshot_of(arrivals: Sequence[Arrival]) -> Snapshot:
    heads: list[JsonValue] = [[str(arrival.name), arrival.net] for arrival in arrivals]
    tensors = {f"partner{number}": arrival.tensors for number, arrival in enumerate(arrivals)}
    return Snapshot(tensors=tensors, values={"heads": heads})


def _partner_counts(entry: Mapping[str, JsonValue]) -> PartnerCounts:
    refused = {reason: as_count(number) for reason, number in as_mapping(entry.get("refused")).items()}
    numbers = {name: as_count(entry.get(name)) for name in ("fetched", "adopted", "stale", "step", "age")}
    return PartnerCounts(**numbers, refused=refused)


def _arrivals(snapshot: Snapshot) -> list[Arrival]:
    found = []
    for number, head in enumerate(as_list(snapshot.value("heads"))):
        file, net = as_list(head)
        name = parse_name(str(file))
        assert name is not None
        found.append(Arrival(name, str(net), snapshot.section(f"partner{number}")))
    return found
