"""What the tests share: truth servers, raw servers, llmbench as a process, and what it stored."""

import asyncio
import contextlib
import json
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import pytest
import trustme
from hypothesis import HealthCheck, settings

from llmbench.cli import main
from llmbench.records import Cell, Counts, Trace
from llmbench.store import RunDirectory
from llmbench.truth.process import TruthServer
from llmbench.truth.script import Script

ROOT = Path(__file__).parents[1]
QUICK = {"ttft_ms": 3.0, "itl_ms": 1.0, "output_tokens": 5}
TOKENS = [" The", " ruler", " knows", " its", " own"]

CHUNK = {"id": "1", "object": "chat.completion.chunk", "created": 0, "model": "raw"}

MS = 1_000_000

PATIENCE_S = 120.0
"""What has not happened by then never will, however slow and busy the machine."""

WORKERS_A_CORE = 2

settings.register_profile(
    "any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("any machine")


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Return how many processes run the tests; one file, or a test of it, needs no other."""
    named = [arg for arg in config.args if ".py" in arg]
    return 0 if len(named) == 1 else WORKERS_A_CORE * (os.cpu_count() or 1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what starts llmbench as a process."""
    for item in items:
        if "run_llmbench" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No proxy and no key of the machine's own; llmbench is this checkout."""
    for name in os.environ:
        if name.lower().endswith("_proxy") or name.startswith("OPENAI_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


# ── truth servers ────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="session")
def _truths() -> Iterator[dict[Any, TruthServer]]:
    """The truth servers that run, by what they were told: to start one takes a while."""
    running: dict[Any, TruthServer] = {}
    yield running
    for server in running.values():
        server.stop()


@pytest.fixture
def truth(_truths: dict[Any, TruthServer]) -> Callable[..., TruthServer]:
    """Start a truth server, quick but for the fields of its script that are given.

    Its log is empty; its connections have been counted since it was started.
    """
    taken: list[TruthServer] = []

    def begin(tls: tuple[str, str] | None = None, port: int = 0, **fields: Any) -> TruthServer:
        key = Script(**(QUICK | fields)), tls, port
        server = _truths.get(key)
        if server is None or server in taken or not alive(server):
            if server is not None:
                server.stop()
            server = _truths[key] = TruthServer(key[0], tls=tls, port=port).__enter__()
        else:
            server.reset()
        taken.append(server)
        return server

    return begin


def alive(server: TruthServer) -> bool:
    try:
        server.reset()
    except OSError:
        return False
    return True


class Certificates(NamedTuple):
    """An authority, and what it vouches for: (certificate, key) files by host name."""

    ca_file: str
    for_host: Callable[[str], tuple[str, str]]


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    folder = tmp_path_factory.mktemp("tls")
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(folder / "ca.pem"))

    def for_host(name: str) -> tuple[str, str]:
        chain, key = str(folder / f"{name}.pem"), str(folder / f"{name}.key")
        made = authority.issue_cert(name)
        made.cert_chain_pems[0].write_to_path(chain)
        made.private_key_pem.write_to_path(key)
        return chain, key

    return Certificates(str(folder / "ca.pem"), for_host)


# ── raw servers, for what the truth server does not do ───────────────────────────────────────────


class Peer:
    """One accepted connection of an asyncio raw server."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def request(self) -> tuple[str, bytes]:
        """The head and the body of the next request; raises ``IncompleteReadError`` at the end."""
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        (length,) = [
            int(line.partition(":")[2])
            for line in head.split("\r\n")
            if line.lower().startswith("content-length:")
        ]
        return head, await self.reader.readexactly(length)

    async def send(self, *pieces: bytes, pause_s: float = 0.0005) -> None:
        """Send each piece so that a reader in this loop gets it by itself."""
        for piece in pieces:
            self.writer.write(piece)
            await self.writer.drain()
            await asyncio.sleep(pause_s)

    def reset(self) -> None:
        """Drop the connection by RST."""
        sock = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()


class RawServer:
    """Answers each connection by ``answer(peer, number)``; numbers count from 1."""

    def __init__(self, answer: Callable[[Peer, int], Awaitable[None]]) -> None:
        self._answer = answer
        self.connections = 0
        self.problems: list[Exception] = []
        self.url = ""
        self._writers: list[asyncio.StreamWriter] = []

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._writers.append(writer)
        try:
            await self._answer(Peer(reader, writer), self.connections)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        except Exception as problem:
            self.problems.append(problem)
        finally:
            writer.close()
            self._writers.remove(writer)

    async def stop(self) -> None:
        """Drop the connections, and see their handlers to the end."""
        for writer in self._writers:
            writer.transport.abort()
        async with asyncio.timeout(PATIENCE_S):
            while self._writers:
                await asyncio.sleep(0.005)


@asynccontextmanager
async def raw_server(
    answer: Callable[[Peer, int], Awaitable[None]], tls: Any = None
) -> AsyncIterator[RawServer]:
    """A raw server in this event loop; what goes wrong in ``answer`` fails the test."""
    raw = RawServer(answer)
    server = await asyncio.start_server(raw._serve, "127.0.0.1", 0, limit=1 << 24, ssl=tls)
    port = server.sockets[0].getsockname()[1]
    raw.url = f"{'https' if tls else 'http'}://{'localhost' if tls else '127.0.0.1'}:{port}"
    try:
        yield raw
    finally:
        server.close()
        await raw.stop()
    assert raw.problems == []


def chunk(data: bytes) -> bytes:
    """``data`` in the chunked coding."""
    return b"%x\r\n%b\r\n" % (len(data), data)


def sse(*events: dict[str, Any] | str) -> bytes:
    """An event stream."""
    texts = [each if isinstance(each, str) else json.dumps(each) for each in events]
    return b"".join(f"data: {text}\n\n".encode() for text in texts)


def content(text: str) -> dict[str, Any]:
    """A chat chunk that carries ``text``."""
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": None}
    return CHUNK | {"choices": [choice]}


def finish(prompt_tokens: int = 0, completion_tokens: int = 0) -> dict[str, Any]:
    """The chat chunk that ends a reply, with usage where tokens are given."""
    choice = {"index": 0, "delta": {}, "finish_reason": "length"}
    usage = {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens}
    usage["total_tokens"] = prompt_tokens + completion_tokens
    return CHUNK | {"choices": [choice]} | ({"usage": usage} if prompt_tokens else {})


class Asked(NamedTuple):
    """A request to a threaded server: its number from 0, its headers in lower case, its JSON."""

    number: int
    path: str
    headers: dict[str, str]
    document: dict[str, Any]

    @property
    def prompt(self) -> str:
        text: str = self.document["messages"][0]["content"]
        return text

    def good(self) -> bytes:
        """A reply of as many tokens as were asked for, with words counted as tokens."""
        tokens = self.document["max_tokens"]
        texts = [content(f" w{number}") for number in range(tokens)]
        return sse(*texts, finish(len(self.prompt.split()) + 5, tokens), "[DONE]")


Answer = tuple[int, str, bytes]
"""Status, content type, body."""


class ThreadedServer:
    """An HTTP server for llmbench in another process. ``answer`` decides on each POST."""

    def __init__(self, answer: Callable[[Asked], Answer]) -> None:
        self.asked: list[Asked] = []
        lock = threading.Lock()
        asked = self.asked

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def do_GET(self) -> None:
                models = {"object": "list", "data": [{"id": "raw", "object": "model"}]}
                self._reply(200, "application/json", json.dumps(models).encode())

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    headers = {name.lower(): value for name, value in self.headers.items()}
                    one = Asked(len(asked), self.path, headers, body)
                    asked.append(one)
                self._reply(*answer(one))

            def _reply(self, status: int, kind: str, body: bytes) -> None:
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                """Nothing on stderr."""

        self.problems: list[BaseException | None] = []
        problems = self.problems

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_: Any) -> None:
                if not isinstance(problem := sys.exception(), ConnectionError):
                    problems.append(problem)

        self._server = Server(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.02,), daemon=True
        )
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5)


@pytest.fixture
def threaded() -> Iterator[Callable[[Callable[[Asked], Answer]], ThreadedServer]]:
    """Start an HTTP server from a function that answers each POST."""
    started: list[ThreadedServer] = []

    def begin(answer: Callable[[Asked], Answer]) -> ThreadedServer:
        started.append(ThreadedServer(answer))
        return started[-1]

    yield begin
    for server in started:
        server.stop()
        assert server.problems == []


@pytest.fixture
def dead_url() -> Iterator[str]:
    """A URL whose port nobody listens on, and nobody else can take."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{sock.getsockname()[1]}"


def port_of(url: str) -> int:
    port = urlsplit(url).port
    assert port is not None
    return port


# ── llmbench as a process ────────────────────────────────────────────────────────────────────────


class Done(NamedTuple):
    """How a run of llmbench went."""

    code: int
    out: str
    err: str

    @property
    def cells(self) -> list[dict[str, Any]]:
        """The cells of ``--format json``."""
        cells: list[dict[str, Any]] = json.loads(self.out)["cells"]
        return cells

    @property
    def problems(self) -> list[str]:
        """What stderr says beside where the evidence is."""
        return [line for line in self.err.splitlines() if not line.startswith("evidence: ")]


class Llmbench:
    """Runs ``python -m llmbench`` in a folder of its own. A traceback on stderr is a bug."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.running: list[subprocess.Popen[str]] = []

    def __call__(
        self,
        *args: object,
        env: dict[str, str] | None = None,
        stdin: str | None = None,
        timeout_s: float = PATIENCE_S,
    ) -> Done:
        return self.end(self.start(*args, env=env), stdin=stdin, timeout_s=timeout_s)

    def start(self, *args: object, env: dict[str, str] | None = None) -> "subprocess.Popen[str]":
        process = subprocess.Popen(
            [sys.executable, "-m", "llmbench", *map(str, args)],
            cwd=self.folder,
            env=dict(os.environ) | (env or {}),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,  # so that a test can do to it and its children as Ctrl-C does
            # a shell's background job would have it ignored
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # noqa: PLW1509
        )
        self.running.append(process)
        return process

    def end(
        self,
        process: "subprocess.Popen[str]",
        stdin: str | None = None,
        timeout_s: float = PATIENCE_S,
    ) -> Done:
        out, err = process.communicate(stdin, timeout_s)
        self.running.remove(process)
        assert "Traceback" not in err, err
        assert "Exception ignored" not in err, err
        assert "never retrieved" not in err, err
        return Done(process.returncode, out, err)

    def stop(self) -> None:
        for process in self.running:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate()


@pytest.fixture
def run_llmbench(tmp_path: Path) -> Iterator[Llmbench]:
    """``run_llmbench(*args, env=…, stdin=…)`` → (code, out, err); ``start`` and ``end`` apart."""
    llmbench = Llmbench(tmp_path)
    yield llmbench
    llmbench.stop()


InProcess = Callable[..., Done]


@pytest.fixture
def in_process(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> InProcess:
    """The command line without a process of its own, for what runs no sweep: ten times as fast."""

    def run(*args: object) -> Done:
        capsys.readouterr()
        try:
            with contextlib.chdir(tmp_path):
                code = main([str(arg) for arg in args])
        except SystemExit as left:
            code = int(left.code or 0)
        return Done(code, *capsys.readouterr())

    return run


def until(true: Callable[[], object]) -> None:
    """Return when it is ``true``."""
    stop_s = time.monotonic() + PATIENCE_S
    while not true():
        assert time.monotonic() < stop_s, "it did not happen"
        time.sleep(0.01)


def measured(server: TruthServer) -> int:
    """How many requests other than probes have been answered in full."""
    return sum(
        reply.request_id.startswith("llmbench-") and reply.ended == "complete"
        for reply in server.log()
    )


# ── what a run stored ────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """Where a run goes; not there yet."""
    return tmp_path / "run"


@pytest.fixture
def sample(tmp_path: Path) -> Callable[[str], Path]:
    """A copy of a run of ``results/``: a report stores what it works out again."""

    def copied(name: str) -> Path:
        return Path(shutil.copytree(ROOT / "results" / name, tmp_path / name, dirs_exist_ok=True))

    return copied


def stored(run_dir: Path, name: str = "run.json") -> Any:
    return json.loads((run_dir / name).read_text())


def quiet(done: Done, run_dir: Path) -> Done:
    """Nothing on stderr but where the evidence is."""
    assert done.err == f"evidence: {run_dir}\n"
    return done


LATE = ("client saturated: ", "machine busy: ", "the client sent late: ")
IDLE = " requests were in flight on average, not "


def valid(done: Done, run_dir: Path) -> Done:
    """Nothing is wrong with the run, unless the machine was too busy to measure on. That it says so
    is not believed: its client's own stamps have to show it."""
    cells = stored(run_dir, "summary.json")["cells"]
    reasons = [reason for cell in cells for reason in cell["reasons"]]
    idle = [each for each in reasons if IDLE in each]
    late = [each for each in reasons if each.startswith(LATE)]
    doubted = [name for cell in cells for name in cell.get("untimed", ())]
    traces = list(RunDirectory.open(run_dir).traces())
    assert len(idle + late) == len(reasons), reasons
    assert not idle or idle_share(traces) > 0.01, idle
    assert not (late or doubted) or any(map(too_late, traces)), late + doubted
    assert done.code == (4 if reasons else 0), done.out + done.err
    return quiet(done, run_dir)


def too_late(trace: Trace) -> bool:
    """Whether the client was later with this request than docs/metrics.md lets it be."""
    reads = trace.reads
    sent_late_ns = 0 if trace.due_ns is None else trace.sent_ns - trace.due_ns - trace.queued_ns
    if not reads.at_ns:
        return False
    first_ns, lag_ns = reads.at_ns[0], max(reads.lag_ns)
    return (
        trace.send_ns + max(sent_late_ns, 0) > max(0.5 * MS, 0.05 * first_ns)
        or (lag_ns > 2 * MS and max(reads.slack_ns) > 0.5 * MS)
        or reads.lag_ns[-1] > max(1 * MS, 0.02 * reads.at_ns[-1])
        or lag_ns > 5 * MS
    )


def was_busy(run_dir: Path) -> bool:
    """Whether the client of a run was ever too late."""
    return any(map(too_late, RunDirectory.open(run_dir).traces()))


def idle_share(traces: Sequence[Trace]) -> float:
    """The share of their time in which the streams of a run had no request under way, of the cell
    that had most of it."""
    return max(
        _idle_share([trace for trace in traces if trace.cell == cell])
        for cell in {trace.cell for trace in traces}
    )


def _idle_share(traces: Sequence[Trace]) -> float:
    measured = [trace for trace in traces if trace.phase == "measured"]
    first_ns = min(trace.sent_ns for trace in measured)
    last_ns = max(trace.sent_ns + trace.end_ns for trace in measured)
    streams = len({trace.stream for trace in traces})
    return 1 - busy_ns(traces, first_ns, last_ns) / (streams * (last_ns - first_ns))


def busy_ns(traces: Sequence[Trace], first_ns: int, last_ns: int) -> int:
    """How long the requests were under way between two times, summed up."""
    return sum(
        max(min(trace.sent_ns + trace.end_ns, last_ns) - max(trace.sent_ns, first_ns), 0)
        for trace in traces
    )


def bare_cell(**known: Any) -> Cell:
    """A row of a closed loop with one request in flight, and what is ``known`` beside that."""
    plain: dict[str, Any] = {
        "target": "t",
        "engine": None,
        "model": None,
        "quantization": None,
        "api": "chat",
        "client": "wire",
        "concurrency": 1,
        "request_rate": None,
        "prompt_tokens": 1,
        "output_tokens": 1,
        "requests": Counts(sent=1, ok=1),
    }
    return Cell(**(plain | known))


def peak(intervals: Sequence[tuple[int, int]]) -> int:
    """How many of ``intervals`` overlap at most; one that begins as another ends does not."""
    edges = sorted([(end, -1) for _, end in intervals] + [(start, 1) for start, _ in intervals])
    highest = now = 0
    for _, step in edges:
        now += step
        highest = max(highest, now)
    return highest
