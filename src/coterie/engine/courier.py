"""The courier between a job and the place of exchange: a thread, so that no step waits for a disk or a net."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Protocol, TypeAlias

from torch import Tensor

from coterie.core.errors import one_line
from coterie.core.files import reason
from coterie.engine.blobs import (
    BlobName,
    Expected,
    Refused,
    check_header,
    decode,
    encode,
    header_end,
    name_for,
    parse_name,
)
from coterie.engine.places import TEMPORARY, Place

_FIRST_DELAY, _LONGEST_DELAY = 0.25, 30.0  # seconds before another try
_REMEMBERED = 4096  # refused names


class Parcel(NamedTuple):
    """What a job wants to say: tensors on the CPU that nobody changes any more, and the words beside them."""

    step: int
    tensors: Mapping[str, Tensor]
    facts: Mapping[str, str]


class Arrival(NamedTuple):
    """What a partner has said, checked."""

    name: BlobName
    net: str
    tensors: Mapping[str, Tensor]


class Event(NamedTuple):
    """Something that has happened since the last look: for counters, and a line where a user should hear of it.

    `what` is `published`, `fetched`, `refused`, `error` or `back` (the place is there again).
    """

    what: Literal["published", "fetched", "refused", "error", "back"]
    job: str = ""
    reason: str = ""
    line: str = ""


class Mail(Protocol):
    """Brings what partners say and takes what is said to them."""

    def begin(self, known: Mapping[str, str], *, anew: bool) -> None:
        """Get ready, knowing the last blob of each partner; a run that begins anew withdraws what it has said before.

        Raises:
            ConfigError: a run that begins anew cannot use the place.
        """

    def look(self, step: int) -> None:
        """Ask for what partners have to say to a run at this step; it is there some time later."""

    def send(self, parcel: Parcel) -> None:
        """Say something; a parcel that is not on its way yet is replaced."""

    def collect(self, step: int) -> tuple[list[Arrival], list[Event]]:
        """What has arrived since the last call, at most one from each partner, and what has happened."""

    def close(self, patience: float) -> None:
        """End, once the last parcel is delivered or so many seconds have passed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """Where a courier goes.

    Attributes:
        place: of exchange.
        job: own name.
        partners: whom to hear; all that are found when empty.
        most: partners at most.
        max_age: what is so many batches behind the own step, or more, is left where it is.
        keep: own blobs kept, newest first; 0 for all.
        expected: what a partner's blob must hold.
        timeout: seconds after which an errand counts as unanswered.
    """

    place: Place
    job: str
    partners: tuple[str, ...]
    most: int
    max_age: int
    keep: int
    expected: Expected
    timeout: float = 30.0

    def hears(self, job: str) -> bool:
        """Whether a job is one of the partners."""
        return not self.partners or job in self.partners


def fetch(route: Route, name: BlobName, size: int) -> Arrival:
    """Read a blob: its size, then its header, then all of it, and believe none before its hash is right.

    Args:
        route: names the place and what the blob must hold.
        name: of the blob.
        size: bytes, as the place lists it.

    Raises:
        Refused: it is not what it must be.
        FileNotFoundError: it is gone.
    """
    place, file = route.place, str(name)
    if name.kind != route.expected.kind:
        raise Refused("kind", f"holds {name.kind} and this job exchanges {route.expected.kind}")
    if size > route.expected.most:
        raise Refused("size", f"has {size} bytes, more than the {route.expected.most} that any expected network takes")
    end = header_end(place.read(file, 0, 8), size)
    net = check_header(place.read(file, 0, end), size, name, route.expected)
    return Arrival(name, net, decode(place.read(file, 0, size), name))


_Errand: TypeAlias = Literal["look", "publish"]


def _due_at(now: float, dues: Mapping[_Errand, float]) -> _Errand | None:
    return next((name for name, due in dues.items() if due <= now), None)


def _named(files: Iterable[str]) -> list[tuple[str, BlobName]]:
    """Those files that are blobs, with what their names say."""
    return [(file, name) for file in files if (name := parse_name(file))]


def _why(error: Exception) -> str:
    return reason(error) if isinstance(error, OSError) else one_line(error)


@dataclass(slots=True)
class _Desk:
    """What the thread and the job share, under one lock."""

    look: int | None = None
    publish: Parcel | None = None
    arrivals: dict[str, Arrival] = field(default_factory=dict)
    events: list[Event] = field(default_factory=list)
    closed: bool = False
    busy_since: float | None = None


