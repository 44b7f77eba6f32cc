"""Keep streams busy: each sends its next request as soon as it has the reply to the last.

Streams start spread over a second, lest they march in step. They warm up at the cell's own shape
and go on until the last measured reply is in: the window has neither ramp nor drain in it.
"""

import asyncio
import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from llmbench.drive.board import FAILURES_IN_A_ROW, Board
from llmbench.drive.client import Client
from llmbench.drive.clock import Clock
from llmbench.drive.health import HealthWatch
from llmbench.drive.spool import Spool
from llmbench.records import Call, Health, Load, Phase, Trace

RAMP_S = 1.0
PAUSE_AFTER_FAILURE_S = 0.1
LOOK_S = 0.01


class ClosedLoop:
    """Runs some of the streams of one cell, on one client.

    ``streams`` are their numbers among the cell's ``load.concurrency``; all of them by default.
    ``make_call(index, stream, phase)`` encodes a request. ``spool`` takes every request that
    ended, of every phase. ``board`` is shared with whoever runs the other streams. ``stopped`` says
    why the cell ended early, where it did.
    """

    def __init__(
        self,
        load: Load,
        client: Client,
        make_call: Callable[[int, int, Phase], Call],
        spool: Spool,
        board: Board | None = None,
        streams: Sequence[int] | None = None,
    ) -> None:
        self.load = load
        self.board = board or Board(load)
        self.stopped = ""
        self._client = client
        self._make_call = make_call
        self._spool = spool
        self._streams = range(load.concurrency) if streams is None else streams

    async def run(self, clock: Clock) -> Health:
        """Run the streams until the cell is over; how this process fared meanwhile."""
        tasks = [asyncio.create_task(self._stream(number)) for number in self._streams]
        watch = asyncio.create_task(watch_clock(clock))
        with no_collection():
            health = HealthWatch(clock)
            while not self.board.over:
                await asyncio.sleep(LOOK_S)
            fared = health.report()
            for task in (watch, *tasks):
                task.cancel()
            results = await asyncio.gather(*tasks, return_exceptions=True)
        for result in results:
            if isinstance(result, Exception):
                raise result
        return fared

    def interrupt(self, why: str) -> None:
        """End the cell now; what is in flight is kept as cancelled."""
        if not self.board.over:
            self.stopped = why
            self.board.stop()

    async def _stream(self, number: int) -> None:
        if self.load.warmup:
            await asyncio.sleep(RAMP_S * number / self.load.concurrency)
        self.board.start()
        while (taken := self.board.take()) is not None:
            index, phase = taken
            trace = await self._client.exchange(self._make_call(index, number, phase))
            self._keep(trace)
            if self.board.over:
                return
            failed = bool(trace.error) or trace.status != 200
            if self.board.ended(phase, failed):
                self.interrupt(hopeless(trace))
            if failed:
                await asyncio.sleep(PAUSE_AFTER_FAILURE_S)

    def _keep(self, trace: Trace) -> None:
        try:
            self._spool.append(trace)
        except OSError:  # the disk is full: no stream can go on
            self.board.stop()
            raise


def hopeless(last: Trace) -> str:
    kind = last.error or f"http-{last.status}"
    words = f": {last.detail}" if last.detail else ""
    return f"stopped after {FAILURES_IN_A_ROW} failures in a row ({kind}{words})"


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
