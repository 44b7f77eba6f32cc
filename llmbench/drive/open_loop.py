"""Send each request when it is due, whatever became of those before: users come on their own clock.

Due times are absolute. Requests are encoded ahead of theirs, so that several that are due at once
go out one right after the other. The last millisecond of a wait blocks the process: the selector
would round it up, and the kernel stamps what arrives meanwhile. Nothing is skipped: what is late
goes out at once, what finds no free place waits for one, and its latency counts from its due time.
"""

import asyncio
from collections import deque
from collections.abc import Iterator
from itertools import chain, pairwise, takewhile
from time import monotonic_ns
from typing import NamedTuple

from msgspec.structs import replace

from llmbench.drive.board import Board
from llmbench.drive.client import Client
from llmbench.drive.poller import BLOCK_NS
from llmbench.drive.running import Loop, Script
from llmbench.drive.spool import Spool
from llmbench.plan.schedule import Due
from llmbench.records import Call, Load, Message, Trace

SPIN_NS = 100_000
"""The very end of a wait, which no sleep hits so well."""

LEAD_NS = 200_000_000
"""From the start of the cell to time zero of its schedule: connections are there by then."""

SPARE = 8
"""Connections are opened ahead, so that so many are idle at any time."""

BURST_NS = 50_000_000
"""What is due so soon after one another needs connections of its own."""

UNPLACED = -1
"""The stream of a request that is ready: it gets one that is idle when it is sent."""

AHEAD_NS = 1_000_000_000
MOST_AHEAD = 64
"""How far ahead of their times requests are encoded, and how many at most."""


class Ready(NamedTuple):
    """A session whose first request is encoded. ``last`` is the last that is measured."""

    due: Due
    due_ns: int
    call: Call
    last: bool


