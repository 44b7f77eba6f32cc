"""The network as servers and gateways have it: ends, types, addresses, redirects, closed doors."""

import asyncio
import gzip
import json
import socket
from array import array
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from itertools import pairwise
from typing import Any

import pytest
from conftest import (
    PATIENCE_S,
    Asked,
    Llmbench,
    Peer,
    ThreadedServer,
    bare_cell,
    chunk,
    content,
    finish,
    port_of,
    raw_server,
    sse,
    stored,
)
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from llmbench.apis import APIS, bodies
from llmbench.apis.dialect import DIALECTS
from llmbench.apis.ending import DONE, Ending, EndMarker
from llmbench.apis.sse import parse
from llmbench.drive import opening, wire
from llmbench.drive.aiohttp_client import AiohttpClient
from llmbench.drive.client import Client
from llmbench.drive.clock import Clock
from llmbench.drive.endpoint import endpoint
from llmbench.drive.limits import Limits
from llmbench.drive.openai_client import OpenAIClient
from llmbench.drive.opening import Failure, in_order, open_socket
from llmbench.drive.probe import Probe
from llmbench.drive.redirects import followed, may_have_the_key, moved
from llmbench.drive.wire import WireClient
from llmbench.errors import Unmeasurable
from llmbench.measure.cell import requests_in
from llmbench.measure.metrics import measure
from llmbench.measure.requests import reopened
from llmbench.measure.summary import summarize
from llmbench.measure.timeline import decode
from llmbench.measure.verdict import judge
from llmbench.records import (
    Call,
    CellFacts,
    Connect,
    Content,
    Counts,
    Load,
    Message,
    Reads,
    Target,
    Trace,
)

CHAT = APIS["chat"]
CLIENTS = ("wire", "aiohttp", "openai")
each_client = pytest.mark.parametrize("name", CLIENTS)

EVENTS = [sse(content(" a")), sse(content(" b")), sse(finish(3, 2)), sse("[DONE]")]
BODY = b"".join(EVENTS)
OK = b"HTTP/1.1 200 OK\r\n"
TYPED = OK + b"Content-Type: text/event-stream\r\n"
CHUNKED = TYPED + b"Transfer-Encoding: chunked\r\n\r\n"
LAST = b"0\r\n\r\n"
Answer = Callable[[Peer, int], Awaitable[None]]


@asynccontextmanager
async def connected(
    url: str, name: str = "wire", *, streams: Sequence[int] = (0,), target: Target | None = None
) -> AsyncIterator[Client]:
    clock, limits = Clock(0), Limits(PATIENCE_S)
    target = target or Target(spec=url, name="t", url=f"{url}/v1")
    where, path = endpoint(target), target.path or CHAT.path
    client: Client
    match name:
        case "aiohttp":
            client = AiohttpClient(where, path, limits, clock)
        case "openai":
            client = OpenAIClient(where, path, CHAT.sdk, limits, clock)
        case _:
            client = WireClient(where, path, streams, limits, clock)
    try:
        yield client
    finally:
        await client.close()
        clock.close()


def call(index: int = 0, stream: int = 0) -> Call:
    body = CHAT.encode("m", [Message("user", "hi")], 2, DIALECTS[0], Content())
    return Call(0, index, stream, "measured", f"r{index}", body)


async def exchanged(client: Client, index: int = 0) -> Trace:
    trace = await client.exchange(call(index))
    return trace if client.settle is None else client.settle(trace)


def text(trace: Trace) -> str:
    return "".join(event.text for event in CHAT.decode(parse(trace.body)))


def failure(trace: Trace) -> tuple[str, str]:
    told = decode(trace, CHAT.decode)
    return told.failure, told.detail


def good(trace: Trace) -> None:
    assert failure(trace) == ("", "")
    assert (trace.error, text(trace)) == ("", " a b")


def why(trace: Trace) -> str | None:
    """Why the connection of ``trace`` had to be opened anew; ``None`` where it was not opened."""
    return None if trace.connect is None else trace.connect.reopened


def answering(*pieces: bytes, then: str = "hold") -> Answer:
    """Answer each request with ``pieces``, and then hold the connection, close or reset it, or wait
    for the ``next`` request."""

    async def answer(peer: Peer, _: int) -> None:
        while True:
            await peer.request()
            await peer.send(*pieces)
            match then:
                case "hold":
                    await peer.reader.read()
                    return
                case "reset":
                    await asyncio.sleep(0.02)  # what was sent is read by then
                    peer.reset()
                    return
                case "close":
                    return

    return answer


