"""One cell: the load is full and no fuller, and what counts is what was sent under it."""

import asyncio
import json
import time
from array import array
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from conftest import (
    PATIENCE_S,
    Answer,
    Asked,
    Llmbench,
    ThreadedServer,
    content,
    finish,
    idle_share,
    peak,
    sse,
)

from llmbench.apis import APIS
from llmbench.apis.dialect import DIALECTS
from llmbench.drive import closed_loop
from llmbench.drive.board import FAILURES_IN_A_ROW
from llmbench.drive.client import Client
from llmbench.drive.clock import Clock
from llmbench.drive.closed_loop import ClosedLoop
from llmbench.drive.job import Job
from llmbench.drive.spool import Spool
from llmbench.plan.scale import Scale
from llmbench.records import Call, CellFacts, Load, Phase, Reads, Target, Trace, no_reads
from llmbench.truth.log import Reply
from llmbench.truth.process import TruthServer

MS = 1_000_000
Truth = Callable[..., TruthServer]
CHAT = APIS["chat"]


@pytest.fixture(autouse=True)
def _short_ramp(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(closed_loop, "RAMP_S", 0.2)


class Ran:
    """A cell that has run, or runs."""

    def __init__(self, running: ClosedLoop, spool: Spool, clock: Clock) -> None:
        self.running = running
        self.clock = clock
        self._spool = spool

    @property
    def traces(self) -> list[Trace]:
        return list(self._spool)

    def of(self, phase: Phase) -> list[Trace]:
        return [trace for trace in self.traces if trace.phase == phase]


@asynccontextmanager
async def cell(
    url: str,
    folder: Path,
    *,
    concurrency: int = 4,
    requests: int = 12,
    duration_s: float | None = None,
    warmup: int | None = None,
    tokens: int = 5,
    client: Client | None = None,
) -> AsyncIterator[Ran]:
    """A cell, set up; the block runs it by ``run``."""
    load = Load(
        concurrency=concurrency,
        prompt_tokens=1,
        output_tokens=tokens,
        requests=requests,
        duration_s=duration_s,
        warmup=concurrency if warmup is None else warmup,
    )

    clock = Clock(0)
    job = Job(
        facts=CellFacts(cell=0, target=0, client="wire", load=load),
        target=Target(spec=url, name="t", url=f"{url}/v1", model="truth"),
        dialect=DIALECTS[0],
        scale=Scale(),
        salt="s",
        timeout_s=PATIENCE_S,
    )
    own = client or job.client(clock)
    spool = job.spool(folder)
    ran = Ran(ClosedLoop(load, own, job, spool), spool, clock)
    try:
        await own.open()
        yield ran
    finally:
        await own.close()
        spool.close()
        clock.close()


async def run(ran: Ran) -> Ran:
    await ran.running.run(ran.clock)
    return ran


def served(log: list[Reply]) -> list[tuple[int, int]]:
    """From when to when each reply was in the server's hands: to its last send, by its own log."""
    return [(reply.received_ns, reply.sent_ns[-1]) for reply in log if reply.sent_ns]


@pytest.mark.parametrize("concurrency", [1, 4, 20])
async def test_the_load_is_full_and_no_fuller(
    truth: Truth, tmp_path: Path, concurrency: int
) -> None:
    server = truth(ttft_ms=40, itl_ms=5, jitter_ms=5)
    async with cell(
        server.url, tmp_path, concurrency=concurrency, requests=5 + 4 * concurrency
    ) as ran:
        await run(ran)
        traces = ran.traces
    log = server.log()
    assert peak(served(log)) == concurrency
    assert len({reply.connection for reply in log}) == concurrency
    assert 0 <= idle_share(traces) < 1


class Held(Client):
    """A client whose replies take as many turns of the event loop as their request's number says,
    and what was in flight with each measured request."""

    def __init__(self) -> None:
        self.now = 0
        self.seen: list[int] = []

    async def exchange(self, call: Call) -> Trace:
        self.now += 1
        if call.phase == "measured":
            self.seen.append(self.now)
        for _ in range(20 + call.index * 7 % 11):
            await asyncio.sleep(0)
        self.now -= 1
        return trace_of(call, sent_ns=0)


@pytest.mark.parametrize("concurrency", [1, 4, 20])
async def test_whenever_a_measured_request_is_sent_the_others_are_under_way(
    tmp_path: Path, concurrency: int
) -> None:
    client = Held()
    async with cell(
        "http://h", tmp_path, concurrency=concurrency, requests=5 * concurrency, client=client
    ) as ran:
        await run(ran)
    assert client.seen == [concurrency] * 5 * concurrency


@pytest.mark.parametrize(("concurrency", "requests"), [(1, 5), (4, 1), (4, 4), (4, 13), (3, 30)])
async def test_exactly_the_asked_number_is_measured(
    truth: Truth, tmp_path: Path, concurrency: int, requests: int
) -> None:
    server = truth(ttft_ms=15, itl_ms=2)
    async with cell(server.url, tmp_path, concurrency=concurrency, requests=requests) as ran:
        await run(ran)
        measured, warm, cool = ran.of("measured"), ran.of("warmup"), ran.of("cooldown")
        everything = ran.traces
    assert len(measured) == requests
    assert {trace.error for trace in measured} == {""}
    assert {trace.status for trace in measured} == {200}
    assert len(warm) >= concurrency
    assert {trace.error for trace in warm} == {""}
    # Every stream was under way, and warm, when the window opened …
    began = dict.fromkeys(range(concurrency), 1 << 62)
    for trace in everything:
        began[trace.stream] = min(began[trace.stream], trace.sent_ns)
    opened_ns = min(trace.sent_ns for trace in measured)
    assert max(began.values()) <= opened_ns
    assert sum(trace.sent_ns + trace.end_ns <= opened_ns for trace in warm) >= concurrency
    # … and no measured request was sent before one of the warm-up, nor after one of the cool-down.
    assert max(trace.sent_ns for trace in warm) <= opened_ns
    if cool:
        closed_ns = min(trace.sent_ns for trace in cool)
        assert max(trace.sent_ns for trace in measured) <= closed_ns
    # What is sent in the cool-down only keeps the load up: at most one a stream is cut off.
    assert sum(trace.error == "cancelled" for trace in cool) <= concurrency - 1
    assert {trace.error for trace in cool} <= {"", "cancelled"}
    phases = {trace.request_id: trace.phase for trace in everything}
    asked = Counter(phases[reply.request_id] for reply in server.log())
    assert asked["measured"] == requests
    assert sorted(trace.index for trace in everything) == list(range(len(everything)))


async def test_no_warm_up_measures_from_the_first(truth: Truth, tmp_path: Path) -> None:
    server = truth(ttft_ms=150)
    async with cell(server.url, tmp_path, concurrency=3, requests=7, warmup=0) as ran:
        await run(ran)
        measured, cool = ran.of("measured"), ran.of("cooldown")
        assert len(measured) == 7
        assert ran.of("warmup") == []
    log = server.log()
    assert peak(served(log)) == 3
    # The load is kept up until the last measured reply is in, and no longer.
    last_ns = max(trace.sent_ns + trace.end_ns for trace in measured)
    assert all(trace.sent_ns <= last_ns for trace in cool)
    assert len(log) == len(measured) + len(cool)


async def test_a_duration_is_a_window_in_which_requests_begin(truth: Truth, tmp_path: Path) -> None:
    server = truth(ttft_ms=30, itl_ms=5)
    async with cell(server.url, tmp_path, concurrency=3, requests=1, duration_s=0.6) as ran:
        await run(ran)
        measured, cool = ran.of("measured"), ran.of("cooldown")
        streams = {trace.stream for trace in measured}
    assert len(measured) > 3
    assert streams == {0, 1, 2}
    assert {trace.error for trace in measured} == {""}
    first = min(trace.sent_ns for trace in measured)
    last = max(trace.sent_ns for trace in measured)
    assert last - first > 300 * MS  # and not long after 600: test_board says when it closes
    assert all(trace.sent_ns >= last for trace in cool)
    assert max(trace.sent_ns + trace.end_ns for trace in measured) - first >= 600 * MS


async def test_a_duration_shorter_than_a_reply_still_measures_whole_replies(
    truth: Truth, tmp_path: Path
) -> None:
    server = truth(ttft_ms=1000)
    async with cell(server.url, tmp_path, concurrency=2, duration_s=0.5, warmup=0) as ran:
        await run(ran)
        measured = ran.of("measured")
    assert len(measured) == 2
    assert {trace.error for trace in measured} == {""}


async def test_failures_in_a_row_end_the_cell(truth: Truth, tmp_path: Path) -> None:
    server = truth(status=500)
    async with cell(server.url, tmp_path, concurrency=2, requests=500, warmup=0) as ran:
        await run(ran)
        assert ran.running.stopped == "stopped after 10 failures in a row (http-500)"
        assert FAILURES_IN_A_ROW == 10
        assert 10 <= len(ran.of("measured")) <= 12
    assert 10 <= len(server.log()) <= 12  # and the server was left in peace


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b"", "truncated"),
        (b"data: [DONE]\n\n", "empty"),
        (sse(content("x")), "truncated"),
        (b'data: {"error": {"message": "busy"}}\n\n', "stream-error"),
    ],
)
async def test_replies_that_say_nothing_in_a_row_end_the_cell(
    tmp_path: Path,
    threaded: Callable[[Callable[[Asked], Answer]], ThreadedServer],
    body: bytes,
    kind: str,
) -> None:
    """A server that answers at once with nothing would fill the disk in no time."""
    server = threaded(lambda _: (200, "text/event-stream", body))
    async with cell(server.url, tmp_path, concurrency=2, requests=500, warmup=0) as ran:
        await run(ran)
        assert ran.running.stopped.startswith(f"stopped after 10 failures in a row ({kind}")
    assert 10 <= len(server.asked) <= 12


