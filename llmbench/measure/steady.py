"""Where a cell settles: how much of its beginning is still warm-up, and whether the rest is steady.

The point from which on a series is steady is that of MSER-5: the one at which the variance of the
mean of what is left is least, over means of five. K. P. White, *An Effective Truncation Heuristic
for Bias Reduction in Simulation Output*, Simulation 69 (1997); K. P. White, M. J. Cobb &
S. C. Spratt, *A Comparison of Five Steady-State Truncation Heuristics for Simulation*, Proc. Winter
Simulation Conference (2000). It proposes small cuts in noise too, so one counts only where what is
before it differs from what is after it for sure, by the ranks: H. B. Mann & D. R. Whitney (1947).
"""

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from llmbench.measure.statistics import Floats, Ints

Series = Sequence[float] | Floats

BATCH = 5
FEWEST_BATCHES = 8
SPARED = 5
"""Batches at the end that are always left: of fewer the variance says nothing (K. Hoad,
S. Robinson & R. Davies, *Automating Warm-up Length Estimation*, J. Oper. Res. Soc. 61, 2010)."""

SHIFT = 1.1
"""Medians before and after a cut that differ by less than this factor are not worth one."""

DRIFT = 1.25
"""Medians of the halves that differ by more than this factor are a drift, if chance is not it."""

GROWTH = 1.5
LEAST_GROWTH = 4.0
"""A load whose number in flight grew by more than these, quarter by quarter, is not steady."""

FAR = 5.0
"""Standard deviations."""

MAD_TO_SD = 1.4826
MEDIAN_TO_MEAN = 1.2533
"""For normal values: the standard deviation over the median absolute one, and the standard error of
a median over that of a mean."""

ROUNDING = 1e-12

SURE_Z = 3.29
"""The two-sided 0.1% point of the normal distribution."""

FEWEST = 20


def mser5(series: Series) -> int | None:
    """How many values to leave out at the beginning of ``series``.

    ``None`` where there are too few, or where it never settles: where the best point lies in the
    second half.
    """
    count = len(series) // BATCH
    if count < FEWEST_BATCHES:
        return None
    means = np.asarray(series[: count * BATCH], dtype=np.float64).reshape(count, BATCH).mean(axis=1)
    means -= means.mean()  # or squares of what is far from 0 lose their digits
    left = np.arange(count, 0, -1)
    sums, squares = (np.cumsum(each[::-1])[::-1] for each in (means, means**2))
    spread = squares - sums**2 / left
    spread[spread < ROUNDING * spread[0]] = 0.0
    statistic = spread / left**2
    cut = int(np.argmin(statistic[: count - SPARED + 1]))
    return cut * BATCH if cut <= count / 2 else None


def warmup_in(series: Series, known: int) -> int:
    """How many values of ``series``, in the order of time, to take as warm-up beside the first
    ``known``, which are."""
    cut = mser5(series)
    if cut is None or cut <= known:
        return 0
    return cut - known if _differ(np.asarray(series[known:cut]), np.asarray(series[cut:])) else 0


def _differ(before: Floats, after: Floats) -> bool:
    """Whether the two differ for sure, and by what matters.

    The ranks take values for independent. Where successive ones are alike, those in flight above
    all, the medians must also be as many standard errors apart for as many values as they are
    worth, or the beginning farther off than any chance makes it.
    """
    middle = float(np.median(after))
    ratio = middle / max(float(np.median(before)), 1e-12)
    if 1 / SHIFT <= ratio <= SHIFT or abs(rank_z(before, after)) <= SURE_Z:
        return False
    deviation = MAD_TO_SD * float(np.median(np.abs(after - middle)))
    if abs(float(np.median(before[:BATCH])) - middle) > FAR * deviation:
        return True
    values = (1 / len(before) + 1 / len(after)) * _inflation(after)
    error = MEDIAN_TO_MEAN * deviation * math.sqrt(values)
    return abs(float(np.median(before)) - middle) > SURE_Z * error


def drift(values: Series) -> float | None:
    """The median of the second half over that of the first, where the two differ for sure.

    ``values`` are in the order of time. ``None`` where there is no drift, or too little to tell by.
    """
    half = len(values) // 2
    if half < FEWEST:
        return None
    first, second = np.array(values[:half]), np.array(values[-half:])
    ratio = float(np.median(second) / max(np.median(first), 1e-12))
    if 1 / DRIFT <= ratio <= DRIFT:
        return None
    return ratio if abs(rank_z(first, second)) > SURE_Z else None


def rank_z(first: Floats, second: Floats) -> float:
    """Mann and Whitney's test of whether ``second`` is the greater, in standard deviations."""
    m, n = len(first), len(second)
    ordered = np.sort(first)
    below = np.searchsorted(ordered, second, side="left").sum()
    below_or_equal = np.searchsorted(ordered, second, side="right").sum()
    u = (below + below_or_equal) / 2
    return float((u - m * n / 2) / math.sqrt(m * n * (m + n + 1) / 12))


def _inflation(series: Floats) -> float:
    """How many values of ``series`` are worth one independent value, at least 1: (1 + r) / (1 − r)
    for an autoregressive series of the first order, with the autocorrelation r of its ranks
    (M. S. Bartlett, J. R. Stat. Soc. 98, 1935)."""
    ranks = np.searchsorted(np.sort(series), series).astype(np.float64)
    ranks -= ranks.mean()
    variance = float(ranks @ ranks)
    if variance == 0:
        return 1.0
    r = min(float(ranks[1:] @ ranks[:-1]) / variance, 0.999)
    return max((1 + r) / (1 - r), 1.0)


def in_flight(start_ns: Ints, end_ns: Ints, low_ns: float, high_ns: float) -> float:
    """How many requests, from their starts to their ends, were in flight on average between."""
    inside = np.minimum(end_ns, high_ns) - np.maximum(start_ns, low_ns)
    return float(np.maximum(inside, 0).sum() / (high_ns - low_ns))


def grows(quarters: Sequence[float]) -> bool:
    """Whether the number in flight grew from quarter to quarter, and by much."""
    first, last = quarters[0], quarters[-1]
    rises = all(one < other for one, other in pairwise(quarters))
    return rises and last > GROWTH * first and last - first >= LEAST_GROWTH
