"""One cell: keep N requests in flight, and know which of them count.

Streams start spread over a second, lest they march in step. They warm up at the cell's own shape
and go on sending until the last measured reply is in: the window has neither ramp nor drain in it.
"""

import asyncio
import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from msgspec import Struct

from llmbench.drive.client import Client
from llmbench.drive.clock import Clock
from llmbench.drive.health import HealthWatch
from llmbench.drive.spool import Spool
from llmbench.records import Call, Health, Load, Phase, Trace

RAMP_S = 1.0
FAILURES_IN_A_ROW = 10
PAUSE_AFTER_FAILURE_S = 0.1


class Progress(Struct):
    """Where a cell stands, for the live view."""

    phase: Phase = "warmup"
    measured: int = 0
    wanted: int = 0
    failed: int = 0


class ClosedLoop:
    """Runs one load on one client.

    ``make_call(index, stream, phase)`` encodes a request. ``spool`` takes every request that
    ended, of every phase; ``stopped`` says why the cell ended early, where it did.
    """

    def __init__(
        self,
        load: Load,
        client: Client,
        make_call: Callable[[int, int, Phase], Call],
        spool: Spool,
    ) -> None:
        self.load = load
        self._client = client
        self._make_call = make_call
        self._ramp_s = RAMP_S if load.warmup else 0.0
        self._phase: Phase = "warmup"
        self._sent = self._warm = self._measuring = self._started = self._failed_in_a_row = 0
        self._over = asyncio.Event()
        self.progress = Progress(wanted=load.requests)
        self._spool = spool
        self.stopped = ""

    async def run(self, clock: Clock) -> Health:
        """Run the cell to its end; how this process fared meanwhile."""
        streams = [
            asyncio.create_task(self._stream(number)) for number in range(self.load.concurrency)
        ]
        watch = asyncio.create_task(_watch_clock(clock))
        with _no_collection():
            health = HealthWatch(clock)
            over = asyncio.create_task(self._over.wait())
            # A stream ends before the cell is over only if something broke, such as the disk.
            await asyncio.wait((over, *streams), return_when=asyncio.FIRST_COMPLETED)
            self._over.set()
            fared = health.report()
            watch.cancel()
            for stream in streams:
                stream.cancel()
            results = await asyncio.gather(*streams, return_exceptions=True)
        for result in results:
            if isinstance(result, Exception):
                raise result
        return fared

    def interrupt(self, why: str) -> None:
        """End the cell now; what is in flight is kept as cancelled."""
        if not self._over.is_set():
            self.stopped = why
            self._over.set()

    async def _stream(self, number: int) -> None:
        await asyncio.sleep(self._ramp_s * number / self.load.concurrency)
        self._started += 1
        while not self._over.is_set():
            self._advance()
            phase = self._phase
            if phase == "measured":
                self._measuring += 1
            call = self._make_call(self._sent, number, phase)
            self._sent += 1
            trace = await self._client.exchange(call)
            self._spool.append(trace)
            if not self._over.is_set():
                await self._ended(trace)

    def _advance(self) -> None:
        """Open the window once every stream is under way and warm; close it when it is full."""
        load = self.load
        if self._phase == "warmup" and (
            self._warm >= load.warmup and (self._started == load.concurrency or not load.warmup)
        ):
            self._phase = self.progress.phase = "measured"
            if load.duration_s is not None:
                asyncio.get_running_loop().call_later(load.duration_s, self._close_window)
        if (
            self._phase == "measured"
            and load.duration_s is None
            and self._measuring + self.progress.measured >= load.requests
        ):
            self._close_window()

    def _close_window(self) -> None:
        self._phase = self.progress.phase = "cooldown"
        if not self._measuring:
            self._over.set()

    async def _ended(self, trace: Trace) -> None:
        failed = bool(trace.error) or trace.status != 200
        self._failed_in_a_row = self._failed_in_a_row + 1 if failed else 0
        self.progress.failed += failed
        self._warm += trace.phase == "warmup"
        if trace.phase == "measured":
            self._measuring -= 1
            self.progress.measured += 1
            if self._phase == "cooldown" and not self._measuring:
                self._over.set()
        if failed:
            if self._failed_in_a_row >= FAILURES_IN_A_ROW:
                last = trace.error or f"http-{trace.status}"
                words = f": {trace.detail}" if trace.detail else ""
                self.interrupt(
                    f"stopped after {self._failed_in_a_row} failures in a row ({last}{words})"
                )
            await asyncio.sleep(PAUSE_AFTER_FAILURE_S)


async def _watch_clock(clock: Clock) -> None:
    while True:
        await asyncio.sleep(1)
        clock.resample()


@contextmanager
def _no_collection() -> Iterator[None]:
    """Keep the garbage collector out of the cell: what is alive stays, what comes is acyclic."""
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.unfreeze()
