"""Times of steps that take turns, and quotients of their medians."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

import torch

Step = Callable[[], object]
Timer = Callable[[Step], float]


@dataclass(frozen=True, slots=True)
class Ratio:
    """A quotient of two medians.

    Attributes:
        value: median above divided by median below.
        low: lowest quotient of a single round.
        high: highest quotient of a single round.
    """

    value: float
    low: float
    high: float


def cpu_ms(step: Step) -> float:
    """Milliseconds of CPU time of this process: other load on the machine disturbs them less than those of a clock."""
    start = time.process_time()
    step()
    return (time.process_time() - start) * 1e3


def cuda_ms(step: Step) -> float:
    """Milliseconds between two events on the device, the host's share included, once all earlier work is done."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    torch.cuda.synchronize()
    begin.record()
    step()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end))


def timer_for(device: torch.device) -> Timer:
    """The timer of a device: events on CUDA, CPU time of the process elsewhere."""
    return cuda_ms if device.type == "cuda" else cpu_ms


def repeated(step: Step, times: int) -> Step:
    """A step that takes another one several times."""

    def steps() -> None:
        for _ in range(times):
            step()

    return steps


def take_turns(sides: Mapping[str, Step], *, rounds: int, timer: Timer, warm_up: int = 1) -> dict[str, list[float]]:
    """Time several steps in turns, in this process, the order reversed every other round.

    Args:
        sides: what is measured, by name.
        rounds: measurements of each that count.
        timer: measures one of them.
        warm_up: rounds before these that do not count.

    Returns:
        Milliseconds of each side, one for each round.

    Example:
        >>> sorted(take_turns({"a": dict, "b": list}, rounds=3, timer=lambda step: 1.0).items())
        [('a', [1.0, 1.0, 1.0]), ('b', [1.0, 1.0, 1.0])]
    """
    times: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(warm_up + rounds):
        names = list(sides) if turn % 2 == 0 else list(sides)[::-1]
        for name in names:
            times[name].append(timer(sides[name]))
    return {name: values[warm_up:] for name, values in times.items()}


def ratio(above: Sequence[float], below: Sequence[float]) -> Ratio:
    """Divide the medians of two sides, and find the range of the quotients of single rounds.

    Args:
        above: one value for each round.
        below: one value for each round, of the same rounds.

    Example:
        >>> ratio([2.0, 4.0, 6.0], [2.0, 2.0, 2.0])
        Ratio(value=2.0, low=1.0, high=3.0)
    """
    single = [a / b for a, b in zip(above, below, strict=True)]
    return Ratio(median(above) / median(below), min(single), max(single))


def spread_of(values: Sequence[float]) -> Ratio:
    """Median, lowest and highest of one side."""
    return Ratio(median(values), min(values), max(values))
