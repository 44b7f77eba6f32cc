"""The wire client on real sockets: against the truth server, and against exact bytes."""

import asyncio
import itertools
import json
import socket
import ssl
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from threading import Event, Thread
from typing import Any

import pytest
from conftest import (
    PATIENCE_S,
    TOKENS,
    Certificates,
    Peer,
    chunk,
    content,
    finish,
    raw_server,
    sse,
    too_late,
)

from llmbench.apis import APIS
from llmbench.apis.dialect import DIALECTS
from llmbench.apis.sse import parse
from llmbench.drive.clock import Clock
from llmbench.drive.endpoint import endpoint
from llmbench.drive.limits import Limits
from llmbench.drive.wire import WireClient
from llmbench.measure.timeline import decode
from llmbench.records import Call, Content, Message, Target, Timeline, Trace
from llmbench.truth.log import Reply
from llmbench.truth.process import TruthServer

MS = 1_000_000
CHAT = APIS["chat"]
Truth = Callable[..., TruthServer]


@pytest.fixture(autouse=True)
async def _nothing_goes_wrong_unseen() -> AsyncIterator[None]:
    """An exception in a callback is a bug, though no caller sees it."""
    problems: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: problems.append(context))
    yield
    await asyncio.sleep(0)
    assert problems == []


@asynccontextmanager
async def wire(
    url: str,
    *,
    streams: int = 1,
    timeout_s: float = PATIENCE_S,
    ca_file: str = "",
    opened: bool = False,
) -> AsyncIterator[WireClient]:
    clock = Clock(0)
    target = Target(spec=url, name="t", url=f"{url}/v1", ca_file=ca_file)
    client = WireClient(endpoint(target), CHAT.path, range(streams), Limits(timeout_s), clock)
    try:
        if opened:
            await client.open()
        yield client
    finally:
        await client.close()
        clock.close()


def call(index: int = 0, stream: int = 0, *, tokens: int = 5, prompt: str = "hi") -> Call:
    body = CHAT.encode("truth", [Message("user", prompt)], tokens, DIALECTS[0], Content())
    return Call(0, index, stream, "measured", f"r{index}", body)


async def once(url: str, **options: Any) -> Trace:
    async with wire(url, **options) as client:
        return await client.exchange(call())


def text(trace: Trace) -> list[str]:
    return [event.text for event in CHAT.decode(parse(trace.body)) if event.text]


def timeline(trace: Trace) -> Timeline:
    return decode(trace, CHAT.decode)


def well_formed(trace: Trace) -> None:
    """What holds for every trace, whatever the server does."""
    reads = trace.reads
    assert len(reads.end) == len(reads.at_ns) == len(reads.lag_ns) == len(reads.slack_ns)
    assert list(reads.end) == sorted(reads.end)
    assert list(reads.at_ns) == sorted(reads.at_ns)
    assert all(lag >= 0 for lag in reads.lag_ns)
    assert all(slack >= 0 for slack in reads.slack_ns)
    assert all(at <= trace.end_ns for at in reads.at_ns)
    assert (reads.end[-1] if reads.end else 0) == len(trace.body)
    assert bool(trace.error) == bool(trace.detail) or trace.error == "cancelled"


def good(trace: Trace) -> None:
    well_formed(trace)
    assert (trace.error, trace.detail, trace.status) == ("", "", 200)


def failed(trace: Trace, kind: str) -> None:
    well_formed(trace)
    assert trace.error == kind, trace.detail
    assert "\n" not in trace.detail


def replying(*pieces: bytes, keep: bool = True) -> Callable[[Peer, int], Awaitable[None]]:
    """Answer each request with ``pieces``, one send each; then wait for the next, or close."""

    async def answer(peer: Peer, _: int) -> None:
        while True:
            await peer.request()
            await peer.send(*pieces)
            if not keep:
                return

    return answer


# ── framing: a reply is whole, whatever its cuts ─────────────────────────────────────────────────

