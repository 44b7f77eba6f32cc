"""Percentiles that know what their sample can carry.

Percentiles are order statistics (the inverse of the empirical distribution, no interpolation), so
that +∞, the latency of a failed request, keeps its place. Intervals are the distribution-free ones
between two order statistics whose ranks come from the binomial distribution: David & Nagaraja,
*Order Statistics*, 3rd ed., §7.1. Where values come in clusters (the gaps of one reply), the ranks
are taken at the effective sample size: Kish, *Survey Sampling*, §8.2, with the variance of a ratio.
"""

import math
from functools import lru_cache
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Singles = NDArray[np.float32]
Reals = NDArray[np.floating[Any]]
Ints = NDArray[np.int64]
CONFIDENCE = 0.95
NORMAL = NormalDist()
Z = NORMAL.inv_cdf((1 + CONFIDENCE) / 2)

WORTH_A_DEGREE = 6.0
"""An autocorrelation time is itself an estimate. So many of the independent values that are left
count for one degree of freedom of Student's t: ``benchmarks/statistics_truth.py`` bears it out."""


LEAST_BEYOND = 2.5
"""Where clusters tell what a sample is worth, a quantile has an interval if so many independent
values would lie beyond it. It may be fewer than ``fewest`` takes: clusters see more than that."""

MOST_GAIN = 4.0
"""Values that avoid each other are worth more than as many independent ones, but no more times."""


class Worth(NamedTuple):
    """How many independent values a sample is worth, and where clusters told it, how many degrees
    of freedom that has."""

    n: float
    freedom: int | None = None

    @property
    def sure(self) -> float:
        """As many independent values as have an interval as wide: Student's t counted in."""
        if self.freedom is None:
            return self.n
        return self.n * (Z / student((1 + CONFIDENCE) / 2, self.freedom)) ** 2


def quantile(ordered: Reals, p: float) -> float:
    """The smallest value of the ascending ``ordered`` that a share ``p`` of it does not exceed."""
    return float(ordered[max(math.ceil(len(ordered) * p - 1e-9) - 1, 0)])


def fewest(p: float, confidence: float = CONFIDENCE) -> int:
    """The fewest independent samples for which quantile ``p`` has a two-sided interval."""
    tail = (1 - confidence) / 2
    return math.ceil(math.log(tail) / math.log(max(p, 1 - p)))


def interval(
    ordered: Reals, p: float, worth: Worth | float, confidence: float = CONFIDENCE
) -> tuple[float, float] | None:
    """The interval of quantile ``p``, or ``None`` where the sample is too small to have one.

    ``worth`` is how many independent values ``ordered`` is worth.
    """
    low, high = bounds(ordered, p, worth, confidence)
    return None if low is None or high is None else (low, high)


def bounds(
    ordered: Reals, p: float, worth: Worth | float, confidence: float = CONFIDENCE
) -> tuple[float | None, float | None]:
    """What quantile ``p`` is at least and at most: the ends of its interval, each where the sample
    is large enough to have it."""
    if not isinstance(worth, Worth):
        worth = Worth(worth)
    if carries(len(ordered), p, worth, confidence) and worth.freedom is not None:
        return _bounds_by_clusters(ordered, p, worth.n, worth.freedom, confidence)
    n = min(int(worth.sure), len(ordered))
    if n < 1:
        return None, None
    low, high = _ranks(n, p, confidence)
    stretch = len(ordered) / n
    return (
        None if low is None else float(ordered[math.floor((low - 1) * stretch)]),
        None if high is None else float(ordered[min(math.ceil(high * stretch), len(ordered)) - 1]),
    )


def needed(p: float, worth: Worth) -> int:
    """How many independent values an interval of quantile ``p`` takes."""
    return fewest(p) if worth.freedom is None else math.ceil(LEAST_BEYOND / min(p, 1 - p) - 1e-9)


def carries(count: int, p: float, worth: Worth, confidence: float = CONFIDENCE) -> bool:
    """Whether ``count`` values that are ``worth`` so much have an interval for quantile ``p``."""
    if worth.freedom is None:
        return min(int(worth.n), count) >= fewest(p, confidence)
    return count >= fewest(p, confidence) and worth.n * min(p, 1 - p) >= LEAST_BEYOND


def _bounds_by_clusters(
    ordered: Reals, p: float, worth: float, freedom: int, confidence: float
) -> tuple[float, float]:
    """The values at the ends of the interval of the share that lies at or below the quantile
    (R. S. Woodruff, JASA 47, 1952), which is taken on the scale of its logarithmic odds, lest it
    reach beyond 1 (E. L. Korn & B. I. Graubard, *Analysis of Health Surveys*, 1999, §3.2)."""
    reach = student((1 + confidence) / 2, freedom) / math.sqrt(worth * p * (1 - p))
    odds = math.log(p / (1 - p))
    low, high = (1 / (1 + math.exp(-odds + sign * reach)) for sign in (1, -1))
    last = len(ordered) - 1
    return (
        float(ordered[min(math.floor(low * len(ordered)), last)]),
        float(ordered[min(math.ceil(high * len(ordered)), last)]),
    )


