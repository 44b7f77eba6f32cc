"""Open a connection, with its stages timed apart: DNS, TCP, TLS."""

import asyncio
import errno
import socket
import ssl
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from llmbench.drive.clock import stamp_segments
from llmbench.drive.endpoint import Endpoint
from llmbench.records import Connect

CONNECT_TIMEOUT_S = 10.0
READ_BYTES = 65_536


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
    stamps what it receives. Raises ``Failure``."""
    try:
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            return await _open(endpoint)
    except TimeoutError:
        raise Failure("connect", f"no connection within {CONNECT_TIMEOUT_S:g} s") from None
    except socket.gaierror as problem:
        raise Failure("dns", f"{endpoint.host}: {problem.strerror}") from None
    except ssl.SSLError as problem:
        raise Failure("tls", _tls_words(problem)) from None
    except OSError as problem:
        raise Failure("connect", problem.strerror or str(problem)) from None


async def _open(endpoint: Endpoint) -> tuple[socket.socket, Tls | None, Connect, bool]:
    loop = asyncio.get_running_loop()
    began_ns = time.monotonic_ns()
    addresses = await loop.getaddrinfo(endpoint.host, endpoint.port, type=socket.SOCK_STREAM)
    resolved_ns = time.monotonic_ns()
    sock = await _first_to_answer(addresses)
    connected_ns = secured_ns = time.monotonic_ns()
    stamped = stamp_segments(sock)
    tls = None
    if endpoint.tls is not None:
        try:
            tls = Tls(endpoint, endpoint.tls)
            await tls.handshake(sock)
        except BaseException:
            sock.close()
            raise
        secured_ns = time.monotonic_ns()
    stages = Connect(
        dns_ns=resolved_ns - began_ns,
        tcp_ns=connected_ns - resolved_ns,
        tls_ns=secured_ns - connected_ns,
    )
    return sock, tls, stages, stamped


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