BODY = sse(content(" a"), finish(), "[DONE]")
START = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
CHUNKED = START + b"Transfer-Encoding: chunked\r\nKeep-Alive: timeout=5, max=100\r\n\r\n"
EVENTS = [sse(content(" a")), sse(finish()), sse("[DONE]")]
CHUNKS = b"".join(map(chunk, EVENTS))
SMALL = b"data: 10\r\n\r\ndata: 0\r\n\r\n: 0\r\n\r\ndata: [DONE]\r\n\r\n"

FRAMINGS = {
    "chunked": (CHUNKED + CHUNKS + b"0\r\n\r\n", BODY, True),
    "trailers": (CHUNKED + CHUNKS + b"0\r\nX-Sum: 0\r\nX-Last: 10\r\n\r\n", BODY, True),
    "length": (START + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY, BODY, True),
    "close": (START + b"\r\n" + BODY, BODY, False),
    "http/1.0": (START.replace(b"1.1", b"1.0") + b"\r\n" + BODY, BODY, False),
    "crlf": (CHUNKED + chunk(SMALL[:12]) + chunk(SMALL[12:]) + b"0\r\n\r\n", SMALL, True),
    "extension": (CHUNKED + b"%X;n=0\r\n%b\r\n00\r\n\r\n" % (len(BODY), BODY), BODY, True),
}


@pytest.mark.parametrize("name", ["chunked", "trailers", "length", "close", "crlf"])
async def test_a_reply_may_be_cut_at_every_byte(name: str) -> None:
    reply, body, keep = FRAMINGS[name]

    async def answer(peer: Peer, number: int) -> None:
        await peer.request()
        await peer.send(reply[:number], reply[number:])
        if keep:  # the framing alone says that this is the end
            await peer.reader.read()

    async with raw_server(answer) as raw:
        while raw.connections < len(reply) - 1:
            some = min(20, len(reply) - 1 - raw.connections)
            traces = await asyncio.gather(*(once(raw.url) for _ in range(some)))
            for trace in traces:
                good(trace)
                assert trace.body == body, f"cut at one of the {some} before {raw.connections}"
                assert len(trace.reads.end) == 2


@pytest.mark.parametrize("name", FRAMINGS)
async def test_a_reply_may_come_byte_by_byte(name: str) -> None:
    reply, body, keep = FRAMINGS[name]
    single = [reply[at : at + 1] for at in range(len(reply))]
    async with raw_server(replying(*single, keep=keep)) as raw:
        trace = await once(raw.url)
    good(trace)
    assert trace.body == body
    assert len(trace.reads.end) == len(reply)


@pytest.mark.parametrize("ending", [b"0\r\n\r\n", b"\r\n0\r\n\r\n", b"000\r\n\r\n"])
async def test_the_terminator_may_be_cut_in_all_ways(ending: bytes) -> None:
    reply = CHUNKED + CHUNKS
    if ending.startswith(b"\r\n"):
        reply = reply.removesuffix(b"\r\n")
    cuts = [
        tuple(at for at in range(len(ending)) if mask >> at & 1) for mask in range(1 << len(ending))
    ]
    position = iter(cuts)

    async def answer(peer: Peer, _: int) -> None:
        while True:
            await peer.request()
            edges = (0, *(len(reply) + at for at in next(position)), len(reply) + len(ending))
            whole = reply + ending
            await peer.send(*(whole[a:b] for a, b in itertools.pairwise(edges) if b > a))

    async with raw_server(answer) as raw, wire(raw.url) as client:
        for index, cut in enumerate(cuts):
            trace = await client.exchange(call(index))
            good(trace)
            assert trace.body == BODY, cut
        assert raw.connections == 1


async def test_headers_that_end_like_a_body_are_not_its_end() -> None:
    assert CHUNKED.endswith(b"0\r\n\r\n")
    pieces = [CHUNKED, chunk(EVENTS[0]), chunk(EVENTS[1] + EVENTS[2]) + b"0\r\n\r\n"]
    async with raw_server(replying(*pieces)) as raw:
        trace = await once(raw.url)
    good(trace)
    assert trace.body == BODY
    assert list(trace.reads.end) == [0, len(EVENTS[0]), len(BODY)]


