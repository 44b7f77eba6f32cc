"""How many independent values a series is worth, where each value resembles the one before it.

What matters at a quantile q is how the indicator 1{x ≤ q} varies over time. Its mean over n values
has the variance γ₀τ / n, with the autocovariances γₖ and the autocorrelation time
τ = 1 + 2 Σ γₖ / γ₀, so that the series is worth n / τ values. The sum is Geyer's initial monotone
sequence estimate: C. J. Geyer, *Practical Markov Chain Monte Carlo*, Statistical Science 7 (1992),
§3.3. Of independent values it would take a tenth away by chance. So they are all counted unless
the ranks of neighbours resemble each other for sure (the lag-1 rank correlation: A. Wald &
J. Wolfowitz, Ann. Math. Stat. 14, 1943).

``benchmarks/statistics_truth.py`` measures how often the intervals that come of it hold the truth.
"""

import math
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from llmbench.measure.statistics import NORMAL, Floats, effective_size

CLEAR_Z = 2.326
"""The one-sided 1% point of the normal distribution."""

A_TAIL = 0.85
"""From this share on a quantile lies in the tail. The slow requests of an open loop come in few
bursts, in which a line has formed, and whether one is among the slow says too little of how long
these last: there the autocorrelation time is at least that of the values."""

FEWEST_ROUNDS = 4
"""Of something that comes again, so many times are seen at least."""

SURE = 0.01
"""How likely it is to find by chance that independent values repeat themselves."""

MOST = 1 << 17
STRETCHES = 16
"""Of a longer series so many values tell how they depend on each other, in so many stretches."""

OF_THE_MEDIANS = 0.5
"""A rare event tells little of how it clusters: at least this share of what goes beyond 1 in the
median's autocorrelation time is taken for that of every quantile. For normal values of an
autoregressive series it is 0.6 of it at p90."""


def autocorrelation_time(in_order: Floats) -> float:
    """By how much the variance of the mean of ``in_order`` is greater than that of independent
    values: 1 unless they depend on each other for sure."""
    return _autocorrelation_time(in_order) if is_dependent(in_order) else 1.0


class Dependence:
    """How many independent values a series in the order of time is worth, at any quantile.

    The values of failed requests are +∞. Those of a static batch, ``unit`` neighbours, share their
    fate, and one batch may resemble the next. Those of streams that can be ``in_step`` may repeat
    themselves, and those of an open loop wait ``in_bursts``.
    """

    def __init__(
        self, in_order: Floats, unit: int = 1, *, in_step: bool = False, in_bursts: bool = False
    ) -> None:
        self._in_order, self._unit = in_order, unit
        self._in_step, self._in_bursts = in_step, in_bursts
        means = in_order
        if unit > 1:
            self._batches = np.arange(len(in_order)) // unit
            with np.errstate(invalid="ignore"):
                sums = np.bincount(self._batches, weights=in_order)
            means = sums / np.bincount(self._batches)
        self._seen, self._of = _spread(means), len(means)

    def worth(self, threshold: float) -> float:
        """What the series is worth at the quantile ``threshold``: its length unless its values
        depend on each other for sure, and at least 1."""
        if self._of <= 1:
            return float(self._of)
        if self._unit == 1:
            return max(self._of / self._time(threshold), 1.0)
        share = 1 / self._time(float(_median(self._seen)))
        return max(share * effective_size(self._in_order, self._batches, threshold), 1.0)

    def _time(self, threshold: float) -> float:
        if not self._dependent:
            return self._repetition
        below = self._seen <= threshold
        time = max(_autocorrelation_time(below), self._floor, self._repetition)
        is_tail = self._in_bursts and below.mean() >= A_TAIL
        return max(time, self._of_values) if is_tail else time

    @cached_property
    def _of_values(self) -> float:
        """The autocorrelation time of the values themselves, those of failed requests being as
        great as the greatest."""
        known = self._seen[np.isfinite(self._seen)]
        return _autocorrelation_time(np.minimum(self._seen, known.max())) if len(known) else 1.0

    @cached_property
    def _repetition(self) -> float:
        return repetition_time(self._seen) if self._in_step else 1.0

    @cached_property
    def _dependent(self) -> bool:
        return is_dependent(self._seen)

    @cached_property
    def _floor(self) -> float:
        times = _autocorrelation_time(self._seen <= _median(self._seen))
        return 1 + OF_THE_MEDIANS * (times - 1)


