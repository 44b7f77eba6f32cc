"""Replies that do not end, for every client and for what is asked before and after the load; and
more streams than a process may open files."""

import json
import re
import resource
import socketserver
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from conftest import Llmbench, Peer, chunk, content, finish, raw_server, sse
from test_clients import CLIENTS, Truth, connected, each_client, figures, once
from test_clients import call as a_call
from test_wire import well_formed

from llmbench.config import load_sweep
from llmbench.drive.endpoint import endpoint
from llmbench.drive.limits import KEPT_BYTES, Limits
from llmbench.drive.open_files import check_open_files
from llmbench.drive.scrape import scrape
from llmbench.errors import UserError
from llmbench.records import Target
from llmbench.store import read_traces

START = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
CHUNKED = START + b"Transfer-Encoding: chunked\r\n\r\n"
EVENT = sse(content(" word"))
MIB = 1 << 20


def flooding(head: bytes, piece: bytes) -> Callable[[Peer, int], Awaitable[None]]:
    """Answer with ``head`` and then with ``piece`` again and again."""

    async def answer(peer: Peer, _: int) -> None:
        await peer.request()
        peer.writer.write(head)
        while True:
            peer.writer.write(piece)
            await peer.writer.drain()

    return answer


FLOODS = {
    "events": (CHUNKED, chunk(EVENT) * 200),
    "events until it closes": (START + b"\r\n", EVENT * 200),
    "no event": (CHUNKED, chunk(b"data: " + b"x" * 65_000)),
    "one line": (CHUNKED + chunk(b"data: "), chunk(b"x" * 65_000)),
    "a length that is a lie": (START + b"Content-Length: 99999999999\r\n\r\n", EVENT * 200),
    "tiny chunks": (CHUNKED, chunk(b":\n") * 10_000),
    "no JSON": (CHUNKED, chunk(b"data: never\n\n" * 1_000)),
    "an error page": (CHUNKED.replace(b"200 OK", b"500 No"), chunk(b"<p>" * 20_000)),
}


BEYOND_THE_SDK = {"tiny chunks", "no JSON"}
"""It is too slow for the one, and gives up at once with the other."""


@pytest.mark.parametrize(
    ("name", "case"),
    [
        (name, case)
        for name in CLIENTS
        for case in FLOODS
        if not (name == "openai" and case in BEYOND_THE_SDK)
    ],
)
async def test_a_reply_that_does_not_end_is_too_large(name: str, case: str) -> None:
    async with raw_server(flooding(*FLOODS[case])) as raw:
        trace = await once(name, raw.url, reply_bytes=2 * MIB)
    well_formed(trace)
    assert (trace.error, trace.detail) == (
        "too-large",
        "more than 2 MiB; --max-reply-bytes raises the limit",
    )
    assert len(trace.body) <= KEPT_BYTES
    if name != "openai" and case != "tiny chunks":
        assert len(trace.body) >= KEPT_BYTES * 9 // 10
    seen = figures(trace).timeline
    assert (seen.failure, seen.detail) == (trace.error, trace.detail)


@each_client
async def test_the_reads_of_a_reply_have_a_limit_too(name: str) -> None:
    """Each takes memory, however little it brings."""
    small = chunk(b'data: {"choices": []}\n\n')
    assert len(small) < 128

    async def answer(peer: Peer, _: int) -> None:
        await peer.request()
        await peer.send(CHUNKED)
        while True:
            await peer.send(small, pause_s=0.002)

    async with raw_server(answer) as raw:
        trace = await once(name, raw.url, reply_bytes=40 * 128)
    well_formed(trace)
    assert (trace.error, trace.detail) == (
        "too-large",
        "more than 40 reads; --max-reply-bytes raises the limit",
    )
    assert trace.body.startswith(b"data: {")


@pytest.mark.parametrize("name", ["wire", "aiohttp"])
async def test_a_read_of_one_byte_counts(name: str) -> None:
    async def answer(peer: Peer, _: int) -> None:
        await peer.request()
        await peer.send(START + b"\r\n")
        while True:
            await peer.send(b":", pause_s=0.001)

    async with raw_server(answer) as raw:
        trace = await once(name, raw.url, reply_bytes=50 * 128)
    well_formed(trace)
    assert (trace.error, trace.detail) == (
        "too-large",
        "more than 50 reads; --max-reply-bytes raises the limit",
    )
    assert set(trace.body) == set(b":")
    assert len(trace.body) >= 40


