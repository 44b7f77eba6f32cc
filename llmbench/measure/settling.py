"""Take what is still warm-up out of the measured requests, and say whether the rest had settled."""

from typing import NamedTuple

import numpy as np

from llmbench.measure import steady
from llmbench.measure.requests import PHASES, Mask, Requests
from llmbench.measure.statistics import Floats, Ints
from llmbench.records import Cell

WARMUP, COOLDOWN = PHASES.index("warmup"), PHASES.index("cooldown")


def without_warmup(cell: Cell, requests: Requests, *, open_loop: bool) -> Requests:
    """``requests``, of which the first measured ones are warm-up now where the cell had not settled
    when its window opened; ``cell`` says how many, and why.

    TTFT tells, of the first turns of sessions, and in an open loop the number in flight: in a
    closed loop that is constant. The warm-up that there was is part of both series.
    """
    cuts = {"TTFT": _first_settled(_ttfts(requests))}
    if open_loop:
        cuts["the number in flight"] = _first_settled(_loads(requests))
    what, cut = max(cuts.items(), key=lambda each: each[1] or 0)
    if cut is None:
        return requests
    early = requests.measured & (requests.start_ns < cut)
    first_ns = int(requests.start_ns[early].min())
    cell.warmup_removed = int(early.sum())
    cell.notes.append(
        f"the first {cell.warmup_removed} requests ({(cut - first_ns) / 1e9:.1f} s) were taken as "
        f"warm-up: {what} had not settled (MSER-5)"
    )
    return requests.but(phase=np.where(early, WARMUP, requests.phase))


def add_drift(cell: Cell, good: Requests) -> None:
    """Whether TTFT drifted from the first half of the window to the second."""
    values = _ttfts(good).values
    cell.ttft_drift = steady.drift(values)
    if cell.settled is not None:  # more came than the server can do, and no warm-up helps
        return
    if cell.ttft_drift is not None:
        cell.settled = False
        cell.notes.append(
            f"not settled: TTFT p50 of the second half is {cell.ttft_drift:.2g} times the first's; "
            "raise --warmup"
        )
    elif len(values) >= 2 * steady.FEWEST:
        cell.settled = True


class Series(NamedTuple):
    """When requests started, in that order, which of them are measured, and what they saw."""

    start_ns: Ints
    measured: Mask
    values: Floats


def _first_settled(series: Series) -> int | None:
    """The start of the first measured request to keep, or ``None`` where none is to go."""
    before = int((~series.measured).sum())
    removed = steady.warmup_in(series.values, before)
    return int(series.start_ns[before + removed]) if removed else None


def _ttfts(requests: Requests) -> Series:
    """The TTFT of each good request that opens a session, in the order of their starts."""
    opens = requests.good & (requests.turn == 0) & ~np.isnan(requests.ttft_s)
    its = np.flatnonzero(opens & (requests.phase != COOLDOWN))
    order = np.lexsort((requests.ttft_s[its], requests.measured[its], requests.start_ns[its]))
    its = its[order]
    return Series(requests.start_ns[its], requests.measured[its], requests.ttft_s[its])


def _loads(requests: Requests) -> Series:
    """How many requests were in flight when each was sent, itself among them."""
    order = np.argsort(requests.sent_ns, kind="stable")
    ended = np.searchsorted(np.sort(requests.end_ns), requests.sent_ns[order], side="right")
    loads = np.arange(1, len(requests) + 1) - ended
    kept = requests.phase[order] != COOLDOWN
    its = order[kept]
    return Series(requests.start_ns[its], requests.measured[its], loads[kept].astype(np.float64))
