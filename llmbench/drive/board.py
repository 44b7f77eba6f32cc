"""The counts of a cell: the one state that its streams share, in one process or in many.

A closed loop warms up until enough requests have ended and every stream is under way; an open loop
until enough have been sent. Then the window opens and requests are measured, until as many have
been sent as were asked for, or the time is up, or the figures are certain enough. A closed loop's
window may have several segments: when the last measured request of one has ended, every stream
waits for a random time, and when all are back the next one opens. A cell that has
a budget of time closes its window so early that the replies which it then waits for are within it,
but not before each stream had two requests, if twice the budget will do for these. From then on
requests only keep the load up; the cell is over when the last measured one has ended, or when that
takes longer than the cell's grace.
"""

import math
import random
import time
from array import array
from collections.abc import MutableSequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from msgspec import Struct

from llmbench.plan import segments
from llmbench.plan.until import FEWEST_A_STREAM, LOOKS, Enough, Seen, Until, read_until
from llmbench.records import Load, Phase

FAILURES_IN_A_ROW = 10
FEWEST_FOR_A_SHARE = 20
MOST_SAMPLES = 1_000_000
BUDGET_SAMPLES = 4096
"""So many requests tell whether figures are good enough, if they ever are."""

_COLUMNS_OF_UNTIL, _COLUMNS_OF_ALL = 2, 4
"""Of the figures that ``plan/until.Seen`` has of a request, what a board keeps."""

_SHORTEST_S = 1e-4
"""A reply that is said to have taken no time at all."""

_PHASES: tuple[Phase, ...] = ("warmup", "measured", "cooldown")
(
    _PHASE,
    _STARTED,
    _SENT,
    _SESSIONS,
    _WARM,
    _TICKETS,
    _MEASURED,
    _FAILED,
    _IN_A_ROW,
    _ENDED,
    _OPENED,
    _CLOSED,
    _CLOSED_NS,
    _LOOKED,
    _CERTAIN,
    _OVER,
    _GOOD,
    _GOOD_NS,
    _SEGMENT,
    _CUTS,
    _SIZE,
    _BEFORE,
    _LAST,
) = range(23)
SLOTS = 23


class Ticket(Struct, frozen=True):
    """What a request is: its index among the cell's, its phase, and the segment of the window that
    it belongs to."""

    index: int
    phase: Phase
    segment: int = 0