@each_client
async def test_a_reply_as_large_as_may_be_is_whole(name: str) -> None:
    body = sse(*[content(f" {number:06}") for number in range(3000)], finish(), "[DONE]")
    whole = START + b"Content-Length: %d\r\nConnection: close\r\n\r\n" % len(body) + body

    async def answer(peer: Peer, _: int) -> None:
        await peer.request()
        await peer.send(whole)

    async with raw_server(answer) as raw:
        trace = await once(name, raw.url, reply_bytes=max(len(whole), 3001 * 128))
        assert trace.error == "", trace.detail
        assert figures(trace).metrics.tokens == 3000
        short = await once(name, raw.url, reply_bytes=len(body) - 1)
    assert short.error == "too-large"
    assert body.startswith(short.body) or name == "openai"


@each_client
@pytest.mark.parametrize("head", [START + b"X-Long: ", START], ids=["one", "many"])
async def test_headers_that_do_not_end(name: str, head: bytes) -> None:
    piece = b"x" * 65_536 if head.endswith(b": ") else b"X-Header: value\r\n" * 4_000
    async with raw_server(flooding(head, piece)) as raw:
        trace = await once(name, raw.url)
    well_formed(trace)
    assert trace.error in ("protocol", "reset"), trace.detail
    assert trace.body == b""


async def test_a_connection_that_was_too_much_is_not_used_again() -> None:
    async def answer(peer: Peer, number: int) -> None:
        if number == 1:
            await flooding(CHUNKED, chunk(EVENT * 100))(peer, number)
        await peer.request()
        await peer.send(CHUNKED + chunk(sse(content("a"), finish())) + b"0\r\n\r\n")

    async with (
        raw_server(answer) as raw,
        connected("wire", raw.url, reply_bytes=MIB) as client,
    ):
        first = await client.exchange(a_call(0))
        second = await client.exchange(a_call(1))
        assert raw.connections == 2
    assert (first.error, second.error) == ("too-large", "")


# ── what is asked before and after the load ──────────────────────────────────────────────────────


async def test_metrics_that_do_not_end_say_nothing() -> None:
    async def answer(peer: Peer, _: int) -> None:
        await peer.reader.readuntil(b"\r\n\r\n")
        while True:
            peer.writer.write(CHUNKED + chunk(b"# HELP x y\n" * 6_000))
            await peer.writer.drain()

    async with raw_server(answer) as raw:
        assert await scrape(endpoint(Target(spec="", name="t", url=f"{raw.url}/v1"))) == ""


class Flood(socketserver.ThreadingTCPServer):
    """An HTTP server for llmbench in another process, whose replies to ``floods`` do not end: to
    ``models``, to all ``posts``, or to those of ``long`` replies only."""

    daemon_threads = allow_reuse_address = True

    def __init__(self, floods: str) -> None:
        self.floods = floods
        self.answered = 0
        super().__init__(("127.0.0.1", 0), _Flooding)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Flooding(socketserver.StreamRequestHandler):
    server: Flood

    def handle(self) -> None:
        head = b""
        while line := self.rfile.readline().lower():
            head += line
            if line == b"\r\n":
                length = re.search(rb"content-length: (\d+)", head)
                body = self.rfile.read(int(length[1])) if length else b""
                self.answer(head, json.loads(body or b"{}"))
                head = b""

    def answer(self, head: bytes, asked: dict[str, Any]) -> None:
        self.server.answered += 1
        tokens = asked.get("max_tokens", 0)
        kind = "models" if b"/models" in head else "posts"
        floods = self.server.floods
        if not asked and kind != "models":
            self.wfile.write(b"HTTP/1.1 404 No\r\nContent-Length: 0\r\n\r\n")
        elif floods == kind or (floods == "long" and tokens > 1):
            try:
                self.wfile.write(CHUNKED)
                while True:
                    self.wfile.write(chunk(EVENT * 300))
            except ConnectionError:
                return
        else:
            body = sse(*[content(" a")] * tokens, finish(16, tokens), "[DONE]")
            if kind == "models":
                body = json.dumps({"data": [{"id": "raw"}]}).encode()
            self.wfile.write(START + b"Content-Length: %d\r\n\r\n" % len(body) + body)


@contextmanager
def flood(floods: str) -> Iterator[Flood]:
    with Flood(floods) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield server
        server.shutdown()


@pytest.mark.parametrize(
    ("floods", "said"),
    [
        ("models", "/v1/models does not end; name the model with --model"),
        ("posts", "/v1/chat/completions: the reply is more than 1 MiB; --max-reply-bytes raises"),
    ],
)
def test_a_probe_that_does_not_end_is_one_line(
    run_llmbench: Llmbench, floods: str, said: str
) -> None:
    with flood(floods) as server:
        done = run_llmbench("sweep", "--target", server.url, "--max-reply-bytes", MIB)
    assert done.code == 3
    (line,) = done.problems
    assert said in line


