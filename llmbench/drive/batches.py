"""Static batches: so many prompts go to the engine at once, the next when all are done."""

from llmbench.drive.board import Board
from llmbench.drive.engine_client import EngineClient
from llmbench.drive.running import Loop, Script
from llmbench.drive.spool import Spool
from llmbench.records import Call, Load


class Batches(Loop):
    """Runs one cell as static batches of ``load.batch_size``. The requests and the warm-up of
    ``load`` are multiples of it."""

    def __init__(
        self, load: Load, client: EngineClient, script: Script, spool: Spool, board: Board
    ) -> None:
        super().__init__(load, client, script, spool, board)
        self._engine = client

    def begin(self) -> None:
        self.start(self._batches())

    async def _batches(self) -> None:
        for _ in range(self.load.concurrency):
            self.board.start()
        while calls := self._batch():
            for call, trace in zip(calls, await self._engine.exchange_batch(calls), strict=True):
                self.keep(call, trace)

    def _batch(self) -> list[Call]:
        """The next batch; empty when the cell is over."""
        calls = []
        for stream in range(self.load.concurrency):
            number = self.board.begin_session()
            ticket, session = self.board.take(), self._script.session(number)
            if ticket is None or session is None:
                return []
            (ask,) = session.asks
            calls.append(self._script.make_call(ticket, stream, ask, session=number))
        return calls
