"""What ranks must agree on: when to stop, that all are at the same step, and that none has failed."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

from coterie.core.errors import CoterieError, FailedElsewhere, ParallelError, one_line
from coterie.core.types import Batch, Peers, Terms
from coterie.core.world import World
from coterie.data import Loader
from coterie.engine.heartbeat import Heartbeat
from coterie.engine.interrupt import Interrupt

if TYPE_CHECKING:
    from torch.distributed.distributed_c10d import Store

    from coterie.engine.loop import Run

_MESSAGE = 512  # bytes of an error that is passed on
_LOOK = timedelta(seconds=2)
_LOST = ("gloo", "nccl", "timed out", "connection closed", "connection reset", "broken pipe", "process group")
_PATIENCE = 10.0  # seconds for the notes of all ranks
_NAMED = 8  # ranks at most that an error lists


class Together:
    """The ranks of a run, as one of them sees them.

    Args:
        world: the ranks.
        interrupt: the flag that signals raise in this process.
        store: where each rank notes what it is doing, so that the others can name one that hangs; None for nowhere.

    Attributes:
        asked: whether any rank was asked to stop when they last met; then all stop after the same step.
        heart: where this rank shows what it is doing; None for nowhere.
    """

    def __init__(self, world: World, interrupt: Interrupt, store: Store | None = None) -> None:
        self.world = world
        self.asked = False
        self._interrupt = interrupt
        self._store = store
        self.heart: Heartbeat | None = None
        self._doing = ("setup", 0)
        self._over = False  # whether ranks have agreed that the run has failed, and meet no more

    def meet(self, step: int, error: Exception | None = None) -> None:
        """Meet the other ranks: one exchange of four numbers.

        Args:
            step: that this rank is about to take.
            error: what has gone wrong here since ranks last met.

        Raises:
            ParallelError: ranks are at different steps, are gone, or do not come in time; they are named.
            Exception: `error`, on the first rank that has one.
            FailedElsewhere: on all other ranks then.
        """
        if self.world.alone or self._over:
            self.asked = self._interrupt.asked
            if error is not None:
                raise error
            return
        asked = self._interrupt.asked
        with self.phase("waiting", step or self._doing[1]):
            stop, failed, last, first = self._largest([asked, error is not None, step, -step])
        if failed:
            self._raise_first(error)
        if last != -first:
            raise ParallelError(
                f"ranks are at different steps, {-first} and {last}; resume all of them from one checkpoint"
            )
        self.asked = bool(stop)

    @contextmanager
    def checked(self, what: str) -> Iterator[None]:
        """Context whose body all ranks run; if it fails on one of them, it fails on all. Raises as `meet` does."""
        error = None
        with self.phase(what, self._doing[1]):
            try:
                yield
            except Exception as raised:
                error = raised
        self.meet(0, error)

    @contextmanager
    def phase(self, what: str, step: int) -> Iterator[None]:
        """Context in which this rank notes what it is doing."""
        before = self._doing
        self._note(what, step)
        yield
        begun = step > 0 and before[0] == "setup"  # not noted after an error: then what was done is what matters
        self._note("training" if begun else before[0], max(step, before[1]))

    @contextmanager
    def contact(self) -> Iterator[None]:
        """Context that turns what torch raises when ranks are gone into one line that names them.

        Raises:
            ParallelError: another rank is gone, or does not answer in time.
        """
        try:
            yield
        except RuntimeError as error:
            if self.world.alone or not _is_lost(error):
                raise
            raise ParallelError(f"{self.missing()} ({one_line(error)[:120]})") from error

    @contextmanager
    def in_turn(self) -> Iterator[None]:
        """Context that rank 0 leaves before the others enter it: what it writes they read."""
        if not self.world.writes:
            self.tell()
        yield
        if self.world.writes:
            self.tell()

    def announce(self, step: int, error: Exception) -> Exception:
        """Let the other ranks know, at their next meeting, that this one ends.

        Args:
            step: that would come next.
            error: why. Ranks are not told of one that comes from a meeting, or from the middle of a step, where the
                others wait for something else; they notice when this process is gone.

        Returns:
            What to raise: `error`, or that another rank raises its own first.
        """
        if self._doing[0] not in ("step", "waiting") and not isinstance(error, ParallelError):
            try:
                self.meet(step, error)
            except FailedElsewhere as elsewhere:
                return elsewhere
            except Exception:
                return error
        return error

    def missing(self) -> str:
        """Say which ranks keep the others waiting, and what they are doing, as far as they have noted it."""
        mine = f"rank {self.world.rank} waited in phase {self._doing[0]!r} of step {self._doing[1]}"
        others = self._notes()
        others.pop(self.world.rank, None)
        elsewhere = {rank: note for rank, note in others.items() if note != self._doing}
        named = list((elsewhere or others).items())[:_NAMED]
        listed = ", ".join(f"rank {rank} in phase {what!r} of step {step}" for rank, (what, step) in named)
        return f"{mine}; {f'last heard of {listed}' if listed else 'the others have said no more'}"

    def tell_json(self, value: Mapping[str, Any]) -> dict[str, Any]:
        """Give all ranks what rank 0 has found, for which they wait as long as it takes."""
        found: dict[str, Any] = dict(value) if self.world.alone else json.loads(self.tell(json.dumps(value)))
        return found

    def tell(self, text: str = "") -> str:
        """Give all ranks a text of rank 0, for which they wait as long as it takes."""
        if self.world.alone:
            return text
        content = text.encode() if self.world.writes else b""
        size = torch.tensor([len(content)])
        dist.broadcast(size, 0, group=self.world.patient)
        data = torch.empty(int(size), dtype=torch.uint8)
        if self.world.writes and content:
            data = torch.frombuffer(bytearray(content), dtype=torch.uint8)
        self.hand_out(data)
        return bytes(data.tolist()).decode()

    def hand_out(self, tensor: Tensor) -> None:
        """Overwrite a tensor on the CPU by rank 0's, whatever its dtype."""
        if tensor.numel():
            dist.broadcast(tensor.reshape(-1).view(torch.uint8), 0, group=self.world.patient)

    def collect(self, tensor: Tensor) -> list[Tensor]:
        """What each rank has for a tensor on the CPU, in order of ranks."""
        found = [torch.empty_like(tensor) for _ in range(self.world.size)]
        dist.all_gather(found, tensor.contiguous(), group=self.world.control)
        return found

    def texts(self, text: str) -> list[str]:
        """What each rank has to say, in at most 512 bytes, in order of ranks."""
        return [_as_text(content) for content in self.collect(_as_tensor(text))]

    def _largest(self, numbers: list[int]) -> list[int]:
        values = torch.tensor(numbers, dtype=torch.int64)
        with self.contact():
            dist.all_reduce(values, dist.ReduceOp.MAX, group=self.world.control)
        return [int(value) for value in values]

    def _raise_first(self, error: Exception | None) -> None:
        """Let the first rank that has failed raise its error and all others one that says so."""
        code = error.exit_code if isinstance(error, CoterieError) else 1
        text = f"{code} {one_line(error)}" if error else ""
        found, self._over = self.texts(text), True
        rank = next(number for number, said in enumerate(found) if said)
        if rank == self.world.rank and error is not None:
            raise error
        first, _, message = found[rank].partition(" ")
        raise FailedElsewhere(f"rank {rank}: {message}", int(first)) from error

    def _note(self, what: str, step: int) -> None:
        self._doing = (what, step)
        if self.heart is not None:
            self.heart.beat(what, step)
        if self._store is not None:
            with suppress(RuntimeError):
                self._store.set(f"rank{self.world.rank}", f"{step} {what}")

    def _notes(self) -> dict[int, tuple[str, int]]:
        """What ranks have noted, as far as the store answers; a cut cable keeps it silent for a quarter of an hour."""
        found: dict[int, tuple[str, int]] = {}
        reader = threading.Thread(target=self._read_notes, args=(found,), daemon=True)
        reader.start()
        reader.join(_PATIENCE)
        return dict(found)

    def _read_notes(self, found: dict[int, tuple[str, int]]) -> None:
        if self._store is None:
            return
        for rank in range(self.world.size):
            with suppress(RuntimeError):
                if self._store.check([f"rank{rank}"]):  # asked first: to wait for one that is gone adds up over ranks
                    found[rank] = _noted(self._store, rank)


