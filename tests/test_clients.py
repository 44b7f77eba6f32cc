"""The three clients against the same server: what they see differs in time only."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import pytest
from conftest import (
    PATIENCE_S,
    TOKENS,
    Certificates,
    Peer,
    chunk,
    content,
    finish,
    port_of,
    raw_server,
    sse,
    until,
)

from llmbench.apis import APIS
from llmbench.apis.dialect import DIALECTS
from llmbench.apis.sse import parse
from llmbench.drive.aiohttp_client import AiohttpClient
from llmbench.drive.client import Client
from llmbench.drive.clock import Clock
from llmbench.drive.endpoint import endpoint
from llmbench.drive.limits import REPLY_BYTES, Limits
from llmbench.drive.openai_client import OpenAIClient
from llmbench.drive.wire import WireClient
from llmbench.measure.metrics import measure
from llmbench.measure.timeline import decode
from llmbench.records import Call, Content, Message, RequestMetrics, Target, Timeline, Trace
from llmbench.truth.process import TruthServer

Truth = Callable[..., TruthServer]
CLIENTS = ("wire", "aiohttp", "openai")
MS = 1_000_000

each_client = pytest.mark.parametrize("name", CLIENTS)


@asynccontextmanager
async def connected(
    name: str,
    url: str,
    *,
    api: str = "chat",
    timeout_s: float = PATIENCE_S,
    ca_file: str = "",
    reply_bytes: int = REPLY_BYTES,
) -> AsyncIterator[Client]:
    clock = Clock(0)
    where = endpoint(Target(spec=url, name="t", url=f"{url}/v1", api=api, ca_file=ca_file))
    path, limits = APIS[api].path, Limits(timeout_s, reply_bytes=reply_bytes)
    client: Client
    match name:
        case "aiohttp":
            client = AiohttpClient(where, path, limits, clock)
        case "openai":
            client = OpenAIClient(where, APIS[api].path, APIS[api].sdk, limits, clock)
        case _:
            client = WireClient(where, path, [0], limits, clock)
    try:
        await client.open()
        yield client
    finally:
        await client.close()
        clock.close()


def call(index: int = 0, *, api: str = "chat", tokens: int = 5, dialect: int = 0) -> Call:
    body = APIS[api].encode(
        "truth", [Message("user", "one two three")], tokens, DIALECTS[dialect], Content()
    )
    return Call(0, index, 0, "measured", f"r{index}", body)


def settled(client: Client, trace: Trace) -> Trace:
    """``trace`` as it is stored."""
    return trace if client.settle is None else client.settle(trace)


async def once(name: str, url: str, *, api: str = "chat", **options: Any) -> Trace:
    async with connected(name, url, api=api, **options) as client:
        return settled(client, await client.exchange(call(api=api)))


def text(trace: Trace, api: str = "chat") -> str:
    return "".join(event.text for event in APIS[api].decode(parse(trace.body)))


class Seen(NamedTuple):
    """What a reply says, and its figures."""

    timeline: Timeline
    metrics: RequestMetrics


def figures(trace: Trace, api: str = "chat") -> Seen:
    timeline = decode(trace, APIS[api].decode)
    return Seen(timeline, measure(trace, timeline))


GOOD: dict[str, dict[str, Any]] = {
    "plain": {},
    "reasoning": {"reasoning_tokens": 2},
    "tool call": {"tool_call": True},
    "role first": {"role_first": True},
    "several tokens an event": {"tokens_per_event": 2},
    "joined": {"coalesce": 3},
    "split": {"split_bytes": True},
    "crlf and comments": {"crlf": True, "comments": True, "no_space": True},
    "no usage": {"missing_usage": True},
    "no end mark": {"no_done": True},
    "by close": {"no_chunked": True},
    "announced close": {"close": True},
    "stops early": {"early_stop": 3},
    "early headers": {"early_headers": True},
}


@pytest.mark.parametrize("case", GOOD)
async def test_good_replies_are_the_same_to_all(truth: Truth, case: str) -> None:
    server = truth(**GOOD[case])
    traces = {name: await once(name, server.url) for name in CLIENTS}
    seen = {name: figures(trace) for name, trace in traces.items()}
    wire = seen["wire"]
    assert wire.timeline.failure == ""
    assert wire.metrics.tokens == (3 if case == "stops early" else 5)
    expected = "length" if case not in ("tool call", "stops early") else None
    assert expected is None or wire.timeline.finish == expected
    for name in ("aiohttp", "openai"):
        other = seen[name]
        assert text(traces[name]) == text(traces["wire"])
        assert other.timeline.failure == ""
        assert other.metrics.tokens == wire.metrics.tokens
        assert other.metrics.token_source == wire.metrics.token_source
        assert other.timeline.finish == wire.timeline.finish
        assert other.timeline.usage == wire.timeline.usage
        assert other.timeline.chars == wire.timeline.chars
        assert len(other.timeline.at_ns) == len(wire.timeline.at_ns)
        assert other.timeline.running_tokens == wire.timeline.running_tokens
        assert (other.timeline.first_answer_ns is None) == (wire.timeline.first_answer_ns is None)
        assert traces[name].stamps == "user"
    if case == "plain":
        assert text(traces["wire"]) == "".join(TOKENS)
        assert wire.timeline.usage.prompt_tokens == 13


@each_client
async def test_completions(truth: Truth, name: str) -> None:
    server = truth()
    trace = await once(name, server.url, api="completions")
    seen = figures(trace, "completions")
    assert text(trace, "completions") == "".join(TOKENS)
    assert (seen.metrics.tokens, seen.timeline.finish) == (5, "length")
    assert seen.timeline.usage.prompt_tokens == 3
    assert server.log()[0].path == "/v1/completions"


@each_client
@pytest.mark.parametrize("dialect", range(len(DIALECTS)))
async def test_every_dialect_arrives_as_it_was_encoded(name: str, dialect: int) -> None:
    """What the SDK does not know goes through it too."""
    import msgspec

    got: list[Any] = []

    async def answer(peer: Peer, _: int) -> None:
        head, body = await peer.request()
        got.append((head.lower(), msgspec.json.decode(body)))
        kind = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"
        await peer.send(kind + sse(content("a"), finish(), "[DONE]"))

    sent = call(dialect=dialect)
    async with raw_server(answer) as raw, connected(name, raw.url) as client:
        trace = settled(client, await client.exchange(sent))
    assert figures(trace).timeline.failure == ""
    ((head, document),) = got
    assert document == msgspec.json.decode(sent.body)
    assert head.startswith("post /v1/chat/completions http/1.1\r\n")
    assert "x-request-id: r0\r\n" in head


FAILURES: dict[str, tuple[dict[str, Any], str, str]] = {
    "429": ({"status": 429, "retry_after_s": 7}, "http-429", "as told"),
    "500": ({"status": 500}, "http-500", "as told"),
    "503": ({"status": 503}, "http-503", "as told"),
    "401": ({"api_key_env": "TRUTH_TEST_KEY"}, "http-401", "Incorrect API key"),
    "404": ({"status": 404}, "http-404", "as told"),
    "truncated": ({"truncate_at": 2}, "truncated", ""),
    "truncated at once": ({"truncate_at": 0, "early_headers": True}, "truncated", ""),
    "truncated by close": ({"truncate_at": 2, "no_chunked": True}, "truncated", "finish reason"),
    "reset": ({"reset_at": 2, "itl_ms": 30.0}, "truncated", ""),
    "error in the stream": ({"error_at": 2}, "stream-error", "fails mid-stream"),
    "html": ({"html": True}, "not-a-stream", "text/html"),
}


@each_client
@pytest.mark.parametrize("case", FAILURES)
async def test_failures_are_the_same_to_all_and_asked_once(
    truth: Truth, monkeypatch: pytest.MonkeyPatch, case: str, name: str
) -> None:
    monkeypatch.setenv("TRUTH_TEST_KEY", "the-right-one")
    fields, kind, words = FAILURES[case]
    server = truth(**fields)
    async with connected(name, server.url) as client:
        traces = [settled(client, await client.exchange(call(index))) for index in range(2)]
    for trace in traces:
        seen = figures(trace)
        assert seen.timeline.failure == kind, seen.timeline.detail
        assert words in seen.timeline.detail
        assert seen.metrics.ttft_s is None
        if case == "429":
            assert "Retry-After: 7" in seen.timeline.detail
        if kind == "truncated" and "at once" not in case:
            assert text(trace) == "".join(TOKENS[:2])
    assert len(server.log()) == 2  # no hidden retries
    assert [reply.request_id for reply in server.log()] == ["r0", "r1"]


@each_client
async def test_a_stream_that_hangs_times_out_and_what_came_is_kept(truth: Truth, name: str) -> None:
    server = truth(hang_at=2)
    trace = await once(name, server.url, timeout_s=2.0)
    assert trace.error == "timeout", trace.detail
    assert text(trace) == "".join(TOKENS[:2])
    assert trace.end_ns >= 2_000 * MS


@each_client
async def test_the_timeout_is_for_the_whole_reply(truth: Truth, name: str) -> None:
    """A server that trickles is late too."""
    server = truth(itl_ms=100, output_tokens=100)
    async with connected(name, server.url, timeout_s=0.6) as client:
        trace = settled(client, await client.exchange(call(tokens=30)))
    assert trace.error == "timeout", trace.detail
    assert trace.body.count(b"data:") < 30


@each_client
async def test_a_server_that_does_not_answer_times_out(truth: Truth, name: str) -> None:
    trace = await once(name, truth(ttft_ms=60_000).url, timeout_s=0.4)
    assert (trace.error, trace.status, trace.body) == ("timeout", 0, b"")


@each_client
async def test_a_cancellation_keeps_what_had_come(name: str) -> None:
    came = asyncio.Event()

    async def answer(peer: Peer, _: int) -> None:
        await peer.request()
        head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
        await peer.send(
            head + b"Transfer-Encoding: chunked\r\n\r\n",
            chunk(sse(content(" a"))),
            chunk(sse(content(" b"))),
            pause_s=0.02,
        )
        came.set()
        await peer.reader.read()

    async with raw_server(answer) as raw, connected(name, raw.url) as client:
        task = asyncio.create_task(client.exchange(call()))
        await came.wait()
        task.cancel()
        trace = settled(client, await task)
        assert trace.error == "cancelled"
        assert text(trace) == " a b"


@each_client
async def test_nobody_listens(name: str, dead_url: str) -> None:
    trace = await once(name, dead_url)
    assert trace.error == "connect"
    assert trace.detail


@each_client
@pytest.mark.parametrize("by", ["fin", "rst"])
async def test_no_reply_at_all(name: str, by: str) -> None:
    """A first request that is dropped is not sent again behind the user's back."""
    asked: list[int] = []

    async def answer(peer: Peer, number: int) -> None:
        await peer.request()
        asked.append(number)
        if by == "rst":
            peer.reset()

    async with raw_server(answer) as raw:
        trace = await once(name, raw.url)
    assert figures(trace).timeline.failure == "reset", trace.detail
    assert asked == [1]