class Board:
    """The counts of one cell, which ``parts`` processes run. ``slots`` are ``SLOTS`` integers, all
    0, ``samples`` room for ``samples_wanted`` figures, and ``lock`` guards them:
    shared memory and its lock where there are several processes."""

    def __init__(
        self,
        load: Load,
        parts: int = 1,
        slots: MutableSequence[int] | None = None,
        samples: MutableSequence[float] | None = None,
        lock: AbstractContextManager[Any] | None = None,
    ) -> None:
        self._load = load
        self._parts = parts
        self._until: Until | None = read_until(load.until) if load.until else None
        self._enough: Enough | None = None
        if load.budget_s is not None:
            self._enough = Enough(load.budget_s, rates=not load.rate and not load.batch_size)
        self._columns = _COLUMNS_OF_UNTIL if self._enough is None else _COLUMNS_OF_ALL
        self._slots = [0] * SLOTS if slots is None else slots
        self._samples = array("d", bytes(8 * samples_wanted(load))) if samples is None else samples
        self._lock = nullcontext() if lock is None else lock

    # ── a closed loop asks what to do next ───────────────────────────────────────────────────────

    @property
    def segment(self) -> int:
        """The segment that streams belong to now; before the window it is 0."""
        return self._slots[_SEGMENT]

    def start(self) -> int:
        """One more stream is under way in the present segment, which is returned."""
        with self._lock:
            self._slots[_STARTED] += 1
            return self._slots[_SEGMENT]

    def pause_s(self) -> float:
        """How long a stream is to wait before it is set off anew: any time up to that of a mean
        reply, so that all phases of the streams to each other are equally likely."""
        return random.uniform(0, self._mean_s)  # noqa: S311 - a moment, not a secret

    def begin_session(self) -> int:
        """The number of the next session."""
        with self._lock:
            self._slots[_SESSIONS] += 1
            return self._slots[_SESSIONS] - 1

    def take(self) -> Ticket | None:
        """The next request, or ``None`` when the cell is over."""
        with self._lock:
            self._advance()
            return None if self._slots[_OVER] else self._ticket(self.phase)

    # ── an open loop says what it does ───────────────────────────────────────────────────────────

    def send(self, phase: Phase, turns: int = 1) -> Ticket | None:
        """A session of ``phase`` with so many ``turns`` is to begin: its first request, or ``None``
        when the cell is over. One that was to be measured is not any more when the figures are
        certain enough."""
        with self._lock:
            slots = self._slots
            if slots[_OVER]:
                return None
            if phase == "measured" and slots[_CERTAIN]:
                phase = "cooldown"
            if phase == "measured" and slots[_PHASE] == 0:
                slots[_PHASE] = 1
                slots[_OPENED] = time.monotonic_ns()
            slots[_TICKETS] += (turns - 1) * (phase == "measured")
            return self._ticket(phase)

    def go_on(self, phase: Phase) -> Ticket | None:
        """The request of a later turn, which was counted with its session's first."""
        with self._lock:
            if self._slots[_OVER]:
                return None
            self._slots[_TICKETS] -= phase == "measured"
            return self._ticket(phase)

    def forfeit(self, phase: Phase, turns: int) -> None:
        """So many turns of a session will never be: it has failed."""
        with self._lock:
            self._slots[_TICKETS] -= turns * (phase == "measured")
            self._advance()

    def close_window(self) -> None:
        """This process has sent the last of its measured requests."""
        with self._lock:
            self._slots[_CLOSED] += 1
            if self._slots[_CLOSED] == self._parts and not self._slots[_CERTAIN]:
                self._slots[_PHASE] = 2
                self._slots[_CLOSED_NS] = time.monotonic_ns()
            self._advance()

    # ── both ─────────────────────────────────────────────────────────────────────────────────────

    @property
    def is_watching(self) -> bool:
        """Whether the next request that ends may tell that the figures are certain enough."""
        slots = self._slots
        return slots[_PHASE] > 0 and slots[_MEASURED] < self._room and not slots[_CERTAIN]

    def ended(
        self,
        phase: Phase,
        failed: bool,
        latency_s: float | None = None,
        took_ns: int = 0,
        brought: int = 0,
        segment: int = 0,
    ) -> str:
        """A request of a ``segment`` has ended, whose first token came after ``latency_s``, and
        which took ``took_ns`` to bring so many bytes; why that makes the cell hopeless, where it
        does."""
        slots = self._slots
        with self._lock:
            slots[_WARM] += phase == "warmup" and not failed
            slots[_GOOD] += not failed
            slots[_GOOD_NS] += 0 if failed else took_ns
            if phase == "measured":
                row = slots[_MEASURED]
                if row < self._room:
                    ttft_s = math.inf if failed or latency_s is None else latency_s
                    told = (
                        ttft_s,
                        float(segment),
                        math.inf if failed else took_ns / 1e9,
                        float(brought),
                    )
                    for column, value in enumerate(told[: self._columns]):
                        self._samples[column * self._room + row] = value
                slots[_MEASURED] += 1
            slots[_FAILED] += failed
            slots[_ENDED] += 1
            slots[_IN_A_ROW] = slots[_IN_A_ROW] + 1 if failed else 0
            self._look()
            self._advance()
            return self._hopeless()

    def grace_is_over(self) -> bool:
        """Whether the window has been closed for longer than replies are waited for."""
        grace_s, closed_ns = self._load.grace_s, self._slots[_CLOSED_NS]
        if grace_s is None or not closed_ns:
            return False
        return time.monotonic_ns() - closed_ns > grace_s * 1e9

    def tick(self) -> None:
        """Time has passed: the window closes by it, also while no request begins or ends."""
        with self._lock:
            self._advance()

    def stop(self) -> None:
        self._slots[_OVER] = 1  # without the lock: a worker that was killed may hold it

    def _ticket(self, phase: Phase) -> Ticket:
        slots = self._slots
        index = slots[_SENT]
        slots[_SENT] += 1
        slots[_TICKETS] += phase == "measured"
        return Ticket(index, phase, slots[_SEGMENT])

    def _advance(self) -> None:
        slots = self._slots
        if not self._load.rate:
            self._open_or_close()
        if not self._all_are_in:
            return
        if self._goes_on:
            self._set_off_anew()
        else:
            slots[_OVER] = 1

    def _open_or_close(self) -> None:
        load, slots = self._load, self._slots
        under_way = slots[_STARTED] == load.concurrency or not load.warmup
        if slots[_PHASE] == 0 and slots[_WARM] >= load.warmup and under_way:
            if load.segments and load.warmup and not slots[_SEGMENT]:
                self._set_off_anew()
                return
            slots[_PHASE] = 1
            slots[_OPENED] = slots[_OPENED] or time.monotonic_ns()
            slots[_BEFORE] = slots[_TICKETS]
        if slots[_PHASE] == 1:
            slots[_LAST] = self._full()
            if slots[_LAST] or self._segment_is_full():
                slots[_PHASE] = 2
                slots[_CLOSED_NS] = time.monotonic_ns()

    def _set_off_anew(self) -> None:
        """The next segment begins, with a pause for each stream."""
        slots = self._slots
        slots[_PHASE] = slots[_STARTED] = 0
        slots[_SEGMENT] += 1

    def _segment_is_full(self) -> bool:
        """Whether as many requests were sent in this segment as it is to have. What these are is
        known when replies have told how long they take."""
        load, slots = self._load, self._slots
        if load.segments and not slots[_SIZE] and slots[_GOOD] >= load.concurrency:
            slots[_CUTS], slots[_SIZE] = self._cut()
        if slots[_CUTS] <= 1:
            return False
        return slots[_TICKETS] - slots[_BEFORE] >= slots[_SIZE]

    def _cut(self) -> segments.Segments:
        load = self._load
        if self._until is not None:
            size = segments.by_looks(self._until.sizes(load.requests)[0], load.concurrency)
            return segments.Segments(load.requests // size, size)
        if self._whole_s is not None:
            turns = self._whole_s / max(self._mean_s, _SHORTEST_S)
            if self._enough is not None and turns >= 2 * segments.FEWEST_TURNS:
                turns /= 2  # it may be enough by half of the time
            return segments.by_time(turns, load.concurrency, load.segments)
        return segments.by_requests(load.requests, load.concurrency, load.segments)

    @property
    def _goes_on(self) -> bool:
        """Whether there is to be one more segment: the time must do for it."""
        slots = self._slots
        if slots[_CUTS] <= 1 or slots[_LAST] or slots[_CERTAIN]:
            return False
        if self._whole_s is None:
            return True
        return self._whole_s - self._age_s > (1 + segments.COST_TURNS) * self._mean_s

    @property
    def _whole_s(self) -> float | None:
        """The time of the window; ``None`` where it goes by the number of requests."""
        return self._load.budget_s or self._load.duration_s

    @property
    def _all_are_in(self) -> bool:
        """Whether the window, or a segment of it, is closed, and all of its replies are in."""
        slots = self._slots
        return slots[_PHASE] == 2 and slots[_MEASURED] == slots[_TICKETS]

    def _full(self) -> bool:
        load, slots = self._load, self._slots
        if load.budget_s is not None and not load.rate:
            left_s = load.budget_s - self._age_s
            if left_s <= -load.budget_s or slots[_TICKETS] >= load.requests:
                return True
            return self._had_their_share and left_s <= self._mean_s
        if load.duration_s is None:
            return slots[_TICKETS] >= load.requests
        return self._age_s >= load.duration_s

    @property
    def _mean_s(self) -> float:
        """How long a good reply took on average."""
        return self._slots[_GOOD_NS] / self._slots[_GOOD] / 1e9 if self._slots[_GOOD] else 0.0

    @property
    def _age_s(self) -> float:
        """For how long the window has been open."""
        return (time.monotonic_ns() - self._slots[_OPENED]) / 1e9

    @property
    def _had_their_share(self) -> bool:
        """Whether there was as much for each stream as a budget is stretched for."""
        return self._slots[_TICKETS] >= FEWEST_A_STREAM * self._load.concurrency

    @property
    def _room(self) -> int:
        """Of how many requests samples are kept."""
        return len(self._samples) // self._columns

    def _look(self) -> None:
        """At the declared looks: are the figures certain enough?"""
        slots = self._slots
        if slots[_CERTAIN] or slots[_LOOKED] >= LOOKS:
            return
        if slots[_CUTS] > 1 and not self._all_are_in:
            return  # in the middle of a segment
        if self._until is not None:
            certain = self._is_certain(self._until)
        elif self._enough is not None and (slots[_PHASE] == 1 or slots[_CUTS] > 1):
            certain = self._is_enough(self._enough)
        else:
            return
        if certain:
            slots[_CERTAIN] = 1
            slots[_PHASE] = 2
            slots[_CLOSED_NS] = time.monotonic_ns()

    def _is_certain(self, until: Until) -> bool:
        slots = self._slots
        sizes = until.sizes(self._load.requests)
        if slots[_MEASURED] < sizes[slots[_LOOKED]]:
            return False
        while slots[_LOOKED] < LOOKS and sizes[slots[_LOOKED]] <= slots[_MEASURED]:
            slots[_LOOKED] += 1
        return until.certain(self._seen())

    def _is_enough(self, enough: Enough) -> bool:
        slots, age_s = self._slots, self._age_s
        if age_s < enough.due_s(slots[_LOOKED]) or not self._had_their_share:
            return False
        while slots[_LOOKED] < LOOKS and enough.due_s(slots[_LOOKED]) <= age_s:
            slots[_LOOKED] += 1
        return enough.certain(self._seen(), age_s)

    def _seen(self) -> Seen:
        """What is known of the measured requests that have ended."""
        room, count = self._room, min(self._slots[_MEASURED], self._room)
        return Seen(*(self._samples[n * room : n * room + count] for n in range(self._columns)))

    def _hopeless(self) -> str:
        slots = self._slots
        if slots[_IN_A_ROW] >= FAILURES_IN_A_ROW:
            return f"after {FAILURES_IN_A_ROW} failures in a row"
        most = self._load.max_failures
        if not most:
            return ""
        if most.endswith("%"):
            share = float(most[:-1]) / 100
            hopeless = slots[_FAILED] > share * max(slots[_ENDED], FEWEST_FOR_A_SHARE)
        else:
            hopeless = slots[_FAILED] > int(most)
        if not hopeless:
            return ""
        return (
            f"after {slots[_FAILED]} of {slots[_ENDED]} requests failed, more than --max-failures "
            f"{most}"
        )

    @property
    def over(self) -> bool:
        return bool(self._slots[_OVER])

    @property
    def phase(self) -> Phase:
        number = self._slots[_PHASE]
        if number == 0 and self._slots[_OPENED]:  # between two segments of the window
            return "cooldown"
        return _PHASES[number]

    @property
    def measured(self) -> int:
        return self._slots[_MEASURED]

    @property
    def failed(self) -> int:
        return self._slots[_FAILED]

    @property
    def remark(self) -> str:
        """How the search for a certain figure ended, where there was one."""
        if self._until is None:
            return ""
        return self._until.remark(self._seen(), self._slots[_LOOKED], bool(self._slots[_CERTAIN]))


def samples_wanted(load: Load) -> int:
    """How many figures of requests a board has to keep."""
    if load.budget_s is not None:
        return _COLUMNS_OF_ALL * min(load.requests, BUDGET_SAMPLES)
    if not load.until:
        return 0
    return _COLUMNS_OF_UNTIL * min(load.requests + load.concurrency + 1, MOST_SAMPLES)