# ── the end marker ───────────────────────────────────────────────────────────────────────────────

STOP = EndMarker(b"event", (b"message_stop",))
STOPPED = b'event: message_stop\ndata: {"type":"message_stop"}\n\n'
WHOLE = [
    (DONE, BODY, len(BODY) - 2),
    (DONE, b"data:[DONE]\r\n\r\n", 11),
    (DONE, b"data: [DONE] \n", 12),
    (STOP, b"event: ping\ndata: {}\n\n" + STOPPED, len(STOPPED) + 22),
    (STOP, STOPPED.replace(b"\n", b"\r\n"), len(STOPPED) + 2),
]


@pytest.mark.parametrize(("marker", "body", "end"), WHOLE)
def test_a_marker_is_found_whatever_the_cuts(marker: EndMarker, body: bytes, end: int) -> None:
    """``end`` is how many bytes say that it is over."""
    for cut in range(len(body) + 1):
        ending = Ending(marker)
        ending.add(body[:cut])
        assert ending.over == (cut >= end), cut
        ending.add(body[cut:])
        assert ending.over
        ending.add(b": more\n\n")
        assert ending.over
    ending = Ending(marker)
    seen = []
    for at in range(len(body)):
        ending.add(body[at : at + 1])
        seen.append(ending.over)
    assert seen.index(True) + 1 == end


@pytest.mark.parametrize(
    "body",
    [
        b"",
        sse(content("data: [DONE]")),
        sse(content("\ndata: [DONE]\n\n")),
        b": data: [DONE]\n\n",
        b"data: [DONE]?\n\n",
        b"data: x [DONE]\n\n",
        b"event: [DONE]\n\n",
        EVENTS[0] + EVENTS[2],
    ],
)
def test_what_is_no_end_marker(body: bytes) -> None:
    for size in (len(body) or 1, 1, 7):
        ending = Ending(DONE)
        for at in range(0, len(body), size):
            ending.add(body[at : at + size])
        # a line that is cut right behind the marker's may be one
        assert not ending.over or body.startswith(b"data: [DONE]?")


@given(st.lists(st.integers(0, len(BODY)), max_size=20), st.binary(max_size=300))
def test_cuts_and_what_comes_before_a_marker_make_no_difference(
    cuts: list[int], before: bytes
) -> None:
    ending = Ending(DONE)
    edges = sorted({0, len(BODY), *cuts})
    ending.add(before + b"\n\n")
    for start, stop in pairwise(edges):
        ending.add(BODY[start:stop])
    assert ending.over


def test_the_chunk_that_ends_a_stream_is_known_by_its_end() -> None:
    assert chunk(EVENTS[-1]).endswith(DONE.ends)
    assert chunk(b"data: [DONE]\n").endswith(DONE.ends)
    assert not chunk(EVENTS[-2]).endswith(DONE.ends)
    assert (STOP.ends, STOP.words) == ((), (b"message_stop",))


# ── replies that end at their marker ─────────────────────────────────────────────────────────────

LONGER = TYPED + b"Content-Length: %d\r\n\r\n" % (len(BODY) + 9)
LEFT_OPEN = {
    "chunked": [CHUNKED, *map(chunk, EVENTS)],
    "in one read": [CHUNKED + b"".join(map(chunk, EVENTS))],
    "one chunk": [CHUNKED + chunk(BODY)],
    "a comment after": [CHUNKED, *map(chunk, EVENTS), chunk(b": ping\n\n")],
    "until it closes": [TYPED + b"\r\n", *EVENTS],
    "http/1.0": [TYPED.replace(b"1.1", b"1.0") + b"\r\n" + BODY],
    "a length that is a lie": [LONGER, *EVENTS],
    "no blank line": [CHUNKED, *map(chunk, EVENTS[:-1]), chunk(b"data: [DONE]\n")],
}


