"""Run the streams of one cell in this process, beside whatever else its loop does."""

from collections.abc import Iterator
from pathlib import Path

from llmbench.drive.board import Board
from llmbench.drive.clock import Clock
from llmbench.drive.closed_loop import ClosedLoop
from llmbench.drive.job import Job
from llmbench.drive.spool import Spool
from llmbench.records import Health, Trace


class Inline:
    """One cell, in one process; ``workers.Workers`` is the same in several."""

    def __init__(self, job: Job, folder: Path, clock: Clock) -> None:
        self.load = job.facts.load
        self.board = Board(self.load)
        self._job = job
        self._clock = clock
        self._client = job.client(clock)
        self._spool = Spool(folder)
        self._loop = ClosedLoop(
            self.load, self._client, job.make_call, self._spool, self.board, job.streams
        )

    @property
    def stopped(self) -> str:
        """Why the cell ended early, where it did."""
        return self._loop.stopped

    async def run(self) -> Health:
        try:
            await self._client.open()
            return await self._loop.run(self._clock)
        finally:
            await self._client.close()

    def interrupt(self, why: str) -> None:
        self._loop.interrupt(why)

    def traces(self) -> Iterator[Trace]:
        return self._job.traces(self._client, self._spool)

    def close(self) -> None:
        self._spool.close()