async def test_data_that_ends_like_a_body_is_not_its_end() -> None:
    """Events of CRLF lines, each in a read that ends with what looks like the terminator."""
    events = [b"data: 10\r\n\r\n", b"data: 0\r\n\r\n", b"0\r\n\r\n", b"data: [DONE]\r\n\r\n"]
    pieces = [piece for event in events for piece in (b"%x\r\n%b" % (len(event), event), b"\r\n")]
    async with raw_server(replying(CHUNKED, *pieces, b"0\r\n\r\n")) as raw:
        trace = await once(raw.url)
    good(trace)
    assert trace.body == b"".join(events)


async def test_an_interim_reply_is_not_the_reply() -> None:
    early = b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"
    go_on = b"HTTP/1.1 100 Continue\r\n\r\n"
    reply = FRAMINGS["chunked"][0]

    async def answer(peer: Peer, _: int) -> None:
        for pieces in ([go_on, early, reply], [go_on + early + reply]):
            await peer.request()
            await peer.send(*pieces)

    async with raw_server(answer) as raw, wire(raw.url) as client:
        for index in range(2):
            trace = await client.exchange(call(index))
            good(trace)
            assert trace.body == BODY
            assert trace.headers == {"content-type": "text/event-stream"}


async def test_crlf_comments_and_cut_characters(truth: Truth) -> None:
    odd = truth(crlf=True, comments=True, no_space=True, split_bytes=True, split_delay_ms=0.3)
    trace = await once(odd.url)
    good(trace)
    assert text(trace) == [" naïve", " 光", " Ωmega", " 🙂", " señal"]
    assert timeline(trace).failure == ""


async def test_a_large_reply_at_once(truth: Truth) -> None:
    server = truth(itl_ms=0, output_tokens=20_000, tokens_per_event=10)
    async with wire(server.url) as client:
        trace = await client.exchange(call(tokens=100_000))
    good(trace)
    assert len(text(trace)) == 10_000
    assert len(trace.body) > 10 * 65_536


async def test_a_large_request_is_sent_in_parts() -> None:
    got: list[bytes] = []

    async def answer(peer: Peer, _: int) -> None:
        await asyncio.sleep(0.1)  # until then nobody reads, and the socket takes no more
        for _ in range(2):
            got.append((await peer.request())[1])
            await peer.send(FRAMINGS["chunked"][0])

    calls = [call(0, prompt="x" * 5_000_000), call(1, prompt="y" * 5_000_000)]
    async with raw_server(answer) as raw, wire(raw.url) as client:
        traces = [await client.exchange(each) for each in calls]
        assert raw.connections == 1
    for each, trace, body in zip(calls, traces, got, strict=True):
        good(trace)
        assert body == each.body
        assert trace.reads.at_ns[0] > 0


async def test_a_large_request_is_counted_right(truth: Truth) -> None:
    server = truth()
    async with wire(server.url) as client:
        trace = await client.exchange(call(prompt="word " * 1_000_000))
    good(trace)
    assert timeline(trace).usage.prompt_tokens == 1_000_010


async def test_a_reply_before_the_request_is_out_does_not_spoil_the_next() -> None:
    heads: list[str] = []
    refusal = b"HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\n\r\n{}"

    async def answer(peer: Peer, number: int) -> None:
        if number == 1:
            await peer.reader.readuntil(b"\r\n\r\n")
            await peer.send(refusal)
            await asyncio.sleep(0.05)
        while True:
            head, body = await peer.request()
            heads.append(head.split("\r\n")[0])
            json.loads(body)
            await peer.send(FRAMINGS["chunked"][0])

    async with raw_server(answer) as raw, wire(raw.url) as client:
        trace = await client.exchange(call(0, prompt="x" * 20_000_000))
        well_formed(trace)
        assert (trace.status, trace.error) == (413, "")
        good(await client.exchange(call(1)))
    assert heads == ["POST /v1/chat/completions HTTP/1.1"]


