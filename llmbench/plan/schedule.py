"""When the requests of an open loop are due, and which of them are measured."""

from collections.abc import Iterator
from itertools import count

from msgspec import Struct

from llmbench.plan.arrivals import due_s, read_arrivals, read_rate, window_s_for
from llmbench.plan.feed import Feed, Session
from llmbench.records import TRACE, Load, Phase


class Due(Struct, frozen=True):
    """One session, due ``at_ns`` from the start of the cell."""

    number: int
    at_ns: int
    phase: Phase
    session: Session


def schedule(load: Load, feed: Feed, part: int = 0, parts: int = 1) -> Iterator[Due]:
    """The sessions of a cell in the order of time, of which this is every ``parts``-th.

    It has no end, unless the times are a trace's: the load is kept on while replies are awaited.
    """
    opened_s = 0.0
    times = _traced(load, feed) if _is_trace(load) else _drawn(load)
    for number, (at_s, session) in enumerate(times):
        if number == load.warmup:
            opened_s = at_s
        if number % parts == part:
            said = session or feed.session(number)
            if said is None:
                return
            yield Due(number, round(at_s * 1e9), _phase(load, number, at_s - opened_s), said)


def measured_sessions(load: Load) -> int:
    """How many sessions are due within the window; at most, where a trace sets the times."""
    if load.duration_s is None or _is_trace(load):
        return load.requests
    return max(round(load.duration_s * (read_rate(load.rate).mean or 0.0)), 1)


def _is_trace(load: Load) -> bool:
    return load.rate == TRACE


def _phase(load: Load, number: int, age_s: float) -> Phase:
    """The phase of a session that is due ``age_s`` after the first measured one."""
    if number < load.warmup:
        return "warmup"
    if _is_trace(load) and load.duration_s is not None:
        return "measured" if age_s < load.duration_s else "cooldown"
    return "measured" if number < load.warmup + measured_sessions(load) else "cooldown"


Times = Iterator[tuple[float, Session | None]]
"""Due times in seconds, with the session where the times come with it."""


def _drawn(load: Load) -> Times:
    rate, arrivals = read_rate(load.rate), read_arrivals(load.arrivals)
    sessions = measured_sessions(load)
    times = due_s(
        rate,
        arrivals,
        window_s=window_s_for(rate, sessions),
        seed=load.content.seed,
        warmup_s=load.warmup / rate.values[0],
        counts=(load.warmup, sessions),
    )
    return ((at_s, None) for at_s in times)


def _traced(load: Load, feed: Feed) -> Times:
    """The times of a trace, from its first row, ``load.speed`` times as fast."""
    for number in count():
        session = feed.session(number)
        if session is None:
            return
        yield (session.at_s or 0.0) / load.speed, session
