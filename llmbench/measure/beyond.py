"""How many requests of a cell lie beyond each objective, and how much that is worth as a sample."""

from collections.abc import Mapping, Sequence

import numpy as np

from llmbench.measure import gaps as gap
from llmbench.measure.autocorrelation import effective_n, rank_autocorrelation_time
from llmbench.measure.goodput import latency_s
from llmbench.measure.slo import QUANTILES
from llmbench.measure.statistics import Floats, worth
from llmbench.records import Beyond, RequestMetrics

OF_GAPS = ("itl", "icl")


def beyond(measured: Sequence[RequestMetrics], limits_ms: Mapping[str, float]) -> dict[str, Beyond]:
    """For each objective about a quantile: how many of the ``measured`` requests are beyond its
    limit. Of what says nothing (no such figure, a mean) there is nothing.

    Failed requests are beyond any limit. One that was cut off counts where it was beyond the limit
    already. Requests that depend on each other are worth fewer (``autocorrelation``).
    """
    found = {}
    for name, limit_ms in limits_ms.items():
        metric, _, statistic = name.partition(".")
        if statistic not in QUANTILES:
            continue
        of = _gaps_beyond if metric in OF_GAPS else _requests_beyond
        if (told := of(measured, metric, limit_ms / 1e3)) is not None:
            found[name] = Beyond(*told, allowed=round(1 - int(statistic[1:]) / 100, 2))
    return found


def _requests_beyond(
    measured: Sequence[RequestMetrics], metric: str, limit_s: float
) -> tuple[float, int, float] | None:
    values = []
    for each in sorted(measured, key=lambda request: request.start_ns):
        seconds = latency_s(each, metric)
        if seconds is not None and (each.failure != "cancelled" or seconds > limit_s):
            values.append(seconds)
    if not values:
        return None
    in_order = np.array(values)
    share = float(np.mean(in_order > limit_s))
    return share, len(values), sample_worth(in_order, limit_s)


def sample_worth(in_order: Floats, limit: float) -> float:
    """How many independent requests say as much of the share beyond ``limit``. Where few are beyond
    it nothing shows how those cluster, so that of all of them counts too."""
    by_rank = len(in_order) / rank_autocorrelation_time(in_order)
    return max(min(effective_n(in_order, limit), by_rank), 1.0)


def _gaps_beyond(
    measured: Sequence[RequestMetrics], metric: str, limit_s: float
) -> tuple[float, int, float] | None:
    """Those of the good replies. A reply's gaps are a cluster."""
    good = [each for each in measured if not each.failure]
    icl = gap.chunk_gaps(good)
    gaps = icl if metric == "icl" else gap.token_gaps(good, icl).gaps
    if gaps is None or not len(gaps):
        return None
    (hits,) = gaps.at_most([limit_s])
    share = 1 - float(hits.sum()) / len(gaps)
    return share, len(gaps), worth(hits, gaps.sizes)
