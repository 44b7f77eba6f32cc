"""The highest load that meets an objective, in few probes.

Loads grow fourfold until one misses; the gap between the last that met and the first that missed
is halved on a scale of ratios until the two are close; then the winner is run once more, as is a
load of which nothing could be told. Near the edge chance decides a probe, so the answer comes with
the loads at which there was no doubt.
"""

import math
from typing import Literal

from msgspec import Struct

GROWTH = 4.0
CLOSE = 1.05
MOST_PROBES = 12

Fate = Literal["met", "missed", "unknown"]


class Probe(Struct, frozen=True):
    """One load that was tried. ``sure`` where the whole interval lies on one side of the limit."""

    load: float
    fate: Fate
    sure: bool


class Answer(Struct, frozen=True):
    """The highest load that met the objective, or ``None``; it lies between ``low``, the highest
    that met it without doubt, and ``high``, the lowest that missed it without doubt.

    ``open_end`` says why no load missed, where none did.
    """

    load: float | None
    low: float | None
    high: float | None
    open_end: str = ""


class Search:
    """Asks for one load after the other between ``least`` and ``most``; whole numbers if so
    wished."""

    def __init__(self, least: float, most: float, *, whole: bool) -> None:
        self._least, self._most, self._whole = least, most, whole
        self.probes: list[Probe] = []

    def add(self, probe: Probe) -> None:
        """Take note of what became of a load."""
        self.probes.append(probe)

    def next(self) -> float | None:
        """The load to try next, or ``None`` when the answer stands."""
        if not self.probes:
            return self._least
        if len(self.probes) >= MOST_PROBES:
            return None
        if self.probes[-1].fate == "unknown":
            once = sum(each.load == self._last for each in self.probes) == 1
            return self._last if once else None
        met, missed = self._bracket()
        if missed is None:
            return (
                None if met == self._most else self._rounded(min(self._last * GROWTH, self._most))
            )
        if met is None:
            return None
        if self._close(met, missed):
            return None if self._times_met(met) > 1 else met
        return self._rounded(math.sqrt(met * missed))

    @property
    def answer(self) -> Answer:
        """What has been found so far."""
        met, missed = self._bracket()
        sure_met = [each.load for each in self.probes if each.fate == "met" and each.sure]
        sure_missed = [each.load for each in self.probes if each.fate == "missed" and each.sure]
        low = max((load for load in sure_met if met is not None and load <= met), default=None)
        high = min((load for load in sure_missed if met is None or load > met), default=None)
        open_end = "" if missed is not None else self._why_open()
        return Answer(met, low, high, open_end)

    def _why_open(self) -> str:
        if self.probes and self.probes[-1].fate == "unknown":
            return f"nothing could be told at {self.probes[-1].load:g}"
        return f"{self._most:g} is the most that was asked for"

    @property
    def _last(self) -> float:
        return self.probes[-1].load

    def _bracket(self) -> tuple[float | None, float | None]:
        """The highest load below any that missed, and the lowest that missed. A load that was run
        twice has missed if it did so once."""
        missed = min((each.load for each in self.probes if each.fate == "missed"), default=None)
        met = [
            each.load
            for each in self.probes
            if each.fate == "met" and (missed is None or each.load < missed)
        ]
        return max(met, default=None), missed

    def _times_met(self, load: float) -> int:
        return sum(each.load == load and each.fate == "met" for each in self.probes)

    def _close(self, met: float, missed: float) -> bool:
        return missed / met <= CLOSE or (self._whole and missed - met <= 1)

    def _rounded(self, load: float) -> float:
        if not self._whole:
            return float(f"{load:.3g}")
        return float(round(load))