async def test_failures_in_the_warm_up_end_the_cell_too(tmp_path: Path, dead_url: str) -> None:
    async with cell(dead_url, tmp_path, concurrency=3) as ran:
        await run(ran)
        assert "10 failures in a row (connect: " in ran.running.stopped
        assert {trace.error for trace in ran.traces} == {"connect"}
        assert 10 <= len(ran.traces) <= 13


GOOD = sse(content("x"), finish(1, 1), "[DONE]")


def trace_of(call: Call, sent_ns: int, error: str = "") -> Trace:
    zero = array("q", [0])
    reads = Reads(array("q", [len(GOOD)]), zero, zero, zero)
    return Trace(
        cell=0,
        index=call.index,
        stream=call.stream,
        phase=call.phase,
        sent_ns=sent_ns,
        end_ns=1,
        status=0 if error else 200,
        error=error,
        detail=error,
        headers={"content-type": "text/event-stream"},
        reads=no_reads() if error else reads,
        body=b"" if error else GOOD,
    )


class Odd(Client):
    """A client that fails two requests in three, but never ten in a row."""

    settle = None

    def __init__(self) -> None:
        self.asked = 0

    async def exchange(self, call: Call) -> Trace:
        self.asked += 1
        trace = trace_of(call, self.asked, "reset" if self.asked % 3 else "")
        await asyncio.sleep(0)
        return trace

    async def close(self) -> None: ...