@pytest.mark.parametrize(
    ("name", "case"),
    [
        (name, case)
        for name in ("wire", "aiohttp", "openai")
        for case in LEFT_OPEN
        if (name, case) != ("openai", "no blank line")  # the SDK waits for it
    ],
)
async def test_a_reply_that_stays_open_is_over_at_its_marker(name: str, case: str) -> None:
    """Four, as clients learn that the server leaves its replies open."""
    async with (
        raw_server(answering(*LEFT_OPEN[case])) as raw,
        connected(raw.url, name) as client,
    ):
        traces = [await exchanged(client, index) for index in range(4)]
        assert raw.connections == 4
    for trace in traces:
        good(trace)
    if name == "wire":
        assert [why(trace) for trace in traces] == ["", *["unfinished"] * 3]


@pytest.mark.parametrize("then", ["close", "reset"])
@pytest.mark.parametrize("case", LEFT_OPEN)
async def test_a_connection_may_break_after_the_marker(case: str, then: str) -> None:
    async with raw_server(answering(*LEFT_OPEN[case], then=then)) as raw:
        async with connected(raw.url) as client:
            for index in range(2):
                good(await exchanged(client, index))
        assert raw.connections == 2


@pytest.mark.parametrize("cut", range(len(chunk(EVENTS[-1])) + 1))
async def test_the_marker_may_be_cut_anywhere(cut: int) -> None:
    start, end = CHUNKED + b"".join(map(chunk, EVENTS[:-1])), chunk(EVENTS[-1])
    answer = answering(start + end[:cut], end[cut:])
    async with raw_server(answer) as raw, connected(raw.url) as client:
        good(await exchanged(client))


@pytest.mark.parametrize("pieces", [[chunk(BODY), LAST], [chunk(BODY), LAST[:1], LAST[1:]]])
async def test_a_last_chunk_that_comes_by_itself_keeps_the_connection(pieces: list[bytes]) -> None:
    async with raw_server(answering(CHUNKED, *pieces, then="next")) as raw:
        async with connected(raw.url) as client:
            traces = [await exchanged(client, index) for index in range(4)]
        assert raw.connections == 1
    for trace in traces:
        good(trace)
    assert [why(trace) for trace in traces] == ["", None, None, None]


@pytest.mark.parametrize("then", ["close", "reset"])
@pytest.mark.parametrize("kept", [1, 2])
@each_client
async def test_before_the_marker_it_is_a_truncation(name: str, kept: int, then: str) -> None:
    pieces = [CHUNKED, *map(chunk, EVENTS[:kept])]
    answer = answering(*pieces, then=then)
    async with raw_server(answer) as raw, connected(raw.url, name) as client:
        trace = await exchanged(client)
    assert failure(trace)[0] == "truncated"


async def test_a_cell_that_ends_while_a_connection_is_held_open_keeps_the_reply() -> None:
    sent = asyncio.Event()

    async def answer(peer: Peer, _: int) -> None:
        await peer.request()
        await peer.send(TYPED + b"\r\n" + BODY)
        sent.set()
        await peer.reader.read()

    async with raw_server(answer) as raw, connected(raw.url) as client:
        task = asyncio.create_task(client.exchange(call()))
        await sent.wait()
        await asyncio.sleep(0.02)
        task.cancel()
        good(await task)


# ── what a body is ───────────────────────────────────────────────────────────────────────────────

REPLY = {
    "object": "chat.completion",
    "choices": [{"message": {"role": "assistant", "content": " a b"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 3, "completion_tokens": 2},
}


def trace_of(body: bytes, content_type: str | None) -> Trace:
    end, zero = array("q", [len(body)]), array("q", [5])
    return Trace(
        cell=0,
        index=0,
        stream=0,
        phase="measured",
        sent_ns=0,
        end_ns=9,
        status=200,
        headers={} if content_type is None else {"content-type": content_type},
        reads=Reads(end, zero, zero, zero),
        body=body,
    )


TYPES = [None, "", "text/event-stream", "text/plain", "application/json", "text/html", "x"]


@pytest.mark.parametrize("content_type", TYPES)
@pytest.mark.parametrize("start", [b"", b"\xef\xbb\xbf", b": hello\n\n", b"\n", b"event: x\n"])
def test_a_stream_is_one_whatever_its_type_says(content_type: str | None, start: bytes) -> None:
    good(trace_of(start + BODY, content_type))


@pytest.mark.parametrize("content_type", TYPES)
def test_a_whole_reply_is_one_event(content_type: str | None) -> None:
    trace = trace_of(json.dumps(REPLY, indent=1).encode(), content_type)
    told = decode(trace, CHAT.decode)
    assert (told.failure, told.finish, list(told.at_ns), told.chars) == ("", "stop", [5], 4)
    assert told.usage.completion_tokens == 2
    assert measure(trace, told).ttft_s == 5e-9


@pytest.mark.parametrize("content_type", TYPES)
@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"error": {"message": "no quota"}}, "no quota"),
        ({"error": "no quota"}, "no quota"),
        ({"object": "error", "message": "no quota"}, "no quota"),
        ({"detail": [{"msg": "no quota"}]}, "no quota"),
        ([{"error": {"message": "no quota"}}], "no quota"),
        ({"choices": []}, "choices"),
    ],
)
def test_a_document_that_is_no_reply_is_a_failure_in_its_words(
    said: Any, words: str, content_type: str | None
) -> None:
    kind, detail = failure(trace_of(json.dumps(said).encode(), content_type))
    assert kind == "stream-error"
    assert words in detail


