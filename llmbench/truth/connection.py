"""One client's connection: reading and stamping requests, and putting replies on the socket."""

import asyncio
import socket
import ssl
import struct
import sys
import time
from collections import deque
from contextlib import suppress
from typing import Any, Final, Literal, Protocol

import httptools
from msgspec import Struct, field

from llmbench.truth.log import Ended
from llmbench.truth.pacer import WOULD_BLOCK, Pacer, Stream
from llmbench.truth.replies import Plan

# Python 3.11 has no name for it. The value is Linux's, on x86 and Arm.
SO_TIMESTAMPNS: Final = getattr(socket, "SO_TIMESTAMPNS", 35)

_TIMESPEC: Final = struct.Struct("qq")
_LINGER_0: Final = struct.pack("ii", 1, 0)
_READ_BYTES: Final = 1 << 16


class Arrival(Struct, kw_only=True):
    """One request as it came. A ``method`` of ``""`` marks what is not HTTP."""

    method: str = ""
    path: str = ""
    headers: dict[bytes, bytes] = field(default_factory=dict)
    body: bytes = b""
    keep_alive: bool = False
    received_ns: int = 0
    stamps: Literal["kernel", "user"] = "user"


class Exchange(Struct, kw_only=True):
    """A request and the reply planned for it; only a reply with a ``request_id`` is logged."""

    arrival: Arrival
    plan: Plan
    path: str = ""
    request_id: str = ""
    slot: bool = False


class Server(Protocol):
    """What a connection needs of its server."""

    loop: asyncio.AbstractEventLoop
    pacer: Pacer
    deaf_s: float

    def answer(self, connection: "Connection", arrival: Arrival, started_ns: int) -> None:
        """Plan the reply, and have ``connection`` begin it at ``started_ns`` or hold it."""

    def over(
        self, connection: "Connection", exchange: Exchange, stream: Stream | None, ended: Ended
    ) -> None:
        """``exchange`` is over; it has no ``stream`` if it never began."""

    def closed(self, connection: "Connection") -> None:
        """The connection is gone."""


def enable_stamps(sock: socket.socket) -> None:
    """Ask the kernel to stamp what arrives; where it cannot, our clock stamps the reads."""
    if sys.platform == "linux":
        with suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)


