"""Two cells side by side: by what factor each figure differs, how sure that is, and in words.

The ratio of two quantiles, and of two rates, has an interval by the bootstrap (B. Efron &
R. Tibshirani, *An Introduction to the Bootstrap*, 1993):

- One run a side, a quantile: in a resample of n independent values the k-th order statistic has the
  rank n·u, u ~ Beta(k, n − k + 1) (J. S. Maritz & R. G. Jarrett, JASA 73, 1978), so that u is drawn
  and no resample is made. Where values depend on those before them, n is what they are worth
  (``autocorrelation``, or the segments of its window where there are enough: ``shared``).
- One run a side, a rate: the segments of its window are drawn; where there are none, requests, and
  deviations stretched by the square root of the autocorrelation time. Where n or the variance is
  an estimate of its own, Student's t takes the place of the normal.
- Two runs or more on each side: whole runs are drawn first, then requests. What comes of it is a
  standard error, which Student's t makes an interval of, with √(R / (R − 1)) for so few runs R.

Failed requests are +∞ and keep their place. What is claimed:

- ``same``: the 90% interval lies within ± the margin: two one-sided tests at 5% (D. J. Schuirmann,
  1987).
- ``slower``, ``faster``: by Holm's test (S. Holm, 1979) over the headline metrics of all loads of
  a pair of runs, so that 5% at most of pairs that are alike are called different. The
  p-value is that of the interval (D. G. Altman & J. M. Bland, BMJ 343, 2011). The other metrics are
  tested, by Holm's test again, only where a headline metric differs.
- ``unknown``: all else, with how many more requests would tell.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np
from msgspec import Struct

from llmbench.measure import statistics as stats
from llmbench.measure.autocorrelation import autocorrelation_time
from llmbench.measure.failures import Failures, failures
from llmbench.measure.gaps import means, token_gaps
from llmbench.measure.likeness import Side
from llmbench.measure.rates import FEWEST_FOR_A_RATE
from llmbench.measure.requests import Int32s, Requests
from llmbench.measure.shared import Shared, can_step
from llmbench.measure.statistics import NORMAL, Floats, Ints, Worth, Z, freedom_of, student
from llmbench.plan.segments import TELLING
from llmbench.records import Cell

RESAMPLES = 2000
MARGIN = 0.03
CONFIDENCE = stats.CONFIDENCE
EQUIVALENCE = 0.90

QUANTILES = {"p50": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99}
LATENCIES = ("ttft", "itl", "tpot", "e2e")
RATES = ("otps", "requests_per_s")
METRICS = (*(f"{name}.{p}" for name in LATENCIES for p in QUANTILES), *RATES)
HEADLINE = ("ttft.p50", "ttft.p95", "itl.p50", "otps")
"""What a claim of a difference is made by. Where ITL cannot be compared, TPOT takes its place."""

MOST_DRAWN = 2_000_000
"""Indices drawn at a time: 16 MB."""

ONE_HAS = "; one has "
"""Before the number in the reason why a figure is not compared."""

Kind = Literal["slower", "faster", "same", "unknown"]
Interval = tuple[float, float]


class Estimate(Struct, frozen=True, kw_only=True):
    """One figure of one side: in ms, or a second for a rate. ``n`` is how many requests it is of,
    ``worth`` how many independent ones, ``runs`` of how many runs. Where segments of a window tell
    how sure it is, that has so many degrees of ``freedom``."""

    value: float
    ci95: Interval
    n: int
    worth: float
    runs: int
    freedom: int | None = None


class Verdict(Struct, frozen=True, kw_only=True):
    """``needs`` is how many more requests a side (or runs, where there are several) would tell."""

    kind: Kind
    words: str
    needs: int | None = None


class Result(Struct, kw_only=True):
    """One metric of a pair of cells: ``ratio`` is the other's figure over the baseline's.

    ``ruler`` is by what share of the ratio the ruler itself can be off; the intervals hold it.
    """

    metric: str
    headline: bool = False
    baseline: Estimate
    other: Estimate
    ratio: float
    ci95: Interval
    ci90: Interval
    ruler: float
    p_value: float
    verdict: Verdict | None = None


class Compared(NamedTuple):
    """What could be compared of two cells, why the other metrics could not, and what failed of the
    baseline and of the other. ``bounds`` has, of a percentile that too few requests carry, what it
    is at least and at most on either side, as far as they tell."""

    results: list[Result]
    left_out: dict[str, str]
    failures: tuple[Failures, Failures]
    bounds: dict[str, tuple[Interval, Interval]]


class Drawn(NamedTuple):
    """A figure of one side and what the bootstrap made of it. ``off`` is by what share of itself
    the figure can be off beside chance."""

    estimate: Estimate
    replicates: Floats
    off: float = 0.0


class NotCompared(Exception):  # noqa: N818 - it reads as what it says
    """Why a metric of a side has no figure to compare."""


def compare_cells(
    base: Side, other: Side, seed: int = 0, metrics: Sequence[str] = METRICS
) -> Compared:
    """Each of ``metrics`` of the two, without verdicts yet: those come from all together
    (``claims``)."""
    rng = np.random.default_rng(seed)
    compared = Compared([], {}, (failures(base), failures(other)), {})
    for metric in metrics:
        try:
            compared.results.append(_compare(metric, base, other, rng))
        except NotCompared as problem:
            compared.left_out[metric] = str(problem)
            if (bounds := _bounds(metric, base, other)) is not None:
                compared.bounds[metric] = bounds
    chosen = {*HEADLINE} | ({"tpot.p50"} if "itl.p50" in compared.left_out else set())
    for each in compared.results:
        each.headline = each.metric in chosen
    return compared


def _compare(metric: str, base: Side, other: Side, rng: np.random.Generator) -> Result:
    _check("the baseline", base)
    _check("the other run", other)
    by_run = min(len(base.stored), len(other.stored)) > 1
    drawn = [_drawn(metric, side, by_run, rng) for side in (base, other)]
    a, b = (each.estimate for each in drawn)
    if not (a.value > 0 and b.value > 0) or (math.isinf(a.value) and math.isinf(b.value)):
        raise NotCompared(f"there is no ratio of {b.value:g} to {a.value:g}")
    with np.errstate(invalid="ignore"):
        logs = np.log(drawn[1].replicates) - np.log(drawn[0].replicates)
    logs = np.where(np.isnan(logs), 0.0, logs)  # both are +∞ there
    ratio = b.value / a.value
    off = sum(_ruler_share(metric, side, each.value) for side, each in ((base, a), (other, b)))
    off += sum(each.off for each in drawn)
    freedom = _freedom(*drawn)
    ci95, ci90 = (
        _interval(logs, a, b, confidence, off, freedom) for confidence in (CONFIDENCE, EQUIVALENCE)
    )
    return Result(
        metric=metric,
        baseline=a,
        other=b,
        ratio=ratio,
        ci95=ci95,
        ci90=ci90,
        ruler=off,
        p_value=_p_value(ratio, ci95, a.runs + b.runs - 2 if by_run else freedom),
    )


def _check(name: str, side: Side) -> None:
    for cell in side.cells:
        if cell.verdict == "invalid":
            raise NotCompared(f"{name} is INVALID: {'; '.join(cell.reasons)}")
        if not cell.requests.ok:
            kinds = [f"{count} {kind}" for kind, count in cell.requests.failures.items()]
            words = [", ".join(kinds), *list(cell.requests.details.values())[:1]]
            why = f" ({': '.join(words)})" if kinds else ""
            raise NotCompared(f"no request of {name} succeeded{why}")


def _bounds(metric: str, base: Side, other: Side) -> tuple[Interval, Interval] | None:
    """What a percentile is at least and at most on either side, each by itself in 97.5% of runs;
    ``None`` of what is no percentile of requests, or was not measured."""
    name, _, p = metric.partition(".")
    if p not in QUANTILES:
        return None
    try:
        _check("the baseline", base)
        _check("the other run", other)
        base_bounds, other_bounds = (_bounds_of(name, p, side) for side in (base, other))
    except NotCompared:
        return None
    return base_bounds, other_bounds


def _bounds_of(name: str, p: str, side: Side) -> Interval:
    runs = [_latencies(name, p, cell, its) for cell, its in side.measured()]
    _, ordered, worth = _pooled(runs, QUANTILES[p], side)
    low, high = stats.bounds(ordered, QUANTILES[p], worth)
    cut = min(each.cut for each in runs)
    if high is not None and high >= cut:
        high = None
    off = _ruler_ms(name, p, side)
    least = 0.0 if low is None else max(min(low, cut) - off, 0.0)
    return least, math.inf if high is None else high + off


def _pooled(runs: "Sequence[Latencies]", share: float, side: Side) -> tuple[Floats, Floats, Worth]:
    """The values of all ``runs``, as they are and in order, and how many independent ones they are
    worth at a quantile."""
    values = np.concatenate([each.values for each in runs])
    if not len(values):
        return values, values, Worth(0.0)
    ordered = np.sort(values)
    numbers = np.repeat(np.arange(len(runs), dtype=np.int32), [len(each.values) for each in runs])
    segments = np.concatenate([each.segments for each in runs])
    cell = side.cells[0]
    shared = Shared(
        numbers if len(runs) > 1 else None,
        segments,
        _unit(side),
        can_step(cell),
        cell.arrivals is not None,
    )
    return values, ordered, shared.worth_within(values)(stats.quantile(ordered, share))


# ── the figures of one side ──────────────────────────────────────────────────────────────────────


def _drawn(metric: str, side: Side, by_run: bool, rng: np.random.Generator) -> Drawn:
    """``by_run``: there are runs enough, on both sides, to draw whole ones."""
    name, _, p = metric.partition(".")
    if name in RATES:
        return _rate(name, side, by_run, rng)
    runs = [_latencies(name, p, cell, its) for cell, its in side.measured()]
    return _quantile(p, runs, side, by_run, rng)


class Latencies(NamedTuple):
    """One latency of a run's requests in the order of time, in ms. What was cut off before it came
    is +∞ like what failed; ``cut`` is after how long the first of those was. ``segments`` are those
    of the window that they belong to."""

    values: Floats
    segments: Int32s
    cut: float


def _latencies(name: str, p: str, cell: Cell, measured: Requests) -> Latencies:
    """Raises ``NotCompared`` where there is no latency ``name``, or its ``p`` was not timed."""
    if (off_ms := cell.untimed.get(f"{name}.{p}")) is not None:
        raise NotCompared(f"the client could not time it: it can be off by {off_ms:.2g} ms")
    block = cell.itl_request_mean_ms if name == "itl" else getattr(cell, f"{name}_ms")
    if block is None:
        raise NotCompared("not measured")
    seconds = _seconds(name, measured)
    cut = np.isnan(seconds) & measured.cancelled & (name in ("ttft", "e2e"))
    values = np.where(measured.lost | cut, np.inf, seconds * 1e3)
    waited_ms = (measured.end_ns - measured.start_ns)[cut] / 1e6
    known = ~np.isnan(values)
    longest_ms = float(waited_ms.min(initial=math.inf))
    return Latencies(values[known], measured.segment[known], longest_ms)


def _seconds(name: str, measured: Requests) -> Floats:
    """The latency of each request, NaN where it has none; ``itl`` is the mean over its gaps."""
    if name != "itl":
        seconds: Floats = getattr(measured, f"{name}_s")
        return seconds
    means_s = np.full(len(measured), np.nan)
    gaps = token_gaps(measured.where(measured.good)).gaps
    if gaps is not None:
        means_s[measured.good] = means(gaps)
    return means_s


def _quantile(
    p: str, runs: Sequence[Latencies], side: Side, by_run: bool, rng: np.random.Generator
) -> Drawn:
    share, unit = QUANTILES[p], _unit(side)
    values, ordered, worth = _pooled(runs, share, side)
    value = stats.quantile(ordered, share) if len(ordered) else math.nan
    if not stats.carries(len(values), share, worth):
        fewest, has = stats.needed(share, worth), int(min(worth.n, len(values)))
        if has >= fewest:  # the clusters would do, but there are too few values
            fewest, has = stats.fewest(share), len(values)
        raise NotCompared(f"{p} needs {fewest} independent requests a side{ONE_HAS}{has}")
    cut = min(each.cut for each in runs)
    if math.isfinite(cut) and value >= cut:
        raise NotCompared(f"{p} lies beyond where requests were cut off")
    if by_run:
        sizes = [len(each.values) for each in runs]
        kth = max(math.ceil(_row_length(sizes) * share - 1e-9) - 1, 0)
        parts = (
            np.partition(values[rows], kth, axis=1)[:, kth] for rows in resampled(rng, sizes, unit)
        )
        replicates = np.concatenate(list(parts))
    else:
        rank = max(math.ceil(worth.n * share - 1e-9), 1)
        at = np.ceil(rng.beta(rank, worth.n - rank + 1, RESAMPLES) * len(ordered)).astype(np.int64)
        replicates = ordered[np.maximum(at, 1) - 1]
    bounds = stats.interval(ordered, share, worth) or (value, value)
    estimate = Estimate(
        value=value,
        ci95=bounds,
        n=len(values),
        worth=min(worth.n, len(values)),
        runs=len(runs),
        freedom=worth.freedom,
    )
    return Drawn(estimate, replicates)


def _rate(name: str, side: Side, by_run: bool, rng: np.random.Generator) -> Drawn:
    """Tokens (or requests) a second, by the segments of the windows or else by requests."""
    if any(cell.arrivals is not None for cell in side.cells):
        raise NotCompared("in an open loop it is what was asked for")
    rates: list[float | None] = [getattr(cell, name) for cell in side.cells]
    if any(rate is None for rate in rates):
        raise NotCompared("not measured")
    windows = [cell.window_s or 0.0 for cell in side.cells]
    value = float(np.average(np.array(rates, dtype=np.float64), weights=windows))
    if all(len(cell.segments or ()) >= TELLING for cell in side.cells):
        return _rate_by_segments(name, side, value, by_run, rng)
    return _rate_by_requests(name, side, value, by_run, rng)


def _rate_by_segments(
    name: str, side: Side, value: float, by_run: bool, rng: np.random.Generator
) -> Drawn:
    """What came in segments that were drawn, over how long they were."""
    segments = [cell.segments or [] for cell in side.cells]
    every = [each for its in segments for each in its]
    brought = np.array([each.tokens if name == "otps" else each.requests for each in every])
    seconds = np.array([each.seconds for each in every])
    count, n = len(every), sum(cell.requests.sent for cell in side.cells)
    sizes = [len(its) for its in segments] if by_run else [count]
    parts = (
        brought[rows].sum(axis=1) / seconds[rows].sum(axis=1) for rows in resampled(rng, sizes, 1)
    )
    ratios = np.concatenate(list(parts)) / (brought.sum() / seconds.sum())
    replicates = value * ratios ** math.sqrt(count / (count - 1))
    factor = student((1 + CONFIDENCE) / 2, count - 1) / Z
    low, high = np.quantile(ratios, ((1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2))
    bounds = value * float(low) ** factor, value * float(high) ** factor
    estimate = Estimate(
        value=value, ci95=bounds, n=n, worth=n, runs=len(segments), freedom=count - 1
    )
    return Drawn(estimate, replicates)


def _rate_by_requests(
    name: str, side: Side, value: float, by_run: bool, rng: np.random.Generator
) -> Drawn:
    """In a closed loop the number in flight is constant, and a rate is that number × the mean of
    what a request brings / the mean of how long it stays, both over the same resample."""
    brought, stays = [], []
    for _, its in side.measured():
        brought.append(its.good * (its.seen_tokens if name == "otps" else 1.0))
        stays.append((its.end_ns - its.sent_ns) / 1e9)
    whole, seconds = np.concatenate(brought), np.concatenate(stays)
    known, unit, n = whole.sum() / seconds.sum(), _unit(side), len(seconds)
    sizes = [len(each) for each in stays] if by_run else [n]
    times = 1.0 if by_run else autocorrelation_time(whole - known * seconds)
    worth = n / max(times, unit)
    if worth < FEWEST_FOR_A_RATE:
        fewest = FEWEST_FOR_A_RATE
        raise NotCompared(f"a rate needs {fewest} independent requests a side{ONE_HAS}{int(worth)}")
    parts = (
        whole[rows].sum(axis=1) / seconds[rows].sum(axis=1) for rows in resampled(rng, sizes, unit)
    )
    replicates = value * (np.concatenate(list(parts)) / known) ** math.sqrt(times)
    low, high = np.quantile(replicates, ((1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2))
    edges = _edges(side.cells, float(known), value)
    bounds = float(low) * (1 - edges), float(high) * (1 + edges)
    estimate = Estimate(value=value, ci95=bounds, n=n, worth=worth, runs=len(stays))
    return Drawn(estimate, replicates, edges)


def _edges(cells: Sequence[Cell], known: float, value: float) -> float:
    """By what share of itself a rate can be off for how windows begin and end (see
    ``rates.add_rate_intervals``)."""
    in_flight = [cell.in_flight for cell in cells]
    if None in in_flight or not value:
        return 0.0
    windows = [cell.window_s or 0.0 for cell in cells]
    mean = float(np.average(np.array(in_flight, dtype=np.float64), weights=windows))
    return abs(mean * known / value - 1)


def _unit(side: Side) -> int:
    """How many requests share their fate: those of a static batch."""
    return side.cells[0].batch_size or 1


# ── the bootstrap ────────────────────────────────────────────────────────────────────────────────


def resampled(rng: np.random.Generator, sizes: Sequence[int], block: int) -> Iterator[Ints]:
    """``RESAMPLES`` rows of indices into runs of ``sizes`` that lie end to end, some at a time.

    Drawn are runs, and of each as many requests as runs have on average, ``block`` neighbours
    together, from the end of a run on to its start (D. N. Politis & J. P. Romano, 1992).
    """
    runs, each = len(sizes), _row_length(sizes) // len(sizes)
    lengths = np.array(sizes)
    begins = np.cumsum(lengths) - lengths
    blocks = math.ceil(each / block)
    most = max(MOST_DRAWN // (each * runs), 1)
    for done in range(0, RESAMPLES, most):
        count = min(most, RESAMPLES - done)
        if runs == block == 1:
            yield rng.integers(sizes[0], size=(count, each))
            continue
        chosen = rng.integers(runs, size=(count, runs))[:, :, None]
        starts = (rng.random((count, runs, blocks)) * lengths[chosen]).astype(np.int64)
        at = (starts[..., None] + np.arange(block)).reshape(count, runs, -1)[:, :, :each]
        yield (begins[chosen] + at % lengths[chosen]).reshape(count, -1)


def _row_length(sizes: Sequence[int]) -> int:
    return max(round(sum(sizes) / len(sizes)), 1) * len(sizes)


def _freedom(one: Drawn, other: Drawn) -> float | None:
    """The degrees of freedom of the ratio of two single runs; ``None`` where those are without end.
    Where segments told on both sides: F. E. Satterthwaite, *Biometrics Bulletin* 2 (1946)."""
    a, b = one.estimate, other.estimate
    if a.freedom is None or b.freedom is None:
        if a.worth >= a.n and b.worth >= b.n:
            return None
        known = [each.freedom for each in (a, b) if each.freedom is not None]
        return min([freedom_of(a.worth + b.worth), *known])
    with np.errstate(divide="ignore", invalid="ignore"):
        variances = [float(np.log(each.replicates).var()) for each in (one, other)]
    if not all(map(math.isfinite, variances)) or not any(variances):
        return float(min(a.freedom, b.freedom))
    freedoms = (a.freedom, b.freedom)
    parts = sum(v**2 / f for v, f in zip(variances, freedoms, strict=True))
    return sum(variances) ** 2 / parts


def _interval(
    logs: Floats, a: Estimate, b: Estimate, confidence: float, off: float, freedom: float | None
) -> Interval:
    """The interval of b / a from the logarithms of its replicates, and what the ruler adds. The
    ``freedom`` is that of two single runs."""
    tail = (1 - confidence) / 2
    low, high = (float(np.quantile(logs, q, method="inverted_cdf")) for q in (tail, 1 - tail))
    ratio = b.value / a.value
    if 0 < ratio < math.inf and np.isfinite(logs).all():
        center = math.log(ratio)
        if min(a.runs, b.runs) > 1:
            half = float(logs.std()) * run_factor(a.runs + b.runs - 2, 1 - tail)
            low, high = center - half, center + half
        elif freedom is not None:
            factor = student(1 - tail, freedom) / NORMAL.inv_cdf(1 - tail)
            low, high = (center + factor * (each - center) for each in (low, high))
    return _exp(low) * (1 - off), _exp(high) * (1 + off)


def run_factor(freedom: int, p: float) -> float:
    """How many standard errors by the bootstrap of R runs a side, ``freedom`` = 2 (R − 1), reach
    to the quantile ``p``."""
    return student(p, freedom) * math.sqrt((freedom + 2) / freedom)


def _exp(value: float) -> float:
    return math.exp(value) if value < 700 else math.inf


def _ruler_share(metric: str, side: Side, value: float) -> float:
    """By what share of TTFT the ruler can be off on one ``side``; other figures have no bound."""
    name, _, p = metric.partition(".")
    if not math.isfinite(value):
        return 0.0
    off_ms = _ruler_ms(name, p, side)
    return min(off_ms / value, 1.0) if off_ms else 0.0


def _ruler_ms(name: str, p: str, side: Side) -> float:
    """How far off quantile ``p`` can be on one ``side``: of TTFT alone that is known."""
    if name != "ttft":
        return 0.0
    return max((cell.ruler.ttft_error_ms or {}).get(p, 0.0) for cell in side.cells)


def _p_value(ratio: float, ci95: Interval, freedom: float | None = None) -> float:
    """How likely a ratio as far from 1 is by chance, from the half of the interval towards 1. With
    so many degrees of ``freedom`` of Student's t, whose tail is taken for the normal one by D. L.
    Wallace's transformation (Ann. Math. Stat. 30, 1959)."""
    near = ci95[0] if ratio >= 1 else ci95[1]
    if ratio == 0 or math.isinf(ratio):
        return 0.0 if (near > 1) == (ratio > 1) and near != 1 else 1.0
    half = abs(math.log(ratio) - (math.log(near) if near > 0 else -math.inf))
    effect = abs(math.log(ratio))
    if half == 0:
        return 1.0 if effect == 0 else 0.0
    if freedom is None:
        return math.erfc(Z * effect / half / math.sqrt(2))
    t = student((1 + CONFIDENCE) / 2, freedom) * effect / half
    z = math.sqrt(freedom * math.log1p(t * t / freedom)) * (8 * freedom + 1) / (8 * freedom + 3)
    return math.erfc(z / math.sqrt(2))