@dataclass(slots=True)
class _Retry:
    """When an errand may be done, on the monotonic clock; `delay` is 0 while it goes well."""

    due: float = 0.0
    delay: float = 0.0

    def fail(self) -> None:
        """Wait, longer each time."""
        self.delay = min(2 * self.delay or _FIRST_DELAY, _LONGEST_DELAY)
        self.due = time.monotonic() + self.delay


class Courier:
    """Publishes and fetches in a thread; see `Mail`.

    When the place is down it tries again, after a quarter of a second and then ever longer, up to half a minute; what
    it publishes then is the newest. Looking and publishing fail apart: a place that may only be read is read. It never
    ends because of what it meets.

    Args:
        route: where to go.
    """

    def __init__(self, route: Route) -> None:
        self.route = route
        self._desk = _Desk()
        self._changed = threading.Condition()
        self._retries: dict[_Errand, _Retry] = {"look": _Retry(), "publish": _Retry()}
        self._seen: dict[str, str] = {}  # the blob that was last fetched, by job
        self._refused: dict[str, None] = {}
        self._own: list[str] = []  # published by this process, newest first
        self._before: set[str] | None = None  # own blobs of before; None until the place was tidied
        self._anew = False
        self._thread: threading.Thread | None = None

    def begin(self, known: Mapping[str, str], *, anew: bool) -> None:
        """Start the thread; a run that begins anew makes the place and withdraws own blobs of before.

        Raises:
            ConfigError: the folder cannot be made.
        """
        if anew:
            self.route.place.make()
        self._seen, self._anew = dict(known), anew
        self._thread = threading.Thread(target=self._work, name="exchange", daemon=True)
        self._thread.start()

    def look(self, step: int) -> None:
        """Ask for what is newest at the place."""
        with self._changed:
            self._desk.look = step
            self._changed.notify_all()

    def send(self, parcel: Parcel) -> None:
        """Publish a parcel as soon as the thread is free."""
        with self._changed:
            self._desk.publish = parcel
            self._changed.notify_all()

    def collect(self, step: int) -> tuple[list[Arrival], list[Event]]:
        """Take what has arrived and what has happened; `step` does not matter here."""
        with self._changed:
            arrivals, self._desk.arrivals = list(self._desk.arrivals.values()), {}
            events, self._desk.events = self._desk.events, []
            since = self._desk.busy_since
            if since is not None and time.monotonic() - since > self.route.timeout:
                self._desk.busy_since = None  # told once
                line = f"{self.route.place.where} has not answered for {self.route.timeout:g} s; training goes on"
                events.append(Event("error", line=line))
        return arrivals, events

    def close(self, patience: float) -> None:
        """End when there is nothing to publish any more, or leave the thread behind when that takes too long."""
        if self._thread is None:
            return
        with self._changed:
            self._changed.wait_for(self._has_published, timeout=patience)
            self._desk.closed = True
            self._changed.notify_all()
        self._thread.join(timeout=1.0)

    def _has_published(self) -> bool:
        return self._desk.publish is None or self._retries["publish"].delay > 0

    def _work(self) -> None:
        while errand := self._next():
            try:
                self._look() if errand == "look" else self._publish()
            except Exception as error:  # every store has its own kinds
                self._note_failure(errand, error)
            else:
                self._note_success(errand)

    def _next(self) -> _Errand | None:
        """Wait for the next errand; None at the end."""
        with self._changed:
            while not self._desk.closed:
                dues, now = self._dues(), time.monotonic()
                ready = _due_at(now, dues)
                if ready:
                    self._desk.busy_since = now
                    return ready
                self._changed.wait(min(dues.values()) - now if dues else None)
        return None

    def _dues(self) -> dict[_Errand, float]:
        """When each errand that was asked for may be done."""
        asked = {"look": self._desk.look, "publish": self._desk.publish}
        return {name: retry.due for name, retry in self._retries.items() if asked[name] is not None}

    def _publish(self) -> None:
        self._tidy()
        with self._changed:
            parcel = self._desk.publish
        assert parcel is not None
        kind, job, place = self.route.expected.kind, self.route.job, self.route.place
        content = encode(parcel.tensors, job=job, step=parcel.step, kind=kind, facts=parcel.facts)
        name = name_for(content, job=job, step=parcel.step, kind=kind)
        place.write(str(name), content)
        self._own.insert(0, str(name))
        with self._changed:
            self._desk.events.append(Event("published"))
            if self._desk.publish is parcel:
                self._desk.publish = None
            self._changed.notify_all()
        self._retire()

    def _look(self) -> None:
        self._tidy()
        with self._changed:
            step = self._desk.look
        assert step is not None
        sizes = self.route.place.sizes()
        for job, blobs in self._chosen(sizes, step).items():
            self._fetch_newest(job, blobs, sizes)
        with self._changed:
            if self._desk.look == step:
                self._desk.look = None

    def _fetch_newest(self, job: str, blobs: list[BlobName], sizes: Mapping[str, int]) -> None:
        for name in blobs:
            with suppress(FileNotFoundError):  # retired since the place was listed
                if str(name) == self._seen.get(job) or self._fetched(name, sizes[str(name)]):
                    return

    def _fetched(self, name: BlobName, size: int) -> bool:
        """Fetch a blob, and tell whether it is right."""
        try:
            arrival = fetch(self.route, name, size)
        except Refused as error:
            self._refuse(name, error)
            return False
        self._seen[name.job] = str(name)
        with self._changed:
            self._desk.arrivals[name.job] = arrival
            self._desk.events.append(Event("fetched", name.job))
        return True

    def _chosen(self, sizes: Mapping[str, int], step: int) -> dict[str, list[BlobName]]:
        """Blobs that may be fetched, newest first, by job; partners that were heard before come first."""
        found = self._said_by_partners(sizes, step)
        jobs = sorted(found, key=lambda job: (job not in self._seen, job))[: self.route.most]
        return {job: sorted(found[job], key=lambda name: (name.step, name.sha256), reverse=True) for job in jobs}

    def _said_by_partners(self, files: Iterable[str], step: int) -> dict[str, list[BlobName]]:
        found: dict[str, list[BlobName]] = {}
        for file, name in _named(files):
            if file in self._refused or step - name.step >= self.route.max_age:
                continue
            if name.job == self.route.job:
                self._check_own(file, name)
            elif self.route.hears(name.job):
                found.setdefault(name.job, []).append(name)
        return found

    def _check_own(self, file: str, name: BlobName) -> None:
        if file not in {*self._own, *(self._before or ())}:
            self._refuse(name, Refused("name", "is not of this job; give each job its own exchange.job"))

    def _refuse(self, name: BlobName, error: Refused) -> None:
        self._refused[str(name)] = None
        while len(self._refused) > _REMEMBERED:
            del self._refused[next(iter(self._refused))]
        line = f"exchange: blob {name.brief} of job {name.job} is refused: {error}; training goes on without it"
        with self._changed:
            self._desk.events.append(Event("refused", name.job, error.reason, line))

    def _tidy(self) -> None:
        """Once, before the first errand: remove what a killed process has left, or all that was said before."""
        if self._before is not None:
            return
        files = {file.removeprefix(TEMPORARY): file for file in self.route.place.sizes()}
        own = {files[file] for file, name in _named(files) if name.job == self.route.job}
        for file in own:
            if self._anew or file.startswith(TEMPORARY):
                self.route.place.remove(file)
        self._before = own

    def _retire(self) -> None:
        """Remove own blobs but the newest; those of a process before count as older, whatever their step."""
        if not self.route.keep:
            return
        for file in [*self._own, *self._older()][self.route.keep :]:
            self.route.place.remove(file)
        self._own = self._own[: self.route.keep]

    def _older(self) -> list[str]:
        """Own blobs of before this process, newest first."""
        names = [name for _, name in _named(self.route.place.sizes()) if name.job == self.route.job]
        ranked = map(str, sorted(names, key=lambda name: -name.step))
        return [file for file in ranked if file not in self._own]

    def _note_failure(self, errand: _Errand, error: Exception) -> None:
        retry = self._retries[errand]
        line = (
            f"exchange: cannot {errand} in {self.route.place.where}: {_why(error)}; training goes on, it is tried again"
        )
        with self._changed:
            first = not retry.delay
            retry.fail()
            self._desk.busy_since = None
            self._desk.events.append(Event("error", reason=errand, line=line * first))
            self._changed.notify_all()

    def _note_success(self, errand: _Errand) -> None:
        retry = self._retries[errand]
        with self._changed:
            self._desk.busy_since = None
            if retry.delay:
                self._desk.events.append(Event("back", reason=errand))
            retry.due = retry.delay = 0.0
