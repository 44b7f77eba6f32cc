"""What all ways to load a cell have in common: they run until the board says that it is over."""

import asyncio
import gc
from collections.abc import Coroutine, Iterator, Sequence
from contextlib import contextmanager
from time import monotonic_ns
from typing import Any, Protocol

import msgspec

from llmbench.drive.board import Board, Ticket
from llmbench.drive.client import Client
from llmbench.drive.clock import Clock
from llmbench.drive.health import HealthWatch
from llmbench.drive.spool import Spool
from llmbench.errors import UserError
from llmbench.plan.feed import Ask, Session
from llmbench.records import Call, Health, Load, Message, Trace

LOOK_S = 0.01


class Script(Protocol):
    """What the requests of a cell are, and what their replies say; ``job.Job`` is one."""

    def session(self, number: int) -> Session | None:
        """What session ``number`` says; ``None`` where a trace is at its end."""

    def make_call(
        self,
        ticket: Ticket,
        stream: int,
        ask: Ask,
        said: Sequence[Message] = (),
        *,
        session: int = 0,
        turn: int = 0,
        due_ns: int | None = None,
    ) -> Call:
        """Encode one request: ``ask`` after all that was ``said`` before in its session."""

    def reply(self, trace: Trace) -> Message | None:
        """The model's answer, to be said back to it in the next turn; ``None`` where it failed."""

    def failure(self, trace: Trace) -> str:
        """The kind of failure, as far as it can be told at once; empty for a good reply."""

    def first_token_s(self, trace: Trace) -> float | None:
        """When the first token came; ``None`` where none did."""


class Loop:
    """Runs some of the requests of one cell, on one client.

    ``spool`` takes every request that ended, of every phase. ``board`` is shared with whoever runs
    the rest of the cell. ``stopped`` says why the cell ended early, where it did.
    """

    def __init__(
        self, load: Load, client: Client, script: Script, spool: Spool, board: Board
    ) -> None:
        self.load = load
        self.board = board
        self.stopped = ""
        self._client = client
        self._script = script
        self._spool = spool
        self._zero_ns = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._problem: BaseException | None = None

    @property
    def remark(self) -> str:
        """What the cell's reader should know of how its requests were sent, where anything."""
        return ""

    def begin(self) -> None:
        """Start the tasks that run the requests."""
        raise NotImplementedError

    async def run(self, clock: Clock) -> Health:
        """Run until the cell is over; how this process fared meanwhile."""
        self._zero_ns = clock.zero_ns
        with no_collection():
            self.begin()
            watch = asyncio.create_task(watch_clock(clock))
            health = HealthWatch(clock)
            try:
                while not self.board.over:
                    await asyncio.sleep(LOOK_S)
                    self.board.tick()
                    if self.board.grace_is_over():
                        self.board.stop()
                fared = health.report()
            finally:  # the second signal finds its way here too
                await self._end([watch, *self._tasks])
        if isinstance(self._problem, UserError):
            self.stopped = str(self._problem)
        elif self._problem is not None:
            raise self._problem
        return fared

    async def _end(self, tasks: Sequence["asyncio.Task[None]"]) -> None:
        """Cut off what is in flight, and write down what the client has put off."""
        for task in tasks:
            task.cancel()
        try:
            await asyncio.gather(*tasks, return_exceptions=True)
        finally:
            if self._client.settle is not None:
                self._spool.settle(self._client.settle)

    def interrupt(self, why: str) -> None:
        """End the cell now; what is in flight is kept as cancelled."""
        if not self.board.over:
            self.stopped = why
            self.board.stop()

    def start(self, work: Coroutine[Any, Any, None]) -> None:
        """Run ``work`` beside the rest; what it raises ends the cell."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (problem := task.exception()) is not None:
            self._problem = self._problem or problem
            self.board.stop()

    def since_cut_s(self, trace: Trace) -> float:
        """How long ago the user cut off the reply of ``trace``, with which the pause before the
        next turn began; 0 where it was heard to its end."""
        if trace.cut_ns is None:
            return 0.0
        return (monotonic_ns() - self._zero_ns - trace.sent_ns - trace.cut_ns) / 1e9

    def keep(self, call: Call, trace: Trace, queued_ns: int = 0) -> bool:
        """Store the request that ended; whether it failed. ``OSError`` if the disk is full."""
        due_ns = None if call.due_ns is None else call.due_ns - self._zero_ns
        placed = msgspec.structs.replace(
            trace,
            session=call.session,
            turn=call.turn,
            segment=call.segment,
            due_ns=due_ns,
            queued_ns=queued_ns,
        )
        placed = self._spool.append(placed)
        failure = self._script.failure(trace)
        failed = bool(failure)
        if not self.board.over:
            watched = self.board.is_watching
            first_token_s = self._script.first_token_s(trace) if watched else None
            took_ns, brought = trace.end_ns, len(trace.body)
            hopeless = self.board.ended(
                call.phase, failed, first_token_s, took_ns, brought, call.segment
            )
            if hopeless:
                self.interrupt(f"stopped {hopeless} ({last_words(placed, failure)})")
        return failed


def last_words(last: Trace, failure: str) -> str:
    """How the last request of a hopeless cell failed."""
    return f"{failure}: {last.detail}" if last.detail else failure


async def watch_clock(clock: Clock) -> None:
    while True:
        await asyncio.sleep(1)
        clock.resample()


@contextmanager
def no_collection() -> Iterator[None]:
    """Keep the garbage collector out of the cell: what is alive stays, what comes is acyclic."""
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.unfreeze()
