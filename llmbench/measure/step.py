"""Whether a closed loop was in step: who waits behind whom stayed as it happened to begin."""

import math

import numpy as np

from llmbench.measure import statistics as stats
from llmbench.measure.autocorrelation import repetition_time
from llmbench.measure.requests import Requests
from llmbench.measure.shared import Shared, can_step
from llmbench.records import Cell, Load

QUANTILES = (0.5, 0.9)
SURE_Z = 3.09
"""The one-sided 0.1% point of the normal distribution."""


def add_step(cell: Cell, load: Load, measured: Requests) -> None:
    """Say where the streams of a closed loop were in step, and what its requests are worth then.

    Segments tell by how much farther apart they are than what is in them allows, one window by
    whether TTFT repeats itself (``autocorrelation``).
    """
    if not can_step(cell):
        return
    ttft_s = np.where(measured.lost, np.inf, measured.ttft_s)
    known = ~np.isnan(ttft_s)
    values, shared = ttft_s[known], Shared.of(cell, measured).of_known(known)
    clusters = shared.clusters
    if clusters is None:
        times, advice = repetition_time(values), "--repeat 4 tells more"
    else:
        count = int(clusters.max()) + 1
        times, advice = _effect(values, shared), f"intervals go by {count} starts"
        if times <= _by_chance(count - 1):
            return
    if times <= 1:
        return
    cell.in_step = times
    if load.start == "together":
        advice = "as --start together wants it"
    cell.notes.append(
        f"in step: TTFT depends on how streams happened to start; {len(values)} requests are "
        f"worth {max(len(values) / times, 1):.0f} ({advice})"
    )


def _effect(values: stats.Floats, shared: Shared) -> float:
    """How many requests are worth one independent one, at that quantile where it is most."""
    ordered, worth = np.sort(values), shared.worth(values)
    return max(len(values) / worth(stats.quantile(ordered, p)).n for p in QUANTILES)


def _by_chance(freedom: int) -> float:
    """A variance of independent values over the true one that chance does not exceed: E. B. Wilson
    & M. M. Hilferty, PNAS 17 (1931)."""
    part = 2 / (9 * freedom)
    return (1 - part + SURE_Z * math.sqrt(part)) ** 3