@pytest.mark.parametrize("page", [b"<!DOCTYPE html><p>Sign in", b"\n<html>", b"<?xml?>"])
@pytest.mark.parametrize("content_type", [None, "text/html", "text/plain"])
def test_a_page_is_said_to_be_one(page: bytes, content_type: str | None) -> None:
    kind, detail = failure(trace_of(page, content_type))
    assert kind == "not-a-stream"
    assert "a web page" in detail


@pytest.mark.parametrize("body", [b"", b"hello", b'{"choices": [', b"7", b'"data: x"'])
def test_what_is_neither_is_no_stream(body: bytes) -> None:
    assert bodies.events(body, "text/plain") is None
    assert failure(trace_of(body, None))[0] == "not-a-stream"


@given(st.binary(max_size=60))
def test_any_bytes_are_something(body: bytes) -> None:
    bodies.events(body, "")
    bodies.events(body, "text/event-stream")
    bodies.is_page(body)


def length(body: bytes, *lines: bytes) -> bytes:
    """A reply of a stated length."""
    return b"\r\n".join([OK[:-2], *lines, b"Content-Length: %d" % len(body), b"", body])


@each_client
async def test_an_error_in_a_document_has_the_same_words_for_all(name: str) -> None:
    refusal = length(b'{"error": {"message": "no quota"}}', b"Content-Type: application/json")
    answer = answering(refusal, then="next")
    async with raw_server(answer) as raw, connected(raw.url, name) as client:
        assert failure(await exchanged(client)) == ("stream-error", "no quota")


@pytest.mark.parametrize("name", ["aiohttp", "openai"])
async def test_what_a_library_unpacks_is_no_failure(name: str) -> None:
    """Also where the server packs what nobody asked it to."""
    packed = length(
        gzip.compress(BODY), b"Content-Type: text/event-stream", b"Content-Encoding: gzip"
    )
    answer = answering(packed, then="next")
    async with raw_server(answer) as raw, connected(raw.url, name) as client:
        good(await exchanged(client))


# ── addresses ────────────────────────────────────────────────────────────────────────────────────


