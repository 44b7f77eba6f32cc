"""What went through the window of a cell, and whether its load was steady."""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from llmbench.measure.autocorrelation import autocorrelation_time
from llmbench.measure.requests import Requests
from llmbench.measure.statistics import (
    CONFIDENCE,
    NORMAL,
    Floats,
    Ints,
    freedom_of,
    ratio_reach,
    student,
)
from llmbench.measure.steady import grows, in_flight
from llmbench.plan.segments import TELLING
from llmbench.records import Cell, Segment

FEWEST_FOR_A_RATE = 30
"""Of fewer requests intervals of a mean are too narrow."""


class Window(NamedTuple):
    """When the window was open: an item for each segment, by its number. A segment in which nothing
    was measured has no time."""

    starts_ns: Ints
    stops_ns: Ints

    @property
    def lengths_s(self) -> Floats:
        return (self.stops_ns - self.starts_ns) / 1e9

    @property
    def seconds(self) -> float:
        return float(self.lengths_s.sum())

    def of(self, requests: Requests) -> tuple[Ints, Ints]:
        """When the segment of each of ``requests`` began and ended."""
        numbers = np.minimum(requests.segment, len(self.starts_ns) - 1)
        beyond = requests.segment >= len(self.starts_ns)
        starts_ns, stops_ns = self.starts_ns[numbers], self.stops_ns[numbers]
        return starts_ns, np.where(beyond, starts_ns, stops_ns)


def window_of(requests: Requests, *, open_loop: bool) -> Window:
    """From the first measured ``sent`` to the end of the last measured reply; in an open loop,
    which goes on whatever becomes of its requests, from the first due time to the last. Turns
    after the first are due when their users have read the reply before.

    Where there are several segments, each is short, and what its streams had begun with when the
    last of them was set off would weigh in it: it counts from the end of that on.
    """
    measured = requests.where(requests.measured)
    if open_loop:
        arrivals = due_ns(measured)
        return Window(arrivals.min(keepdims=True), arrivals.max(keepdims=True))
    count = int(measured.segment.max()) + 1
    starts_ns, stops_ns = np.full(count, np.iinfo(np.int64).max), np.zeros(count, dtype=np.int64)
    np.minimum.at(starts_ns, measured.segment, measured.sent_ns)
    np.maximum.at(stops_ns, measured.segment, measured.end_ns)
    if (stops_ns > 0).sum() > 1:
        its = requests.segment < count
        first = its & (requests.sent_ns < starts_ns[np.where(its, requests.segment, 0)])
        np.maximum.at(starts_ns, requests.segment[first], requests.end_ns[first])
    return Window(np.minimum(starts_ns, stops_ns), stops_ns)


def due_ns(requests: Requests) -> Ints:
    """When the requests that open a session were due."""
    opening = requests.turn == 0
    return requests.start_ns[opening] if opening.any() else requests.start_ns


def add_rates(cell: Cell, requests: Requests, window: Window, *, open_loop: bool) -> None:
    """The rates of ``cell``. In a closed loop a request counts by the share of its time that lies
    inside, so that a short window is not at the mercy of which replies just made it; in an open
    loop, where replies may wait for ever longer, it counts if its end does."""
    good = requests.good
    residence_s = (requests.end_ns - requests.sent_ns) / 1e9
    measured = good & requests.measured
    if window.seconds <= 0 or not measured.any():
        return
    start_ns, stop_ns = window.of(requests)
    inside_ns = np.minimum(requests.end_ns, stop_ns) - np.maximum(requests.sent_ns, start_ns)
    inside_s = np.maximum(inside_ns, 0) / 1e9
    part = np.zeros(len(requests))
    part[good] = inside_s[good] / np.maximum(residence_s[good], 1e-9)
    # Those that were cut off when the cell was over stay as long as the others, or longer.
    stay_s = np.maximum(residence_s[requests.cancelled], residence_s[measured].mean())
    part[requests.cancelled] = inside_s[requests.cancelled] / stay_s
    ended = good & (start_ns <= requests.end_ns) & (requests.end_ns <= stop_ns)
    arrived = _arrived(requests, window)
    whole = arrived / np.maximum(requests.events, 1)
    tokens = np.where(good, whole * requests.seen_tokens, arrived * (cell.tokens_per_event or 1))
    cell.window_s = window.seconds
    cell.segments = _segments(requests, window, tokens, part)
    cell.otps = float(tokens.sum()) / window.seconds if cell.token_source != "chunks" else None
    cell.chars_per_s = float((whole * requests.chars).sum()) / window.seconds
    # Requests that outlast an open loop's window have no share of it that could be told.
    done = float(ended.sum()) if open_loop else float(part.sum())
    cell.requests_per_s = done / window.seconds
    cell.in_flight = float(inside_s.sum()) / window.seconds
    if not open_loop:
        cell.opening = opening_s(requests, start_ns, stop_ns) / window.seconds


def opening_s(requests: Requests, start_ns: Ints, stop_ns: Ints) -> float:
    """How long streams waited, between ``start_ns`` and ``stop_ns`` of each request, for new
    connections in place of those that the server had closed: nothing of theirs was in flight."""
    again = np.array([each is not None and bool(each.reopened) for each in requests.connect])
    if not again.any():
        return 0.0
    waited_ns = np.array([each.wait_ns for each in requests.connect[again]])
    sent_ns = requests.sent_ns[again]
    low_ns = np.maximum(sent_ns - waited_ns, start_ns[again])
    return float(np.maximum(np.minimum(sent_ns, stop_ns[again]) - low_ns, 0).sum()) / 1e9