# ── connections ──────────────────────────────────────────────────────────────────────────────────


async def test_a_connection_is_used_again(truth: Truth) -> None:
    server = truth()
    async with wire(server.url, opened=True) as client:
        traces = [await client.exchange(call(index)) for index in range(4)]
    for trace in traces:
        good(trace)
        assert text(trace) == TOKENS
    log = server.log()
    assert [reply.request_id for reply in log] == ["r0", "r1", "r2", "r3"]
    assert len({reply.connection for reply in log}) == 1
    assert [trace.connect is None for trace in traces] == [False, True, True, True]
    connect = traces[0].connect
    assert connect is not None
    assert connect.tcp_ns > 0
    assert connect.tls_ns == 0


async def test_a_refusal_keeps_the_connection(truth: Truth) -> None:
    server = truth(status=429, retry_after_s=7)
    async with wire(server.url) as client:
        traces = [await client.exchange(call(index)) for index in range(3)]
    for trace in traces:
        well_formed(trace)
        assert (trace.status, trace.error) == (429, "")
        assert trace.headers["retry-after"] == "7"
        assert b"as told" in trace.body
    assert len(server.log()) == 3
    assert len({reply.connection for reply in server.log()}) == 1


async def test_every_stream_has_its_own_connection(truth: Truth) -> None:
    """More streams than open at once, and enough that one poll serves several."""
    server = truth(ttft_ms=30, itl_ms=2, output_tokens=10)
    async with wire(server.url, streams=40, opened=True) as client:
        for turn in range(3):
            calls = [call(40 * turn + stream, stream, tokens=10) for stream in range(40)]
            traces = await asyncio.gather(*map(client.exchange, calls))
            for trace in traces:
                good(trace)
                assert len(text(trace)) == 10
                assert (trace.connect is not None) == (turn == 0)
    log = server.log()
    assert len(log) == 120
    used = {(int(reply.request_id[1:]) % 40, reply.connection) for reply in log}
    assert len(used) == 40


async def test_what_does_not_open_is_tried_again_by_the_first_call(truth: Truth) -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
        async with wire(f"http://127.0.0.1:{port}", streams=2, opened=True) as client:
            failed(await client.exchange(call(0, 1)), "connect")
            sock.close()
            truth(port=port)
            good(await client.exchange(call(1, 1)))


WAYS_TO_CLOSE = [{"close": True}, {"silent_close": True}, {"no_chunked": True}]


@pytest.mark.parametrize("pause_s", [0.0, 0.05])
@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize("way", WAYS_TO_CLOSE, ids=lambda way: next(iter(way)))
async def test_a_server_that_closes_after_each_reply(
    truth: Truth, certificates: Certificates, way: dict[str, Any], tls: bool, pause_s: float
) -> None:
    server = truth(tls=certificates.for_host("localhost") if tls else None, **way)
    url = server.url.replace("127.0.0.1", "localhost") if tls else server.url
    async with wire(url, ca_file=certificates.ca_file, opened=True) as client:
        traces = []
        for index in range(5):
            traces.append(await client.exchange(call(index)))
            await asyncio.sleep(pause_s)
    for trace in traces:
        good(trace)
        assert text(trace) == TOKENS
        assert trace.connect is not None
        assert trace.connect.tcp_ns > 0
        assert bool(trace.connect.tls_ns) == tls
    log = server.log()
    assert [reply.request_id for reply in log] == [f"r{index}" for index in range(5)]
    assert len({reply.connection for reply in log}) == 5


IDLE_ENDINGS = {
    "fin": b"",
    "rst": None,
    "408": b"HTTP/1.1 408 Request Time-out\r\nConnection: close\r\nContent-Length: 0\r\n\r\n",
    "noise": b"\r\n\r\n",
}


