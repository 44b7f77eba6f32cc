"""How many requests of a cell lie beyond each objective, and how much that is worth as a sample."""

from collections.abc import Mapping

import numpy as np

from llmbench.measure import gaps as gap
from llmbench.measure.autocorrelation import effective_n, rank_autocorrelation_time
from llmbench.measure.blocks import gaps_worth
from llmbench.measure.goodput import latencies_s
from llmbench.measure.requests import Requests
from llmbench.measure.shared import ALONE, Shared
from llmbench.measure.slo import QUANTILES
from llmbench.measure.statistics import Floats
from llmbench.records import Beyond, Cell

OF_GAPS = ("itl", "icl")


def beyond(cell: Cell, measured: Requests, limits_ms: Mapping[str, float]) -> dict[str, Beyond]:
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
        if (told := of(cell, measured, metric, limit_ms / 1e3)) is not None:
            found[name] = Beyond(*told, allowed=round(1 - int(statistic[1:]) / 100, 2))
    return found


def _requests_beyond(
    cell: Cell, measured: Requests, metric: str, limit_s: float
) -> tuple[float, int, float] | None:
    seconds = latencies_s(measured, metric)
    known = np.where(measured.cancelled, seconds > limit_s, ~np.isnan(seconds))
    in_order = seconds[known]
    if not len(in_order):
        return None
    share = float(np.mean(in_order > limit_s))
    shared = Shared.of(cell, measured).of_known(known)
    return share, len(in_order), sample_worth(in_order, limit_s, shared)


def sample_worth(in_order: Floats, limit: float, shared: Shared = ALONE) -> float:
    """How many independent requests say as much of the share beyond ``limit``. Where few are beyond
    it nothing shows how those cluster, so that of all of them counts too."""
    if shared.clusters is not None:
        middle = float(np.quantile(in_order, 0.5, method="inverted_cdf"))
        worth = min(shared.worth(in_order)(each).sure for each in (limit, middle))
        return max(min(worth, len(in_order)), 1.0)
    by_rank = len(in_order) / rank_autocorrelation_time(in_order)
    worth = effective_n(in_order, limit, in_step=shared.in_step)
    return max(min(worth, by_rank), 1.0)


def _gaps_beyond(
    cell: Cell, measured: Requests, metric: str, limit_s: float
) -> tuple[float, int, float] | None:
    """Those of the good replies. A reply's gaps are a cluster."""
    good = measured.where(measured.good)
    gaps = gap.chunk_gaps(good) if metric == "icl" else gap.token_gaps(good).gaps
    if gaps is None or not len(gaps.values):
        return None
    hits = gap.at_most(gaps, limit_s)
    share = 1 - float(hits.sum()) / len(gaps.values)
    worth = gaps_worth(hits, gaps.sizes, Shared.of(cell, good))
    return share, len(gaps.values), min(worth.sure, float(len(gaps.values)))
