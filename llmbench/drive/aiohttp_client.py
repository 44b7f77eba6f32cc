"""aiohttp as the client: user-space stamps, for what the wire client is not for (proxies, say).

Connections open inside the first exchange of each stream, which the warm-up takes; a server that
closes after each reply puts its connection's set-up inside TTFT here.
"""

import asyncio
import time

import aiohttp

from llmbench.drive.client import Recording
from llmbench.drive.clock import Clock
from llmbench.drive.endpoint import Endpoint
from llmbench.records import Call, Trace

CONNECT_TIMEOUT_S = 10.0


class AiohttpClient:
    """One session whose pool is as large as the load."""

    def __init__(self, endpoint: Endpoint, path: str, timeout_s: float, clock: Clock) -> None:
        self._url = endpoint.url + path
        self._clock = clock
        self._session = session(endpoint, timeout_s)
        self._closes_silently = False

    async def open(self) -> None:
        """Nothing to do: aiohttp opens a connection when a request needs one."""

    async def exchange(self, call: Call) -> Trace:
        recording = Recording()
        error = detail = ""
        try:
            try:
                await self._stream(call, recording)
            except aiohttp.ServerDisconnectedError:
                if recording.status or self._closes_silently:
                    raise
                # An idle connection that the server had closed already: use each once from now on.
                self._closes_silently = True
                await self._stream(call, recording)
        except asyncio.CancelledError:
            error = "cancelled"
        except (aiohttp.ClientError, OSError) as problem:
            error, detail = failure(problem, bool(recording.status))
        return recording.trace(call, self._clock.zero_ns, time.monotonic_ns(), error, detail)

    async def _stream(self, call: Call, recording: Recording) -> None:
        headers = {"X-Request-Id": call.request_id}
        if self._closes_silently:
            headers["Connection"] = "close"
        recording.sent_ns = time.monotonic_ns()
        async with self._session.post(self._url, data=call.body, headers=headers) as reply:
            recording.status = reply.status
            for name, value in reply.headers.items():
                recording.keep_header(name, value)
            async for piece in reply.content.iter_any():
                recording.add(piece, time.monotonic_ns())

    def settle(self, trace: Trace) -> Trace:
        return trace

    async def close(self) -> None:
        await self._session.close()


def session(endpoint: Endpoint, timeout_s: float) -> aiohttp.ClientSession:
    """A session for ``endpoint``: its headers, its TLS, any number of connections, no cookies."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, ssl=endpoint.tls or True),
        timeout=aiohttp.ClientTimeout(total=timeout_s, sock_connect=CONNECT_TIMEOUT_S),
        headers=endpoint.headers(),
        cookie_jar=aiohttp.DummyCookieJar(),
        trust_env=True,
    )


def failure(problem: Exception, replying: bool) -> tuple[str, str]:
    """The kind of failure and its words, for what aiohttp raised; ``replying`` after headers."""
    words = str(problem) or type(problem).__name__
    match problem:
        case aiohttp.ClientConnectorDNSError():
            return "dns", f"{problem.host}: {problem.strerror or words}"
        case aiohttp.ClientConnectorCertificateError():
            return "tls", f"the certificate was not accepted: {problem.certificate_error}"
        case aiohttp.ClientSSLError():
            return "tls", words
        case aiohttp.ClientConnectorError():
            return "connect", problem.strerror or words
        case aiohttp.ServerTimeoutError() if isinstance(problem, aiohttp.ConnectionTimeoutError):
            return "connect", f"no connection within {CONNECT_TIMEOUT_S:g} s"
        case TimeoutError():
            return "timeout", "the reply did not end in time"
        case aiohttp.ClientPayloadError():
            return "truncated", "the connection closed in the middle of the reply"
        case aiohttp.ServerDisconnectedError() | OSError() if not replying:
            return "reset", words
        case aiohttp.ServerDisconnectedError() | OSError():
            return "truncated", words
        case _:
            return "protocol", words
