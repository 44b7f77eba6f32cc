"""Percentiles where some samples were cut off before they ended: all that is known of those is that
they took longer.

The distribution is the product-limit estimate: E. L. Kaplan & P. Meier, *Nonparametric Estimation
from Incomplete Observations*, JASA 53 (1958). Its variance is Greenwood's (1926). The interval of a
quantile holds the times at which a test of the curve against it does not reject: R. Brookmeyer &
J. Crowley, *A Confidence Interval for the Median Survival Time*, Biometrics 38 (1982), here on the
log(−log) scale, on which the curve is nearer to normal (Klein & Moeschberger, *Survival Analysis*,
2nd ed., §4.5).
"""

import math
from typing import NamedTuple

import numpy as np

from llmbench.measure.statistics import Floats, fewest
from llmbench.records import Estimate

Z = 1.959964
"""The two-sided 5% point of the normal distribution."""

ROUNDING = 1e-9


class Curve(NamedTuple):
    """The share of samples that last longer than each of ``times``, with its 95% interval."""

    times: Floats
    share: Floats
    low: Floats
    high: Floats


class Sample(NamedTuple):
    """Latencies of which ``known`` were seen to their end, ``censored`` were cut off at these, and
    ``lost`` more never end. ``unit`` of them are worth one independent one."""

    known: Floats
    censored: Floats
    lost: int = 0
    unit: float = 1.0

    @property
    def n(self) -> int:
        return len(self.known) + len(self.censored) + self.lost

    @property
    def seen(self) -> float:
        """How long the longest was watched that ended or was cut off."""
        return float(max(self.known.max(initial=0.0), self.censored.max(initial=0.0)))


class Told(NamedTuple):
    """A quantile with its interval. It is +∞ where failures reach it, ``None`` where it lies
    beyond what was seen."""

    value: float | None
    interval: tuple[float, float] | None


def product_limit(sample: Sample) -> Curve:
    """The Kaplan–Meier curve of ``sample``, at each time at which one of the known ended.

    What was cut off counts as at risk up to and including the time of its cut, what was lost
    always.
    """
    times, ended = np.unique(sample.known, return_counts=True)
    left = len(sample.known) - np.searchsorted(np.sort(sample.known), times, side="left")
    watched = len(sample.censored) - np.searchsorted(np.sort(sample.censored), times, side="left")
    at_risk = left + watched + sample.lost
    share = np.cumprod(1 - ended / at_risk)
    last = share <= 0  # nothing is left: there the estimate has no variance
    with np.errstate(divide="ignore", invalid="ignore"):
        greenwood = np.cumsum(ended / (at_risk * (at_risk - ended))) * sample.unit
        spread = np.where(last, 0.0, Z * np.sqrt(greenwood) / -np.log(share))
    return Curve(times, share, share ** np.exp(spread), share ** np.exp(-spread))


def quantile(sample: Sample, curve: Curve, p: float) -> Told:
    """Quantile ``p`` with its 95% interval, whose upper end is +∞ where the curve does not tell.

    A quantile that too small a sample has no interval for is not told (see ``fewest``).
    """
    if sample.n // sample.unit < fewest(p):
        return Told(None, None)
    value = _value(sample, curve, p)
    if value is None:
        return Told(None, None)
    low = _first_below(curve.times, curve.low, p)
    high = _first_below(curve.times, curve.high, p)
    return Told(value, (sample.seen if low is None else low, math.inf if high is None else high))


def estimate(sample: Sample, curve: Curve, p: float) -> Estimate:
    """What is known of quantile ``p`` where it has no interval."""
    value = _value(sample, curve, p)
    low = _first_below(curve.times, curve.low, p)
    if low is None and value is None:
        low = sample.seen
    return Estimate(value, low, _first_below(curve.times, curve.high, p))


def _value(sample: Sample, curve: Curve, p: float) -> float | None:
    if math.ceil(sample.n * p - ROUNDING) > sample.n - sample.lost:
        return math.inf  # even if all that was cut off had ended at once
    return _first_below(curve.times, curve.share, p)


def _first_below(times: Floats, share: Floats, p: float) -> float | None:
    """The first time at which no more than ``1 - p`` last longer."""
    there = np.flatnonzero(share <= 1 - p + ROUNDING)
    return float(times[there[0]]) if len(there) else None