def info(host: str, port: int = 80) -> Any:
    """An address as ``getaddrinfo`` gives it."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    place = (host, port, 0, 0) if ":" in host else (host, port)
    return family, socket.SOCK_STREAM, 6, "", place


def test_families_take_turns_and_who_answered_last_comes_first() -> None:
    six, four = [info("::1"), info("::2"), info("::3")], [info("1.1.1.1"), info("2.2.2.2")]
    turns = [six[0], four[0], six[1], four[1], six[2]]
    assert in_order([*six, *four]) == turns
    assert in_order([*six, *four], four[1][-1]) == [four[1], six[0], four[0], six[1], six[2]]
    assert in_order(four) == four
    assert in_order([]) == []


@pytest.fixture
def named(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Any]]:
    """``named(*addresses)`` has ``two.test`` stand for them; what was tried, in order."""

    def name(*addresses: Any) -> list[Any]:
        tried: list[Any] = []
        loop = asyncio.get_running_loop()
        connect = loop.sock_connect

        async def found(*_: Any, **__: Any) -> list[Any]:
            return list(addresses)

        async def noted(sock: socket.socket, address: Any) -> None:
            tried.append(address[0])
            await connect(sock, address)

        monkeypatch.setattr(loop, "getaddrinfo", found)
        monkeypatch.setattr(loop, "sock_connect", noted)
        monkeypatch.setattr(opening, "_answered", {})
        return tried

    return name


@pytest.fixture
def swallowing() -> Any:
    """``swallowing(port)`` is an address of this machine that answers no SYN: its queue is full."""
    held: list[socket.socket] = []

    def begin(port: int) -> str:
        full = socket.socket()
        full.bind(("127.0.0.13", port))
        full.listen(0)
        held.append(full)
        for _ in range(4):
            held.append(socket.socket())
            held[-1].setblocking(False)
            held[-1].connect_ex(("127.0.0.13", port))
        return "127.0.0.13"

    yield begin
    for each in held:
        each.close()


async def test_a_dead_address_is_waited_for_once(named: Any, swallowing: Any) -> None:
    reply = TYPED + b"Connection: close\r\n\r\n" + BODY
    async with raw_server(answering(reply, then="close")) as raw:
        port = port_of(raw.url)
        tried = named(info(swallowing(port), port), info("127.0.0.1", port))
        async with connected(f"http://two.test:{port}") as client:
            traces = [await exchanged(client, index) for index in range(3)]
    for trace in traces:
        good(trace)
        assert trace.connect is not None
        assert 0 < trace.connect.tcp_ns < opening.HEAD_START_S * 1e9
    assert tried == ["127.0.0.13", "127.0.0.1", "127.0.0.1", "127.0.0.1"]


async def test_all_addresses_are_tried(named: Any, dead_url: str) -> None:
    async with raw_server(answering(CHUNKED, chunk(BODY), LAST)) as raw:
        dead = port_of(dead_url)
        tried = named(
            info("::1", dead), info("127.0.0.2", dead), info("127.0.0.1", port_of(raw.url))
        )
        async with connected("http://two.test:1") as client:
            good(await exchanged(client))
    assert tried == ["::1", "127.0.0.2", "127.0.0.1"]


async def test_where_none_answers_the_last_refusal_is_told(named: Any, dead_url: str) -> None:
    dead = port_of(dead_url)
    named(info("127.0.0.2", dead), info("127.0.0.1", dead))
    where = endpoint(Target(spec="", name="t", url="http://two.test:1/v1"))
    with pytest.raises(Failure, match="Connect call failed") as caught:
        await open_socket(where)
    assert caught.value.kind == "connect"
    named()
    with pytest.raises(Failure, match="no address"):
        await open_socket(where)


# ── redirects ────────────────────────────────────────────────────────────────────────────────────

AT = "http://h:8000/v1/chat/completions"


@pytest.mark.parametrize(
    ("location", "place"),
    [
        ("/v1/chat/completions/", "http://h:8000/v1/chat/completions/"),
        ("completions/", "http://h:8000/v1/chat/completions/"),
        ("//other/v1", "http://other/v1"),
        ("https://h:443/x?y=1#z", "https://h/x?y=1"),
        ("http://user:secret@h:8000/x", "http://h:8000/x"),
        (" /a b/é%20 ", "http://h:8000/a%20b/%C3%A9%20"),
        ("http://[::1]:9/x", "http://[::1]:9/x"),
    ],
)
def test_where_a_redirect_leads(location: str, place: str) -> None:
    assert followed(AT, location) == place


@pytest.mark.parametrize("location", ["", "  ", "ftp://h/x", "http://h:x/", "http://["])
def test_a_redirect_that_leads_nowhere(location: str) -> None:
    with pytest.raises(ValueError, match=r"URL|Port"):
        followed(AT, location)


@pytest.mark.parametrize(
    ("url", "place", "may"),
    [
        (AT, "http://h:8000/x", True),
        (AT, "http://h:8001/x", False),
        (AT, "https://h:8000/x", False),
        (AT, "http://other:8000/x", False),
        ("http://h/x", "https://h/x", True),
        ("http://h/x", "https://www.h/x", False),
        ("https://h/x", "http://h/x", False),
        ("https://h/x", "https://h:443/y", True),
    ],
)
def test_a_key_follows_to_no_other_host(url: str, place: str, may: bool) -> None:
    assert may_have_the_key(url, place) is may


@pytest.mark.parametrize(
    ("place", "url", "path"),
    [
        ("https://h/v1/chat/completions", "https://h/v1", ""),
        ("http://h:8000/api/v1/chat/completions", "http://h:8000/api/v1", ""),
        ("http://h:8000/v1/chat/completions/", "http://h:8000/v1", "/chat/completions/"),
        ("http://h:8000/v1/chat/completions?a=1", "http://h:8000/v1", "/chat/completions?a=1"),
        ("http://h:8000/v2/talk", "http://h:8000", "/v2/talk"),
    ],
)
def test_a_target_that_has_moved(place: str, url: str, path: str) -> None:
    target = Target(spec="", name="t", url="http://h:8000/v1")
    at = moved(target, place, CHAT.path)
    assert (at.url, at.path) == (url, path)


def redirect(place: str, status: int = 307) -> bytes:
    return b"HTTP/1.1 %d Moved\r\nLocation: %b\r\nContent-Length: 0\r\n\r\n" % (
        status,
        place.encode(),
    )


def routed(asked: list[tuple[str, bytes]], routes: dict[str, bytes], rest: bytes) -> Answer:
    """Answer by ``METHOD path``; what was ``asked`` is kept, with its bodies."""

    async def answer(peer: Peer, _: int) -> None:
        while True:
            head = (await peer.reader.readuntil(b"\r\n\r\n")).decode()
            lines = head.lower().split("\r\n")
            sizes = [int(line.split(":")[1]) for line in lines if line.startswith("content-length")]
            body = await peer.reader.readexactly(sizes[0]) if sizes else b""
            line = head.rpartition(" HTTP/1.1")[0] and head.split(" HTTP/1.1")[0]
            asked.append((line, body))
            await peer.send(routes.get(line, rest))

    return answer


GOOD_REPLY = length(BODY, b"Content-Type: text/event-stream")
MODELS = length(b'{"data":[{"id":"m"}]}', b"Content-Type: application/json")


@asynccontextmanager
async def probing(url: str, **fields: Any) -> AsyncIterator[Probe]:
    target = Target(spec="", name="t", url=f"{url}/v1", **fields)
    async with Probe(target, endpoint(target), "salt", Limits(PATIENCE_S)) as probe:
        yield probe


@pytest.mark.parametrize("status", [301, 302, 307, 308])
@each_client
async def test_a_redirect_is_followed_once_for_all(name: str, status: int) -> None:
    asked: list[tuple[str, bytes]] = []
    routes = {
        "POST /v1/chat/completions": redirect("/v1/chat/completions/", status),
        "POST /v1/chat/completions/": redirect("/new/chat/completions?a=1", status),
        "POST /new/chat/completions?a=1": GOOD_REPLY,
        "GET /v1/models": redirect("/v1/models/", status),
        "GET /v1/models/": MODELS,
    }
    async with raw_server(routed(asked, routes, b"")) as raw:
        async with probing(raw.url) as probe:
            assert await probe.find_model() == "m"
            assert probe.redirected == ""
            await probe.find_dialect()
            await probe.count(10)
            target = probe.target
        assert "/v1/chat/completions redirects to " in probe.redirected
        places = [line for line, _ in asked[2:]]
        assert places == [*[line for line in routes if "POST" in line], places[-1]]
        assert asked[2][1] == asked[3][1] == asked[4][1] != b""
        asked.clear()
        async with connected(raw.url, name, target=target) as client:
            good(await exchanged(client))
        assert [line for line, _ in asked] == ["POST /new/chat/completions?a=1"]


@each_client
async def test_a_timed_request_follows_no_redirect(name: str) -> None:
    asked: list[tuple[str, bytes]] = []
    answer = routed(asked, {}, redirect("/elsewhere"))
    async with raw_server(answer) as raw, connected(raw.url, name) as client:
        trace = await exchanged(client)
    assert failure(trace)[0] == "http-307"
    assert len(asked) == 1


@pytest.mark.parametrize("key", [None, "sk-0123456789-secret"])
async def test_a_key_stays_where_it_is(monkeypatch: pytest.MonkeyPatch, key: str | None) -> None:
    asked: list[tuple[str, bytes]] = []
    there: list[tuple[str, bytes]] = []
    if key:
        monkeypatch.setenv("OPENAI_API_KEY", key)
    else:
        monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    async with raw_server(routed(there, {}, GOOD_REPLY)) as other:
        place = f"{other.url}/v1/chat/completions"
        answer = routed(asked, {}, redirect(place, 308))
        async with raw_server(answer) as raw, probing(raw.url, model="m") as probe:
            if key is None:
                await probe.find_dialect()
                assert probe.target.url == f"{other.url}/v1"
                return
            with pytest.raises(Unmeasurable) as caught:
                await probe.find_dialect()
    said = str(caught.value)
    assert f"redirects to {place}" in said
    assert f"give {other.url}/v1 as the target" in said
    assert "OPENAI_API_KEY" in said
    assert key not in said
    assert "\n" not in said
    assert there == []


@pytest.mark.parametrize(
    ("location", "words"),
    [("/v1/chat/completions", "more than 5 redirects"), ("", "redirects to nowhere")],
)
async def test_a_redirect_that_does_not_end_well(location: str, words: str) -> None:
    answer = routed([], {}, redirect(location))
    async with raw_server(answer) as raw, probing(raw.url, model="m") as probe:
        with pytest.raises(Unmeasurable, match=words):
            await probe.find_dialect()


@pytest.mark.parametrize("case", LEFT_OPEN)
async def test_a_probe_is_over_at_the_marker_too(case: str) -> None:
    async with raw_server(answering(*LEFT_OPEN[case])) as raw, probing(raw.url, model="m") as probe:
        assert (await probe.find_dialect()).fields == DIALECTS[0].fields


async def test_a_probe_does_not_wait_behind_an_error_that_is_left_open() -> None:
    said = sse({"error": {"message": "no such model"}}, "[DONE]")
    answer = answering(CHUNKED, chunk(said))
    async with raw_server(answer) as raw, probing(raw.url, model="m") as probe:
        with pytest.raises(Unmeasurable, match="no such model"):
            await probe.find_dialect()


def test_a_sweep_says_where_its_requests_go(
    run_llmbench: Llmbench, threaded: Any, tmp_path: Any
) -> None:
    def answer(ask: Asked) -> tuple[int, str, bytes]:
        return (200, "text/event-stream", ask.good())

    server: ThreadedServer = threaded(answer)

    async def run() -> Any:
        port = port_of(server.url)
        place = f"http://localhost:{port}/v1/chat/completions"
        async with raw_server(routed([], {"GET /v1/models": MODELS}, redirect(place))) as raw:
            told = [
                "sweep",
                "--target",
                raw.url,
                "--requests",
                4,
                "--warmup",
                0,
                "--concurrency",
                1,
            ]
            told += ["--prompt-tokens", 32, "--output-tokens", 4, "--no-calibrate"]
            told += ["--format", "json", "--out", tmp_path / "run"]
            return await asyncio.to_thread(run_llmbench, *told, env={"OPENAI_API_KEY": ""})

    done = asyncio.run(run())
    (cell,) = done.cells
    assert cell["requests"]["ok"] == 4, done
    assert any("requests go there at once" in note for note in cell["notes"])
    assert "localhost" in stored(tmp_path / "run")["targets"][0]["url"]


# ── servers that close connections ───────────────────────────────────────────────────────────────


async def test_a_connection_that_is_announced_to_close_is_counted() -> None:
    reply = TYPED + b"Connection: close\r\n\r\n" + BODY
    async with raw_server(answering(reply, then="close")) as raw, connected(raw.url) as client:
        traces = [await exchanged(client, index) for index in range(3)]
    assert [why(trace) for trace in traces] == ["", "closed", "closed"]
    for trace in traces:
        opened = trace.connect
        assert opened is not None
        assert opened.wait_ns >= opened.total_ns * bool(opened.reopened)


def test_how_long_streams_waited_for_connections_by_hand() -> None:
    """Requests of 100 ns with 50 ns between them, of which 30 went to a new connection; that of the
    first lies before the window."""
    base = trace_of(BODY, "text/event-stream")
    opened = Connect(tcp_ns=10, reopened="closed", wait_ns=30)
    traces = [replace(base, index=n, sent_ns=150 * n, end_ns=100, connect=opened) for n in range(4)]
    cell = summarize(Target(spec="", name="t"), facts(), requests_in(traces, "chat"))
    assert cell.opening == pytest.approx(3 * 30 / 550)
    assert cell.in_flight == pytest.approx(4 * 100 / 550)
    assert cell.reopened == {"closed": 4}


async def test_in_an_open_loop_it_is_opened_again_ahead_of_the_next_call() -> None:
    reply = TYPED + b"Connection: close\r\n\r\n" + BODY
    async with raw_server(answering(reply, then="close")) as raw:
        async with connected(raw.url, streams=()) as client:
            await client.prepare(0)
            for number in range(1, 4):
                good(trace := await exchanged(client, number))
                assert why(trace) == ("" if number == 1 else "closed")
                async with asyncio.timeout(PATIENCE_S):
                    while raw.connections <= number:
                        await asyncio.sleep(0.001)
        assert raw.connections == 4


async def test_what_the_server_never_received_is_sent_again_and_counted() -> None:
    """The server closes after its reply, and the client has no time to see that."""
    asked: list[int] = []

    async def answer(peer: Peer, number: int) -> None:
        await peer.request()
        asked.append(number)
        # what is in the socket's buffer is read by nobody any more
        peer.writer.transport.pause_reading()  # type: ignore[attr-defined]
        await peer.send(CHUNKED + chunk(BODY) + LAST)

    async with raw_server(answer) as raw, connected(raw.url) as client:
        traces = [await exchanged(client, index) for index in range(4)]
    for trace in traces:
        good(trace)
    assert asked == [1, 2, 3, 4]
    assert set(map(why, traces[1:])) <= {"resent", "closed"}


async def test_what_the_server_has_received_is_not_sent_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(wire, "RACE_NS", 0)
    asked: list[int] = []

    async def answer(peer: Peer, number: int) -> None:
        await peer.request()
        asked.append(number)
        await peer.send(CHUNKED + chunk(BODY) + LAST)
        await peer.request()
        asked.append(number)

    async with raw_server(answer) as raw, connected(raw.url) as client:
        good(await exchanged(client))
        assert failure(await exchanged(client, 1))[0] == "reset"
        good(await exchanged(client, 2))
        good(await exchanged(client, 3))
    assert asked == [1, 1, 2, 3]  # what it has done once it may do again: no connection is reused


async def test_a_close_right_after_the_reply_loses_no_request() -> None:
    """The next request may have arrived, and been acknowledged, before the server closes."""

    async def answer(peer: Peer, number: int) -> None:
        await peer.request()
        await peer.send(CHUNKED + chunk(BODY) + LAST)
        await peer.request()

    async with raw_server(answer) as raw, connected(raw.url) as client:
        traces = [await exchanged(client, index) for index in range(3)]
    for trace in traces:
        good(trace)
    assert why(traces[1]) == "resent"


def facts(concurrency: int = 1) -> CellFacts:
    load = Load(
        concurrency=concurrency,
        prompt_tokens=1,
        output_tokens=1,
        requests=20,
        duration_s=None,
        warmup=0,
    )
    return CellFacts(cell=0, target=0, client="wire", load=load)


@pytest.mark.parametrize(
    ("counted", "words"),
    [
        ({"closed": 19}, "closes after each reply"),
        ({"closed": 3}, "had closed the connection of 3 requests"),
        ({"unfinished": 7}, "leaves replies open after their end marker: over there, and 7"),
        ({"resent": 2}, "2 requests were sent again"),
    ],
)
def test_what_becomes_of_connections_is_noted(counted: dict[str, int], words: str) -> None:
    cell = bare_cell(requests=Counts(sent=20, ok=20), reopened=counted)
    judge(cell, facts())
    assert [words in note for note in cell.notes].count(True) == 1


@pytest.mark.parametrize(("opens", "valid"), [(0.25, True), (0.0, False), (None, False)])
def test_handshakes_are_not_the_loads_fault(opens: float | None, valid: bool) -> None:
    cell = bare_cell(requests=Counts(sent=20, ok=20), in_flight=0.74, opening=opens)
    judge(cell, facts())
    assert any("were in flight" in reason for reason in cell.reasons) is not valid


def test_reopened_connections_count_by_why() -> None:
    opened = [None, Connect(tcp_ns=1), Connect(reopened="closed"), Connect(reopened="resent")]
    base = trace_of(BODY, "text/event-stream")
    traces = [replace(base, index=n, connect=each) for n, each in enumerate(opened)]
    assert reopened(requests_in(traces, "chat")) == {"closed": 1, "resent": 1}