def effective_n(in_order: Floats, threshold: float, *, in_step: bool = False) -> float:
    """How many independent values ``in_order`` is worth at the quantile ``threshold``."""
    return Dependence(in_order, in_step=in_step).worth(threshold)


def _median(values: Floats) -> float:
    return float(np.sort(values)[(len(values) - 1) // 2])


def _spread(in_order: Floats) -> Floats:
    """``in_order`` or, of more than can be told apart, stretches of neighbours from all over it: an
    autocorrelation time is no longer for a longer series."""
    if len(in_order) <= MOST:
        return in_order
    starts = np.linspace(0, len(in_order) - MOST // STRETCHES, STRETCHES).astype(np.int64)
    return np.concatenate([in_order[start : start + MOST // STRETCHES] for start in starts])


def rank_autocorrelation_time(in_order: Floats) -> float:
    """The autocorrelation time of the ranks of ``in_order``, whatever the values: +∞ among them, or
    a few that are far out, weigh no more than others. 1 unless neighbours depend on each other."""
    return _autocorrelation_time(_ranks(in_order)) if is_dependent(in_order) else 1.0


def repetition_time(in_order: Floats) -> float:
    """How many times a series says the same: 1 unless it repeats itself for sure.

    A closed loop in step goes through the same latencies again and again. Its mean is then known to
    a hair, but of this step alone: another run falls into another one. A series that repeats its
    last L values for ever is worth those L; one whose step dissolves, ``1 + 2 Σ ρ`` over the
    multiples of L goes by.
    """
    count = len(in_order)
    longest = count // FEWEST_ROUNDS
    if longest < 2:
        return 1.0
    covariances = _autocovariances(_ranks(in_order))
    if covariances[0] <= 0:
        return 1.0
    shares = covariances / covariances[0]
    lags = np.arange(2, longest + 1)
    seen = shares[lags] * count / np.sqrt(count - lags)
    period = int(lags[np.argmax(seen)])
    if seen.max() <= NORMAL.inv_cdf(1 - SURE / len(lags)):
        return 1.0
    again = shares[period:count:period]
    ends = np.flatnonzero(again <= 0)
    return 1 + 2 * float(again[: ends[0]].sum() if len(ends) else again.sum())


def is_dependent(in_order: Floats) -> bool:
    """Whether neighbours in ``in_order`` resemble each other for sure, by their ranks."""
    ranks = _ranks(in_order)
    ranks -= ranks.mean() if len(ranks) else 0.0
    variance = float(ranks @ ranks)
    if variance == 0:
        return False
    return float(ranks[1:] @ ranks[:-1]) / variance * math.sqrt(len(ranks)) > CLEAR_Z


def _ranks(values: Floats) -> Floats:
    """The rank of each value, ties sharing theirs."""
    ordered = np.sort(values)
    below = np.searchsorted(ordered, values, side="left")
    return np.asarray((below + np.searchsorted(ordered, values, side="right")) / 2)


def _autocorrelation_time(series: Floats | NDArray[np.bool_]) -> float:
    """τ of a series of values, or of an indicator, at least 1.

    Autocovariances about a mean that was estimated are too small, by γ₀τ / n each, and the sum ends
    early: the division makes up for it, by as much as the simulations ask for.
    """
    count = len(series)
    covariances = _autocovariances(series.astype(np.float64))
    if covariances[0] <= 0:
        return 1.0
    pairs = covariances[0 : count - 1 : 2] + covariances[1:count:2]
    ends = np.flatnonzero(pairs <= 0)
    positive = np.minimum.accumulate(pairs[: ends[0]] if len(ends) else pairs)
    tau = max(2 * float(positive.sum()) / float(covariances[0]) - 1, 1.0)
    return tau / (1 - min(2 * tau / count, 0.7))


def _autocovariances(values: Floats) -> Floats:
    """γ₀, γ₁, … of ``values``, each divided by n, by the fast Fourier transform."""
    count = len(values)
    spectrum = np.fft.rfft(values - values.mean(), 2 * count)
    return np.asarray(np.fft.irfft(spectrum * spectrum.conj(), 2 * count)[:count]) / count
