"""Percentiles that know what their sample can carry.

Percentiles are order statistics (the inverse of the empirical distribution, no interpolation), so
that +∞, the latency of a failed request, keeps its place. Intervals are the distribution-free ones
between two order statistics whose ranks come from the binomial distribution: David & Nagaraja,
*Order Statistics*, 3rd ed., §7.1. Where values come in clusters (the gaps of one reply), the ranks
are taken at the effective sample size: Kish, *Survey Sampling*, §8.2, with the variance of a ratio.
"""

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
CONFIDENCE = 0.95


def quantile(ordered: Floats, p: float) -> float:
    """The smallest value of the ascending ``ordered`` that a share ``p`` of it does not exceed."""
    return float(ordered[max(math.ceil(len(ordered) * p - 1e-9) - 1, 0)])


def fewest(p: float) -> int:
    """The fewest independent samples for which quantile ``p`` has a two-sided 95% interval."""
    tail = (1 - CONFIDENCE) / 2
    return math.ceil(math.log(tail) / math.log(max(p, 1 - p)))


def interval(ordered: Floats, p: float, effective_n: float) -> tuple[float, float] | None:
    """The 95% interval of quantile ``p``, or ``None`` where the sample is too small to have one.

    ``effective_n`` is how many independent values ``ordered`` is worth, at most its length.
    """
    n = min(int(effective_n), len(ordered))
    ranks = _ranks(n, p)
    if ranks is None:
        return None
    low, high = ranks
    stretch = len(ordered) / n
    return (
        float(ordered[math.floor((low - 1) * stretch)]),
        float(ordered[min(math.ceil(high * stretch), len(ordered)) - 1]),
    )


@lru_cache(maxsize=4096)
def _ranks(n: int, p: float) -> tuple[int, int] | None:
    """The ranks, from 1, of the order statistics that hold quantile ``p`` of ``n`` between them."""
    if n < fewest(p):
        return None
    below = np.cumsum(_binomial(n, p))  # below[k] = P(at most k values lie below the quantile)
    tail = (1 - CONFIDENCE) / 2
    low = int(np.searchsorted(below, tail, side="right"))
    high = int(np.searchsorted(below, 1 - tail, side="left")) + 1
    return (low, high) if low >= 1 and high <= n else None


def _binomial(n: int, p: float) -> Floats:
    """P(k successes in n) for k from 0 to n."""
    k = np.arange(n + 1)
    log_factorial = np.concatenate(([0.0], np.cumsum(np.log(np.arange(1, n + 1)))))
    log_choose = log_factorial[n] - log_factorial[k] - log_factorial[n - k]
    return np.asarray(np.exp(log_choose + k * math.log(p) + (n - k) * math.log1p(-p)))


def effective_size(values: Floats, clusters: Ints, threshold: float) -> float:
    """How many independent values ``values`` is worth at the quantile ``threshold``.

    ``clusters`` names the request that each value came from, as integers from 0. The share of
    values at or below the threshold is a ratio of sums over clusters; its variance against that of
    as many independent values is the design effect.
    """
    below = (values <= threshold).astype(np.float64)
    share = float(below.mean())
    sizes = np.bincount(clusters)
    sizes_used = sizes[sizes > 0]
    if len(sizes_used) < 2:
        return float(len(sizes_used))
    hits = np.bincount(clusters, weights=below)[sizes > 0]
    residuals = hits - share * sizes_used
    count = len(sizes_used)
    variance = float(residuals @ residuals) / len(values) ** 2 * count / (count - 1)
    independent = share * (1 - share)
    if independent == 0:  # the threshold is the greatest value: nothing shows how they vary
        return float(count)
    if variance * len(values) <= independent:
        return float(len(values))
    return independent / variance