def wall_offset_ns() -> int:
    """CLOCK_REALTIME less CLOCK_MONOTONIC now, from the narrowest of three sandwiches."""
    best = (1 << 62, 0)
    for _ in range(3):
        before = time.monotonic_ns()
        wall = time.time_ns()
        after = time.monotonic_ns()
        best = min(best, (after - before, wall - (before + after) // 2))
    return best[1]


class Connection:
    """Reads requests off one non-blocking socket and answers them one after the other."""

    def __init__(self, server: Server, number: int, sock: socket.socket) -> None:
        self.number = number
        self._server = server
        self._sock = sock
        self._fd = sock.fileno()
        self._parser: Any = httptools.HttpRequestParser(self)
        self._arrivals: deque[Arrival] = deque()
        self._arriving = Arrival()
        self._read_ns = 0
        self._stamps: Literal["kernel", "user"] = "user"
        self._exchange: Exchange | None = None
        self._stream: Stream | None = None
        self._hung = False
        enable_stamps(sock)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        on_readable = self._shake_hands if isinstance(sock, ssl.SSLSocket) else self._on_readable
        server.loop.add_reader(self._fd, on_readable)

    # Reading

    def _shake_hands(self) -> None:
        assert isinstance(self._sock, ssl.SSLSocket)
        try:
            self._sock.do_handshake()
        except WOULD_BLOCK:
            return  # what a server writes in a handshake fits the socket's buffer
        except OSError:
            self.close("disconnected")
            return
        self._server.loop.add_reader(self._fd, self._on_readable)
        self._on_readable()

    def _on_readable(self) -> None:
        while self._parser is not None:
            try:
                data = self._read()
            except WOULD_BLOCK:
                return
            except OSError:
                data = b""
            if not data:
                self._left()
                return
            self._feed(data)
            if not isinstance(self._sock, ssl.SSLSocket):
                return  # the loop calls again if there is more; TLS may hold more than it tells

    def _left(self) -> None:
        """The client has closed its side."""
        if self._exchange is None or not self._server.deaf_s:
            self.close("disconnected")
            return
        self._server.loop.remove_reader(self._fd)
        self._server.loop.call_later(self._server.deaf_s, self.close, "disconnected")

    def _read(self) -> bytes:
        """Read once, and set ``_read_ns`` to when what was read arrived."""
        if isinstance(self._sock, ssl.SSLSocket) or not hasattr(self._sock, "recvmsg"):
            data = self._sock.recv(_READ_BYTES)
            self._read_ns = time.monotonic_ns()
            return data
        data, notes, _, _ = self._sock.recvmsg(_READ_BYTES, 64)
        self._read_ns = time.monotonic_ns()
        self._stamps = "user"
        for level, kind, value in notes:
            if level == socket.SOL_SOCKET and kind == SO_TIMESTAMPNS:
                seconds, nanoseconds = _TIMESPEC.unpack(value)
                stamp_ns = seconds * 1_000_000_000 + nanoseconds - wall_offset_ns()
                self._read_ns = min(self._read_ns, stamp_ns)
                self._stamps = "kernel"
        return data

    def _feed(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self._arrivals.append(Arrival(received_ns=self._read_ns))
        if self._exchange is None:
            self._answer_next()

    def on_message_begin(self) -> None:
        """Part of httptools' protocol, as are the four below."""
        self._arriving = Arrival()

    def on_url(self, url: bytes) -> None:
        self._arriving.path += url.decode("latin-1")

    def on_header(self, name: bytes, value: bytes) -> None:
        self._arriving.headers[name.lower()] = value

    def on_headers_complete(self) -> None:
        if self._arriving.headers.get(b"expect", b"").lower() == b"100-continue":
            with suppress(OSError):
                self._sock.send(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, body: bytes) -> None:
        self._arriving.body += body

    def on_message_complete(self) -> None:
        arriving = self._arriving
        arriving.method = self._parser.get_method().decode()
        arriving.keep_alive = self._parser.should_keep_alive()
        arriving.received_ns = self._read_ns
        arriving.stamps = self._stamps
        self._arrivals.append(arriving)

    # Answering

    def _answer_next(self, started_ns: int = 0) -> None:
        """Answer the oldest request, whose schedule counts from its receipt if not from later."""
        if self._arrivals:
            arrival = self._arrivals.popleft()
            self._server.answer(self, arrival, max(arrival.received_ns, started_ns))

    def hold(self, exchange: Exchange) -> None:
        """Take ``exchange`` as the one to answer, and wait for ``begin``."""
        self._exchange = exchange

    def begin(self, exchange: Exchange, started_ns: int) -> None:
        """Send the reply; its schedule counts from ``started_ns``."""
        self._exchange = exchange
        stream = Stream(exchange.plan, started_ns, self._sock.send, self._block, self._end_soon)
        self._stream = stream
        self._server.pacer.add(stream, stream.due_ns())

    def _block(self) -> None:
        self._server.loop.add_writer(self._fd, self._unblock)

    def _unblock(self) -> None:
        stream = self._stream
        if stream is None or not stream.flush():
            return
        self._server.loop.remove_writer(self._fd)
        due_ns = stream.step_on()
        if due_ns is not None:
            self._server.pacer.add(stream, due_ns)

    def _end_soon(self, ended: Ended) -> None:
        self._server.loop.call_soon(self._end, self._stream, ended)

    def _end(self, stream: Stream | None, ended: Ended) -> None:
        exchange = self._exchange
        if stream is not self._stream or exchange is None:
            return  # the client was faster
        if ended != "complete":
            self.close(ended)
            return
        match exchange.plan.ending:
            case "hung":
                self._hung = True
            case "reset":
                self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_0)
                self.close("reset")
            case "truncated":
                self.close("truncated")
            case "complete" if exchange.plan.keep_alive:
                self._conclude("complete")
                self._answer_next(time.monotonic_ns())
            case "complete":
                if isinstance(self._sock, ssl.SSLSocket):
                    with suppress(OSError):
                        self._sock.unwrap()  # says goodbye; there is no need to hear it back
                self.close("complete")

    def _conclude(self, ended: Ended) -> None:
        """Tell the server how the exchange ended, and let go of it."""
        exchange, stream = self._exchange, self._stream
        self._exchange = self._stream = None
        if exchange is None:
            return
        if stream is not None:
            stream.live = False
        self._server.over(self, exchange, stream, "hung" if self._hung else ended)

    def close(self, ended: Ended) -> None:
        """Close the connection; an exchange under way ends so."""
        if self._parser is None:
            return
        self._parser = None  # it refers back to this object, and nothing collects cycles
        self._arrivals.clear()
        self._server.loop.remove_reader(self._fd)
        self._server.loop.remove_writer(self._fd)
        self._sock.close()
        self._conclude(ended)
        self._server.closed(self)
