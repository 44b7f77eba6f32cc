"""aiohttp as the client: user-space stamps, for what the wire client is not for.

Connections open inside the first exchange of each stream, which the warm-up takes; a server that
closes after each reply puts its connection's set-up inside TTFT here.
"""

import asyncio
import os
import re
import time
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from types import SimpleNamespace
from typing import Any

import aiohttp
from aiohttp.client_proto import ResponseHandler
from yarl import URL

from llmbench.apis.ending import DONE, Ending, EndMarker
from llmbench.drive.client import FRAMING_S, Habits, Recording, beginning, sleep_until
from llmbench.drive.clock import Clock
from llmbench.drive.endpoint import Endpoint
from llmbench.drive.limits import HEAD_BYTES, Limits
from llmbench.drive.opening import CONNECT_TIMEOUT_S, Failure
from llmbench.records import TOO_LARGE, Call, Connect, Trace

UNPACKED = ("br", "deflate", "gzip", "zstd")
"""Encodings of a body that the libraries undo, or fail at loudly."""


class AiohttpClient:
    """One session whose pool is as large as the load."""

    settle = None

    def __init__(
        self,
        endpoint: Endpoint,
        path: str,
        limits: Limits,
        clock: Clock,
        marker: EndMarker = DONE,
    ) -> None:
        self._endpoint = endpoint
        self._marker = marker
        self._habits = Habits()
        self._url = address(endpoint, path)
        self._limits = limits
        self._clock = clock
        self._reusing = session(endpoint, limits.whole_s, on_reuse=_note_reuse)
        self._one_shot = session(endpoint, limits.whole_s, one_shot=True)
        self._session = self._reusing

    async def open(self) -> None:
        """Nothing to do: aiohttp opens a connection when a request needs one."""

    async def prepare(self, stream: int) -> None:
        """Nothing to do, as for ``open``."""

    def expect(self, due_ns: int) -> None: ...

    def wait(self, until_ns: int) -> None:
        sleep_until(until_ns)

    async def exchange(self, call: Call) -> Trace:
        recording, reused = Recording(), _Reused()
        error = detail = ""
        try:
            try:
                await self._stream(call, recording, reused)
            except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError):
                if recording.status or not reused.yes:
                    raise
                # An idle connection that the server had closed already: use each once from now on.
                self._session = self._one_shot
                await self._stream(call, recording, reused)
                recording.connect = Connect(reopened="resent")
        except asyncio.CancelledError:
            error = "cancelled"
        except Failure as problem:
            error, detail = problem.kind, problem.detail
        except (aiohttp.ClientError, OSError) as problem:
            error, detail = failure(self._endpoint, problem, bool(recording.status))
        end_ns = time.monotonic_ns()
        trace = recording.trace(call, self._clock.zero_ns, end_ns, error, detail)
        return beginning(trace) if error == TOO_LARGE else trace

    async def _stream(self, call: Call, recording: Recording, reused: "_Reused") -> None:
        headers = {"X-Request-Id": call.request_id} | call.headers
        ending = Ending(self._marker)
        recording.sent_ns = time.monotonic_ns()
        async with self._session.post(
            self._url,
            data=call.body,
            headers=headers,
            trace_request_ctx=reused,
            allow_redirects=False,
        ) as reply:
            recording.status = reply.status
            for name, value in unpacked(reply.headers).items():
                recording.keep_header(name, value)
            async for piece in reply.content.iter_any():
                recording.add(piece, time.monotonic_ns())
                if words := self._limits.exceeded(recording.size, len(recording.end)):
                    raise Failure(TOO_LARGE, words)
                ending.add(piece)
                if ending.over:
                    await self._await_framing(reply)
                    break

    async def _await_framing(self, reply: aiohttp.ClientResponse) -> None:
        """Give the framing of a reply that is over a moment to end: then its connection is kept."""
        if self._habits.leaves_open:
            return
        self._habits.left_open += 1
        with suppress(TimeoutError, aiohttp.ClientError, OSError):
            async with asyncio.timeout(FRAMING_S):
                while not reply.content.at_eof():
                    await reply.content.readany()
            self._habits.left_open = 0

    async def close(self) -> None:
        await self._reusing.close()
        await self._one_shot.close()


def address(endpoint: Endpoint, path: str) -> URL:
    """The URL of ``path`` below the base, as it is written: aiohttp would quote it anew."""
    url = endpoint.url_of(path)
    return URL(url, encoded=url.isascii())


class _Reused:
    """Whether a request went out on a connection that had carried another."""

    yes = False


async def _note_reuse(_: aiohttp.ClientSession, context: SimpleNamespace, __: object) -> None:
    context.trace_request_ctx.yes = True


