"""Figures → Block: a distribution in a few numbers, each with what its sample can carry."""

import math

import numpy as np

from llmbench.measure import statistics as stats
from llmbench.measure import survival
from llmbench.measure.gaps import at_most
from llmbench.measure.requests import Ragged
from llmbench.measure.shared import ALONE, Shared
from llmbench.measure.statistics import Floats, Ints, Reals, Worth
from llmbench.measure.survival import Sample
from llmbench.records import Block, Estimate

QUANTILES = {"p50": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99}
SLOW_RATES = {"p1": 0.01, "p5": 0.05}
MS = 1e3

ALIKE = 0.05
"""Samples that are all within this share of their median are as good as one value: their range
stands for an interval that they are too few to have."""


def block(in_order: Floats, shared: Shared = ALONE, *, slow_side_low: bool = False) -> Block:
    """Summarize a figure of requests in the order of time, of which +∞ is one that failed; of a
    rate, where the slow side is low, that is 0. NaN, where there is none, is passed over."""
    known = ~np.isnan(in_order)
    values = in_order[known]
    ordered = np.sort(values)
    lost = values == 0 if slow_side_low else np.isinf(values)
    result = _of_known(values[~lost], len(values))
    worth = shared.of_known(known).worth(values)
    for name, p in (SLOW_RATES | QUANTILES if slow_side_low else QUANTILES).items():
        if not len(ordered):
            setattr(result, name, None)
            continue
        value = stats.quantile(ordered, p)
        _add_quantile(result, name, ordered, p, worth(value))
    return result


def _add_quantile(
    result: Block, name: str, ordered: Reals, p: float, worth: Worth, unit: float = 1.0
) -> None:
    """Add quantile ``p`` of ``ordered`` to ``result``, in units of which one is ``unit`` of its:
    with its interval, with the range of all where they are alike, or else as an estimate."""
    value = stats.quantile(ordered, p) * unit
    if worth.n < len(ordered):
        result.worth[name] = worth.n
    low, high = (None if end is None else end * unit for end in stats.bounds(ordered, p, worth))
    if low is not None and high is not None:
        setattr(result, name, value)
        result.ci95[name] = low, high
    elif _alike(ordered, p):
        setattr(result, name, value)
        result.ci95[name] = float(ordered[0]) * unit, float(ordered[-1]) * unit
        result.ci95_is_range.append(name)
    else:
        setattr(result, name, None)
        result.estimates[name] = Estimate(value, low, high)


def _alike(ordered: Reals, p: float) -> bool:
    """Whether the range of ``ordered`` may stand for the interval of quantile ``p``: all values are
    alike, and they are as many as it takes to see one beyond the quantile."""
    if len(ordered) < max(stats.fewest(0.5), math.floor(1 / min(p, 1 - p) + 1e-9)):
        return False
    middle = stats.quantile(ordered, 0.5)
    return math.isfinite(middle) and bool(ordered[-1] - ordered[0] <= ALIKE * middle)


def census(values: Floats) -> Block:
    """``values`` as they are. They are all there were and no sample of others, so that every
    quantile is shown, and none has an interval."""
    ordered = np.sort(values)
    result = _of_known(values, len(values))
    if len(ordered):
        for name, p in QUANTILES.items():
            setattr(result, name, stats.quantile(ordered, p))
    return result


def gaps_block(gaps: Ragged, ordered: Reals, shared: Shared = ALONE) -> Block:
    """Summarize ``gaps``, which ``ordered`` holds in ascending order, in ms. Those of a reply are a
    cluster, or those of all replies of a segment, by what the replies have ``shared``."""
    result = Block(n=len(ordered))
    result.mean = float(ordered.mean(dtype=np.float64)) * MS
    result.min, result.max = float(ordered[0]) * MS, float(ordered[-1]) * MS
    for name, p in QUANTILES.items():
        worth = gaps_worth(at_most(gaps, stats.quantile(ordered, p)), gaps.sizes, shared)
        _add_quantile(result, name, ordered, p, worth, MS)
    return result


def gaps_worth(hits: Ints, sizes: Ints, shared: Shared) -> Worth:
    """What the gaps of replies are worth, of which each has as many as ``sizes`` says and ``hits``
    of them at or below a threshold."""
    clusters = shared.clusters
    if clusters is None:
        return Worth(stats.worth(hits, sizes))
    of_clusters = (np.bincount(clusters, weights=each) for each in (hits, sizes))
    return stats.cluster_worth(*of_clusters)


def censored_block(sample: Sample) -> tuple[Block, str]:
    """Summarize a sample of which some were cut off, and name the first quantile that the others
    would carry, but which lies beyond what was seen (or nothing)."""
    result = _of_known(sample.known, sample.n)
    curve = survival.product_limit(sample)
    beyond = ""
    for name, p in QUANTILES.items():
        if sample.unit > 1:
            result.worth[name] = sample.n / sample.unit
        value, bounds = survival.quantile(sample, curve, p)
        setattr(result, name, value)
        if bounds is not None:
            result.ci95[name] = bounds
            continue
        result.estimates[name] = survival.estimate(sample, curve, p)
        if sample.n // sample.unit >= stats.fewest(p):
            beyond = beyond or name
    return result, beyond


def bounded_block(sample: Sample) -> tuple[Block, str]:
    """``censored_block`` where what was cut off says nothing of what was not: under a load that
    grows the latest wait longest and are watched least, which Kaplan and Meier's estimate takes for
    being fast. A quantile is told only if it is the same however much longer the cut ones took;
    else the second value says what the first such one is at least."""
    result, beyond = _of_known(sample.known, sample.n), ""
    never = np.full(sample.lost, np.inf)
    soonest = np.sort(np.concatenate((sample.known, sample.censored, never)))
    latest = np.sort(np.concatenate((sample.known, np.full(len(sample.censored), np.inf), never)))
    for name, p in QUANTILES.items():
        least, most = stats.quantile(soonest, p), stats.quantile(latest, p)
        worth = Worth(sample.n / sample.unit)
        low, _ = stats.bounds(soonest, p, worth)
        _, high = stats.bounds(latest, p, worth)
        same, told = least == most, low is not None and high is not None
        if same and low is not None and high is not None:
            setattr(result, name, least)
            result.ci95[name] = low, high
        else:
            result.estimates[name] = Estimate(least if same else None, low, high if same else None)
        if told and not same:
            beyond = beyond or f"{name} is at least {least:.4g}"
    return result, beyond


def _of_known(values: Floats, n: int) -> Block:
    result = Block(n=n)
    if len(values):
        result.mean = float(values.mean())
        result.min, result.max = float(values.min()), float(values.max())
    return result


def needs(block: Block, name: str) -> int | None:
    """How many more requests quantile ``name`` takes, if they depend on each other as these do.
    ``None`` where it is shown, or where more would not help: it lies beyond what was seen before a
    cut."""
    if getattr(block, name) is not None or not block.n:
        return None
    times = block.n / block.worth.get(name, block.n)
    missing = math.ceil(stats.fewest(QUANTILES[name]) * times - 1e-9) - block.n
    if missing <= 0:
        return None
    return missing if times == 1 else stats.rounded(missing)
