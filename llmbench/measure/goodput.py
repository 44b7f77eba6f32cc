"""Goodput: which of the requests that were issued are good by every limit, and how many a second.

A request is good if it succeeded and each of its own latencies is within its limit. The share is of
all measured requests that were issued, so failures and time-outs are bad: DistServe (Zhong et al.,
OSDI 2024) and vLLM count so too. Nothing is known of a request that was cut off within its limits.
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from statistics import NormalDist

from llmbench.measure.statistics import CONFIDENCE
from llmbench.records import Cell, Goodput, RequestMetrics

OUTERMOST = ("mean", "p50", "p90", "p95", "p99", "max")
"""The statistics of objectives. Of two for one metric, the later in this order limits requests."""


def request_limits_ms(objectives_ms: Mapping[str, float]) -> dict[str, float]:
    """The limit on each request by metric: ``{"ttft.p95": 500}`` → ``{"ttft": 500}``.

    Of several for one metric that of the outermost statistic: where TTFT is to be 0.2 s at p50 and
    1 s at p99, a request of 0.5 s is good.
    """
    chosen: dict[str, tuple[int, float]] = {}
    for name, limit_ms in objectives_ms.items():
        metric, _, statistic = name.partition(".")
        rank = OUTERMOST.index(statistic)
        if metric not in chosen or rank > chosen[metric][0]:
            chosen[metric] = rank, limit_ms
    return {metric: limit_ms for metric, (_, limit_ms) in chosen.items()}


def goodput(
    cell: Cell, measured: Sequence[RequestMetrics], objectives_ms: Mapping[str, float]
) -> Goodput | None:
    """The goodput of ``cell`` from its ``measured`` requests. ``None`` without any, or where the
    cell withholds a metric that has a limit: then nobody knows which requests are good.

    The rates are the cell's own, of which the good requests have their part: the ramp and the
    drain stay outside, and goodput is never more than throughput.
    """
    limits_ms = request_limits_ms(objectives_ms)
    if not measured or any(_withheld(cell, metric, measured) for metric in limits_ms):
        return None
    fates = [fate(each, limits_ms) for each in measured]
    counts = Counter(fates)
    good, bad = counts[True], counts[False]
    ok = [each for each in measured if not each.failure]
    tokens = sum(each.tokens for each, its in zip(measured, fates, strict=True) if its)
    return Goodput(
        limits_ms=limits_ms,
        good=good,
        bad=bad,
        unknown=counts[None],
        tokens=tokens,
        share=good / (good + bad) if good + bad else None,
        ci95=wilson(good, good + bad) if good + bad else None,
        per_s=_part(cell.requests_per_s, good, len(ok)),
        tokens_per_s=_part(cell.otps, tokens, sum(each.tokens for each in ok)),
    )


def fate(request: RequestMetrics, limits_ms: Mapping[str, float]) -> bool | None:
    """Whether ``request`` is good by all limits; ``None`` where it was cut off before one could
    tell."""
    if request.failure and request.failure != "cancelled":
        return False
    for metric, limit_ms in limits_ms.items():
        seconds = latency_s(request, metric)
        if seconds is not None and seconds * 1e3 > limit_ms:
            return False
    return None if request.failure else True


def latency_s(request: RequestMetrics, metric: str) -> float | None:
    """What ``request`` has of ``metric``, in seconds: +∞ where it failed; where it was cut off
    before, as long as it had waited by then."""
    cut = request.failure == "cancelled"
    if request.failure and not cut:
        return math.inf
    seconds = _LATENCY[metric](request)
    if seconds is None and cut and metric in _FROM_START:
        return (request.end_ns - request.start_ns) / 1e9
    return seconds


def wilson(hits: int, n: int) -> tuple[float, float]:
    """The 95% score interval of a share: E. B. Wilson, JASA 22 (1927), 209–212."""
    z2 = NormalDist().inv_cdf((1 + CONFIDENCE) / 2) ** 2
    share = hits / n
    middle = (share + z2 / (2 * n)) / (1 + z2 / n)
    reach = math.sqrt(z2 * (share * (1 - share) / n + z2 / (4 * n * n))) / (1 + z2 / n)
    low = 0.0 if hits == 0 else middle - reach
    return low, 1.0 if hits == n else middle + reach


def _mean_gap_s(request: RequestMetrics) -> float | None:
    """The mean gap between content events, whatever each brought."""
    if request.events < 2 or request.first_ns is None or request.last_ns is None:
        return None
    return (request.last_ns - request.first_ns) / 1e9 / (request.events - 1)


_LATENCY: dict[str, Callable[[RequestMetrics], float | None]] = {
    "ttfr": lambda request: request.ttfr_s,
    "ttft": lambda request: request.ttft_s,
    "ttfat": lambda request: request.ttfat_s,
    "e2e": lambda request: request.e2e_s,
    "tpot": lambda request: request.tpot_s,
    "itl": lambda request: request.tpot_s,  # the mean ITL of a reply
    "icl": _mean_gap_s,
}
_FROM_START = ("ttfr", "ttft", "ttfat", "e2e")


def _withheld(cell: Cell, metric: str, measured: Sequence[RequestMetrics]) -> bool:
    """Whether replies have a figure that the cell does not show: it is not to be trusted."""
    return getattr(cell, f"{metric}_ms") is None and any(
        not each.failure and _LATENCY[metric](each) is not None for each in measured
    )


def _part(rate: float | None, of_good: int, of_all: int) -> float | None:
    """The part of ``rate`` that good requests have in it; nothing went through: 0."""
    if not of_all:
        return 0.0
    return None if rate is None else rate * of_good / of_all
