"""A full step of every registered method, next to the steps of its networks alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from statistics import median

import coterie.methods  # noqa: F401 (registers them)
from benchmarks.learners import Learner, make_learner
from benchmarks.sizes import Setting
from benchmarks.table import Row
from benchmarks.timing import ratio, take_turns, timer_for
from coterie.core import METHODS

LOGITS, IN_BATCH, BANK, LAYERS, TAUGHT = "logits only", "contrast in the batch", "bank", "layers", "teacher"
LIMITS: Mapping[str, float | None] = {LOGITS: 1.10, IN_BATCH: 1.25, BANK: 1.20, LAYERS: None, TAUGHT: None}
_KINDS = {
    "mcl": IN_BATCH,
    "mcl_bank": BANK,
    "mcl_moco": BANK,
    "mcl_okd": BANK,
    "l_mcl": LAYERS,
}


def kind_of(name: str) -> str:
    """What a method's step has to pay for besides its networks, which decides its limit."""
    return TAUGHT if METHODS[name].needs.teacher else _KINDS.get(name, LOGITS)


def measurable(setting: Setting) -> list[str]:
    """The methods that images in plain batches can be taught by, or those of them that the setting names."""
    return [name for name in METHODS if METHODS[name].needs.episode is None and _asked(setting, name)]


def every(setting: Setting) -> Iterator[Row]:
    """Time a full step of each method against M plain steps, a row each.

    The forward passes of a teacher, and of copies that a method keeps of its peers, are made on both sides.
    """
    for name in measurable(setting):
        yield _row(setting, name, make_learner(setting, name))


def _asked(setting: Setting, name: str) -> bool:
    return not setting.methods or name in setting.methods


def _row(setting: Setting, name: str, learner: Learner) -> Row:
    timer = timer_for(setting.device)
    times = take_turns({"plain": learner.plain(), "step": learner.step}, rounds=setting.rounds, timer=timer)
    rare = learner.method.requirements().outer_every > 1
    own = learner.cost(times["step"], timer(learner.outer)) if rare else times["step"]
    kind, count = kind_of(name), len(learner.run.objective.cohort)
    extra = " and its teacher" if kind == TAUGHT else " and forward passes" if learner.extra else ""
    steps = f"{count} plain step{'s' * (count > 1)}{extra}"
    return Row(
        key=f"method.{name}",
        title=f"{name} ({kind}) / {steps}",
        measured=ratio(own, times["plain"]),
        limit=LIMITS[kind],
        note=f"{median(own):.0f} ms / {median(times['plain']):.0f} ms",
    )
