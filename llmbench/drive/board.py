"""Which requests of a cell count: the one state that its streams share, in one process or in many.

A cell warms up until enough requests have ended and every stream is under way. Then its window
opens and requests are measured, until as many have been sent as were asked for or the time is up.
From then on requests only keep the load up; the cell is over when the last measured one has ended.
"""

import time
from collections.abc import MutableSequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from llmbench.records import Load, Phase

FAILURES_IN_A_ROW = 10

_PHASES: tuple[Phase, ...] = ("warmup", "measured", "cooldown")
_PHASE, _STARTED, _SENT, _WARM, _TICKETS, _MEASURED, _FAILED, _IN_A_ROW, _OPENED, _OVER = range(10)
SLOTS = 10


class Board:
    """The counts of one cell. ``slots`` are ``SLOTS`` integers, all 0, and ``lock`` guards them:
    shared memory and its lock where several processes run the cell."""

    def __init__(
        self,
        load: Load,
        slots: MutableSequence[int] | None = None,
        lock: AbstractContextManager[Any] | None = None,
    ) -> None:
        self._load = load
        self._slots = [0] * SLOTS if slots is None else slots
        self._lock = nullcontext() if lock is None else lock

    def start(self) -> None:
        """One more stream is under way."""
        with self._lock:
            self._slots[_STARTED] += 1

    def take(self) -> tuple[int, Phase] | None:
        """The index and the phase of the next request, or ``None`` when the cell is over."""
        slots = self._slots
        with self._lock:
            self._advance()
            if slots[_OVER]:
                return None
            index = slots[_SENT]
            slots[_SENT] += 1
            slots[_TICKETS] += slots[_PHASE] == 1
            return index, _PHASES[slots[_PHASE]]

    def _advance(self) -> None:
        load, slots = self._load, self._slots
        under_way = slots[_STARTED] == load.concurrency or not load.warmup
        if slots[_PHASE] == 0 and slots[_WARM] >= load.warmup and under_way:
            slots[_PHASE] = 1
            slots[_OPENED] = time.monotonic_ns()
        if slots[_PHASE] == 1 and self._full():
            slots[_PHASE] = 2
        if slots[_PHASE] == 2 and slots[_MEASURED] == slots[_TICKETS]:
            slots[_OVER] = 1

    def _full(self) -> bool:
        if self._load.duration_s is None:
            return self._slots[_TICKETS] >= self._load.requests
        return time.monotonic_ns() - self._slots[_OPENED] >= self._load.duration_s * 1e9

    def ended(self, phase: Phase, failed: bool) -> bool:
        """A request has ended; whether so many have failed in a row that it is hopeless."""
        slots = self._slots
        with self._lock:
            slots[_WARM] += phase == "warmup" and not failed
            slots[_MEASURED] += phase == "measured"
            slots[_FAILED] += failed
            slots[_IN_A_ROW] = slots[_IN_A_ROW] + 1 if failed else 0
            self._advance()
            return slots[_IN_A_ROW] >= FAILURES_IN_A_ROW

    def stop(self) -> None:
        with self._lock:
            self._slots[_OVER] = 1

    @property
    def over(self) -> bool:
        return bool(self._slots[_OVER])

    @property
    def phase(self) -> Phase:
        return _PHASES[self._slots[_PHASE]]

    @property
    def measured(self) -> int:
        return self._slots[_MEASURED]

    @property
    def failed(self) -> int:
        return self._slots[_FAILED]