def _segments(
    requests: Requests, window: Window, tokens: Floats, replies: Floats
) -> list[Segment] | None:
    """What came in each segment, where there are several."""
    count, lengths_s = len(window.starts_ns), window.lengths_s
    its = requests.segment < count
    sums = [
        np.bincount(requests.segment[its], weights=each[its], minlength=count)
        for each in (tokens, replies)
    ]
    found = [
        Segment(seconds=float(seconds), tokens=float(some), requests=float(ended))
        for seconds, some, ended in zip(lengths_s, *sums, strict=True)
        if seconds > 0
    ]
    return found if len(found) > 1 else None


def segments_reach(
    segments: Sequence[Segment], name: str, confidence: float = CONFIDENCE
) -> float | None:
    """How far the interval of the rate ``name`` of a window reaches on each side, as a share of
    it, by how far its ``segments`` lie apart; ``None`` where they are too few."""
    if len(segments) < TELLING:
        return None
    brought = np.array([each.tokens if name == "otps" else each.requests for each in segments])
    seconds = np.array([each.seconds for each in segments])
    if not brought.any():
        return None
    return ratio_reach(brought, seconds, confidence)


def add_rate_intervals(cell: Cell, measured: Requests) -> None:
    """The 95% intervals of a closed loop's rates; an open loop's are what was asked for.

    The window begins as a request is sent and ends as one ends, and tokens come late in a request:
    what came inside is a little more than its share. By Little's law the rate is what is in flight
    × what requests bring ÷ how long they stay; the interval holds that value, too.
    """
    stays_s = (measured.end_ns - measured.sent_ns) / 1e9
    for name, brought in (
        ("otps", measured.good * measured.seen_tokens),
        ("requests_per_s", measured.good),
    ):
        rate = getattr(cell, name)
        by_segments = segments_reach(cell.segments or (), name)
        reach = by_segments
        if reach is None:
            reach = rate_reach(brought.astype(np.float64), stays_s, cell.batch_size or 1)
        if rate is None or reach is None:
            continue
        by_law = rate
        if cell.in_flight is not None and by_segments is None:
            by_law = cell.in_flight * float(brought.sum() / stays_s.sum())
        low, high = min(rate, by_law), max(rate, by_law)
        setattr(cell, f"{name}_ci95", (low * max(1 - reach, 0.0), high * (1 + reach)))


def rate_reach(
    brought: Floats, stays: Floats, unit: int, confidence: float = CONFIDENCE
) -> float | None:
    """How far the interval of a rate reaches on each side, as a share of it.

    As many requests are in flight all the time, so that a rate is that number times the ratio of
    what requests bring to how long they stay: a ratio of sums, whose variance is that of its
    residuals (W. G. Cochran, *Sampling Techniques*, 3rd ed., §6.3), times their autocorrelation
    time, or the ``unit`` requests of a static batch where those are more.
    """
    count = len(brought)
    if count < FEWEST_FOR_A_RATE or not brought.any():
        return None
    residuals = brought - brought.sum() / stays.sum() * stays
    times = max(autocorrelation_time(residuals), unit)
    worth = count / times
    if worth < FEWEST_FOR_A_RATE:
        return None
    variance = float(residuals @ residuals) * count / (count - 1) * times
    p = (1 + confidence) / 2
    factor = student(p, freedom_of(worth)) if times > 1 else NORMAL.inv_cdf(p)
    return factor * float(np.sqrt(variance) / brought.sum())


def _arrived(requests: Requests, window: Window) -> Ints:
    """How many content events of each request came inside the window."""
    first_ns, last_ns = (
        requests.sent_ns + requests.first_ns,
        requests.sent_ns + requests.last_ns,
    )
    some = requests.events > 0
    starts_ns, stops_ns = window.of(requests)
    inside = some & (starts_ns <= first_ns) & (last_ns <= stops_ns)
    arrived = np.where(inside, requests.events, 0).astype(np.int64)
    across = some & ~inside & (last_ns >= starts_ns) & (first_ns <= stops_ns)
    for number, gaps_s in zip(
        np.flatnonzero(across), requests.gaps_s.of(across).rows(), strict=True
    ):
        later_s = np.cumsum(gaps_s, dtype=np.float64)
        at_ns = first_ns[number] + np.concatenate(([0.0], later_s)) * 1e9
        within = (at_ns >= starts_ns[number]) & (at_ns <= stops_ns[number])
        arrived[number] = np.count_nonzero(within)
    return arrived


def add_growth(cell: Cell, requests: Requests, window: Window, *, constant: bool) -> None:
    """Whether the number of requests under way grew while the window was open. Those that the
    client held back, because as many as may be were in flight, are among them.

    At a ``constant`` rate that says that the server does not keep up with it.
    """
    if window.seconds <= 0:
        return
    start_ns, end_ns = requests.start_ns, requests.end_ns
    edges = np.linspace(window.starts_ns[0], window.stops_ns[0], 5)
    quarters = [in_flight(start_ns, end_ns, low, high) for low, high in pairwise(edges)]
    cell.in_flight_growth = quarters[-1] / quarters[0] if quarters[0] > 0 else None
    if not constant or not grows(quarters):
        return
    cell.settled = False
    came = ""
    if cell.requests_per_s and not requests.turn.any():
        came = f": {cell.requests_per_s:.3g} a second were answered, {cell.request_rate:.3g} came"
    cell.notes.append(
        f"not steady: in flight grew from {quarters[0]:.3g} to {quarters[-1]:.3g} during the "
        f"window{came}; latencies depend on how long the window is"
    )
