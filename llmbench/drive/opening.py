"""Open a connection, with its stages timed apart: DNS, TCP, the proxy's tunnel, TLS."""

import asyncio
import errno
import re
import socket
import ssl
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from itertools import chain, zip_longest
from typing import Any

from llmbench.drive.clock import stamp_segments
from llmbench.drive.endpoint import USER_AGENT, Endpoint
from llmbench.drive.proxy import Proxy, authority
from llmbench.records import Connect

CONNECT_TIMEOUT_S = 10.0
HEAD_START_S = 0.25
"""How long an address has to answer before the next one is tried beside it (RFC 8305, 5)."""

READ_BYTES = 65_536
MOST_HEAD_BYTES = 65_536
"""Of a proxy's answer."""

_HTTP, _END_OF_HEAD = b"HTTP/1.", b"\r\n\r\n"
_STATUS = re.compile(rb"HTTP/1\.\d (\d{3})\b")

_answered: dict[tuple[str, int], Any] = {}
"""The address of each host and port that answered last: it is tried first."""


class Failure(Exception):  # noqa: N818 - a kind of failure and its words, as a trace keeps them
    """What the transport saw go wrong: ``kind`` is one word for the table, ``detail`` a line."""

    def __init__(self, kind: str, detail: str) -> None:
        super().__init__(detail)
        self.kind = kind
        self.detail = detail


