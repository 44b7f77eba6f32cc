"""Open a connection, with its stages timed apart: DNS, TCP, the proxy's tunnel, TLS."""

import asyncio
import errno
import re
import socket
import ssl
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from llmbench.drive.clock import stamp_segments
from llmbench.drive.endpoint import USER_AGENT, Endpoint
from llmbench.drive.proxy import Proxy, authority
from llmbench.records import Connect

CONNECT_TIMEOUT_S = 10.0
READ_BYTES = 65_536
MOST_HEAD_BYTES = 65_536
"""Of a proxy's answer."""

_HTTP, _END_OF_HEAD = b"HTTP/1.", b"\r\n\r\n"
_STATUS = re.compile(rb"HTTP/1\.\d (\d{3})\b")


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
    sock = await _first_to_answer(addresses)
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
        tcp_ns=connected_ns - resolved_ns,
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


async def _first_to_answer(addresses: Sequence[Any]) -> socket.socket:
    """A connection to the first of ``addresses``, as ``getaddrinfo`` gives them, that takes it."""
    problem = OSError("the name has no address")
    for family, kind, protocol, _, address in addresses:
        sock = socket.socket(family, kind, protocol)
        try:
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await asyncio.get_running_loop().sock_connect(sock, address)
        except OSError as refusal:
            sock.close()
            problem = refusal
        except BaseException:
            sock.close()
            raise
        else:
            return sock
    raise problem


def _tls_words(problem: ssl.SSLError) -> str:
    if isinstance(problem, ssl.SSLCertVerificationError):
        return f"the certificate was not accepted: {problem.verify_message}"
    return problem.reason or str(problem)