@lru_cache(maxsize=4096)
def _ranks(n: int, p: float, confidence: float) -> tuple[int | None, int | None]:
    """The ranks, from 1, of the order statistics that hold quantile ``p`` of ``n`` between them."""
    first, chances = _binomial(n, p)
    below = np.cumsum(chances)  # P(at most first, first + 1, … values lie below the quantile)
    tail = (1 - confidence) / 2
    low = first + int(np.searchsorted(below, tail, side="right"))
    high = first + int(np.searchsorted(below, 1 - tail, side="left")) + 1
    return low if low >= 1 else None, high if high <= n else None


def _binomial(n: int, p: float) -> tuple[int, Floats]:
    """P(k successes in n) for k from the first number, as far as it is not negligible: within
    twelve standard deviations, all in all 1 to 10⁻³⁰. ``n`` may be the tokens of a long run."""
    reach = 12 * math.sqrt(n * p * (1 - p)) + 40
    first, last = max(math.floor(n * p - reach), 0), min(math.ceil(n * p + reach), n)
    k = np.arange(first + 1, last + 1)
    rises = np.log((n - k + 1) / k) + math.log(p) - math.log1p(-p)  # of P(k) over P(k - 1)
    logarithms = np.concatenate(([0.0], np.cumsum(rises)))
    chances = np.exp(logarithms - logarithms.max())
    return first, np.asarray(chances / chances.sum())


def effective_size(values: Floats, clusters: Ints, threshold: float) -> float:
    """How many independent values ``values`` is worth at the quantile ``threshold``.

    ``clusters`` names the cluster that each value came from, as integers from 0.
    """
    below = (values <= threshold).astype(np.float64)
    return worth(np.bincount(clusters, weights=below), np.bincount(clusters))


def worth(hits: Reals | Ints, sizes: Ints) -> float:
    """How many independent values clusters of ``sizes`` values are worth, of which ``hits`` are at
    or below a threshold.

    The share of values at or below the threshold is a ratio of sums over clusters; its variance
    against that of as many independent values is the design effect.
    """
    hits, sizes = hits[sizes > 0], sizes[sizes > 0]
    count, total = len(sizes), int(sizes.sum())
    if count < 2:
        return float(count)
    share = float(hits.sum()) / total
    variance = ratio_variance(hits, sizes)
    independent = share * (1 - share)
    if independent == 0:  # the threshold is the greatest value: nothing shows how they vary
        return float(count)
    if variance * total <= independent:
        return float(total)
    return independent / variance


def ratio_variance(values: Reals | Ints, sizes: Reals | Ints) -> float:
    """The variance of Σ ``values`` / Σ ``sizes`` over clusters (W. G. Cochran, *Sampling
    Techniques*, 3rd ed., §6.3)."""
    count, total = len(sizes), float(sizes.sum())
    residuals = values - float(values.sum()) / total * sizes
    return float(residuals @ residuals) / total**2 * count / (count - 1)


def ratio_reach(values: Reals | Ints, sizes: Reals | Ints, confidence: float = CONFIDENCE) -> float:
    """How far the interval of Σ ``values`` / Σ ``sizes`` over clusters reaches on each side, as a
    share of it, by Student's t."""
    error = math.sqrt(ratio_variance(values, sizes)) / float(values.sum() / sizes.sum())
    return student((1 + confidence) / 2, len(sizes) - 1) * error


def cluster_worth(hits: Reals | Ints, sizes: Ints) -> Worth:
    """``worth`` of clusters that are independent of each other for sure, two at least: how they
    differ may also say that a sample is worth more than as many independent values."""
    hits, sizes = hits[sizes > 0], sizes[sizes > 0]
    count, total = len(sizes), float(sizes.sum())
    share = float(hits.sum()) / total
    independent = share * (1 - share)
    if independent == 0:  # nothing shows how they vary
        return Worth(total, count - 1)
    most = MOST_GAIN * total
    variance = ratio_variance(hits, sizes)
    return Worth(independent / max(variance, independent / most), count - 1)


def rounded(count: float) -> int:
    """``count`` up to two significant digits."""
    unit = 10.0 ** max(math.floor(math.log10(max(count, 1.0))) - 1, 0)
    return int(math.ceil(count / unit - 1e-9) * unit)


def student(p: float, freedom: float) -> float:
    """The quantile ``p`` of Student's t: exact for 1 and 2 degrees of freedom, else by the
    expansion 26.7.5 of Abramowitz & Stegun, *Handbook of Mathematical Functions* (off by < 1%)."""
    if freedom == 1:
        return math.tan(math.pi * (p - 0.5))
    if freedom == 2:
        return (2 * p - 1) * math.sqrt(2 / (4 * p * (1 - p)))
    z = NORMAL.inv_cdf(p)
    return (
        z
        + (z**3 + z) / (4 * freedom)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * freedom**3)
    )


def freedom_of(worth: float) -> float:
    """The degrees of freedom of Student's t where what a sample is worth is an estimate itself."""
    return max(worth / WORTH_A_DEGREE, 3.0)


def wilson(hits: float, n: float) -> tuple[float, float]:
    """The 95% score interval of a share: E. B. Wilson, JASA 22 (1927), 209–212."""
    z2 = Z**2
    share = hits / n
    middle = (share + z2 / (2 * n)) / (1 + z2 / n)
    reach = math.sqrt(z2 * (share * (1 - share) / n + z2 / (4 * n * n))) / (1 + z2 / n)
    low = 0.0 if hits == 0 else middle - reach
    return low, 1.0 if hits == n else middle + reach
