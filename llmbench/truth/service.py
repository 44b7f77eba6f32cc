"""What the truth server answers: routes to plans, the line of those that wait, and the log."""

import asyncio
import hmac
import random
import re
import socket
import ssl
import time
from collections import deque
from typing import Final

import msgspec

from llmbench.apis import APIS
from llmbench.truth.connection import Arrival, Connection, Exchange
from llmbench.truth.log import Ended, Log, Reply
from llmbench.truth.pacer import Pacer, Stream
from llmbench.truth.replies import Plan, plan, refuse, whole
from llmbench.truth.script import Refusal, Script, read_request

_BASES: Final = re.compile(r"/v1|/openai/v1|/openai/deployments/[^/]+")
"""Where APIs live: here as anywhere, at Azure, and at Azure as it once was."""

_BEHAVED: Final = Script()
"""For what is no part of the act: the log, and health."""


_KEYS: Final = (b"authorization", b"api-key", b"x-api-key")
"""Headers that may carry the key."""


def _api_at(place: str) -> str:
    """The API that is spoken at ``place``, a path with its query; empty where none is."""
    path, _, query = place.partition("?")
    for name, api in APIS.items():
        base = path.removesuffix(api.path)
        if base != path and _BASES.fullmatch(base):
            classic = base.startswith("/openai/deployments/")
            return "" if classic and "api-version=" not in query else name
    return ""


