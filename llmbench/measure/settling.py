"""Take what is still warm-up out of the measured requests, and say whether the rest had settled."""

from collections.abc import Sequence

import numpy as np
from msgspec.structs import replace

from llmbench.measure import steady
from llmbench.records import Cell, RequestMetrics


def without_warmup(
    cell: Cell, requests: list[RequestMetrics], *, open_loop: bool
) -> list[RequestMetrics]:
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
    early = [each for each in requests if each.phase == "measured" and each.start_ns < cut]
    first_ns = min(each.start_ns for each in early)
    cell.warmup_removed = len(early)
    cell.notes.append(
        f"the first {len(early)} requests ({(cut - first_ns) / 1e9:.1f} s) were taken as warm-up: "
        f"{what} had not settled (MSER-5)"
    )
    return [
        replace(each, phase="warmup") if each.phase == "measured" and each.start_ns < cut else each
        for each in requests
    ]


def add_drift(cell: Cell, good: Sequence[RequestMetrics]) -> None:
    """Whether TTFT drifted from the first half of the window to the second."""
    values = [value for _, _, value in _ttfts(good)]
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


Point = tuple[int, bool, float]
"""When a request started, whether it is measured, and what it saw."""


def _first_settled(series: Sequence[Point]) -> int | None:
    """The start of the first measured request to keep, or ``None`` where none is to go."""
    known = sum(not measured for _, measured, _ in series)
    removed = steady.warmup_in([value for _, _, value in series], known)
    return series[known + removed][0] if removed else None


def _ttfts(requests: Sequence[RequestMetrics]) -> list[Point]:
    """The TTFT of each good request that opens a session, in the order of their starts."""
    return sorted(
        (each.start_ns, each.phase == "measured", each.ttft_s)
        for each in requests
        if each.phase != "cooldown"
        and not each.failure
        and not each.turn
        and each.ttft_s is not None
    )


def _loads(requests: Sequence[RequestMetrics]) -> list[Point]:
    """How many requests were in flight when each was sent, itself among them."""
    ends_ns = np.sort(np.array([each.end_ns for each in requests], dtype=np.int64))
    in_order = sorted(requests, key=lambda each: each.sent_ns)
    sent_ns = np.array([each.sent_ns for each in in_order], dtype=np.int64)
    ended = np.searchsorted(ends_ns, sent_ns, side="right")
    return [
        (each.start_ns, each.phase == "measured", float(sent - over))
        for sent, (each, over) in enumerate(zip(in_order, ended.tolist(), strict=True), start=1)
        if each.phase != "cooldown"
    ]
