"""The openai SDK as the client: what an application on it sees. Its retries are off.

A stamp is taken where the SDK hands over a chunk, so it holds what the SDK spends on parsing. The
chunks are kept as they are and written back to bytes when the cell is over.
"""

import asyncio
import json
import socket
import ssl
import time
from array import array
from collections.abc import AsyncGenerator
from contextlib import aclosing
from operator import attrgetter
from typing import Any

import msgspec
import openai

from llmbench.apis.chunks import quoted
from llmbench.drive.aiohttp_client import unpacked
from llmbench.drive.client import Recording, beginning, sleep_until
from llmbench.drive.clock import Clock
from llmbench.drive.endpoint import Endpoint
from llmbench.drive.limits import KEPT_BYTES, Limits
from llmbench.drive.opening import Failure
from llmbench.records import TOO_LARGE, Call, Integers, Trace

_LIMITS = ("max_tokens", "max_completion_tokens", "max_output_tokens")
_PARAMETERS = frozenset(
    (
        *("model", "messages", "prompt", "input", "stream", "stream_options", "store"),
        *("temperature", *_LIMITS),
    )
)

MOST_KEPT_CHUNKS = 1024
"""Of a reply that is too large: each takes kilobytes, and they are kept until the cell is over."""


class OpenAIClient:
    """One ``AsyncOpenAI`` for the whole load, asked by its ``method``."""

    def __init__(
        self, endpoint: Endpoint, path: str, method: str, limits: Limits, clock: Clock
    ) -> None:
        self._endpoint = endpoint
        self._url = endpoint.url_of(path)
        self._clock = clock
        self._limits = limits
        self._sdk = openai.AsyncOpenAI(
            api_key=endpoint.key or "none",
            base_url=endpoint.url,
            max_retries=0,
            timeout=limits.whole_s,
            http_client=openai.DefaultAsyncHttpxClient(
                verify=endpoint.tls or True,
                proxy=endpoint.proxy.url if endpoint.proxy else None,
                trust_env=False,
                follow_redirects=False,
                event_hooks={"request": [self._address], "response": [self._limit]},
            ),
        )
        self._create: Any = attrgetter(method)(self._sdk)
        self._chunks: dict[int, list[Any]] = {}

    async def open(self) -> None:
        """Nothing to do: the SDK opens a connection when a request needs one."""

    async def prepare(self, stream: int) -> None:
        """Nothing to do, as for ``open``."""

    def expect(self, due_ns: int) -> None: ...

    def wait(self, until_ns: int) -> None:
        sleep_until(until_ns)

    async def exchange(self, call: Call) -> Trace:
        recording = Recording()
        chunks = self._chunks[call.index] = []
        error = detail = ""
        try:
            async with asyncio.timeout(self._limits.whole_s):  # the SDK's own is for each read
                await self._stream(call, recording, chunks)
        except asyncio.CancelledError:
            error = "cancelled"
        except Failure as failure:
            error, detail = failure.kind, failure.detail
            for kept in (chunks, recording.end, recording.read_at_ns):
                del kept[MOST_KEPT_CHUNKS:]
        except openai.APIStatusError as refusal:
            recording.status = refusal.status_code
            recording.add(refusal.response.content, time.monotonic_ns())
            for name, value in unpacked(refusal.response.headers).items():
                recording.keep_header(name, value)
        except (TimeoutError, openai.APITimeoutError):
            error, detail = "timeout", "the reply did not end in time"
        except openai.APIConnectionError as problem:
            error, detail = self._failure(problem, bool(recording.status))
        except openai.APIError as problem:
            error, detail = "stream-error", problem.message
        except ValueError as problem:  # of JSON, or of UTF-8
            words = quoted(problem.doc) if isinstance(problem, json.JSONDecodeError) else ""
            error, detail = "malformed", f"the SDK cannot read the reply: {problem}{words}"
        except Exception as problem:
            # The SDK lets its transport's errors through once the reply streams, and no name for
            # them is part of its interface.
            error, detail = "truncated", str(problem) or type(problem).__name__
        return recording.trace(call, self._clock.zero_ns, time.monotonic_ns(), error, detail)

    async def _stream(self, call: Call, recording: Recording, chunks: list[Any]) -> None:
        fields: dict[str, Any] = msgspec.json.decode(call.body)
        known = {name: fields.pop(name) for name in _PARAMETERS & fields.keys()}
        recording.sent_ns = time.monotonic_ns()
        stream = await self._create(
            **known,
            extra_body=fields,
            extra_headers={"X-Request-Id": call.request_id} | call.headers,
        )
        recording.status = stream.response.status_code
        for name, value in unpacked(stream.response.headers).items():
            recording.keep_header(name, value)
        async for chunk in stream:
            recording.add(b"", time.monotonic_ns())
            chunks.append(chunk)
            if words := self._limits.exceeded(0, len(chunks)):
                raise Failure(TOO_LARGE, words)
        if not chunks:  # no stream, which the SDK does not mind; what it says is there to see
            recording.add(bytes(stream.response.kept), time.monotonic_ns())

    async def _address(self, request: Any) -> None:
        """Send ``request`` where the target says, with the key and the headers that it says."""
        request.url = type(request.url)(self._url)
        its, ours = self._endpoint, {"user-agent", "accept", "accept-encoding", "content-type"}
        request.headers.pop("Authorization", None)
        for name, value in its.headers().items():
            if name.lower() not in ours or name in its.own:
                request.headers[name] = value

    async def _limit(self, response: Any) -> None:
        """Have ``response`` end in ``Failure`` where it is too large, whoever reads it: the SDK may
        read for long before it hands over a chunk. Its first bytes are ``kept``."""
        read_raw = response.aiter_raw
        kept = response.kept = bytearray()

        async def limited(chunk_size: int | None = None) -> AsyncGenerator[bytes, None]:
            size = 0
            async with aclosing(read_raw(chunk_size)) as pieces:
                async for piece in pieces:
                    size += len(piece)
                    if len(kept) < KEPT_BYTES:
                        kept.extend(piece)
                    if words := self._limits.exceeded(size, 0):
                        raise Failure(TOO_LARGE, words)
                    yield piece

        response.aiter_raw = limited

    def settle(self, trace: Trace) -> Trace:
        """Write the trace's chunks back to the bytes of an event stream."""
        chunks = self._chunks.get(trace.index)
        if not chunks:  # none came, or it was never sent
            return trace
        pieces = [b"data: %b\n\n" % _json(chunk) for chunk in chunks]
        end: Integers = array("q")
        size = 0
        for piece in pieces:
            size += len(piece)
            end.append(size)
        reads = msgspec.structs.replace(trace.reads, end=end)
        whole = msgspec.structs.replace(trace, reads=reads, body=b"".join(pieces))
        return beginning(whole) if trace.error == TOO_LARGE else whole

    async def close(self) -> None:
        await self._sdk.close()

    def _failure(self, problem: BaseException, replying: bool) -> tuple[str, str]:
        """The kind of failure and its words; ``replying`` after headers.

        The SDK has one name for all that a transport can see go wrong: the causes tell what it was.
        """
        causes = [problem]
        while (cause := causes[-1].__cause__ or causes[-1].__context__) and cause not in causes:
            causes.append(cause)
        words = next((str(cause) for cause in causes[1:] if str(cause)), type(causes[-1]).__name__)
        names = {type(cause).__name__ for cause in causes}
        if replying:
            return "truncated", words
        if any(isinstance(cause, ssl.SSLError) for cause in causes):
            return "tls", words
        if any(isinstance(cause, socket.gaierror) for cause in causes):
            return self._endpoint.unopened("dns", words)
        if names & {"ConnectError", "ProxyError"}:
            return self._endpoint.unopened("connect", words)
        return "reset", words


def _json(chunk: Any) -> bytes:
    """``chunk`` as it came; the SDK keeps values of any type, and halves of a surrogate pair."""
    return json.dumps(chunk.model_dump(exclude_unset=True, warnings=False), default=str).encode()