@pytest.mark.parametrize("reply", ["chunked", "length"])
@pytest.mark.parametrize("ending", IDLE_ENDINGS)
async def test_an_idle_connection_that_is_closed_is_opened_again(ending: str, reply: str) -> None:
    """With a word (as some proxies do) or without, by FIN or RST, between two exchanges."""
    last_words = IDLE_ENDINGS[ending]
    said = asyncio.Event()

    async def answer(peer: Peer, _: int) -> None:
        await peer.request()
        await peer.send(FRAMINGS[reply][0])
        await asyncio.sleep(0.01)
        if last_words is None:
            peer.reset()
        elif last_words:
            await peer.send(last_words)
        said.set()

    async with raw_server(answer) as raw, wire(raw.url) as client:
        for index in range(3):
            trace = await client.exchange(call(index))
            good(trace)
            assert trace.body == BODY
            assert trace.connect is not None
            await said.wait()
            said.clear()
            await asyncio.sleep(0.05)
        assert raw.connections == 3


async def test_an_opened_connection_that_is_closed_unused_is_opened_again() -> None:
    async def answer(peer: Peer, number: int) -> None:
        if number > 1:
            await replying(FRAMINGS["chunked"][0])(peer, number)

    async with raw_server(answer) as raw, wire(raw.url, opened=True) as client:
        await asyncio.sleep(0.05)
        good(await client.exchange(call()))
        assert raw.connections == 2


# ── failures ─────────────────────────────────────────────────────────────────────────────────────


async def test_a_reset_in_the_middle_is_a_truncation(truth: Truth) -> None:
    trace = await once(truth(reset_at=2, itl_ms=20).url)
    failed(trace, "truncated")
    assert text(trace) == TOKENS[:2]
    assert trace.status == 200


async def test_an_end_in_the_middle_is_a_truncation(truth: Truth) -> None:
    for server in (truth(truncate_at=2), truth(truncate_at=0, early_headers=True)):
        trace = await once(server.url)
        failed(trace, "truncated")
        assert trace.status == 200
    assert timeline(trace).failure == "truncated"


async def test_a_content_length_that_is_not_met_is_a_truncation() -> None:
    body = BODY.removesuffix(EVENTS[-1])
    short = START + b"Content-Length: %d\r\n\r\n" % len(BODY) + body
    async with raw_server(replying(short, keep=False)) as raw:
        trace = await once(raw.url)
    failed(trace, "truncated")
    assert trace.body == body


@pytest.mark.parametrize("by", ["fin", "rst", "half the headers"])
async def test_no_reply_at_all_is_a_reset(by: str) -> None:
    async def answer(peer: Peer, _: int) -> None:
        await peer.request()
        if by == "rst":
            peer.reset()
        elif by == "half the headers":
            await peer.send(CHUNKED[:-2])

    async with raw_server(answer) as raw:
        trace = await once(raw.url)
        failed(trace, "reset")
        assert raw.connections == 1  # nothing was sent twice
    assert trace.body == b""


async def test_a_used_connection_is_retried_once_and_no_more() -> None:
    asked: list[int] = []

    async def answer(peer: Peer, number: int) -> None:
        await peer.request()
        asked.append(number)
        if number == 1:
            await peer.send(FRAMINGS["chunked"][0])
            await peer.request()
            asked.append(number)
        peer.reset()

    async with raw_server(answer) as raw, wire(raw.url) as client:
        good(await client.exchange(call(0)))
        failed(await client.exchange(call(1)), "reset")
    assert asked == [1, 1, 2]


async def test_nobody_listens(dead_url: str) -> None:
    failed(await once(dead_url), "connect")
    failed(await once(dead_url, opened=True), "connect")


async def test_a_host_that_does_not_exist() -> None:
    trace = await once("http://no-such-host.invalid:8000")
    failed(trace, "dns")
    assert "no-such-host.invalid" in trace.detail


