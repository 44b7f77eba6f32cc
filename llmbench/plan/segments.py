"""How a closed loop's window is cut into segments, before each of which its streams are set off
anew at random moments.

A closed loop falls into step: who waits behind whom stays as it was, so that a run differs from the
next by more than anything within it can tell. What starts anew is independent. Segments are the
independent replications of simulation (A. M. Law, *Simulation Modeling and Analysis*, 5th ed.,
§9.5), as many as it takes for an interval of Student's t.
"""

from typing import NamedTuple

FEWEST = 8
"""Where there is no time for so many segments there is one."""

TELLING = 6
"""Of fewer segments, those that time had to do without among them, nothing is told by how they
differ."""

USUAL, MOST = 16, 32
"""So many where there is time for no more, and so many at most."""

TURNS = 4
"""More than the usual number only where each stream has so many requests in a segment."""

COST_TURNS = 3.0
"""What one more segment takes beside its measured requests, in mean replies: the last measured one
is waited for under full load, then every stream ends its own and waits for up to a mean reply."""


SENT_TURNS = 2.3
"""So many requests a stream are sent for that: the last ones before, the first ones after."""

FEWEST_TURNS = FEWEST * (1 + COST_TURNS)
"""Of a time in which each stream can send no more requests on end there is one segment."""


class Segments(NamedTuple):
    """At most so many segments of so many ``requests`` each."""

    most: int
    requests: int


def by_requests(requests: int, streams: int, most: int) -> Segments:
    """Cut ``requests`` into at most ``most`` segments, each of one request a stream at least."""
    turns = requests / streams
    count = _count(turns / 2, turns / TURNS, most) if turns >= FEWEST else 1
    return Segments(count, -(-requests // count))


def by_time(turns: float, streams: int, most: int) -> Segments:
    """Cut a time in which each stream could send so many requests on end, ``turns``."""
    if turns < FEWEST_TURNS:
        return Segments(1, 0)
    count = _count(turns / (2 + COST_TURNS), turns / (TURNS + COST_TURNS), most)
    return Segments(count, max(round((turns / count - COST_TURNS) * streams), streams))


def by_looks(first: int, streams: int) -> int:
    """The requests of a segment where the figures are looked at after ``first`` requests, and then
    after twice as many each time."""
    return max(first // FEWEST, streams)


def _count(of_two: float, of_many: float, most: int) -> int:
    """How many segments there are, if so many had two requests a stream, or ``TURNS``."""
    usual = min(max(int(of_two), FEWEST), USUAL)
    return max(min(max(usual, int(of_many)), MOST, most), 1)
