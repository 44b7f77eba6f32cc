"""Servers that are already here: real sockets on free ports in place of the usual ones."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from types import SimpleNamespace

import pytest
from conftest import Peer, chunk, port_of, raw_server

from llmbench import cli
from llmbench.drive import discovery
from llmbench.drive.discovery import MOST_BYTES, Server, invitation, servers_here

LONG_S = 60.0
"""Patience that a busy machine does not wear out."""

MODELS = json.dumps({"object": "list", "data": [{"id": "m", "object": "model"}]}).encode()


def reply(body: bytes, status: str = "200 OK", *headers: str) -> bytes:
    head = "\r\n".join([f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers])
    return head.encode() + b"\r\n\r\n" + body


@asynccontextmanager
async def answering(*replies: bytes) -> AsyncIterator[tuple[list[int], list[str]]]:
    """A server for each of ``replies``: their ports, and the heads of what they were asked."""
    heads: list[str] = []
    async with AsyncExitStack() as stack:
        ports = []
        for said in replies:

            async def answer(peer: Peer, _: int, said: bytes = said) -> None:
                heads.append((await peer.reader.readuntil(b"\r\n\r\n")).decode())
                await peer.send(said)

            raw = await stack.enter_async_context(raw_server(answer))
            ports.append(port_of(raw.url))
        yield ports, heads


async def found(*replies: bytes) -> list[Server]:
    async with answering(*replies) as (ports, _):
        return await servers_here(dict.fromkeys(ports, "X"), LONG_S)


async def test_what_answers_is_found_in_the_order_of_the_ports() -> None:
    several = json.dumps({"data": [{"id": "a"}, {"no": "id"}, 7, {"id": 8}, {"id": "b"}]}).encode()
    chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    chunked += chunk(MODELS[:9]) + chunk(MODELS[9:]) + chunk(b"")
    async with answering(reply(MODELS), reply(b"no"), reply(several), chunked) as (ports, _):
        servers = await servers_here(dict(zip(ports, "ABCD", strict=True)), LONG_S)
    assert servers == [
        Server(f"http://localhost:{ports[0]}", "A", ["m"]),
        Server(f"http://localhost:{ports[2]}", "C", ["a", "b"]),
        Server(f"http://localhost:{ports[3]}", "D", ["m"]),
    ]


async def test_nothing_listens(dead_url: str) -> None:
    assert await servers_here({port_of(dead_url): "X"}, LONG_S) == []


@pytest.mark.parametrize(
    "said",
    [
        reply(b"<html>"),
        reply(b""),
        reply(b"[]"),
        reply(b"{}"),
        reply(b'{"data": null}'),
        reply(b'{"data": {}}'),
        reply(b'{"data": ["\xff"]}'),
        reply(b'{"data":' + b"[" * 100_000),
        reply(MODELS, "404 Not Found"),
        reply(MODELS, "401 Unauthorized"),
        reply(MODELS)[:-1],
        b"SSH-2.0-x\r\n",
        b"\x00" * 2000,
        b"",
    ],
)
async def test_what_lists_no_models_is_none(said: bytes) -> None:
    assert await found(said) == []


async def test_a_redirect_is_not_followed() -> None:
    async with answering(reply(MODELS)) as (elsewhere, asked):
        place = f"Location: http://127.0.0.1:{elsewhere[0]}/v1/models"
        assert await found(reply(MODELS, "302 Found", place)) == []
        assert asked == []


async def test_a_listing_may_be_empty() -> None:
    (server,) = await found(reply(b'{"data": []}'))
    assert server.models == []


async def test_a_long_listing_is_not_read() -> None:
    def listing(length: int) -> bytes:
        frame = len(b'{"data": [""]}')
        return b'{"data": ["%b"]}' % (b"x" * (length - frame))

    assert len(await found(reply(listing(MOST_BYTES)))) == 1
    assert await found(reply(listing(MOST_BYTES + 1))) == []


async def test_nobody_waits_for_a_slow_server() -> None:
    ended = asyncio.Event()

    async def drip(peer: Peer, _: int) -> None:
        with contextlib.suppress(ConnectionError):
            await peer.send(b"HTTP/1.1 200 OK\r\n\r\n")
            while not peer.reader.at_eof():
                await peer.send(b" ", pause_s=0.02)
        ended.set()

    async with raw_server(drip) as raw:
        assert await servers_here({port_of(raw.url): "X"}, 0.2) == []
        await asyncio.wait_for(ended.wait(), LONG_S)  # the connection was dropped


async def test_no_key_and_no_proxy(monkeypatch: pytest.MonkeyPatch, dead_url: str) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, dead_url)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-5ecret")
    async with answering(reply(MODELS)) as (ports, heads):
        assert len(await servers_here({ports[0]: "X"}, LONG_S)) == 1
    (head,) = heads
    assert head.startswith("GET /v1/models HTTP/1.1\r\n")
    assert f"Host: 127.0.0.1:{ports[0]}\r\n" in head
    assert "authorization" not in head.lower()
    assert "5ecret" not in head


# ---- the line


def server(port: int, usual: str, *models: str) -> Server:
    return Server(f"http://localhost:{port}", usual, list(models))


@pytest.mark.parametrize(
    ("servers", "line"),
    [
        (
            [server(8000, "vLLM", "o/m")],
            "a server answers at http://localhost:8000 (vLLM's usual port; model o/m): "
            "llmbench sweep --target http://localhost:8000",
        ),
        (
            [server(8080, "llama.cpp")],
            "a server answers at http://localhost:8080 (llama.cpp's usual port): "
            "llmbench sweep --target http://localhost:8080",
        ),
        (
            [server(8000, "vLLM", "m"), server(11434, "Ollama", "a:1b", "b")],
            "servers answer at http://localhost:8000 (vLLM's usual port; model m), "
            "http://localhost:11434 (Ollama's usual port; model a:1b and 1 more): "
            "llmbench sweep --target http://localhost:8000 "
            "--target 'http://localhost:11434?model=a:1b'",
        ),
        (
            [server(1, "X", "'; rm -rf ~ #\x1b[31m\n", "b", "c")],
            "a server answers at http://localhost:1 (X's usual port; model '; rm -rf ~ #?[31m? "
            "and 2 more): llmbench sweep --target 'http://localhost:1?model=b'",
        ),
        (
            [server(1, "X", "x" * 500, "y&z")],
            f"a server answers at http://localhost:1 (X's usual port; model {'x' * 60}… and 1 "
            "more): llmbench sweep --target 'http://localhost:1?model=MODEL'",
        ),
    ],
)
def test_the_line(servers: Sequence[Server], line: str) -> None:
    assert invitation(servers) == line


# ---- when it is said


@pytest.fixture
def one_is_here(monkeypatch: pytest.MonkeyPatch) -> None:
    async def servers_here() -> list[Server]:
        return [server(8000, "vLLM")]

    monkeypatch.setattr(discovery, "servers_here", servers_here)


@pytest.mark.usefixtures("one_is_here")
@pytest.mark.parametrize(
    ("style", "its"), [("table", "out"), ("markdown", "out"), ("csv", "err"), ("json", "err")]
)
def test_it_is_said_apart_from_what_machines_read(
    capsys: pytest.CaptureFixture[str], style: str, its: str
) -> None:
    cli._say_what_is_here(style)
    said = capsys.readouterr()
    line = f"{invitation([server(8000, 'vLLM')])}\n"
    assert (said.out, said.err) == ((line, "") if its == "out" else ("", line))


@pytest.mark.parametrize(
    ("flags", "interrupted", "looked"),
    [([], False, True), ([], True, False), (["--target", "h:1"], False, False)],
)
def test_only_a_sweep_without_a_target_looks(
    monkeypatch: pytest.MonkeyPatch, flags: list[str], interrupted: bool, looked: bool
) -> None:
    styles: list[str] = []
    run = SimpleNamespace(interrupted=interrupted, cells=[])
    monkeypatch.setattr(cli, "_measure", lambda _: run)
    monkeypatch.setattr(cli, "_say_what_is_here", styles.append)
    assert cli.main(["sweep", *flags]) == (cli.INTERRUPTED if interrupted else cli.NOTHING_MEASURED)
    assert styles == (["table"] if looked else [])


def test_nothing_is_said_where_nothing_is_found(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def servers_here() -> list[Server]:
        return []

    monkeypatch.setattr(discovery, "servers_here", servers_here)
    cli._say_what_is_here("table")
    assert capsys.readouterr() == ("", "")
