from __future__ import annotations

import math
import random

import pytest

from coterie.core import ConfigError, DataError
from coterie.reports import mean_interval, paired_interval, t_quantile, verdict

stats = pytest.importorskip("scipy.stats")


@pytest.mark.parametrize("degrees", [1, 2, 3, 4, 5, 9, 10, 29, 100, 1001])
@pytest.mark.parametrize("level", [0.01, 0.5, 0.9, 0.95, 0.99, 0.9999])
def test_quantile_equals_scipy(level: float, degrees: int) -> None:
    assert t_quantile(level, degrees) == pytest.approx(stats.t.ppf((1 + level) / 2, degrees), rel=1e-9)


@pytest.mark.parametrize(("level", "degrees"), [(0.0, 3), (1.0, 3), (0.95, 0), (math.nan, 3)])
def test_quantile_refuses_what_does_not_exist(level: float, degrees: int) -> None:
    with pytest.raises(ConfigError, match="no t-interval"):
        t_quantile(level, degrees)


@pytest.mark.parametrize("count", [2, 3, 10, 31])
def test_interval_equals_scipy(count: int) -> None:
    draw = random.Random(count)
    values = [draw.gauss(93, 2) for _ in range(count)]
    ours = mean_interval(values)
    low, high = stats.t.interval(0.95, count - 1, loc=sum(values) / count, scale=stats.sem(values))
    assert (ours.low, ours.high) == pytest.approx((low, high), abs=1e-9)
    assert ours.std == pytest.approx(stats.tstd(values), abs=1e-12)


@pytest.mark.parametrize("seed", range(40))
def test_verdict_agrees_with_the_paired_t_test(seed: int) -> None:
    draw = random.Random(seed)
    first = [draw.gauss(90, 1) for _ in range(6)]
    second = [value + draw.gauss(0.6, 0.8) for value in first]
    words = verdict(paired_interval(second, first))
    test = stats.ttest_rel(second, first)
    expected = "no significant" if test.pvalue >= 0.05 else "better" if test.statistic > 0 else "worse"
    assert words.startswith(expected)


def test_both_verdicts_occur_in_the_test_above() -> None:
    def significant(seed: int) -> bool:
        draw = random.Random(seed)
        first = [draw.gauss(90, 1) for _ in range(6)]
        return paired_interval([value + draw.gauss(0.6, 0.8) for value in first], first).excludes_zero

    assert {significant(seed) for seed in range(40)} == {True, False}


def test_pairing_cancels_what_seeds_share() -> None:
    first = [80.0, 90.0, 70.0, 95.0]
    paired = paired_interval([81.0, 91.2, 70.9, 96.1], first)
    assert paired.half < 0.3 < mean_interval(first).half


def test_words_of_each_case() -> None:
    gain = paired_interval([94.0, 95.0, 94.5], [92.0, 93.5, 92.5])
    assert verdict(gain) == "better by 1.83 +- 0.72 points (95 %, 3 paired seeds)"
    assert verdict(gain, unit="nats", higher_is_better=False) == "worse by 1.83 +- 0.72 nats (95 %, 3 paired seeds)"
    loss = paired_interval([92.0, 93.5, 92.5], [94.0, 95.0, 94.5])
    assert verdict(loss) == "worse by 1.83 +- 0.72 points (95 %, 3 paired seeds)"
    none = paired_interval([94.0, 95.0], [94.5, 94.0])
    assert verdict(none) == "no significant difference (+0.25 +- 9.53 points, 95 %, 2 paired seeds)"
    assert verdict(paired_interval([94.0], [92.0])) == "one seed: no interval"


def test_equal_runs_do_not_differ() -> None:
    assert verdict(paired_interval([94.0, 95.0], [94.0, 95.0])).startswith("no significant difference (+0.00 +- 0.00")


def test_one_value_has_a_mean_and_no_interval() -> None:
    one = mean_interval([93.1])
    assert one.mean == 93.1 and math.isnan(one.std) and math.isnan(one.half) and not one.excludes_zero


@pytest.mark.parametrize("values", [[], [math.nan], [1.0, math.inf]])
def test_what_has_no_mean_is_refused(values: list[float]) -> None:
    with pytest.raises(DataError, match="cannot average"):
        mean_interval(values)


def test_unequal_numbers_of_seeds_are_refused() -> None:
    with pytest.raises(ConfigError, match="cannot pair 2 values with 1"):
        paired_interval([1.0, 2.0], [1.0])
