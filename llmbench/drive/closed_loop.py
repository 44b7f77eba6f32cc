"""Keep streams busy: each sends its next request as soon as it has the reply to the last.

Streams start spread over a second and warm up at the cell's own shape. Lest they march in step,
each is then set off anew at a random moment, and again before every segment of the window; a
segment goes on until its last measured reply is in, and has neither ramp nor drain in it. A stream
is a user: the turns of a conversation follow each other on it, with pauses to think between.
"""

import asyncio
from collections.abc import Sequence

from llmbench.drive.board import Board
from llmbench.drive.client import Client
from llmbench.drive.running import Loop, Script
from llmbench.drive.spool import Spool
from llmbench.plan.feed import Session
from llmbench.records import Load, Message

RAMP_S = 1.0
PAUSE_AFTER_FAILURE_S = 0.1


class ClosedLoop(Loop):
    """Runs some of the streams of one cell: ``streams`` are their numbers among the cell's
    ``load.concurrency``; all of them by default."""

    def __init__(
        self,
        load: Load,
        client: Client,
        script: Script,
        spool: Spool,
        board: Board | None = None,
        streams: Sequence[int] | None = None,
    ) -> None:
        super().__init__(load, client, script, spool, board or Board(load))
        self._streams = range(load.concurrency) if streams is None else streams

    def begin(self) -> None:
        for number in self._streams:
            self.start(self._stream(number))

    async def _stream(self, stream: int) -> None:
        if self.load.warmup and self.load.start == "spread":
            await asyncio.sleep(RAMP_S * stream / self.load.concurrency)
        segment = self.board.start()
        while not self.board.over:
            if segment != self.board.segment:
                await asyncio.sleep(self.board.pause_s())
                segment = self.board.start()
            number = self.board.begin_session()
            session = self._script.session(number)
            if session is None:
                return
            await self._converse(stream, number, session)

    async def _converse(self, stream: int, number: int, session: Session) -> None:
        said: list[Message] = []
        ago_s = 0.0
        for turn, ask in enumerate(session.asks):
            if turn:
                await asyncio.sleep(max(session.pauses_s[turn - 1] - ago_s, 0))
            ticket = self.board.take()
            if ticket is None:
                return
            call = self._script.make_call(ticket, stream, ask, said, session=number, turn=turn)
            trace = await self._client.exchange(call)
            if self.keep(call, trace):
                await asyncio.sleep(PAUSE_AFTER_FAILURE_S)
                return
            if trace.cut_ns is not None:
                await self._client.prepare(stream)
            if turn + 1 < len(session.asks):
                if (reply := self._script.reply(trace)) is None:
                    return
                said, ago_s = [*said, *ask.messages, reply], self.since_cut_s(trace)
