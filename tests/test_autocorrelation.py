"""Effective sample sizes: all values of what is independent, few of what is not."""

import math

import numpy as np
import pytest
from scipy.integrate import trapezoid
from scipy.signal import lfilter
from scipy.stats import norm

from llmbench.measure.autocorrelation import (
    Dependence,
    autocorrelation_time,
    effective_n,
    is_dependent,
    repetition_time,
)
from llmbench.measure.statistics import Floats, interval, quantile


def series(n: int, phi: float, seed: int) -> Floats:
    """A stationary autoregressive series of the first order, of normal values."""
    noise = np.random.default_rng(seed).normal(size=n + 200)
    return np.asarray(lfilter([math.sqrt(1 - phi**2)], [1, -phi], noise)[200:])


def truth(phi: float, p: float) -> float:
    """τ of the indicator of quantile ``p`` of that series: P(both ≤ q) of two normal values with
    the correlation φᵏ, by integration (the median has 1 + 4/π Σ asin φᵏ)."""
    if p == 0.5:
        return 1 + 4 / math.pi * sum(math.asin(phi**k) for k in range(1, 200))
    q, at = norm.ppf(p), np.linspace(-9, norm.ppf(p), 4001)
    total = 0.0
    for k in range(1, 60):
        r = phi**k
        both = trapezoid(norm.pdf(at) * norm.cdf((q - r * at) / math.sqrt(1 - r * r)), at)
        total += both - p * p
    return float(1 + 2 * total / (p * (1 - p)))


@pytest.mark.parametrize("n", [0, 1, 2, 36, 72, 500])
def test_equal_values_are_independent(n: int) -> None:
    values = np.full(n, 3.0)
    assert not is_dependent(values)
    assert effective_n(values, 3.0) == n
    assert autocorrelation_time(values) == 1


def test_independent_values_are_all_counted() -> None:
    sizes = [effective_n(series(200, 0.0, seed), 0.0) for seed in range(100)]
    assert sizes.count(200) >= 95
    assert np.mean(sizes) > 195


def test_failures_alone_do_not_make_values_dependent() -> None:
    values = series(100, 0.0, 1)
    values[np.random.default_rng(1).permutation(100)[:9]] = np.inf
    assert effective_n(values, quantile(np.sort(values), 0.5)) == 100


@pytest.mark.parametrize("values", [[1.0, 2.0], [3.0, 1.0, 2.0], [5.0, 1.0, 4.0, 2.0, 9.0, 3.0]])
def test_what_comes_again_and_again_is_worth_what_comes_anew(values: list[float]) -> None:
    n = len(values)
    assert effective_n(np.tile(values, 240 // n), 1.0, in_step=True) == pytest.approx(n, rel=0.05)


def test_the_slow_ones_of_an_open_loop_come_in_bursts() -> None:
    """Of 1,000 values those of three bursts are slow: the values tell how long they last."""
    values = np.ones(1000)
    for start in (100, 400, 800):
        values[start : start + 40] += 40 - np.abs(np.arange(40) - 20.0)
    plain = Dependence(values).worth(float(np.quantile(values, 0.95)))
    assert Dependence(values, in_bursts=True).worth(float(np.quantile(values, 0.95))) < plain
    middle = float(np.median(values))
    assert Dependence(values, in_bursts=True).worth(middle) == Dependence(values).worth(middle)


def test_a_step_that_dissolves_is_worth_more() -> None:
    """Six values that are drawn anew every forty: some six sixes of 240."""
    rng = np.random.default_rng(4)
    values = np.concatenate([np.tile(rng.normal(size=6), 7)[:40] for _ in range(6)])
    assert 15 < effective_n(values, 0.0, in_step=True) < 80


def test_independent_values_seldom_seem_to_repeat_themselves() -> None:
    times = [repetition_time(series(256, 0.0, seed)) for seed in range(400)]
    assert sum(time > 1 for time in times) <= 12  # 1%, and three standard deviations more
    assert max(times) < 2


@pytest.mark.parametrize("values", [[], [1.0], [1.0, 2.0], [1.0] * 50, [np.inf] * 50])
def test_what_cannot_repeat_itself(values: list[float]) -> None:
    assert repetition_time(np.array(values)) == 1


def test_a_drift_is_seen() -> None:
    assert effective_n(np.arange(100.0), 50.0) < 10


@pytest.mark.parametrize("phi", [0.5, 0.8])
@pytest.mark.parametrize("p", [0.5, 0.9])
def test_dependent_values_are_worth_what_theory_says(phi: float, p: float) -> None:
    n = 2000
    sizes = [effective_n(series(n, phi, seed), float(norm.ppf(p))) for seed in range(20)]
    assert np.mean(sizes) == pytest.approx(n / truth(phi, p), rel=0.2)


@pytest.mark.parametrize("phi", [0.0, 0.5, 0.8])
@pytest.mark.parametrize("p", [0.5, 0.9])
def test_intervals_hold_the_truth(phi: float, p: float) -> None:
    held = []
    for seed in range(150):
        values = series(300, phi, 1000 + seed)
        ordered = np.sort(values)
        bounds = interval(ordered, p, effective_n(values, quantile(ordered, p)))
        if bounds is not None:
            held.append(bounds[0] <= norm.ppf(p) <= bounds[1])
    assert len(held) > 120
    assert np.mean(held) > 0.9  # the benchmark has the exact shares


def test_the_mean_of_dependent_values() -> None:
    times = [autocorrelation_time(series(2000, 0.5, seed)) for seed in range(20)]
    assert np.mean(times) == pytest.approx(3.0, rel=0.15)  # (1 + φ) / (1 − φ)
