"""Send each request when it is due, whatever became of those before: users come on their own clock.

Due times are absolute. The task of a request encodes it, waits for its time, starts the next one's
task, which runs after it, and sends. The last millisecond of the wait blocks the process: the
selector would round it up, and the kernel stamps what arrives meanwhile. Nothing is skipped: what
is late goes out at once, and its latency counts from when it was due.
"""

import asyncio
import time
from collections import deque
from collections.abc import Iterator
from time import monotonic_ns

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
        self._schedule = schedule
        self._start_ns = monotonic_ns() + LEAD_NS if start_ns is None else start_ns
        self._slots = asyncio.Semaphore(load.concurrency) if load.concurrency else None
        self._idle: deque[int] = deque()
        self._streams = self._opening = 0
        self._window_open = True

    def begin(self) -> None:
        self._open_ahead()
        self.start(self._next())

    async def _next(self) -> None:
        """The session that is due next."""
        due = next(self._schedule, None)
        if self._window_open and (due is None or due.phase == "cooldown"):
            self._window_open = False
            self.board.close_window()
        if due is not None:
            await self._session(due)

    async def _session(self, due: Due) -> None:
        """One session, from its arrival to the end of its last turn."""
        due_ns = self._start_ns + due.at_ns
        said: list[Message] = []
        for turn, ask in enumerate(due.session.asks):
            ticket = self.board.take() if turn else self.board.send(due.phase)
            if ticket is None:
                return
            call = self._script.make_call(
                ticket, self._stream(), ask, said, session=due.number, turn=turn, due_ns=due_ns
            )
            if turn:
                await until(due_ns)
            else:
                self._client.expect(due_ns)
                await until(due_ns)
                self.start(self._next())
            trace = await self._exchange(call, due_ns)
            if trace is None or turn + 1 == len(due.session.asks):
                return
            said = [*said, *ask.messages, self._script.reply(trace)]
            due_ns = monotonic_ns() + int(due.session.pauses_s[turn] * 1e9)

    async def _exchange(self, call: Call, due_ns: int) -> Trace | None:
        """Send ``call`` as soon as it may go; its trace, or ``None`` where it failed."""
        queued_ns = 0
        if self._slots is not None:
            if self._slots.locked():
                await self._slots.acquire()
                queued_ns = monotonic_ns() - due_ns
            else:
                await self._slots.acquire()
        try:
            trace = await self._client.exchange(call)
        finally:
            if self._slots is not None:
                self._slots.release()
            self._idle.append(call.stream)
        return None if self.keep(call, trace, queued_ns) else trace

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
        """Open connections until some are idle, the more the more are in use."""
        in_use = self._streams - len(self._idle) - self._opening
        missing = max(SPARE, in_use // 4) - len(self._idle) - self._opening
        for _ in range(missing if self._opening < SPARE else 0):
            self.start(self._open_one(self._streams))
            self._streams += 1
            self._opening += 1

    async def _open_one(self, stream: int) -> None:
        await self._client.prepare(stream)
        self._opening -= 1
        self._idle.append(stream)


async def until(due_ns: int) -> None:
    """Return at ``due_ns`` on the monotonic clock, or at once if that is past."""
    while (left_ns := due_ns - monotonic_ns()) > BLOCK_NS:
        await asyncio.sleep((left_ns - BLOCK_NS) / 1e9)
    if left_ns > SPIN_NS:
        time.sleep((left_ns - SPIN_NS) / 1e9)  # noqa: ASYNC251 - the process belongs to this request now
    while monotonic_ns() < due_ns:
        pass