async def test_a_close_that_comes_late_loses_no_request() -> None:
    """The server closes without a word, and only when the next request is on its way. The wire
    client, which sees whether it has arrived, does not send it again where it has."""
    answered: list[int] = []

    async def answer(peer: Peer, number: int) -> None:
        await peer.request()
        answered.append(number)
        head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
        body = sse(content("a"), finish(), "[DONE]")
        await peer.send(head + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        await peer.request()

    async with raw_server(answer) as raw, connected("aiohttp", raw.url) as client:
        for index in range(4):
            trace = settled(client, await client.exchange(call(index)))
            assert figures(trace).timeline.failure == "", trace.detail
    assert answered == [1, 2, 3, 4]  # from the second on, each has a connection of its own


@each_client
async def test_silent_closes_fail_no_request(truth: Truth, name: str) -> None:
    server = truth(silent_close=True)
    async with connected(name, server.url) as client:
        for index in range(4):
            trace = settled(client, await client.exchange(call(index)))
            assert trace.error == "", trace.detail
            assert text(trace) == "".join(TOKENS)
            if name != "wire":  # the others send once, and have to have seen the close by then
                until(lambda so_far=index + 1: len(server.log()) == so_far)
    assert [reply.request_id for reply in server.log()] == ["r0", "r1", "r2", "r3"]


@each_client
async def test_tls(truth: Truth, certificates: Certificates, name: str) -> None:
    server = truth(tls=certificates.for_host("localhost"))
    url = f"https://localhost:{port_of(server.url)}"
    trace = await once(name, url, ca_file=certificates.ca_file)
    assert trace.error == "", trace.detail
    assert text(trace) == "".join(TOKENS)
    refused = await once(name, url)
    assert refused.error == "tls", refused.detail
    assert "certificate" in refused.detail


@each_client
async def test_a_host_that_does_not_exist(name: str) -> None:
    trace = await once(name, "http://no-such-host.invalid:8000")
    assert trace.error == "dns", trace.detail


CLOCKS_AGREE_NS = 20_000
"""Realtime stamps are brought onto monotonic time to within this."""


@each_client
async def test_the_stamps_follow_the_truth(truth: Truth, name: str) -> None:
    """In the order of events: no client sees a token before the server has sent it."""
    server = truth(ttft_ms=30, itl_ms=10)
    trace = await once(name, server.url)
    (reply,) = server.log()
    seen = figures(trace)
    for at_ns, sent_ns in zip(seen.timeline.at_ns, reply.token_sent_ns, strict=True):
        assert at_ns + trace.sent_ns >= sent_ns - CLOCKS_AGREE_NS
    assert seen.metrics.ttft_s is not None
    assert seen.metrics.ttft_s >= reply.ttft_ns / 1e9 - 1e-4 if reply.ttft_ns else False
    assert list(seen.timeline.at_ns) == sorted(seen.timeline.at_ns)
