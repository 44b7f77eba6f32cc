"""Percentiles and their intervals, against exact sums, published tables and simulation."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmbench.measure.statistics import effective_size, fewest, interval, quantile

INF = math.inf


@pytest.mark.parametrize(
    ("values", "p", "expected"),
    [
        ([7], 0.5, 7),
        ([7], 0.99, 7),
        ([1, 2], 0.5, 1),
        ([1, 2, 3], 0.5, 2),
        ([1, 2, 3, 4], 0.5, 2),
        (range(1, 101), 0.01, 1),
        (range(1, 101), 0.07, 7),  # 100 × 0.07 is a hair more than 7 in floating point
        (range(1, 101), 0.29, 29),
        (range(1, 101), 0.9, 90),
        (range(1, 101), 0.99, 99),
        (range(1, 102), 0.99, 100),
        ([1, 2, INF, INF], 0.5, 2),
        ([1, INF, INF], 0.5, INF),
        ([1, 2, 3, INF], 0.75, 3),
        ([1, 2, 3, INF], 0.76, INF),
    ],
)
def test_a_quantile_is_the_first_value_that_enough_do_not_exceed(
    values: list[float], p: float, expected: float
) -> None:
    assert quantile(np.array(values, dtype=float), p) == expected


SAMPLES = st.lists(st.floats(0, 10) | st.just(INF), min_size=1, max_size=50)
SHARES = st.floats(0.001, 0.999)


@given(SAMPLES, SHARES, SHARES)
def test_quantiles_are_elements_and_rise_with_p(values: list[float], p: float, q: float) -> None:
    ordered = np.sort(np.array(values))
    low, high = quantile(ordered, min(p, q)), quantile(ordered, max(p, q))
    assert low in values
    assert high in values
    assert low <= high


@given(SAMPLES, SHARES)
def test_a_quantile_splits_its_sample(values: list[float], p: float) -> None:
    value = quantile(np.sort(np.array(values)), p)
    assert sum(each <= value for each in values) >= p * len(values) - 1e-6
    assert sum(each < value for each in values) <= p * len(values) + 1e-6


@pytest.mark.parametrize(
    ("p", "n"),
    [(0.5, 6), (0.9, 36), (0.95, 72), (0.99, 368), (0.999, 3688), (0.05, 72), (0.01, 368)],
)
def test_the_fewest_samples_of_an_interval(p: float, n: int) -> None:
    assert fewest(p) == n
    assert interval(np.arange(n, dtype=float), p, n) is not None
    assert interval(np.arange(n - 1, dtype=float), p, n - 1) is None


def test_a_p95_needs_72() -> None:
    assert interval(np.arange(71.0), 0.95, 71) is None
    bounds = interval(np.arange(72.0), 0.95, 72)
    assert bounds is not None
    assert bounds[1] == 71
    assert interval(np.empty(0), 0.5, 0) is None


@pytest.mark.parametrize(
    ("n", "low", "high"),
    # the classic table for a median: critical values of the sign test at 5%
    [
        *((6, 1, 6), (8, 1, 8), (9, 2, 8), (10, 2, 9), (15, 4, 12), (20, 6, 15), (25, 8, 18)),
        *((30, 10, 21), (50, 18, 33), (100, 40, 61)),
    ],
)
def test_the_ranks_of_a_median_are_the_published_ones(n: int, low: int, high: int) -> None:
    assert interval(np.arange(1.0, n + 1), 0.5, n) == (low, high)


@pytest.mark.parametrize("p", [Fraction(1, 100), Fraction(1, 2), Fraction(9, 10), Fraction(19, 20)])
@pytest.mark.parametrize("n", [36, 72, 80, 200, 400])
def test_the_ranks_are_the_binomials_exactly(n: int, p: Fraction) -> None:
    """The narrowest ranks with at most 2.5% on either side, in exact fractions."""
    tail = Fraction(25, 1000)
    at_most, below = Fraction(0), []
    for k in range(n + 1):
        at_most += math.comb(n, k) * p**k * (1 - p) ** (n - k)
        below.append(at_most)
    lows = [rank for rank in range(1, n + 1) if below[rank - 1] <= tail]
    highs = [rank for rank in range(1, n + 1) if 1 - below[rank - 1] <= tail]
    expected = (max(lows), min(highs)) if lows and highs else None
    assert interval(np.arange(1.0, n + 1), float(p), n) == expected


def test_an_interval_reaches_infinity_where_failures_do() -> None:
    ordered = np.concatenate((np.arange(60.0), np.full(40, INF)))
    assert interval(ordered, 0.5, 100) == (39, INF)


def test_fewer_independent_values_stretch_the_ranks() -> None:
    ordered = np.arange(1000.0)
    assert interval(ordered, 0.5, 100) == (390, 609)  # from the 40th tenth-part to the 61st's end
    assert interval(ordered, 0.5, 100.9) == (390, 609)
    assert interval(np.arange(105.0), 0.5, 10) == (10, 94)  # 10.5 each: ranks 2 and 9, outwards
    assert interval(ordered, 0.5, 5) is None
    assert interval(ordered, 0.5, 0.5) is None
    assert interval(np.arange(100.0), 0.5, 10_000) == (39, 60)


@pytest.mark.parametrize(("p", "n"), [(0.5, 25), (0.5, 100), (0.9, 80), (0.95, 200)])
def test_intervals_cover_what_they_promise(p: float, n: int) -> None:
    truth = -math.log1p(-p)
    trials = 2000
    samples = np.sort(np.random.default_rng(1).exponential(size=(trials, n)), axis=1)
    bounds = [interval(sample, p, n) for sample in samples]
    covered = np.mean([low <= truth <= high for low, high in filter(None, bounds)])
    assert len([each for each in bounds if each]) == trials
    assert covered >= 0.94
    assert covered <= 0.995


# ---- clusters


def test_one_request_is_worth_one_value() -> None:
    assert effective_size(np.arange(100.0), np.zeros(100, dtype=np.int64), 50) == 1
    assert effective_size(np.arange(100.0), np.full(100, 7), 50) == 1


def test_independent_values_are_worth_their_number() -> None:
    rng = np.random.default_rng(2)
    size = effective_size(rng.exponential(size=20_000), np.repeat(np.arange(400), 50), 0.7)
    assert 0.75 * 20_000 <= size <= 20_000


def test_values_that_only_repeat_are_worth_their_clusters() -> None:
    rng = np.random.default_rng(3)
    values = np.repeat(rng.exponential(size=400), 50)
    size = effective_size(values, np.repeat(np.arange(400), 50), 0.7)
    assert size == pytest.approx(400, rel=0.01)


def test_nothing_is_worth_more_than_its_number() -> None:
    values = np.tile([0.0, 1.0], 100)  # every cluster is split just so: less than no variance
    assert effective_size(values, np.repeat(np.arange(100), 2), 0.5) == 200


def test_values_that_do_not_vary_are_worth_their_clusters() -> None:
    clusters = np.repeat(np.arange(8), 50)
    assert effective_size(np.full(400, 3.0), clusters, 3) == 8
    slowest = np.repeat(np.arange(8.0), 50)  # a p99 that equals the greatest value
    assert effective_size(slowest, clusters, quantile(slowest, 0.99)) == 8


def test_clusters_of_different_sizes_by_hand() -> None:
    # 3 of 6 are low. Residuals of hits (2, 0, 1) from half of the sizes (2, 3, 1): 1, -1.5, 0.5.
    # Variance (1 + 2.25 + 0.25) / 36 × 3/2 = 7/48; independent would be 0.25 a value.
    values = np.array([0.0, 0, 1, 1, 1, 0])
    clusters = np.array([0, 0, 4, 4, 4, 9])
    assert effective_size(values, clusters, 0) == pytest.approx(0.25 / (7 / 48))


def test_gaps_of_the_same_reply_do_not_narrow_the_interval() -> None:
    """Replies with a pace of their own: intervals by clusters cover, those by values don't."""
    rng = np.random.default_rng(4)
    trials, replies, gaps = 400, 60, 20
    clusters = np.repeat(np.arange(replies), gaps)
    by_cluster = by_value = 0
    for _ in range(trials):
        paces = np.repeat(rng.normal(size=replies), gaps)
        values = paces + 0.3 * rng.normal(size=replies * gaps)  # symmetric: the median is 0
        ordered = np.sort(values)
        size = effective_size(values, clusters, quantile(ordered, 0.5))
        right, wrong = interval(ordered, 0.5, size), interval(ordered, 0.5, len(ordered))
        assert right is not None
        assert wrong is not None
        by_cluster += right[0] <= 0 <= right[1]
        by_value += wrong[0] <= 0 <= wrong[1]
    assert by_cluster / trials >= 0.92  # 95%, less two and a half standard errors
    assert by_value / trials < 0.6
