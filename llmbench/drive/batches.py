"""Static batches: so many prompts go to the engine at once, the next when all are done."""

import asyncio
from collections.abc import Callable

from llmbench.drive.board import Board
from llmbench.drive.clock import Clock
from llmbench.drive.closed_loop import LOOK_S, hopeless, no_collection, watch_clock
from llmbench.drive.engine_client import EngineClient
from llmbench.drive.health import HealthWatch
from llmbench.drive.spool import Spool
from llmbench.records import Call, Health, Load, Phase


class Batches:
    """Runs one cell as static batches of ``load.batch_size``; a ``ClosedLoop`` to whoever runs it.

    The requests and the warm-up of ``load`` are multiples of it.
    """

    def __init__(
        self,
        load: Load,
        client: EngineClient,
        make_call: Callable[[int, int, Phase], Call],
        spool: Spool,
        board: Board,
    ) -> None:
        self.load = load
        self.board = board
        self.stopped = ""
        self._client = client
        self._make_call = make_call
        self._spool = spool

    async def run(self, clock: Clock) -> Health:
        """Run batches until the cell is over; how this process fared meanwhile."""
        batches = asyncio.create_task(self._batches())
        watch = asyncio.create_task(watch_clock(clock))
        with no_collection():
            health = HealthWatch(clock)
            while not self.board.over and not batches.done():
                await asyncio.sleep(LOOK_S)
            fared = health.report()
            watch.cancel()
            batches.cancel()
            (result, _) = await asyncio.gather(batches, watch, return_exceptions=True)
        if isinstance(result, Exception):
            raise result
        return fared

    def interrupt(self, why: str) -> None:
        """End the cell now; what is in flight is kept as cancelled."""
        if not self.board.over:
            self.stopped = why
            self.board.stop()

    async def _batches(self) -> None:
        size = self.load.concurrency
        for _ in range(size):
            self.board.start()
        while None not in (taken := [self.board.take() for _ in range(size)]):
            calls = [
                self._make_call(index, stream, phase)
                for stream, (index, phase) in enumerate(each for each in taken if each)
            ]
            for call, trace in zip(calls, await self._client.exchange_batch(calls), strict=True):
                self._spool.append(trace)
                if self.board.ended(call.phase, bool(trace.error)):
                    self.interrupt(hopeless(trace))