async def test_scattered_failures_do_not_end_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(closed_loop, "PAUSE_AFTER_FAILURE_S", 0.0)
    async with cell("http://h", tmp_path, concurrency=2, requests=60, client=Odd()) as ran:
        await run(ran)
        measured = ran.of("measured")
        assert ran.running.stopped == ""
        assert ran.running.board.measured == 60
    assert len(measured) == 60
    assert sum(bool(trace.error) for trace in measured) == 40


async def test_an_interrupt_keeps_what_is_in_flight_as_cancelled(
    truth: Truth, tmp_path: Path
) -> None:
    server = truth(ttft_ms=30, itl_ms=20)
    async with cell(server.url, tmp_path, concurrency=3, requests=1000, warmup=0) as ran:
        task = asyncio.create_task(run(ran))
        while ran.running.board.measured < 4:
            await asyncio.sleep(0.005)
        ran.running.interrupt("enough")
        await task
        traces = ran.traces
        assert ran.running.stopped == "enough"
    kinds = Counter(trace.error for trace in traces)
    assert set(kinds) == {"", "cancelled"}
    assert 1 <= kinds["cancelled"] <= 3  # some may end before the streams hear of it
    assert kinds[""] >= 4
    assert {trace.phase for trace in traces} == {"measured"}


# ── what is asked, as a server sees it ───────────────────────────────────────────────────────────


def test_no_two_prompts_begin_alike(
    threaded: Callable[[Callable[[Asked], Answer]], ThreadedServer], run_llmbench: Llmbench
) -> None:
    """Or a prefix cache would answer for the server; in all cells, and in the probes."""

    def answer(asked: Asked) -> Answer:
        time.sleep(0.02)
        return 200, "text/event-stream", asked.good()

    server = threaded(answer)
    flags = "--concurrency 1,3 --prompt-tokens 30,60 --output-tokens 3 --requests 10 --warmup 0"
    done = run_llmbench(
        "sweep", "--no-calibrate", "--target", server.url, "--format", "json", *flags.split()
    )
    assert [cell["requests"]["ok"] for cell in done.cells] == [10] * 4
    prompts = [asked.prompt.split() for asked in server.asked]
    begins = Counter(tuple(words[:4]) for words in prompts)
    assert max(begins.values()) == 1
    loads = [asked for asked in server.asked if "x-request-id" in asked.headers]
    assert len(loads) >= 4 * 10
    assert {len(asked.prompt.split()) + 5 for asked in loads} == {30, 60}
    assert len({asked.headers["x-request-id"] for asked in loads}) == len(loads)
    for asked in loads:
        assert asked.document["max_tokens"] == asked.document["min_tokens"] == 3
        assert asked.document["stream"] is True
        assert asked.document["ignore_eos"] is True
        assert asked.document["cache_prompt"] is False
    body: dict[str, Any] = json.loads(
        (next(run_llmbench.folder.glob("results/*/run.json"))).read_text()
    )
    assert [facts["dialect"] for facts in body["cells"]] == ["exact"] * 4
