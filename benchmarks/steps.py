"""Full training steps next to plain steps of the networks alone: MCL-OKD, and any one method; and a trace."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median

import torch

from benchmarks.learners import make_learner
from benchmarks.sizes import Setting
from benchmarks.table import Row
from benchmarks.timing import Step, ratio, repeated, spread_of, take_turns, timer_for


def full(setting: Setting) -> Iterator[Row]:
    """Time the full MCL-OKD step, with both kinds of banks and in both layouts, against plain steps in NCHW."""
    knobs = [f"num_negatives={setting.sizes.negatives}", f"embedding_dim={setting.sizes.dim}"]
    learners = {
        f"{layout}.{str(dtype).removeprefix('torch.')}": make_learner(
            setting, knobs=knobs, bank=dtype, channels_last=layout == "channels_last"
        )
        for layout in ("nchw", "channels_last")
        for dtype in (torch.float32, torch.bfloat16)
    }
    sides: dict[str, Step] = {"plain": learners["nchw.float32"].plain()}
    times = _in_turns(setting, sides | {key: learner.step for key, learner in learners.items()})
    limits = {
        "nchw.float32": 1.20,
        "nchw.bfloat16": 1.12,
        "channels_last.float32": 0.95,
        "channels_last.bfloat16": 0.95,
    }
    count = setting.sizes.peers
    for key, limit in limits.items():
        layout, dtype = key.split(".")
        yield Row(
            key=f"full.{key}",
            title=f"MCL-OKD step, {layout.replace('_', ' ')}, {dtype} bank / {count} plain steps",
            measured=ratio(times[key], times["plain"]),
            limit=limit,
            note=f"{median(times[key]):.0f} ms / {median(times['plain']):.0f} ms",
        )


def many(setting: Setting) -> Iterator[Row]:
    """Time the full MCL-OKD step of a large cohort against as many plain steps."""
    knobs = [f"num_negatives={setting.sizes.negatives}", f"embedding_dim={setting.sizes.dim}"]
    learner = make_learner(setting, knobs=knobs, peers=setting.sizes.many_peers)
    times = _in_turns(setting, {"plain": learner.plain(), "full": learner.step})
    title = f"MCL-OKD step, M={setting.sizes.many_peers} / {setting.sizes.many_peers} plain steps"
    yield Row(key="many", title=title, measured=ratio(times["full"], times["plain"]), limit=1.25)


def compare(setting: Setting, name: str, knobs: Sequence[str]) -> Iterator[Row]:
    """Time the step of one method with knobs: against KD where it learns from a teacher, else against plain steps.

    Raises:
        CoterieError: the method or a knob is unknown, or the method cannot be taught by this teacher.
    """
    learner = make_learner(setting, name, knobs)
    taught = len(learner.run.objective.teachers) > 0
    other: Step = make_learner(setting, "kd").step if taught else learner.plain()
    times = _in_turns(setting, {"other": other, "step": learner.step})
    rare = learner.method.requirements().outer_every > 1
    own = learner.cost(times["step"], timer_for(setting.device)(learner.outer)) if rare else times["step"]
    against = "a step of kd" if taught else "plain steps"
    title = f"{' '.join([name, *knobs])} / {against}"
    yield Row(key="method", title=title, measured=ratio(own, times["other"]))
    for key, values in (("method.ms", own), ("other.ms", times["other"])):
        named = "the step" if key == "method.ms" else against
        yield Row(key=key, title=f"    {named}", measured=spread_of(values), unit="ms")


def profile(setting: Setting, path: Path) -> None:
    """Write a trace of a full MCL-OKD step, after two that warm up, for `chrome://tracing` or Perfetto."""
    learner = make_learner(setting)
    repeated(learner.step, 2)()
    activities = [torch.profiler.ProfilerActivity.CPU]
    if setting.device.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
        torch.cuda.synchronize()
    with torch.profiler.profile(activities=activities, record_shapes=True) as trace:
        learner.step()
        if setting.device.type == "cuda":
            torch.cuda.synchronize()
    trace.export_chrome_trace(str(path))


def _in_turns(setting: Setting, sides: dict[str, Step]) -> dict[str, list[float]]:
    return take_turns(sides, rounds=setting.rounds, timer=timer_for(setting.device))
