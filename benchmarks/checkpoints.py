"""What a checkpoint every 100 steps adds to training: of a small cohort, and of one with large memory banks."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median

import torch

from benchmarks.learners import Learner, make_learner
from benchmarks.sizes import Setting
from benchmarks.table import Row
from benchmarks.timing import Ratio, Step, cpu_ms, repeated, take_turns
from coterie.core.record import MetricsLog
from coterie.engine import CheckpointKeeper, CheckpointStore, Meters

_EVERY = 100  # steps between checkpoints
_WARM_UP = 2
_LIMIT = 2.0  # per cent of the time of these steps


def saving(setting: Setting) -> Iterator[Row]:
    """Time steps during which a checkpoint is written against the same steps alone, by CPU time and by the clock."""
    sizes = setting.sizes
    demo = replace(sizes, net="cnn4_w16", peers=3, batch=min(sizes.batch, 50), image=8, classes=10, num_train=1_437)
    small = replace(setting, sizes=replace(demo, negatives=min(sizes.negatives, 256)))
    banks = replace(setting, sizes=replace(sizes, net=sizes.student))
    learner = make_learner(small, knobs=_knobs(small))
    yield from _rows("small", "MCL-OKD, 3 small networks, 8 x 8 pixels", learner, window=20, turns=6)
    learner = make_learner(banks, knobs=_knobs(banks))
    title = f"MCL-OKD, {sizes.peers} {sizes.student}, {sizes.num_train:,} rows"
    yield from _rows("banks", title, learner, window=4)
    with _threads(2):
        yield list(_rows("banks", f"{title}, 2 threads", learner, window=4))[1]


def _knobs(setting: Setting) -> list[str]:
    return [f"num_negatives={setting.sizes.negatives}", f"embedding_dim={setting.sizes.dim}"]


def _rows(key: str, title: str, learner: Learner, *, window: int, turns: int = 1) -> Iterator[Row]:
    """Compare `window` steps with as many in which one checkpoint is begun and finished, `turns` times a round."""
    with tempfile.TemporaryDirectory() as folder:
        keeper = keeper_of(learner, Path(folder))
        both = _Both({"steps": repeated(learner.step, window), "saving": lambda: _save(learner, keeper, window)})
        times = take_turns(both.sides(), rounds=turns * learner.setting.rounds, timer=cpu_ms, warm_up=_WARM_UP)
        keeper.close()
        saved = keeper.snapshot(learner.run).num_bytes / 2**20
    clock = {name: values[_WARM_UP:] for name, values in both.clock.items()}
    for way, found in (("CPU time", times), ("clock", clock)):
        extra = median(found["saving"]) - median(found["steps"])
        threads = torch.get_num_threads()
        yield Row(
            key=f"checkpoints.{key}.{way.split()[0].lower()}{threads if threads > 1 else ''}",
            title=f"checkpoint every {_EVERY} steps, {title}, {way}",
            measured=_share(found["saving"], found["steps"], window),
            unit="%",
            limit=_LIMIT,
            note=f"{extra:.1f} ms for {saved:.1f} MiB; a step takes {median(found['steps']) / window:.1f} ms",
        )


def keeper_of(learner: Learner, folder: Path) -> CheckpointKeeper:
    """What saves in a run, by the defaults of a recipe."""
    meters = Meters(every=0, emit=_ignore, emit_timing=_ignore)
    store, log = CheckpointStore(folder / "checkpoints"), MetricsLog(folder / "metrics.jsonl")
    return CheckpointKeeper(store=store, meters=meters, log=log, every=_EVERY, facts={}, background=True)


def _save(learner: Learner, keeper: CheckpointKeeper, steps: int) -> None:
    """Begin a save, go on with steps, and wait for what is left of it, as the next save would."""
    learner.run.clock.epoch += 1  # another step than the last one's
    keeper.save(learner.run, patience=3)
    for _ in range(steps):
        learner.step()
    keeper.settle()


@dataclass(frozen=True, slots=True)
class _Both:
    """Steps that also note the time by the clock, in milliseconds."""

    steps: dict[str, Step]
    clock: dict[str, list[float]] = field(default_factory=dict)

    def sides(self) -> dict[str, Step]:
        return {name: self._noting(name) for name in self.steps}

    def _noting(self, name: str) -> Step:
        def noting() -> None:
            start = time.perf_counter()
            self.steps[name]()
            self.clock.setdefault(name, []).append((time.perf_counter() - start) * 1e3)

        return noting


def _share(saving: Sequence[float], steps: Sequence[float], window: int) -> Ratio:
    """Per cent that a save adds to the steps between two saves."""
    to_all = 100.0 * window / _EVERY
    single = [to_all * (a - b) / b for a, b in zip(saving, steps, strict=True)]
    return Ratio(to_all * (median(saving) - median(steps)) / median(steps), min(single), max(single))


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _ignore(row: object) -> None:
    """Keep nothing."""