@pytest.mark.parametrize("at", [None, 0, 2])
async def test_what_came_before_a_timeout_is_kept(truth: Truth, at: int | None) -> None:
    misbehaviour = {"ttft_ms": 60_000} if at is None else {"hang_at": at, "early_headers": True}
    trace = await once(truth(**misbehaviour).url, timeout_s=1.5)
    failed(trace, "timeout")
    assert trace.end_ns >= 1500 * MS
    assert text(trace) == TOKENS[: at or 0]
    assert trace.status == (0 if at is None else 200)


async def test_what_came_before_a_cancellation_is_kept() -> None:
    came = asyncio.Event()

    async def answer(peer: Peer, number: int) -> None:
        await peer.request()
        pieces = [CHUNKED + chunk(EVENTS[0])[:-1], chunk(sse(content(" b")))]
        await peer.send(pieces[0], chunk(EVENTS[0])[-1:], pieces[1][:-5])
        came.set()
        await peer.reader.read()

    async with raw_server(answer) as raw, wire(raw.url) as client:
        task = asyncio.create_task(client.exchange(call()))
        await came.wait()
        task.cancel()
        trace = await task
        failed(trace, "cancelled")
        assert text(trace) == [" a"]
        assert len(trace.body) > len(EVENTS[0])
        assert len(trace.reads.end) == 3


async def test_a_cancellation_before_anything_is_sent() -> None:
    async with raw_server(replying(CHUNKED)) as raw, wire(raw.url) as client:
        task = asyncio.create_task(client.exchange(call()))
        await asyncio.sleep(0)
        task.cancel()
        trace = await task
    failed(trace, "cancelled")
    assert (trace.body, trace.end_ns) == (b"", 0)


@pytest.mark.parametrize(
    "reply",
    [
        b"SSH-2.0-OpenSSH_9.6\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        CHUNKED + b"no hexadecimal\r\n" + b"0\r\n\r\n",
        b"<html>no header</html>\r\n\r\n",
    ],
)
async def test_what_is_not_http(reply: bytes) -> None:
    async with raw_server(replying(reply, keep=False)) as raw:
        failed(await once(raw.url), "protocol")


async def test_a_stream_is_good_again_after_each_failure() -> None:
    async def answer(peer: Peer, number: int) -> None:
        await peer.request()
        match number:
            case 1:
                await peer.send(b"nonsense\r\n\r\n")
            case 2:
                await peer.send(CHUNKED + chunk(EVENTS[0]))
            case 3:
                peer.reset()
            case 4:
                await peer.send(CHUNKED)
                await peer.reader.read()  # the client has had enough by then
            case _:
                await peer.send(FRAMINGS["chunked"][0])
                await peer.reader.read()

    async with raw_server(answer) as raw, wire(raw.url, timeout_s=2.0) as client:
        traces = [await client.exchange(call(index)) for index in range(5)]
    for trace, kind in zip(traces, ["protocol", "truncated", "reset", "timeout"], strict=False):
        failed(trace, kind)
    good(traces[4])
    assert traces[4].body == BODY


# ── TLS ──────────────────────────────────────────────────────────────────────────────────────────


async def test_tls(truth: Truth, certificates: Certificates) -> None:
    server = truth(tls=certificates.for_host("localhost"), ttft_ms=30, itl_ms=3)
    url = server.url.replace("127.0.0.1", "localhost")
    async with wire(url, ca_file=certificates.ca_file, opened=True) as client:
        traces = [await client.exchange(call(index)) for index in range(3)]
    for trace in traces:
        good(trace)
        assert text(trace) == TOKENS
        assert trace.stamps == ("kernel" if sys.platform == "linux" else "user")
    assert traces[0].connect is not None
    assert traces[0].connect.tls_ns > 0
    assert traces[1].connect is None
    log = server.log()
    assert len({reply.connection for reply in log}) == 1
    for trace, reply in zip(traces, log, strict=True):
        agrees(trace, reply)


async def test_tls_that_is_not_trusted(truth: Truth, certificates: Certificates) -> None:
    server = truth(tls=certificates.for_host("localhost"))
    url = server.url.replace("127.0.0.1", "localhost")
    trace = await once(url)
    failed(trace, "tls")
    assert "certificate" in trace.detail
    failed(await once(url, opened=True), "tls")
    assert server.log() == []


