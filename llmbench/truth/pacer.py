"""Sends at absolute times: one heap of due sends for all streams, and a loop that wakes on time."""

import asyncio
import select
import selectors
import ssl
import sys
import time
from array import array
from collections.abc import Callable
from contextlib import suppress
from heapq import heappop, heappush, heapreplace
from pathlib import Path
from typing import Final

from llmbench.truth.log import Ended
from llmbench.truth.replies import Plan

SLICE_NS: Final = 2_000_000
"""Sending pauses for reads after this long."""

SPIN_NS: Final = 60_000
"""Waits shorter than this are spun: to sleep and wake takes about as long."""

WOULD_BLOCK: Final = (BlockingIOError, ssl.SSLWantWriteError, ssl.SSLWantReadError)


class Stream:
    """One reply on its way out: the plan, where it is, and the true times.

    ``send`` is the socket's. ``on_end`` and ``on_blocked`` are called from within ``Pacer``'s
    turn, so they must put off whatever adds to the pacer.
    """

    __slots__ = (
        "_on_blocked",
        "_on_end",
        "_position",
        "_rest",
        "_send",
        "_steps",
        "blocked",
        "late_ns",
        "live",
        "sent_ns",
        "started_ns",
        "took_ns",
    )

    def __init__(
        self,
        plan: Plan,
        started_ns: int,
        send: Callable[[bytes], int],
        on_blocked: Callable[[], None],
        on_end: Callable[[Ended], None],
    ) -> None:
        self._steps = plan.steps
        self._position = 0
        self._rest = b""
        self._send = send
        self._on_blocked = on_blocked
        self._on_end = on_end
        self.started_ns = started_ns
        self.sent_ns = array("q")
        self.took_ns = array("q")
        self.late_ns = 0
        self.blocked = 0
        self.live = True

    def due_ns(self) -> int:
        """When the next send is due."""
        return self.started_ns + self._steps[self._position][0]

    def advance(self, due_ns: int) -> int | None:
        """Do the send that was due at ``due_ns``; when the next is due, ``None`` if none is."""
        _, data, events = self._steps[self._position]
        at_ns = time.monotonic_ns()
        try:
            count = self._send(data) if data else 0
        except WOULD_BLOCK:
            count = 0
        except OSError:
            self._on_end("disconnected")
            return None
        took_ns = time.monotonic_ns() - at_ns
        for _ in range(events):
            self.sent_ns.append(at_ns)
            self.took_ns.append(took_ns)
        if at_ns - due_ns > self.late_ns:
            self.late_ns = at_ns - due_ns
        if count < len(data):
            self.blocked += 1
            self._rest = data[count:]
            self._on_blocked()
            return None
        return self.step_on()

    def flush(self) -> bool:
        """Send what the peer's full buffer held back; true when the stream can go on.

        The events that it completes get the time of this send.
        """
        at_ns = time.monotonic_ns()
        try:
            count = self._send(self._rest)
        except WOULD_BLOCK:
            return False
        except OSError:
            self._on_end("disconnected")
            return False
        self._rest = self._rest[count:]
        if self._rest:
            return False
        events = self._steps[self._position][2]
        if events:
            took_ns = time.monotonic_ns() - at_ns
            self.sent_ns[-events:] = array("q", [at_ns] * events)
            self.took_ns[-events:] = array("q", [took_ns] * events)
        return True

    def step_on(self) -> int | None:
        """Go past a send that is done: when the next is due, ``None`` if there is none."""
        self._position += 1
        if self._position == len(self._steps):
            self._on_end("complete")
            return None
        return self.started_ns + self._steps[self._position][0]


class Pacer:
    """Sends what is due, for all streams, from one timer."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._heap: list[tuple[int, int, Stream]] = []
        self._added = 0
        self._timer: asyncio.TimerHandle | None = None
        self._timer_ns = 0

    def add(self, stream: Stream, due_ns: int) -> None:
        """Let ``stream`` go on at ``due_ns``. To take it out again, unset ``stream.live``."""
        self._added += 1
        heappush(self._heap, (due_ns, self._added, stream))
        if self._timer is None or due_ns < self._timer_ns:
            self._arm(due_ns)

    def idle_ns(self) -> int:
        """For how long nothing is due, at most a second."""
        now = time.monotonic_ns()
        return min(self._heap[0][0] - now, 10**9) if self._heap else 10**9

    def _arm(self, due_ns: int) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer_ns = due_ns
        self._timer = self._loop.call_at((due_ns - SPIN_NS) / 1e9, self._turn)

    def _turn(self) -> None:
        heap, clock = self._heap, time.monotonic_ns
        now = clock()
        stop = now + SLICE_NS
        while heap and now < stop:
            due, number, stream = heap[0]
            if not stream.live:
                heappop(heap)
                continue
            if due <= now:
                following = stream.advance(due)
                if following is None:
                    heappop(heap)
                else:
                    heapreplace(heap, (following, number, stream))
            elif due > now + SPIN_NS:
                break
            now = clock()
        self._timer = None
        if heap:
            self._arm(heap[0][0])


if sys.platform == "linux":

    class _FineSelector(selectors.EpollSelector):
        """Wakes within microseconds of a timeout, where epoll rounds up to whole milliseconds."""

        def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
            if timeout is not None and timeout > 0:
                # An epoll descriptor can itself be watched. It is older than any connection, so
                # it is below the 1024 that select(2) is limited to.
                select.select([self], [], [], timeout)
                timeout = 0
            return super().select(timeout)


def fine_loop() -> asyncio.AbstractEventLoop:
    """An event loop whose timers are as fine as the system allows."""
    if sys.platform != "linux":
        return asyncio.SelectorEventLoop()
    with suppress(OSError):
        # The kernel may delay a wake-up by this much, by default 50 µs, to save power.
        Path("/proc/self/timerslack_ns").write_text("1")
    return asyncio.SelectorEventLoop(_FineSelector())