class MeetingLoader:
    """Batches before each of which the ranks meet; see `coterie.data.Loader`.

    What goes wrong while a batch is fetched on one rank ends all of them.

    Args:
        loader: gives this rank's batches.
        together: the ranks.
    """

    def __init__(self, loader: Loader, together: Together) -> None:
        self.loader = loader
        self.together = together

    @property
    def batches_per_epoch(self) -> int:
        """Number of batches in an epoch."""
        return self.loader.batches_per_epoch

    def batches(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Yield the batches of an epoch from position `start` on; raises as `Together.meet` does."""
        source = iter(self.loader.batches(epoch, start))
        for step in range(epoch * self.batches_per_epoch + start, (epoch + 1) * self.batches_per_epoch):
            with self.together.phase("data", step):
                batch, error = _fetched(lambda: next(source))
            self.together.meet(step, error)
            assert batch is not None
            yield batch

    def close(self) -> None:
        """End what the loader has started."""
        self.loader.close()


class Pulse:
    """Shows the steps of a process that trains alone; see `coterie.engine.loop.Watcher`.

    Processes that train together show more by themselves.

    Args:
        together: this process.
    """

    def __init__(self, together: Together) -> None:
        self.together = together

    def on_step(self, run: Run, peers: Peers, terms: Terms, batch: Batch) -> None:
        """Show that a step was taken."""
        if self.together.world.alone and self.together.heart is not None:
            self.together.heart.beat("step", run.batches)

    def on_epoch(self, run: Run) -> None:
        """Show nothing more."""


def _noted(store: Store, rank: int) -> tuple[str, int]:
    store.wait([f"rank{rank}"], _LOOK)
    step, _, what = store.get(f"rank{rank}").decode().partition(" ")
    return what, int(step)


def _is_lost(error: RuntimeError) -> bool:
    """Whether an error of torch's says that another rank is gone or silent."""
    said = str(error).lower()
    return not isinstance(error, torch.OutOfMemoryError) and any(word in said for word in _LOST)


def _fetched(fetch: Callable[[], Batch]) -> tuple[Batch | None, Exception | None]:
    try:
        return fetch(), None
    except Exception as error:
        return None, error


def _as_tensor(text: str) -> Tensor:
    content = text.encode()[:_MESSAGE].ljust(_MESSAGE, b"\0")
    return torch.frombuffer(bytearray(content), dtype=torch.uint8)


def _as_text(content: Tensor) -> str:
    return bytes(content.tolist()).rstrip(b"\0").decode(errors="ignore")
