"""The highest load that meets the objectives, in few probes of which each is noisy.

Loads grow fourfold until one misses. From then on each probe goes where the edge most likely is
(the median of ``knee``): there a probe tells most, and the last ones confirm each other. It ends
when the 95% interval of the edge is narrow and two probes lie close to it, or after twelve.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Literal

from msgspec import Struct

from llmbench.measure.statistics import wilson
from llmbench.plan.knee import Bounds, Tried, lowest, requests_a_sample
from llmbench.records import Beyond

GROWTH = 4.0
CLOSE = 1.05
NARROW = 1.1
MOST_PROBES = 12
FEW = 50
"""Below this a whole number is to be found exactly."""

CONFIRMED = 2
"""So many probes close to the answer it takes."""

SLOW_ONES, LEAST_REQUESTS, MOST_REQUESTS = 5, 400, 5000
"""Requests of a probe near the edge: as many as have 5 slow ones that do not depend on each
other."""

Fate = Literal["met", "missed", "unknown"]
Beyonds = Mapping[str, Beyond]


class Probe(Struct, frozen=True):
    """One load that was tried, and what was seen of each objective; nothing where nobody knows."""

    load: float
    beyond: Beyonds

    @property
    def fate(self) -> Fate:
        """It missed if more requests were beyond any limit than may be."""
        if not self.beyond:
            return "unknown"
        missed = any(each.share > each.allowed for each in self.beyond.values())
        return "missed" if missed else "met"

    @property
    def is_sure(self) -> bool:
        """Whether it met its limits beyond doubt, and not for want of requests."""
        most = [wilson(each.share * each.worth, each.worth)[1] for each in self.beyond.values()]
        allowed = [each.allowed for each in self.beyond.values()]
        return bool(most) and all(a <= b for a, b in zip(most, allowed, strict=True))


class Answer(Struct, frozen=True):
    """The highest load that meets the objectives, ``None`` where none does, between the ends of its
    95% interval.

    ``open_end`` says why no load missed, where none did (there is no upper end then), or why the
    search ended early. It is not ``sure`` where too few requests met the limits to tell.
    """

    load: float | None
    low: float | None
    high: float | None
    open_end: str = ""
    sure: bool = True


class Search:
    """Asks for one load after the other between ``least`` and ``most``; whole numbers if so
    wished."""

    def __init__(self, least: float, most: float, *, whole: bool) -> None:
        self._least, self._most, self._whole = least, most, whole
        self.probes: list[Probe] = []

    def add(self, load: float, beyond: Beyonds) -> None:
        """Take note of what became of a load; an empty ``beyond`` where nothing is known."""
        self.probes.append(Probe(load, beyond))

    @property
    def requests(self) -> int:
        """So many are worth asking for in the next probe: more where the edge is near, as they
        depend on each other; 0 where that does not matter yet."""
        if not self._is_bracketed:
            return 0
        wanted = max(map(_requests_for, self._by_limit()))
        return min(max(round(wanted), LEAST_REQUESTS), MOST_REQUESTS)

    @property
    def _is_bracketed(self) -> bool:
        """Whether the edge lies between loads that have been tried."""
        return {"met", "missed"} <= {each.fate for each in self.probes}

    def _by_limit(self) -> list[list[Tried]]:
        names = dict.fromkeys(name for each in self.probes for name in each.beyond)
        return [
            [(each.load, each.beyond[name]) for each in self.probes if name in each.beyond]
            for name in names
        ]

    def _edge(self) -> Bounds:
        return lowest(self._by_limit(), self._least, self._most)

    def next(self) -> float | None:
        """The load to try next, or ``None`` when the answer stands."""
        if not self.probes:
            return self._least
        last = self.probes[-1]
        if len(self.probes) >= MOST_PROBES:
            return None
        if last.fate == "unknown":
            return last.load if self._times(last.load) == 1 else None
        if self._is_bracketed:
            return self._where_it_tells_most()
        if last.fate == "missed":  # the least of all; once more, for that may be chance
            return last.load if self._times(last.load) == 1 else None
        return None if last.load >= self._most else self._rounded(last.load * GROWTH)

    def _where_it_tells_most(self) -> float | None:
        bounds = self._edge()
        low, high = self._as_load(bounds.low), self._as_load(bounds.high)
        near = [each for each in self.probes if self._is_close(each.load, bounds.median)]
        narrow = low == high if self._whole and high < FEW else high <= NARROW * low
        if narrow and len(near) >= CONFIRMED:
            return None
        if not self._whole:
            return self._rounded(bounds.median)
        below = math.floor(bounds.median)  # the edge lies between two neighbours
        sides = sorted((below, below + 1), key=lambda load: abs(load - bounds.median))
        return min(map(self._rounded, sides), key=self._times)

    @property
    def answer(self) -> Answer:
        """What has been found so far."""
        met = [each.load for each in self.probes if each.fate == "met"]
        missed = [each.load for each in self.probes if each.fate == "missed"]
        if not missed:
            load = max(met, default=None)
            sure = any(each.is_sure for each in self.probes if each.load == load)
            low = load if sure else None
            return Answer(load, low, None, self._why_open(), sure=sure or load is None)
        if not met:
            return Answer(None, None, min(missed))
        bounds = self._edge()
        low, load, high = map(self._as_load, (bounds.low, bounds.median, bounds.high))
        if load < self._least:
            return Answer(None, None, high)
        load, low, high = (min(max(each, self._least), self._most) for each in (load, low, high))
        return Answer(load, low, high, self._nothing_told())

    def _why_open(self) -> str:
        if told := self._nothing_told():
            return told
        if any(each.load >= self._most for each in self.probes):
            return f"{self._most:g} is the most that was asked for"
        return "heavier loads were not tried"

    def _nothing_told(self) -> str:
        """Which load the search ended at for want of an answer, if any."""
        unknown = self.probes and self.probes[-1].fate == "unknown"
        return f"nothing could be told at {self.probes[-1].load:g}" if unknown else ""

    def _times(self, load: float) -> int:
        return sum(each.load == load for each in self.probes)

    def _is_close(self, load: float, edge: float) -> bool:
        if self._whole and math.floor(edge) <= load <= math.floor(edge) + 1:
            return True
        return max(load / edge, edge / load) <= CLOSE

    def _as_load(self, edge: float) -> float:
        return float(math.floor(edge)) if self._whole else float(f"{edge:.3g}")

    def _rounded(self, load: float) -> float:
        """``load`` as it can be asked for."""
        rounded = float(round(load)) if self._whole else float(f"{load:.3g}")
        return min(max(rounded, self._least), self._most)


def _requests_for(tried: Sequence[Tried]) -> float:
    """How many requests have ``SLOW_ONES`` at the edge of this limit."""
    allowed = tried[-1][1].allowed
    return SLOW_ONES * requests_a_sample(tried) / (allowed * (1 - allowed))