class Tls:
    """TLS over a socket that somebody else reads: bytes go in, bytes come out."""

    def __init__(self, endpoint: Endpoint, context: ssl.SSLContext) -> None:
        self._from_wire, self._to_wire = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._from_wire, self._to_wire, server_hostname=endpoint.host)

    async def handshake(self, sock: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                await loop.sock_sendall(sock, self._to_wire.read())
                data = await loop.sock_recv(sock, READ_BYTES)
                if not data:
                    words = "closed during the TLS handshake"
                    raise ConnectionResetError(errno.ECONNRESET, words) from None
                self._from_wire.write(data)
            else:
                await loop.sock_sendall(sock, self._to_wire.read())
                return

    def encrypt(self, data: bytes) -> bytes:
        self._tls.write(data)
        return self._to_wire.read()

    def farewell(self) -> bytes:
        """What says that nothing more will be sent; what the other side sends can still be read."""
        with suppress(ssl.SSLError):
            self._tls.unwrap()
        return self._to_wire.read()

    def decrypt(self, data: bytes) -> bytes:
        """What of the stream has become readable by ``data``. Raises ``Failure``."""
        self._from_wire.write(data)
        plain = []
        try:
            while piece := self._tls.read(READ_BYTES):
                plain.append(piece)
        except (ssl.SSLWantReadError, ssl.SSLZeroReturnError):
            pass
        except ssl.SSLError as problem:
            raise Failure("tls", _tls_words(problem)) from None
        return b"".join(plain)


async def open_socket(endpoint: Endpoint) -> tuple[socket.socket, Tls | None, Connect, bool]:
    """A connected, non-blocking socket, its TLS, how long each stage took, and whether the kernel
    stamps what it receives. Raises ``Failure``; until the target itself has answered, what goes
    wrong on the way through a proxy is the proxy's failure."""
    try:
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            return await _open(endpoint)
    except TimeoutError:
        words = f"no connection within {CONNECT_TIMEOUT_S:g} s"
        raise Failure(*endpoint.unopened("connect", words)) from None
    except socket.gaierror as problem:
        raise Failure(*endpoint.unopened("dns", problem.strerror or "no address")) from None
    except ssl.SSLError as problem:
        raise Failure("tls", _tls_words(problem)) from None
    except OSError as problem:
        words = problem.strerror or str(problem)
        raise Failure(*endpoint.unopened("connect", words)) from None


async def _open(endpoint: Endpoint) -> tuple[socket.socket, Tls | None, Connect, bool]:
    loop = asyncio.get_running_loop()
    first = endpoint.proxy or endpoint
    began_ns = time.monotonic_ns()
    addresses = await loop.getaddrinfo(first.host, first.port, type=socket.SOCK_STREAM)
    resolved_ns = time.monotonic_ns()
    last = _answered.get((first.host, first.port))
    sock, tcp_ns, address = await _first_to_answer(in_order(addresses, last))
    _answered[first.host, first.port] = address
    connected_ns = tunnelled_ns = secured_ns = time.monotonic_ns()
    stamped = stamp_segments(sock)
    tls = None
    try:
        if endpoint.proxy is not None:
            await _open_tunnel(sock, endpoint.proxy, authority(endpoint.host, endpoint.port))
            tunnelled_ns = secured_ns = time.monotonic_ns()
        if endpoint.tls is not None:
            tls = Tls(endpoint, endpoint.tls)
            await tls.handshake(sock)
            secured_ns = time.monotonic_ns()
    except BaseException:
        sock.close()
        raise
    stages = Connect(
        dns_ns=resolved_ns - began_ns,
        tcp_ns=tcp_ns,
        proxy_ns=tunnelled_ns - connected_ns,
        tls_ns=secured_ns - tunnelled_ns,
    )
    return sock, tls, stages, stamped


async def _open_tunnel(sock: socket.socket, proxy: Proxy, target: str) -> None:
    """Have ``proxy`` connect ``sock`` to ``target``, a host and port. Raises ``OSError``."""
    loop = asyncio.get_running_loop()
    lines = [f"CONNECT {target} HTTP/1.1", f"Host: {target}", f"User-Agent: {USER_AGENT}"]
    if proxy.token:
        lines.append(f"Proxy-Authorization: Basic {proxy.token}")
    await loop.sock_sendall(sock, "\r\n".join([*lines, "\r\n"]).encode())
    answer = b""
    while _END_OF_HEAD not in answer:
        data = await loop.sock_recv(sock, READ_BYTES)
        if not data:
            raise ConnectionResetError("it closed the connection upon CONNECT")
        answer += data
        if not answer.startswith(_HTTP[: len(answer)]) or len(answer) > MOST_HEAD_BYTES:
            raise ConnectionError("its answer to CONNECT is not HTTP")
    status = _STATUS.match(answer)
    if status is None:
        raise ConnectionError("its answer to CONNECT is not HTTP")
    if not status[1].startswith(b"2"):
        raise ConnectionError(proxy.refusal(int(status[1])))
    if not answer.endswith(_END_OF_HEAD):  # a target does not speak first
        raise ConnectionError("it sent more than its answer to CONNECT")


def in_order(addresses: Sequence[Any], last: Any = None) -> list[Any]:
    """``addresses`` in the order in which they are tried: the one that answered ``last``, then of
    each family in turn, beginning with the family that the system prefers (RFC 8305, 4)."""
    families = dict.fromkeys(family for family, *_ in addresses)
    columns = [[each for each in addresses if each[0] == family] for family in families]
    turns = [each for each in chain(*zip_longest(*columns)) if each is not None]
    return sorted(turns, key=lambda each: each[-1] != last)  # which keeps the order of the others


async def _first_to_answer(addresses: Sequence[Any]) -> tuple[socket.socket, int, Any]:
    """A connection to the first of ``addresses``, as ``getaddrinfo`` gives them, that takes it; how
    long that one took, and which it is. Each has a head start before the next."""
    waiting = deque(addresses)
    trying: set[asyncio.Task[tuple[socket.socket, int, Any]]] = set()
    problem = OSError("the name has no address")
    try:
        while waiting or trying:
            if waiting:
                trying.add(asyncio.create_task(_connect(*waiting.popleft())))
            head_start_s = HEAD_START_S if waiting else None
            ended, _ = await asyncio.wait(
                trying, timeout=head_start_s, return_when=asyncio.FIRST_COMPLETED
            )
            for each in ended:
                refusal = each.exception()
                if refusal is None:
                    trying.remove(each)
                    return each.result()
                if not isinstance(refusal, OSError):
                    raise refusal
                trying.remove(each)
                problem = refusal
        raise problem
    finally:
        for each in trying:
            if each.done():
                _drop(each)
            else:
                each.add_done_callback(_drop)
                each.cancel()


async def _connect(
    family: int, kind: int, protocol: int, _: str, address: Any
) -> tuple[socket.socket, int, Any]:
    """A socket that is connected to ``address``, how long that took, and the address."""
    sock = socket.socket(family, kind, protocol)
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        began_ns = time.monotonic_ns()
        await asyncio.get_running_loop().sock_connect(sock, address)
    except BaseException:
        sock.close()
        raise
    return sock, time.monotonic_ns() - began_ns, address


def _drop(attempt: "asyncio.Task[tuple[socket.socket, int, Any]]") -> None:
    """Close the socket of an ``attempt`` that answered too late."""
    if not attempt.cancelled() and attempt.exception() is None:
        attempt.result()[0].close()


def _tls_words(problem: ssl.SSLError) -> str:
    if isinstance(problem, ssl.SSLCertVerificationError):
        return f"the certificate was not accepted: {problem.verify_message}"
    return problem.reason or str(problem)