class TruthService:
    """Routes requests to plans, lines up those that must wait, and keeps the log."""

    def __init__(self, script: Script, log: Log, key: str) -> None:
        self.loop = asyncio.get_running_loop()
        self.pacer = Pacer(self.loop)
        self._script = script
        self.deaf_s = script.deaf_ms / 1e3
        self._log = log
        self._key = key.encode()
        self._rng = random.Random(script.seed)  # noqa: S311  jitter, not secrets
        self._connections: set[Connection] = set()
        self._accepted = 0
        self._requests = 0
        self._running = 0
        self._line: deque[tuple[Connection, Exchange]] = deque()

    # Connections

    def listen(self, listener: socket.socket, tls: ssl.SSLContext | None) -> None:
        """Accept connections on the non-blocking ``listener``."""
        self.loop.add_reader(listener, self._accept, listener, tls)

    def _accept(self, listener: socket.socket, tls: ssl.SSLContext | None) -> None:
        for _ in range(64):
            try:
                sock, _ = listener.accept()
            except BlockingIOError:
                return
            except OSError:  # out of descriptors: try again when some may be free
                self.loop.remove_reader(listener)
                self.loop.call_later(0.1, self.listen, listener, tls)
                return
            sock.setblocking(False)
            if tls is not None:
                sock = tls.wrap_socket(sock, server_side=True, do_handshake_on_connect=False)
            self._accepted += 1
            self._connections.add(Connection(self, self._accepted, sock))

    def closed(self, connection: Connection) -> None:
        """The connection is gone."""
        self._connections.discard(connection)

    def close(self) -> None:
        """Close every connection; replies under way end by ``shutdown``."""
        for connection in list(self._connections):
            connection.close("shutdown")

    # Requests

    def answer(self, connection: Connection, arrival: Arrival, started_ns: int) -> None:
        """Plan the reply, and have ``connection`` begin it at ``started_ns`` or hold it."""
        path = arrival.path.partition("?")[0]
        api = _api_at(arrival.path) if arrival.method == "POST" else ""
        if api:
            self._complete(connection, arrival, path, api, started_ns)
        else:
            exchange = Exchange(arrival=arrival, plan=self._look_up(arrival, path))
            connection.begin(exchange, started_ns)

    def _complete(
        self, connection: Connection, arrival: Arrival, path: str, api: str, started_ns: int
    ) -> None:
        self._requests += 1
        given = arrival.headers.get(b"x-request-id", b"").decode("latin-1")
        request_id = given or str(self._requests)
        reply = self._plan(arrival, api, request_id)
        exchange = Exchange(arrival=arrival, plan=reply, path=path, request_id=request_id)
        limit = self._script.max_parallel
        if not limit or reply.first_token is None:
            connection.begin(exchange, started_ns)
        elif self._running < limit:
            self._begin_in_slot(connection, exchange, started_ns)
        else:
            connection.hold(exchange)
            self._line.append((connection, exchange))

    def _begin_in_slot(self, connection: Connection, exchange: Exchange, started_ns: int) -> None:
        self._running += 1
        exchange.slot = True
        connection.begin(exchange, started_ns)

    def _plan(self, arrival: Arrival, api: str, request_id: str) -> Plan:
        try:
            self._authorize(arrival)
            request = read_request(
                self._script,
                api,
                arrival.body,
                request_id=request_id,
                created=int(time.time()),
                keep_alive=arrival.keep_alive,
            )
        except Refusal as refusal:
            return refuse(self._script, refusal, arrival.keep_alive)
        return plan(self._script, request, self._rng)

    def _authorize(self, arrival: Arrival) -> None:
        given = [arrival.headers.get(name, b"") for name in _KEYS]
        given[0] = given[0].removeprefix(b"Bearer ")
        if self._key and not any(hmac.compare_digest(each, self._key) for each in given):
            raise Refusal(401, "Incorrect API key provided.", "invalid_api_key")

    def _look_up(self, arrival: Arrival, path: str) -> Plan:
        """Plan the reply to anything but a request for a completion."""
        script, alive = _BEHAVED, arrival.keep_alive
        kind = "application/json"
        match arrival.method, path:
            case "GET", "/health":
                body = b"{}"
            case "GET", "/v1/models" | "/openai/v1/models":
                script = self._script
                try:
                    self._authorize(arrival)
                    body = self._models()
                except Refusal as refusal:
                    return refuse(script, refusal, alive)
            case "GET", "/truth/log":
                since = arrival.path.partition("since=")[2]
                body = self._log.lines(int(since) if since.isdecimal() else 0)
                kind = "application/jsonl"
            case "GET", "/truth/stats":
                body = msgspec.json.encode(
                    {"cpu_s": time.process_time(), "replies": len(self._log)}
                )
            case "POST", "/truth/reset":
                self._log.reset()
                body = b"{}"
            case "", _:
                return refuse(script, Refusal(400, "This is not HTTP."), False)
            case _:
                return refuse(script, Refusal(404, f"There is no {path} here."), alive)
        return whole(script, body, kind, keep_alive=alive)

    def _models(self) -> bytes:
        if self._script.no_models:
            raise Refusal(404, "There is no /v1/models here.")
        model = {"id": self._script.model, "object": "model", "created": 0, "owned_by": "llmbench"}
        limit = {"max_model_len": self._script.context_limit} if self._script.context_limit else {}
        return msgspec.json.encode({"object": "list", "data": [model | limit]})

    # The end of an exchange

    def over(
        self, connection: Connection, exchange: Exchange, stream: Stream | None, ended: Ended
    ) -> None:
        """``exchange`` is over; it has no ``stream`` if it never began."""
        if exchange.request_id:
            self._log.add(self._record(connection, exchange, stream, ended))
        if stream is None and self._line:
            self._line = deque(item for item in self._line if item[1] is not exchange)
        if exchange.slot:
            self._running -= 1
            if self._line and ended != "shutdown":
                self._begin_in_slot(*self._line.popleft(), time.monotonic_ns())

    def _record(
        self, connection: Connection, exchange: Exchange, stream: Stream | None, ended: Ended
    ) -> Reply:
        arrival, reply = exchange.arrival, exchange.plan
        return Reply(
            number=len(self._log),
            request_id=exchange.request_id,
            connection=connection.number,
            path=exchange.path,
            status=reply.status,
            stamps=arrival.stamps,
            received_ns=arrival.received_ns,
            started_ns=stream.started_ns if stream else arrival.received_ns,
            ended_ns=time.monotonic_ns(),
            ended=ended,
            sent_ns=stream.sent_ns if stream else (),
            took_ns=stream.took_ns if stream else (),
            first_token=reply.first_token,
            last_token=reply.last_token,
            prompt_tokens=reply.prompt_tokens,
            output_tokens=reply.output_tokens,
            late_ns=stream.late_ns if stream else 0,
            blocked=stream.blocked if stream else 0,
        )
