"""Run the streams of one cell in this process, beside whatever else its loop does."""

from pathlib import Path
from typing import TYPE_CHECKING

from llmbench.drive.batches import Batches
from llmbench.drive.board import Board
from llmbench.drive.client import Client
from llmbench.drive.clock import Clock
from llmbench.drive.engine_client import EngineClient
from llmbench.drive.job import Job
from llmbench.drive.running import Loop
from llmbench.records import Health

if TYPE_CHECKING:
    from llmbench.engines.hosted import HostedEngine


class Inline:
    """One cell, in one process; ``workers.Workers`` is the same in several. ``hosted`` is the
    engine that is called in place of a server."""

    def __init__(
        self, job: Job, folder: Path, clock: Clock, hosted: "HostedEngine | None" = None
    ) -> None:
        self.load = job.facts.load
        self.board = Board(self.load)
        self._job = job
        self._clock = clock
        self._spool = job.spool(folder)
        self._client: Client
        self._loop: Loop
        if hosted is None:
            self._client = job.client(clock)
        else:
            self._client = EngineClient(hosted, job.target.api, job.timeout_s, clock)
        if isinstance(self._client, EngineClient) and self.load.batch_size:
            self._loop = Batches(self.load, self._client, job, self._spool, self.board)
        else:
            self._loop = job.loop(self._client, self._spool, self.board)

    @property
    def stopped(self) -> str:
        """Why the cell ended early, where it did."""
        return self._loop.stopped

    @property
    def remarks(self) -> list[str]:
        """What the cell's reader should know beside that."""
        return [
            each for each in (self.board.remark, self._job.feed.remark, self._loop.remark) if each
        ]

    async def run(self) -> Health:
        try:
            await self._client.open()
            return await self._loop.run(self._clock)
        finally:
            await self._client.close()

    def interrupt(self, why: str) -> None:
        self._loop.interrupt(why)

    def close(self) -> None:
        self._spool.close()