class OpenLoop(Loop):
    """Sends the requests of ``schedule``, which are this process's share of the cell's.

    ``start_ns`` is the time zero of the schedule on the monotonic clock, the same in every process.
    """

    def __init__(
        self,
        load: Load,
        client: Client,
        script: Script,
        spool: Spool,
        board: Board,
        schedule: Iterator[Due],
        start_ns: int | None = None,
    ) -> None:
        super().__init__(load, client, script, spool, board)
        self._schedule = pairwise(chain(schedule, (None,)))
        self._start_ns = monotonic_ns() + LEAD_NS if start_ns is None else start_ns
        self._slots = asyncio.Semaphore(load.concurrency) if load.concurrency else None
        self._ready: deque[Ready] = deque()
        self._idle: deque[int] = deque()
        self._streams = self._opening = 0
        self._window_open = True
        self._under_way = 0

    @property
    def remark(self) -> str:
        """How many conversations had turns to come when the cell was over."""
        if self.load.content.turns == 1 or not self._under_way:
            return ""
        return (
            f"{self._under_way} conversations were cut short when the cell was over: later turns "
            "are under-represented; raise --grace"
        )

    def begin(self) -> None:
        self._open_ahead()
        self.start(self._dispatch())

    async def _dispatch(self) -> None:
        """Start each session at its time."""
        ready, more = self._ready, True
        while more or ready:
            while more and self._may_prepare():
                if (prepared := self._prepare()) is None:
                    more = False
                else:
                    ready.append(prepared)
            if not ready:
                break
            self._open_ahead()
            self._client.expect(ready[0].due_ns)
            await until(ready[0].due_ns, self._client)
            while ready and ready[0].due_ns <= monotonic_ns():
                self._begin_session(ready.popleft())
            await asyncio.sleep(0)  # what was started is sent now
        if self._window_open:
            self._close_window()

    def _may_prepare(self) -> bool:
        """Whether there is time: nothing is due soon, and what is ready is not far ahead."""
        ready = self._ready
        if not ready:
            return True
        now_ns = monotonic_ns()
        near, far = ready[0].due_ns - now_ns, ready[-1].due_ns - now_ns
        return near > BLOCK_NS and far < AHEAD_NS and len(ready) < MOST_AHEAD

    def _prepare(self) -> Ready | None:
        """The next session of the schedule, with its first request encoded."""
        due, after = next(self._schedule, (None, None))
        if due is None or (ticket := self.board.send(due.phase, len(due.session.asks))) is None:
            return None
        due_ns = self._start_ns + due.at_ns
        call = self._script.make_call(
            ticket, UNPLACED, due.session.asks[0], session=due.number, due_ns=due_ns
        )
        last = due.phase == "measured" and (after is None or after.phase != "measured")
        return Ready(due, due_ns, call, last)

    def _begin_session(self, ready: Ready) -> None:
        self.start(self._session(ready.due, replace(ready.call, stream=self._stream())))
        if ready.last:
            self._close_window()

    def _close_window(self) -> None:
        self._window_open = False
        self.board.close_window()

    async def _session(self, due: Due, call: Call) -> None:
        """One session, from its arrival to the end of its last turn."""
        self._under_way += call.phase == "measured"
        await self._turns(due, call)
        self._under_way -= call.phase == "measured"

    async def _turns(self, due: Due, call: Call) -> None:
        asks, said = due.session.asks, list[Message]()
        for turn, ask in enumerate(asks, start=1):
            trace = await self._exchange(call)
            if turn == len(asks):
                return
            reply = None if trace is None else self._script.reply(trace)
            if trace is None or reply is None:
                self.board.forfeit(call.phase, len(asks) - turn)
                return
            said = [*said, *ask.messages, reply]
            pause_s = due.session.pauses_s[turn - 1] - self.since_cut_s(trace)
            due_ns = monotonic_ns() + int(max(pause_s, 0) * 1e9)
            ticket = self.board.go_on(call.phase)
            if ticket is None:
                return
            call = self._script.make_call(
                ticket,
                self._stream(),
                asks[turn],
                said,
                session=due.number,
                turn=turn,
                due_ns=due_ns,
            )
            await until(due_ns, self._client)

    async def _exchange(self, call: Call) -> Trace | None:
        """Send ``call`` as soon as it may go; its trace, or ``None`` where it failed."""
        due_ns, queued_ns = call.due_ns or 0, 0
        if self._slots is not None:
            waits = self._slots.locked()
            try:
                await self._slots.acquire()
            except asyncio.CancelledError:  # the cell is over, and it was never sent
                now_ns = monotonic_ns()
                self.keep(call, never_sent(call, now_ns - self._zero_ns), now_ns - due_ns)
                return None
            queued_ns = monotonic_ns() - due_ns if waits else 0
        try:
            trace = await self._client.exchange(call)
        finally:
            if self._slots is not None:
                self._slots.release()
        failed = self.keep(call, trace, queued_ns)
        if trace.cut_ns is not None:
            await self._client.prepare(call.stream)
        self._idle.append(call.stream)  # not before: another call would connect it, too
        return None if failed else trace

    # ── connections ──────────────────────────────────────────────────────────────────────────────

    def _stream(self) -> int:
        """A stream that has nothing to do, the one that rested longest; else a new one."""
        if self._idle:
            stream = self._idle.popleft()
        else:
            stream, self._streams = self._streams, self._streams + 1
        self._open_ahead()
        return stream

    def _open_ahead(self) -> None:
        """Open connections until some are idle: the more the more are in use, and one for each
        request of a burst that is ready."""
        in_use = self._streams - len(self._idle) - self._opening
        wanted = max(SPARE, in_use // 4, self._burst)
        missing = wanted - len(self._idle) - self._opening
        for _ in range(min(missing, SPARE - self._opening)):
            self.start(self._open_one(self._streams))
            self._streams += 1
            self._opening += 1

    @property
    def _burst(self) -> int:
        """How many requests are due with the next one that is ready."""
        ready = self._ready
        if not ready or ready[0].due_ns - monotonic_ns() > AHEAD_NS:
            return 0
        ends_ns = ready[0].due_ns + BURST_NS
        return sum(1 for _ in takewhile(lambda each: each.due_ns < ends_ns, ready))

    async def _open_one(self, stream: int) -> None:
        await self._client.prepare(stream)
        self._opening -= 1
        self._idle.append(stream)
        self._open_ahead()


async def until(due_ns: int, client: Client) -> None:
    """Return at ``due_ns`` on the monotonic clock, or at once if that is past."""
    while (left_ns := due_ns - monotonic_ns()) > BLOCK_NS:
        await asyncio.sleep((left_ns - BLOCK_NS) / 1e9)
    if left_ns > SPIN_NS:
        client.wait(due_ns - SPIN_NS)
    while monotonic_ns() < due_ns:
        pass


def never_sent(call: Call, at_ns: int) -> Trace:
    """The trace of a request that was due, and still waited for a place when the cell was over."""
    return Trace(
        cell=call.cell,
        index=call.index,
        stream=call.stream,
        phase=call.phase,
        request_id=call.request_id,
        sent_ns=at_ns,
        end_ns=0,
        error="cancelled",
        detail="never sent: as many as may be were in flight",
    )