def session(
    endpoint: Endpoint,
    timeout_s: float,
    *,
    one_shot: bool = False,
    tolerant: bool = False,
    on_reuse: Any = None,
) -> aiohttp.ClientSession:
    """A session for ``endpoint``: its headers, its TLS, its proxy, any number of connections, no
    cookies, and nothing of the environment: no other proxy, no ``~/.netrc``.

    ``one_shot`` uses each connection once: some servers close without a word, and a request that
    goes out on a connection as it closes is lost. ``tolerant`` does so as well, and reads replies
    that aiohttp alone refuses. ``on_reuse`` is told of each connection that is used again.
    """
    traces = aiohttp.TraceConfig()
    if on_reuse is not None:
        traces.on_connection_reuseconn.append(on_reuse)
    connector = _TolerantConnector if tolerant else aiohttp.TCPConnector
    return aiohttp.ClientSession(
        connector=connector(limit=0, ssl=endpoint.tls or True, force_close=one_shot or tolerant),
        trace_configs=[traces],
        timeout=aiohttp.ClientTimeout(total=timeout_s, sock_connect=CONNECT_TIMEOUT_S),
        headers=endpoint.headers(),
        cookie_jar=aiohttp.DummyCookieJar(),
        proxy=endpoint.proxy.url if endpoint.proxy else None,
        trust_env=False,
    )


class _TolerantConnector(aiohttp.TCPConnector):
    def __init__(self, **how: Any) -> None:
        super().__init__(**how)
        self._factory: Any = partial(_Tolerant, loop=asyncio.get_running_loop())


class _Tolerant(ResponseHandler):
    """Takes one reply whose head others take: with bare line feeds, or a length beside chunks."""

    _head: bytes | None = b""

    def data_received(self, data: bytes) -> None:
        if self._head is not None:
            self._head += data
            is_http = self._head.startswith(_HTTP[: len(self._head)])
            if is_http and len(self._head) < HEAD_BYTES and not _END_OF_HEAD.search(self._head):
                return
            data, self._head = tidied(self._head), None
        super().data_received(data)

    def connection_lost(self, problem: BaseException | None) -> None:
        if self._head:
            data, self._head = self._head, None
            super().data_received(data)
        super().connection_lost(problem)


_HTTP = b"HTTP/1."
_END_OF_HEAD = re.compile(rb"\r?\n\r?\n")
_BARE = re.compile(rb"(?<!\r)\n")
_CHUNKED = re.compile(rb"^transfer-encoding:[^\n]*chunked", re.IGNORECASE | re.MULTILINE)
_LENGTH = re.compile(rb"^content-length:[^\n]*\n", re.IGNORECASE | re.MULTILINE)


def tidied(reply: bytes) -> bytes:
    """The start of a ``reply`` with a head as it should be. Of a length and chunks, the chunks
    count (RFC 9112, 6.3)."""
    end = _END_OF_HEAD.search(reply)
    if end is None:
        return reply
    head = _BARE.sub(b"\r\n", reply[: end.end()])
    return (_LENGTH.sub(b"", head) if _CHUNKED.search(head) else head) + reply[end.end() :]


async def read_all(
    reply: aiohttp.ClientResponse, most: int, ending: Ending | None = None
) -> bytes | None:
    """What of the body of ``reply`` has not been read, up to where its stream is over by
    ``ending``; ``None`` if that is more than ``most``."""
    body = bytearray()
    while not (ending is not None and ending.over) and not reply.content.at_eof():
        piece = await reply.content.readany()
        body += piece
        if ending is not None:
            ending.add(piece)
        if len(body) > most:
            reply.close()
            return None
    return bytes(body)


def unpacked(headers: Mapping[str, str]) -> dict[str, str]:
    """The ``headers`` of a reply whose body a library has unpacked already, where it could."""
    kept = dict(headers)
    for name, value in headers.items():
        if name.lower() == "content-encoding" and value.lower() in UNPACKED:
            del kept[name]
    return kept


def failure(endpoint: Endpoint, problem: Exception, replying: bool) -> tuple[str, str]:
    """The kind of failure and its words, for what aiohttp raised; ``replying`` after headers."""
    words = str(problem) or type(problem).__name__
    match problem:
        case aiohttp.ClientHttpProxyError() if endpoint.proxy is not None:
            return endpoint.unopened("proxy", endpoint.proxy.refusal(problem.status))
        case aiohttp.ClientConnectorDNSError():
            return endpoint.unopened("dns", problem.strerror or words)
        case aiohttp.ClientConnectorCertificateError():
            return "tls", f"the certificate was not accepted: {problem.certificate_error}"
        case aiohttp.ClientSSLError():
            return "tls", words
        case aiohttp.ClientConnectorError():
            number = problem.os_error.errno
            return endpoint.unopened("connect", os.strerror(number) if number else words)
        case aiohttp.ServerTimeoutError() if isinstance(problem, aiohttp.ConnectionTimeoutError):
            return endpoint.unopened("connect", f"no connection within {CONNECT_TIMEOUT_S:g} s")
        case TimeoutError():
            return "timeout", "the reply did not end in time"
        case aiohttp.ClientPayloadError() if "content-encoding" in words:
            return "protocol", f"the reply cannot be read: {words.split(chr(10))[-1].strip(' ')}"
        case aiohttp.ClientPayloadError():
            return "truncated", "the connection closed in the middle of the reply"
        case aiohttp.ServerDisconnectedError() | OSError() if not replying:
            return "reset", words
        case aiohttp.ServerDisconnectedError() | OSError():
            return "truncated", words
        case aiohttp.ClientResponseError():
            what = problem.message.strip().partition("\n")[0].rstrip(":")
            return "protocol", f"the reply cannot be read: {what}"
        case _:
            return "protocol", words
