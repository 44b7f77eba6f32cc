"""Goodput: which of the requests that were issued are good by every limit, and how many a second.

A request is good if it succeeded and each of its own latencies is within its limit. The share is of
all measured requests that were issued, so failures and time-outs are bad: DistServe (Zhong et al.,
OSDI 2024) and vLLM count so too. Nothing is known of a request that was cut off within its limits.
"""

from collections.abc import Callable, Mapping

import numpy as np

from llmbench.measure.requests import Mask, Requests
from llmbench.measure.shared import Shared, share_worth
from llmbench.measure.statistics import Floats, wilson
from llmbench.records import Cell, Goodput

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


def goodput(cell: Cell, measured: Requests, objectives_ms: Mapping[str, float]) -> Goodput | None:
    """The goodput of ``cell`` from its ``measured`` requests. ``None`` without any, or where the
    cell withholds a metric that has a limit: then nobody knows which requests are good.

    The rates are the cell's own, of which the good requests have their part: the ramp and the
    drain stay outside, and goodput is never more than throughput.
    """
    limits_ms = request_limits_ms(objectives_ms)
    if not len(measured) or any(_withheld(cell, metric, measured) for metric in limits_ms):
        return None
    is_good, is_bad = fates(measured, limits_ms)
    known = is_good | is_bad
    worth = share_worth(is_bad[known], Shared.of(cell, measured).of_known(known))
    good, bad = int(is_good.sum()), int(is_bad.sum())
    ok, tokens = measured.good, int(measured.tokens[is_good].sum())
    seen = measured.seen_tokens
    return Goodput(
        limits_ms=limits_ms,
        good=good,
        bad=bad,
        unknown=len(measured) - good - bad,
        tokens=tokens,
        share=good / (good + bad) if good + bad else None,
        ci95=wilson(good / (good + bad) * worth, worth) if good + bad else None,
        per_s=_part(cell.requests_per_s, good, int(ok.sum())),
        tokens_per_s=_part(cell.otps, int(seen[is_good].sum()), int(seen[ok].sum())),
    )


def fates(requests: Requests, limits_ms: Mapping[str, float]) -> tuple[Mask, Mask]:
    """Which of ``requests`` are good by all limits, and which are bad; neither is one that was cut
    off before a limit could tell."""
    bad = requests.lost
    for metric, limit_ms in limits_ms.items():
        bad = bad | (latencies_s(requests, metric) * 1e3 > limit_ms)  # NaN is not
    return requests.good & ~bad, bad


def latencies_s(requests: Requests, metric: str) -> Floats:
    """What each of ``requests`` has of ``metric``, in seconds: +∞ where it failed, NaN where there
    is none; where it was cut off before, as long as it had waited by then."""
    seconds = _LATENCY[metric](requests)
    if metric in _FROM_START:
        waited = requests.cancelled & np.isnan(seconds)
        seconds = np.where(waited, (requests.end_ns - requests.start_ns) / 1e9, seconds)
    return np.where(requests.lost, np.inf, seconds)


def _mean_gap_s(requests: Requests) -> Floats:
    """The mean gap between content events, whatever each brought."""
    several = np.where(requests.events > 1, requests.events - 1, np.nan)
    return np.asarray((requests.last_ns - requests.first_ns) / 1e9 / several)


_LATENCY: dict[str, Callable[[Requests], Floats]] = {
    "ttfr": lambda requests: requests.ttfr_s,
    "ttft": lambda requests: requests.ttft_s,
    "ttfat": lambda requests: requests.ttfat_s,
    "e2e": lambda requests: requests.e2e_s,
    "tpot": lambda requests: requests.tpot_s,
    "itl": lambda requests: requests.tpot_s,  # the mean ITL of a reply
    "icl": _mean_gap_s,
}
_FROM_START = ("ttfr", "ttft", "ttfat", "e2e")


def _withheld(cell: Cell, metric: str, measured: Requests) -> bool:
    """Whether replies have a figure that the cell does not show: it is not to be trusted."""
    if getattr(cell, f"{metric}_ms") is not None:
        return False
    return bool((measured.good & ~np.isnan(_LATENCY[metric](measured))).any())


def _part(rate: float | None, of_good: int, of_all: int) -> float | None:
    """The part of ``rate`` that good requests have in it; nothing went through: 0."""
    if not of_all:
        return 0.0
    return None if rate is None else rate * of_good / of_all
