"""What a process must know to run requests of a cell: enough to travel to a worker."""

from collections.abc import Sequence
from functools import cached_property
from http import HTTPStatus
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from llmbench.apis import APIS, sse
from llmbench.apis.api import Api
from llmbench.apis.dialect import Dialect
from llmbench.apis.request import encode, path_of
from llmbench.drive.board import Board, Ticket
from llmbench.drive.client import Client
from llmbench.drive.clock import Clock
from llmbench.drive.closed_loop import ClosedLoop
from llmbench.drive.endpoint import Endpoint, endpoint
from llmbench.drive.limits import KEPT_BYTES, REPLY_BYTES, Limits
from llmbench.drive.open_loop import OpenLoop
from llmbench.drive.running import Loop
from llmbench.drive.spool import Spool
from llmbench.drive.wire import WireClient
from llmbench.headers import is_marked
from llmbench.measure.early import first_token_ns, heard, reply_text
from llmbench.measure.timeline import decode
from llmbench.parts import part_path
from llmbench.plan.feed import Ask, Feed, Session
from llmbench.plan.scale import Scale
from llmbench.plan.schedule import schedule
from llmbench.records import Call, CellFacts, Kind, Message, Target, Trace

SHORT_BYTES = 4096
"""A reply of no more bytes is looked at when it ends, which takes little time."""


class Job(Struct, frozen=True, kw_only=True, dict=True):
    """The part of a cell that one process runs: number ``part`` of ``parts``.

    ``scale`` says how many words make so many tokens. It holds no key: a worker reads the
    environment.
    """

    facts: CellFacts
    target: Target
    dialect: Dialect
    scale: Scale
    salt: str
    timeout_s: float
    first_token_timeout_s: float | None = None
    reply_bytes: int = REPLY_BYTES
    part: int = 0
    parts: int = 1

    def share(self, part: int, parts: int) -> "Job":
        """The job of one of ``parts`` processes."""
        return replace(self, part=part, parts=parts)

    def loop(self, client: Client, spool: Spool, board: Board, start_ns: int | None = None) -> Loop:
        """What runs this part of the cell on ``client``; in an open loop from ``start_ns`` on."""
        load, feed = self.facts.load, self.feed  # here, for its file may have to be fetched
        if load.rate:
            due = schedule(load, feed, self.part, self.parts)
            return OpenLoop(load, client, self, spool, board, due, start_ns)
        return ClosedLoop(load, client, self, spool, board, self._streams)

    @cached_property
    def feed(self) -> Feed:
        return Feed(self.facts.load, self.facts.cell, self.salt, self.scale)

    def session(self, number: int) -> Session | None:
        """What session ``number`` says; numbers rise."""
        return self.feed.session(number)

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
        cell = self.facts.cell
        marks = f"{self.salt}-{cell}-s{session}", f"{self.salt}-{cell}-{ticket.index}"
        body = encode(
            self.target,
            [*said, *ask.messages],
            ask.output_tokens,
            self.dialect,
            self.facts.load.content,
            marks,
        )
        fields = {name: it for name, it in ask.fields.items() if name not in self.target.body}
        return Call(
            cell=cell,
            index=ticket.index,
            stream=stream,
            phase=ticket.phase,
            request_id=f"llmbench-{self.salt}-{cell}-{ticket.index}",
            body=_with(body, fields) if fields else body,
            session=session,
            turn=turn,
            due_ns=due_ns,
            cut_after_s=ask.cut_after_s,
            segment=ticket.segment,
            exact_tokens=ask.output_tokens if self._is_exact else 0,
            headers=self._endpoint.filled(*marks) if self._is_marked else {},
        )

    def reply(self, trace: Trace) -> Message | None:
        """The model's answer, to be said back to it in the next turn; ``None`` where it failed."""
        text = reply_text(heard(trace), self._api.decode)
        return None if text is None else Message("assistant", text)

    def failure(self, trace: Trace) -> str:
        """The kind of failure that the transport saw, or that a short reply says itself: a server
        that answers at once with nothing is to be told before it has filled the disk."""
        if trace.error or trace.status != HTTPStatus.OK:
            return trace.error or f"http-{trace.status}"
        if self.facts.client == "openai" or len(trace.body) > SHORT_BYTES:
            return ""  # of the SDK's chunks the bytes are made when the cell is over
        return decode(trace, self._api.decode).failure

    def first_token_s(self, trace: Trace) -> float | None:
        """When the first token came; ``None`` where none did."""
        first_ns = first_token_ns(trace, self._api.decode)
        return None if first_ns is None else first_ns / 1e9

    def spool(self, folder: Path) -> Spool:
        """What keeps the traces of this part in the run directory ``folder``, without the key where
        a server has repeated it. No byte changes its place."""
        where = self._endpoint

        def clean(text: str) -> str:
            return where.redacted(text.encode()).decode()

        def cleaned(trace: Trace) -> Trace:
            return replace(
                trace,
                body=where.redacted(trace.body),
                detail=clean(trace.detail),
                headers={name: clean(value) for name, value in trace.headers.items()},
            )

        return Spool(part_path(folder, self.facts.cell, self.part), cleaned)

    def client(self, clock: Clock) -> Client:
        """The client of the cell, with a connection for each of a closed loop's streams."""
        where, path = self._endpoint, path_of(self.target)
        match self.facts.client:
            case "aiohttp":
                from llmbench.drive.aiohttp_client import AiohttpClient

                return AiohttpClient(where, path, self._limits, clock, self._api.end_marker)
            case "openai":
                from llmbench.drive.openai_client import OpenAIClient

                return OpenAIClient(where, path, self._api.sdk, self._limits, clock)
            case _:
                streams = () if self.facts.load.rate else self._streams
                return WireClient(where, path, streams, self._limits, clock, self._api.end_marker)

    @cached_property
    def _is_marked(self) -> bool:
        return any(map(is_marked, self.target.headers.values()))

    @cached_property
    def _endpoint(self) -> Endpoint:
        return endpoint(self.target)

    @property
    def _is_exact(self) -> bool:
        """Whether a reply has as many tokens as are asked for."""
        return self.dialect.exact_length and not self.facts.load.content.natural_stops

    @property
    def _api(self) -> Api:
        return APIS[self.target.api]

    @property
    def _streams(self) -> range:
        return range(self.part, self.facts.load.concurrency, self.parts)

    @property
    def _limits(self) -> Limits:
        def has_begun(body: bytes) -> bool:
            events = self._api.decode(sse.parse(body[:KEPT_BYTES]))
            return any(event.kind & Kind.GENERATED for event in events)

        return Limits(self.timeout_s, self.first_token_timeout_s, has_begun, self.reply_bytes)


def _with(body: bytes, fields: dict[str, Any]) -> bytes:
    """A JSON object with more ``fields``, none of which it has."""
    return body.removesuffix(b"}") + b"," + msgspec.json.encode(fields).removeprefix(b"{")
