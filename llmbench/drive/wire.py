"""The wire client: one socket a stream, stamped by the kernel, parsed for its end only.

While a reply comes in, ``_Connection._readable`` does what must be done and no more: read, note the
stamps, find out from the HTTP framing whether the reply is over. Everything else waits.
"""

import asyncio
import errno
import socket
import ssl
import time
from collections.abc import Sequence
from typing import Any

import httptools

from llmbench.drive.client import Recording, keep_header
from llmbench.drive.clock import ANCILLARY_BYTES, Clock, StampingSelector, stamp_segments
from llmbench.drive.endpoint import Endpoint
from llmbench.records import Call, Connect, Trace

CONNECT_TIMEOUT_S = 10.0
_READ_BYTES = 65_536


AddressInfo = tuple[int, int, int, str, Any]


class Failure(Exception):  # noqa: N818 - a kind of failure and its words, as a trace keeps them
    """What the transport saw go wrong: ``kind`` is one word for the table, ``detail`` a line."""

    def __init__(self, kind: str, detail: str) -> None:
        super().__init__(detail)
        self.kind = kind
        self.detail = detail


class WireClient:
    """``streams`` connections to one endpoint, each used by one stream."""

    def __init__(
        self,
        endpoint: Endpoint,
        path: str,
        streams: int,
        timeout_s: float,
        clock: Clock,
        selector: StampingSelector,
    ) -> None:
        self._connections = [
            _Connection(endpoint, path, timeout_s, clock, selector) for _ in range(streams)
        ]

    async def open(self) -> None:
        """Connect every stream, a few at a time; one that fails tries again at its first call."""
        at_once = asyncio.Semaphore(32)

        async def connect(connection: _Connection) -> None:
            async with at_once:
                try:
                    await connection.connect()
                except Failure:
                    connection.close()

        await asyncio.gather(*(connect(each) for each in self._connections))

    async def exchange(self, call: Call) -> Trace:
        return await self._connections[call.stream].exchange(call)

    def settle(self, traces: list[Trace]) -> list[Trace]:
        return traces

    async def close(self) -> None:
        for connection in self._connections:
            connection.close()