async def test_tls_for_another_host(truth: Truth, certificates: Certificates) -> None:
    server = truth(tls=certificates.for_host("elsewhere.example"))
    for url in (server.url, server.url.replace("127.0.0.1", "localhost")):
        failed(await once(url, ca_file=certificates.ca_file), "tls")
    assert server.log() == []


async def test_tls_to_a_server_that_speaks_none(truth: Truth, certificates: Certificates) -> None:
    url = truth().url.replace("http://", "https://")
    trace = await once(url, ca_file=certificates.ca_file)
    well_formed(trace)
    assert trace.error in ("tls", "connect")


async def test_no_tls_to_a_server_that_speaks_it(truth: Truth, certificates: Certificates) -> None:
    server = truth(tls=certificates.for_host("localhost"))
    trace = await once(server.url.replace("https://", "http://"))
    well_formed(trace)
    assert trace.error in ("protocol", "reset")


async def test_a_large_request_and_reply_over_tls(truth: Truth, certificates: Certificates) -> None:
    server = truth(
        tls=certificates.for_host("localhost"), itl_ms=0, output_tokens=1, tokens_per_event=10
    )
    url = server.url.replace("127.0.0.1", "localhost")
    async with wire(url, ca_file=certificates.ca_file) as client:
        trace = await client.exchange(call(prompt="word " * 1_000_000, tokens=50_000))
    good(trace)
    assert len(text(trace)) == 5_000
    assert timeline(trace).usage.prompt_tokens == 1_000_010


async def test_tls_streams_that_break(truth: Truth, certificates: Certificates) -> None:
    tls = certificates.for_host("localhost")
    for fields in ({"truncate_at": 2}, {"reset_at": 2, "itl_ms": 20.0}):
        server = truth(tls=tls, **fields)
        url = server.url.replace("127.0.0.1", "localhost")
        trace = await once(url, ca_file=certificates.ca_file)
        failed(trace, "truncated")
        assert text(trace) == TOKENS[:2]