PEAK = """
import pathlib, re, sys
from llmbench.cli import main
code = main(sys.argv[1:])
peak = re.search(r"VmHWM:\\s+(\\d+) kB", pathlib.Path("/proc/self/status").read_text())
print(code, int(peak[1]) // 1024)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("client", CLIENTS)
def test_a_flood_takes_neither_memory_nor_disk(tmp_path: Path, client: str) -> None:
    """Ten replies of 64 MiB and more, one after the other: then the cell ends."""
    run_dir = tmp_path / "run"
    load = ["--concurrency", "1", "--prompt-tokens", "16", "--no-calibrate"]
    if client == "openai":  # the SDK takes minutes to parse as much
        load += ["--max-reply-bytes", str(MIB)]
    with flood("long") as server:
        sweep = ["sweep", "--target", server.url, "--client", client, "--out", str(run_dir), *load]
        ran = subprocess.run(
            [sys.executable, "-c", PEAK, *sweep],
            check=False,
            capture_output=True,
            text=True,
            timeout=150,
        )
    code, peak_mib = map(int, ran.stdout.splitlines()[-1].split())
    assert code == 3, ran.stderr
    assert peak_mib < 350
    traces = list(read_traces(run_dir / "requests.jsonl"))
    assert [trace.error for trace in traces] == ["too-large"] * 10
    assert sum(path.stat().st_size for path in run_dir.rglob("*")) < 10 * MIB
    assert "too-large: more than" in ran.stderr


# ── open files ───────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            {"concurrency": [1, 4000]},
            "--concurrency 4000: this process may open 1,024 files, one a stream; raise it "
            "(ulimit -n 8192) or use --workers 5",
        ),
        ({"concurrency": [960]}, ""),
        ({"concurrency": [961]}, "--workers 2"),
        ({"concurrency": [4000], "workers": 5}, ""),
        (
            {"concurrency": [4000], "workers": 4},
            "--concurrency 4000: each of 4 workers may open 1,024 files, one a stream; raise it "
            "(ulimit -n 4096) or use --workers 5",
        ),
        ({"request_rate": [5], "max_concurrency": 2000}, "--max-concurrency 2000: this process"),
        ({"request_rate": [5]}, ""),
        ({"batch_size": [2000], "target": ["llamacpp:"]}, ""),
    ],
)
def test_streams_need_open_files(
    monkeypatch: pytest.MonkeyPatch, given: dict[str, Any], said: str
) -> None:
    monkeypatch.setattr("llmbench.drive.open_files.raise_file_limit", lambda: 1024)
    sweep = load_sweep({"target": ["http://llm.test"]} | given)
    if not said:
        check_open_files(sweep)
        return
    with pytest.raises(UserError) as caught:
        check_open_files(sweep)
    assert said in str(caught.value)


def test_more_streams_than_open_files_is_one_line_before_anything_is_sent(
    truth: Truth, run_llmbench: Llmbench
) -> None:
    """The hard limit counts: the soft one is raised."""
    server = truth()

    def run(*limits: int) -> subprocess.CompletedProcess[str]:
        load = ("--concurrency", "200", "--requests", "200", "--no-calibrate", "--format", "json")
        return subprocess.run(
            [sys.executable, "-m", "llmbench", "sweep", "--target", server.url, *load],
            check=False,
            capture_output=True,
            text=True,
            cwd=run_llmbench.folder,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, limits),
        )

    few = run(128, 256)
    assert (few.returncode, few.stdout) == (2, "")
    assert few.stderr == (
        "llmbench: --concurrency 200: this process may open 256 files, one a stream; raise it "
        "(ulimit -n 1024) or use --workers 2\n"
    )
    assert list(run_llmbench.folder.iterdir()) == []
    assert server.log() == []
    enough = run(128, 512)
    assert enough.returncode in (0, 4), enough.stderr
    assert json.loads(enough.stdout)["cells"][0]["requests"]["ok"] == 200


def test_limits_are_said_in_the_largest_unit() -> None:
    for size, said in ((64 * MIB, "64 MiB"), (1024, "1 KiB"), (1025, "1,025 bytes")):
        assert Limits(1.0, reply_bytes=size).exceeded(size, 0) == ""
        assert said in Limits(1.0, reply_bytes=size).exceeded(size + 1, 0)