class _Connection:
    """One connection, which carries one exchange at a time and is opened again where need be."""

    def __init__(
        self,
        endpoint: Endpoint,
        path: str,
        timeout_s: float,
        clock: Clock,
        selector: StampingSelector,
    ) -> None:
        self._endpoint = endpoint
        self._timeout_s = timeout_s
        self._clock = clock
        self._selector = selector
        self._loop = asyncio.get_running_loop()
        lines = [f"{name}: {value}" for name, value in endpoint.headers().items()]
        self._head = "\r\n".join(
            (f"POST {endpoint.path}{path} HTTP/1.1", f"Host: {endpoint.authority}", *lines)
        )
        self._sock: socket.socket | None = None
        self._tls: ssl.SSLObject | None = None
        self._from_wire = ssl.MemoryBIO()
        self._to_wire = ssl.MemoryBIO()
        self._opened: Connect | None = (
            None  # how the connection was opened, until a call reports it
        )
        self._used = False
        self._closes_silently = False
        self._kernel_stamps = False
        self._reset_exchange(Recording("user"))

    # ── opening ──────────────────────────────────────────────────────────────────────────────────

    async def connect(self) -> None:
        """Open the connection, with DNS, TCP and TLS timed apart. Raises ``Failure``."""
        self.close()
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                self._opened = await self._open_socket()
        except TimeoutError:
            raise Failure("connect", f"no connection within {CONNECT_TIMEOUT_S:g} s") from None
        except socket.gaierror as problem:
            raise Failure("dns", f"{self._endpoint.host}: {problem.strerror}") from None
        except ssl.SSLError as problem:
            raise Failure("tls", _tls_words(problem)) from None
        except OSError as problem:
            raise Failure("connect", problem.strerror or str(problem)) from None
        assert self._sock is not None
        self._used = False
        self._loop.add_reader(self._sock, self._readable)

    async def _open_socket(self) -> Connect:
        began_ns = time.monotonic_ns()
        addresses = await self._loop.getaddrinfo(
            self._endpoint.host, self._endpoint.port, type=socket.SOCK_STREAM
        )
        resolved_ns = time.monotonic_ns()
        self._sock = await self._first_to_answer(addresses)
        connected_ns = time.monotonic_ns()
        self._kernel_stamps = stamp_segments(self._sock)
        if self._endpoint.tls is not None:
            await self._handshake(self._endpoint.tls)
        done_ns = time.monotonic_ns()
        return Connect(
            dns_ns=resolved_ns - began_ns,
            tcp_ns=connected_ns - resolved_ns,
            tls_ns=done_ns - connected_ns if self._endpoint.tls is not None else 0,
        )

    async def _first_to_answer(self, addresses: Sequence[AddressInfo]) -> socket.socket:
        problem: OSError = OSError("the name has no address")
        for family, kind, protocol, _, address in addresses:
            sock = socket.socket(family, kind, protocol)
            try:
                sock.setblocking(False)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                await self._loop.sock_connect(sock, address)
            except OSError as refusal:
                sock.close()
                problem = refusal
            except BaseException:
                sock.close()
                raise
            else:
                return sock
        raise problem

    async def _handshake(self, context: ssl.SSLContext) -> None:
        assert self._sock is not None
        self._from_wire, self._to_wire = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(
            self._from_wire, self._to_wire, server_hostname=self._endpoint.host
        )
        while True:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                await self._loop.sock_sendall(self._sock, self._to_wire.read())
                data = await self._loop.sock_recv(self._sock, _READ_BYTES)
                if not data:
                    raise ConnectionResetError(
                        errno.ECONNRESET, "closed during the TLS handshake"
                    ) from None
                self._from_wire.write(data)
            else:
                await self._loop.sock_sendall(self._sock, self._to_wire.read())
                return

    def close(self) -> None:
        if self._sock is not None:
            self._loop.remove_reader(self._sock)
            self._loop.remove_writer(self._sock)
            self._sock.close()
        self._sock = self._tls = None

    # ── one exchange ─────────────────────────────────────────────────────────────────────────────

    def _reset_exchange(self, recording: Recording) -> None:
        self._recording = recording
        self._timespecs: list[bytes] = []
        self._parser = httptools.HttpResponseParser(self)
        self._done: asyncio.Future[None] | None = None
        self._headers_complete = self._framed = self._complete = False

    async def exchange(self, call: Call) -> Trace:
        """Send ``call`` and read its reply to the end.

        A server may close an idle connection at any time (RFC 9112, 9.6). A connection that turns
        out closed before the first byte of a reply is opened again and the clock starts anew: the
        server never worked on that request.
        """
        while True:
            reused = self._sock is not None and self._used
            recording = Recording("user")
            self._reset_exchange(recording)
            error = detail = ""
            try:
                await self._attempt(call)
            except Failure as failure:
                error, detail = failure.kind, failure.detail
            except asyncio.CancelledError:
                error, detail = "cancelled", ""
            end_ns = time.monotonic_ns()
            stale = reused and error == "reset" and not self._timespecs
            if error or not self._parser.should_keep_alive() or self._closes_silently:
                self.close()
            if stale:
                self._closes_silently = True
                continue
            return self._seal(call, end_ns, error, detail)

    async def _attempt(self, call: Call) -> None:
        if self._sock is None:
            await self.connect()
        assert self._sock is not None
        request = (
            f"{self._head}\r\nX-Request-Id: {call.request_id}\r\n"
            f"Content-Length: {len(call.body)}\r\n\r\n"
        ).encode() + call.body
        if self._tls is not None:
            self._tls.write(request)
            request = self._to_wire.read()
        self._recording.connect, self._opened = self._opened, None
        self._used = True
        self._done = self._loop.create_future()
        timer = self._loop.call_later(self._timeout_s, self._fail, "timeout", self._too_slow())
        try:
            self._recording.sent_ns = time.monotonic_ns()
            self._send(request)
            await self._done
        finally:
            timer.cancel()

    def _too_slow(self) -> str:
        return f"no end of the reply within {self._timeout_s:g} s"

    def _send(self, request: bytes) -> None:
        """Send what the socket takes now; the rest goes when it takes more."""
        assert self._sock is not None
        self._loop.remove_writer(self._sock)
        try:
            sent = self._sock.send(request)
        except BlockingIOError:
            sent = 0
        except OSError as problem:
            self._fail("reset", problem.strerror or str(problem))
            return
        if sent < len(request):
            self._loop.add_writer(self._sock, self._send, request[sent:])

    def _seal(self, call: Call, end_ns: int, error: str, detail: str) -> Trace:
        """The finished recording as a trace, with its stamps brought onto the run's clock."""
        recording = self._recording
        if self._kernel_stamps and all(self._timespecs):
            recording.stamps = "kernel"
            for i, timespec in enumerate(self._timespecs):
                recording.at_ns[i] = self._clock.from_kernel(timespec)
        return recording.trace(call, self._clock.zero_ns, end_ns, error, detail)

    # ── the hot path ─────────────────────────────────────────────────────────────────────────────

    def _readable(self) -> None:
        assert self._sock is not None
        try:
            data, ancillary, _, _ = self._sock.recvmsg(_READ_BYTES, ANCILLARY_BYTES)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as problem:
            self._ended(problem.strerror or str(problem))
            return
        if not data:
            self._ended("the server closed the connection")
            return
        recording = self._recording
        now_ns = time.monotonic_ns()
        try:
            self._parser.feed_data(data if self._tls is None else self._decrypt(data))
        except httptools.HttpParserError as problem:
            self._fail("protocol", f"not an HTTP reply: {problem}")
            return
        except ssl.SSLError as problem:
            self._fail("tls", _tls_words(problem))
            return
        recording.end.append(recording.size)
        recording.at_ns.append(now_ns)
        recording.read_at_ns.append(now_ns)
        recording.empty_at_ns.append(self._selector.empty_at_ns)
        self._timespecs.append(ancillary[0][2] if ancillary else b"")
        if self._complete:
            self._finish()

    def on_body(self, piece: bytes) -> None:
        self._recording.pieces.append(piece)
        self._recording.size += len(piece)

    # ── how a reply begins and ends ──────────────────────────────────────────────────────────────

    def on_header(self, name: bytes, value: bytes) -> None:
        keep_header(self._recording.headers, name.decode("latin-1"), value.decode("latin-1"))
        if name.lower() in (b"content-length", b"transfer-encoding"):
            self._framed = True

    def on_headers_complete(self) -> None:
        self._recording.status = self._parser.get_status_code()
        self._headers_complete = True

    def on_message_complete(self) -> None:
        self._complete = True

    def _decrypt(self, data: bytes) -> bytes:
        assert self._tls is not None
        self._from_wire.write(data)
        plain = []
        try:
            while piece := self._tls.read(_READ_BYTES):
                plain.append(piece)
        except (ssl.SSLWantReadError, ssl.SSLZeroReturnError):
            pass
        return b"".join(plain)

    def _ended(self, words: str) -> None:
        """The connection is over: the end of a reply that is delimited so, and of no other."""
        if self._done is None or self._done.done():
            self.close()
            return
        if self._headers_complete and not self._framed and words.startswith("the server closed"):
            self._finish()
        elif self._headers_complete:
            self._fail("truncated", f"{words} in the middle of the reply")
        else:
            self._fail("reset", words)

    def _finish(self) -> None:
        if self._done is not None and not self._done.done():
            self._done.set_result(None)

    def _fail(self, kind: str, detail: str) -> None:
        if self._done is not None and not self._done.done():
            self._done.set_exception(Failure(kind, detail))


def _tls_words(problem: ssl.SSLError) -> str:
    if isinstance(problem, ssl.SSLCertVerificationError):
        return f"the certificate was not accepted: {problem.verify_message}"
    return problem.reason or str(problem)
