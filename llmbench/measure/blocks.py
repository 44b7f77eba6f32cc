"""Figures → Block: a distribution in a few numbers, each with what its sample can carry."""

import numpy as np

from llmbench.measure import statistics as stats
from llmbench.measure import survival
from llmbench.measure.gaps import Gaps
from llmbench.measure.statistics import Floats, Ints, Singles
from llmbench.measure.survival import Sample
from llmbench.records import Block

QUANTILES = {"p50": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99}
SLOW_RATES = {"p1": 0.01, "p5": 0.05}
MS = 1e3


def block(
    values: Floats, *, lost: int = 0, clusters: Ints | None = None, slow_side_low: bool = False
) -> Block:
    """Summarize ``values``; ``lost`` more samples count as +∞ (as 0 for a rate: the slow side).

    ``clusters`` names the static batch of each value, where there are any.
    """
    ordered = np.sort(values)
    if slow_side_low:
        ordered = np.concatenate((np.zeros(lost), ordered))
    else:
        ordered = np.concatenate((ordered, np.full(lost, np.inf)))
    result = _of_known(values, len(ordered))
    wanted = SLOW_RATES | QUANTILES if slow_side_low else QUANTILES
    for name, p in wanted.items():
        value, bounds = _quantile_with_interval(ordered, values, clusters, p)
        setattr(result, name, value)
        if bounds is not None:
            result.ci95[name] = bounds
    return result


def census(values: Floats) -> Block:
    """``values`` as they are. They are all there were and no sample of others, so that every
    quantile is shown, and none has an interval."""
    ordered = np.sort(values)
    result = _of_known(values, len(values))
    if len(ordered):
        for name, p in QUANTILES.items():
            setattr(result, name, stats.quantile(ordered, p))
    return result


def gaps_block(gaps: Gaps, ordered: Singles) -> Block:
    """Summarize ``gaps``, which ``ordered`` holds pooled, in ms. Those of a reply are a cluster."""
    result = Block(n=len(ordered))
    result.mean = float(ordered.mean(dtype=np.float64)) * MS
    result.min, result.max = float(ordered[0]) * MS, float(ordered[-1]) * MS
    values = [stats.quantile(ordered, p) for p in QUANTILES.values()]
    hits = gaps.at_most(values)
    for (name, p), value, its_hits in zip(QUANTILES.items(), values, hits, strict=True):
        bounds = stats.interval(ordered, p, stats.worth(its_hits, gaps.sizes))
        if bounds is not None:
            setattr(result, name, value * MS)
            result.ci95[name] = bounds[0] * MS, bounds[1] * MS
    return result


def censored_block(sample: Sample) -> tuple[Block, str]:
    """Summarize a sample of which some were cut off, and name the first quantile that the others
    would carry, but which lies beyond what was seen (or nothing)."""
    result = _of_known(sample.known, sample.n)
    curve = survival.product_limit(sample)
    beyond = ""
    for name, p in QUANTILES.items():
        value, bounds = survival.quantile(sample, curve, p)
        setattr(result, name, value)
        if bounds is not None:
            result.ci95[name] = bounds
        elif sample.n // sample.unit >= stats.fewest(p):
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
        bounds = [stats.interval(each, p, sample.n / sample.unit) for each in (soonest, latest)]
        if bounds[0] is None or bounds[1] is None:
            continue
        if least == most:
            setattr(result, name, least)
            result.ci95[name] = bounds[0][0], bounds[1][1]
        else:
            beyond = beyond or f"{name} is at least {least:.4g}"
    return result, beyond


def _of_known(values: Floats, n: int) -> Block:
    result = Block(n=n)
    if len(values):
        result.mean = float(values.mean())
        result.min, result.max = float(values.min()), float(values.max())
    return result


def _quantile_with_interval(
    ordered: Floats, values: Floats, clusters: Ints | None, p: float
) -> tuple[float | None, tuple[float, float] | None]:
    if len(ordered) == 0:
        return None, None
    value = stats.quantile(ordered, p)
    n = float(len(ordered))
    if clusters is not None:
        n = stats.effective_size(values, clusters, value)
    bounds = stats.interval(ordered, p, n)
    return (value, bounds) if bounds is not None else (None, None)
