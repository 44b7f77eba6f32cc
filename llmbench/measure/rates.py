"""What went through the window of a cell, and whether its load was steady."""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from llmbench.measure.steady import grows, in_flight
from llmbench.records import Cell, RequestMetrics


class Window(NamedTuple):
    start_ns: int
    stop_ns: int

    @property
    def seconds(self) -> float:
        return (self.stop_ns - self.start_ns) / 1e9


def window_of(measured: Sequence[RequestMetrics], *, open_loop: bool) -> Window:
    """From the first measured ``sent`` to the end of the last measured reply; in an open loop,
    which goes on whatever becomes of its requests, from the first due time to the last. Turns
    after the first are due when their users have read the reply before."""
    if open_loop:
        arrivals = due_ns(measured)
        return Window(min(arrivals), max(arrivals))
    return Window(min(each.sent_ns for each in measured), max(each.end_ns for each in measured))


def due_ns(requests: Sequence[RequestMetrics]) -> list[int]:
    """When the requests that open a session were due."""
    return [each.start_ns for each in requests if not each.turn] or [
        each.start_ns for each in requests
    ]


def add_rates(
    cell: Cell, requests: Sequence[RequestMetrics], window: Window, *, open_loop: bool
) -> None:
    """The rates of ``cell``. In a closed loop a request counts by the share of its time that lies
    inside, so that a short window is not at the mercy of which replies just made it; in an open
    loop, where replies may wait for ever longer, it counts if its end does."""
    start_ns, stop_ns = window
    residence_s = [
        (each.end_ns - each.sent_ns) / 1e9
        for each in requests
        if each.phase == "measured" and not each.failure
    ]
    if stop_ns <= start_ns or not residence_s:
        return
    tokens = chars = done = busy_s = 0.0
    ended_inside = 0
    for each in requests:
        inside_s = max(min(each.end_ns, stop_ns) - max(each.sent_ns, start_ns), 0) / 1e9
        busy_s += inside_s
        complete = not each.failure
        ended_inside += complete and start_ns <= each.end_ns <= stop_ns
        if complete:
            done += inside_s / max((each.end_ns - each.sent_ns) / 1e9, 1e-9)
        elif each.failure == "cancelled":  # cut off when the cell was over: as the others
            done += inside_s / (sum(residence_s) / len(residence_s))
        arrived = _arrived(each, window)
        if arrived:
            share = arrived / each.events
            tokens += share * each.tokens if complete else arrived * (cell.tokens_per_event or 1)
            chars += share * each.chars
    cell.window_s = window.seconds
    cell.otps = tokens / window.seconds if cell.token_source != "chunks" else None
    cell.chars_per_s = chars / window.seconds
    # Requests that outlast an open loop's window have no share of it that could be told.
    cell.requests_per_s = (ended_inside if open_loop else done) / window.seconds
    cell.in_flight = busy_s / window.seconds


def _arrived(metrics: RequestMetrics, window: Window) -> int:
    """How many content events came inside the window."""
    if metrics.first_ns is None or metrics.last_ns is None:
        return 0
    first_ns, last_ns = metrics.sent_ns + metrics.first_ns, metrics.sent_ns + metrics.last_ns
    if window.start_ns <= first_ns and last_ns <= window.stop_ns:
        return metrics.events
    if last_ns < window.start_ns or first_ns > window.stop_ns:
        return 0
    later_s = np.cumsum(metrics.gaps_s, dtype=np.float64)
    at_ns = first_ns + np.concatenate(([0.0], later_s)) * 1e9
    return int(np.count_nonzero((at_ns >= window.start_ns) & (at_ns <= window.stop_ns)))


def add_growth(
    cell: Cell, requests: Sequence[RequestMetrics], window: Window, *, constant: bool
) -> None:
    """Whether the number of requests under way grew while the window was open. Those that the
    client held back, because as many as may be were in flight, are among them.

    At a ``constant`` rate that says that the server does not keep up with it.
    """
    if window.stop_ns <= window.start_ns:
        return
    start_ns = np.array([each.start_ns for each in requests], dtype=np.int64)
    end_ns = np.array([each.end_ns for each in requests], dtype=np.int64)
    edges = np.linspace(window.start_ns, window.stop_ns, 5)
    quarters = [in_flight(start_ns, end_ns, low, high) for low, high in pairwise(edges)]
    cell.in_flight_growth = quarters[-1] / quarters[0] if quarters[0] > 0 else None
    if not constant or not grows(quarters):
        return
    cell.settled = False
    came = ""
    if cell.requests_per_s and not any(each.turn for each in requests):
        came = f": {cell.requests_per_s:.3g} a second were answered, {cell.request_rate:.3g} came"
    cell.notes.append(
        f"not steady: in flight grew from {quarters[0]:.3g} to {quarters[-1]:.3g} during the "
        f"window{came}; latencies depend on how long the window is"
    )