async def test_garbage_inside_tls(certificates: Certificates) -> None:
    """A TLS peer whose records stop being TLS in the middle of a reply."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificates.for_host("localhost"))

    async def answer(peer: Peer, _: int) -> None:
        await peer.request()
        await peer.send(CHUNKED + chunk(EVENTS[0]))
        sock = socket.socket(fileno=socket.dup(peer.writer.get_extra_info("socket").fileno()))
        with sock:
            sock.send(b"\x17\x03\x03\x00\x20" + bytes(32))
        await peer.reader.read()

    async with raw_server(answer, tls=context) as raw:
        trace = await once(raw.url, ca_file=certificates.ca_file)
    failed(trace, "tls")
    assert trace.body == EVENTS[0]


# ── stamps ───────────────────────────────────────────────────────────────────────────────────────

linux = sys.platform == "linux"


def agrees(trace: Trace, reply: Reply) -> None:
    """The stamp of every content event lies within its true send, or as much later as its slack
    says and the way takes."""
    seen = timeline(trace)
    for at_ns, slack_ns, sent_ns, took_ns in zip(
        seen.at_ns, seen.slack_ns, reply.token_sent_ns, reply.token_took_ns, strict=True
    ):
        late_ns = at_ns + trace.sent_ns - sent_ns
        assert late_ns >= -CLOCKS_AGREE_NS
        assert late_ns <= slack_ns + took_ns + WAY_NS
    assert trace.sent_ns <= reply.received_ns + CLOCKS_AGREE_NS


CLOCKS_AGREE_NS = 20_000
"""Realtime stamps are brought onto monotonic time to within this."""

WAY_NS = 250 * MS
"""The most that an event is on its way on a busy machine. What is held up for longer by a test must
not pass for that."""


async def test_stamps_agree_with_the_truth(truth: Truth) -> None:
    server = truth(ttft_ms=40, itl_ms=8, jitter_ms=4, role_first=True, early_headers=True)
    async with wire(server.url, opened=True) as client:
        traces = [await client.exchange(call(index, tokens=20)) for index in range(3)]
    for trace, reply in zip(traces, server.log(), strict=True):
        good(trace)
        assert trace.stamps == ("kernel" if linux else "user")
        agrees(trace, reply)
        # Most come one by one, and are known without slack.
        assert sum(slack == 0 for slack in timeline(trace).slack_ns) > 10 or too_late(trace)


async def test_stamps_of_many_streams_agree_with_the_truth(truth: Truth) -> None:
    server = truth(ttft_ms=40, itl_ms=5, jitter_ms=4)
    async with wire(server.url, streams=24, opened=True) as client:
        calls = [call(stream, stream, tokens=20) for stream in range(24)]
        traces = await asyncio.gather(*map(client.exchange, calls))
    log = {reply.request_id: reply for reply in server.log()}
    for trace in traces:
        good(trace)
        agrees(trace, log[f"r{trace.index}"])


async def test_a_stalled_client_still_has_the_true_stamp() -> None:
    loop, stalled, sent, awake = asyncio.get_running_loop(), *(Event() for _ in range(3))
    times: list[int] = []

    def now() -> None:
        times.append(time.monotonic_ns())

    def stall() -> None:
        stalled.set()
        sent.wait(PATIENCE_S)
        time.sleep(0.2)
        now()
        loop.call_later(0.1, awake.set)  # when what has come is read

    def serve() -> None:
        with listener.accept()[0] as peer:
            peer.recv(65536)
            loop.call_soon_threadsafe(stall)
            stalled.wait(PATIENCE_S)
            now()
            peer.sendall(CHUNKED + chunk(EVENTS[0]))
            now()
            sent.set()
            awake.wait(PATIENCE_S)
            peer.sendall(chunk(EVENTS[1] + EVENTS[2]) + b"0\r\n\r\n")
            peer.recv(65536)  # until the client leaves

    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = Thread(target=serve, daemon=True)
        server.start()
        async with wire(f"http://127.0.0.1:{listener.getsockname()[1]}") as client:
            trace = await client.exchange(call())
        server.join(PATIENCE_S)
    good(trace)
    before_ns, after_ns, awake_ns = times
    seen = timeline(trace)
    read = list(trace.reads.at_ns).index(seen.at_ns[0])
    at_ns, lag_ns = seen.at_ns[0] + trace.sent_ns, trace.reads.lag_ns[read]
    assert seen.slack_ns[0] == 0
    assert at_ns + lag_ns >= awake_ns
    if linux:
        assert before_ns - CLOCKS_AGREE_NS <= at_ns <= after_ns + CLOCKS_AGREE_NS
        assert lag_ns >= 200 * MS


async def test_events_that_share_a_read_are_as_old_as_their_slack_says(truth: Truth) -> None:
    server = truth(ttft_ms=50, itl_ms=10)
    async with wire(server.url, opened=True) as client:
        for delay_s in (0.1, 0.12):  # inside the stream, that has then lasted for some events
            asyncio.get_running_loop().call_later(delay_s, time.sleep, 0.4)
        trace = await client.exchange(call(tokens=100))
    good(trace)
    (reply,) = server.log()
    agrees(trace, reply)
    assert sum(slack > 0 for slack in timeline(trace).slack_ns) >= 5


@pytest.mark.parametrize("streams", [1, 20])
async def test_slack_covers_what_the_server_joins(truth: Truth, streams: int) -> None:
    server = truth(ttft_ms=20, itl_ms=0.4, jitter_ms=0.4, coalesce=2)
    async with wire(server.url, streams=streams, opened=True) as client:
        calls = [call(stream, stream, tokens=100) for stream in range(streams)]
        traces = await asyncio.gather(*map(client.exchange, calls))
    log = {reply.request_id: reply for reply in server.log()}
    for trace in traces:
        good(trace)
        agrees(trace, log[f"r{trace.index}"])
