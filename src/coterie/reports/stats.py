"""Means over seeds, their 95 % intervals, and what may be said about a difference.

Intervals are Student's t-intervals of a mean. Recipes are compared on the same seeds, so the interval of a difference
is that of the mean of paired differences: what two runs of one seed share (data order, split) cancels.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from coterie.core.errors import ConfigError, DataError

LEVEL = 0.95


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A mean over seeds and how far it may be off.

    Attributes:
        mean: of the values.
        std: sample standard deviation; not a number for one value.
        half: half width of the interval; not a number for one value.
        count: number of values.
        level: share of such intervals that hold the true mean.
    """

    mean: float
    std: float
    half: float
    count: int
    level: float = LEVEL

    @property
    def low(self) -> float:
        """Lower end."""
        return self.mean - self.half

    @property
    def high(self) -> float:
        """Upper end."""
        return self.mean + self.half

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval lies on one side of zero; False for one value."""
        return self.count > 1 and (self.low > 0 or self.high < 0)


def mean_interval(values: Sequence[float], *, level: float = LEVEL) -> Interval:
    """Mean, sample standard deviation and t-interval of the mean.

    Args:
        values: one number per seed.
        level: share of such intervals that hold the true mean, between 0 and 1.

    Returns:
        The interval; `std` and `half` are not a number for one value.

    Raises:
        DataError: no values, or one that is not finite.

    Example:
        >>> interval = mean_interval([1.0, 2.0, 3.0])
        >>> round(interval.mean, 3), round(interval.std, 3), round(interval.half, 3)
        (2.0, 1.0, 2.484)
    """
    if not values or not all(map(math.isfinite, values)):
        raise DataError(f"cannot average {list(values)}; give at least one number and only finite ones")
    count = len(values)
    if count == 1:
        return Interval(mean=values[0], std=math.nan, half=math.nan, count=1, level=level)
    std = statistics.stdev(values)
    half = t_quantile(level, count - 1) * std / math.sqrt(count)
    return Interval(mean=statistics.fmean(values), std=std, half=half, count=count, level=level)


def paired_interval(values: Sequence[float], reference: Sequence[float], *, level: float = LEVEL) -> Interval:
    """Interval of the mean of `values - reference`, pair by pair.

    Args:
        values: one number per seed.
        reference: one number per seed, in the same order of seeds.
        level: share of such intervals that hold the true mean difference, between 0 and 1.

    Raises:
        ConfigError: not one reference for each value.
        DataError: no values, or one that is not finite.
    """
    if len(values) != len(reference):
        raise ConfigError(f"cannot pair {len(values)} values with {len(reference)}; run both recipes on the same seeds")
    return mean_interval([value - other for value, other in zip(values, reference, strict=True)], level=level)


def verdict(difference: Interval, *, unit: str = "points", pairs: str = "seeds", higher_is_better: bool = True) -> str:
    """Say in words what paired differences allow to say.

    Args:
        difference: of `paired_interval`.
        unit: what is counted.
        pairs: what is paired.
        higher_is_better: whether a positive difference is a gain.

    Returns:
        One of three sentences: a gain or a loss with its interval, no significant difference, or no interval.

    Example:
        >>> verdict(paired_interval([94.0, 95.0, 94.5], [92.0, 93.5, 92.5]))
        'better by 1.83 +- 0.72 points (95 %, 3 paired seeds)'
        >>> verdict(paired_interval([94.0], [92.0]))
        'one seed: no interval'
    """
    if difference.count == 1:
        return "one seed: no interval"
    seeds = f"{100 * difference.level:g} %, {difference.count} paired {pairs}"
    if not difference.excludes_zero:
        return f"no significant difference ({difference.mean:+.2f} +- {difference.half:.2f} {unit}, {seeds})"
    word = "better" if (difference.mean > 0) == higher_is_better else "worse"
    return f"{word} by {abs(difference.mean):.2f} +- {difference.half:.2f} {unit} ({seeds})"


def t_quantile(level: float, degrees: int) -> float:
    """Half width of the central interval of Student's t distribution, in units of the standard error.

    Args:
        level: probability inside the interval, above 0 and below 1.
        degrees: degrees of freedom, a whole number of at least 1.

    Returns:
        The t for which `P(|T| <= t) = level`, by bisection to the last bits.

    Raises:
        ConfigError: the level or the degrees of freedom are out of range.

    Example:
        >>> round(t_quantile(0.95, 9), 4)
        2.2622
    """
    if not 0 < level < 1 or degrees < 1:
        raise ConfigError(
            f"no t-interval of level {level} with {degrees} degrees of freedom; give 0 < level < 1 and >= 1"
        )
    low, high = 0.0, math.pi / 2
    while (angle := (low + high) / 2) not in (low, high):
        if _central_probability(angle, degrees) < level:
            low = angle
        else:
            high = angle
    return math.sqrt(degrees) * math.tan(angle)


def _central_probability(angle: float, degrees: int) -> float:
    """Give `P(|T| <= sqrt(degrees) * tan(angle))`: Abramowitz and Stegun, 26.7.3 and 26.7.4, finite sums."""
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = degrees % 2
    term = cosine if odd else 1.0
    total = 0.0
    for k in range(odd, degrees - 1, 2):
        total += term
        term *= (k + 1) / (k + 2) * cosine**2
    return 2 / math.pi * (angle + sine * total) if odd else sine * total
