"""Requests that are due on a clock of their own, whatever became of those before."""

import asyncio
import os
import signal
import time
from collections import Counter
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec
from conftest import PATIENCE_S, Answer, Asked, InProcess, Llmbench, ThreadedServer, measured, peak
from conftest import until as wait_until

from llmbench.apis.dialect import DIALECTS
from llmbench.drive.board import Board
from llmbench.drive.client import Client, sleep_until
from llmbench.drive.clock import Clock
from llmbench.drive.job import Job
from llmbench.drive.open_loop import SPIN_NS, until
from llmbench.plan.scale import Scale
from llmbench.plan.schedule import schedule
from llmbench.records import CellFacts, Content, Load, Target, Trace
from llmbench.store import RunDirectory
from llmbench.truth.process import TruthServer

Truth = Callable[..., TruthServer]
Threaded = Callable[[Callable[[Asked], Answer]], ThreadedServer]


def load_of(rate: str = "100", **fields: Any) -> Load:
    plain = {
        "concurrency": 0,
        "prompt_tokens": 8,
        "output_tokens": 5,
        "requests": 40,
        "duration_s": None,
        "warmup": 5,
        "arrivals": "poisson",
        "grace_s": 5.0,
    }
    return Load(rate=rate, **(plain | fields))


class Ran:
    """A cell of an open loop that has run."""

    def __init__(self, stopped: str, traces: list[Trace], job: Job, over_ns: int) -> None:
        self.stopped = stopped
        self.traces = traces
        self.job = job
        self.over_ns = over_ns

    @property
    def measured(self) -> list[Trace]:
        return [trace for trace in self.traces if trace.phase == "measured"]


async def run(
    url: str,
    folder: Path,
    load: Load,
    interrupt_after: int | None = None,
    ca_file: str = "",
    **fields: Any,
) -> Ran:
    clock = Clock()
    job = Job(
        facts=CellFacts(cell=0, target=0, client="wire", load=load),
        target=Target(spec=url, name="t", url=f"{url}/v1", model="truth", ca_file=ca_file),
        dialect=DIALECTS[0],
        scale=Scale(((8, 8),)),
        salt="s",
        timeout_s=PATIENCE_S,
        **fields,
    )
    client, spool = job.client(clock), job.spool(folder)
    loop = job.loop(client, spool, Board(load))
    try:
        await client.open()
        running = asyncio.create_task(loop.run(clock))
        if interrupt_after is not None:
            while len(list(spool)) < interrupt_after:
                await asyncio.sleep(0.01)
            loop.interrupt("enough")
        await running
        return Ran(loop.stopped, list(spool), job, time.monotonic_ns() - clock.zero_ns)
    finally:
        await client.close()
        spool.close()
        clock.close()


async def test_each_request_goes_out_once_and_none_before_it_is_due(
    truth: Truth, tmp_path: Path
) -> None:
    server, load = truth(), load_of()
    ran = await run(server.url, tmp_path, load)
    assert Counter(trace.phase for trace in ran.traces)["warmup"] == 5
    assert len(ran.measured) == 40
    assert {trace.error for trace in ran.measured} == {""}
    assert all(trace.due_ns is not None and trace.sent_ns >= trace.due_ns for trace in ran.traces)
    assert {trace.queued_ns for trace in ran.traces} == {0}
    indices = [trace.index for trace in ran.traces]
    assert len(set(indices)) == len(indices)
    # The due times are the schedule's, to the nanosecond.
    planned = [due.at_ns for due in islice(schedule(load, ran.job.feed), 45)]
    came = sorted(trace.due_ns or 0 for trace in ran.traces if trace.phase != "cooldown")
    assert [each - came[0] for each in came] == [each - planned[0] for each in planned]


async def test_replies_that_take_long_hold_nothing_back(truth: Truth, tmp_path: Path) -> None:
    server = truth(ttft_ms=400, itl_ms=1)
    ran = await run(server.url, tmp_path, load_of("100", requests=30, arrivals="constant"))
    intervals = [(reply.received_ns, reply.sent_ns[-1]) for reply in server.log() if reply.sent_ns]
    assert peak(intervals) > 20  # a closed loop would have waited for the first
    assert len(ran.measured) == 30


async def test_a_cap_makes_requests_wait_and_the_wait_counts(truth: Truth, tmp_path: Path) -> None:
    server = truth(ttft_ms=40, itl_ms=1)
    load = load_of("200", requests=30, concurrency=3, warmup=0)
    ran = await run(server.url, tmp_path, load)
    intervals = [(reply.received_ns, reply.sent_ns[-1]) for reply in server.log() if reply.sent_ns]
    assert peak(intervals) == 3
    assert len(ran.measured) == 30
    waited = [trace for trace in ran.measured if trace.queued_ns]
    assert len(waited) >= 20
    for trace in waited:
        assert trace.due_ns is not None
        assert trace.sent_ns - trace.due_ns >= trace.queued_ns


async def test_what_is_due_and_finds_no_place_is_kept_as_never_sent(
    truth: Truth, tmp_path: Path
) -> None:
    server = truth(ttft_ms=400)
    load = load_of("50", requests=40, concurrency=2, warmup=0, arrivals="constant", grace_s=1.0)
    ran = await run(server.url, tmp_path, load)
    assert len(ran.measured) == 40
    never = [trace for trace in ran.measured if trace.detail.startswith("never sent")]
    assert len(never) > 20
    last_due_ns = max(trace.due_ns or 0 for trace in ran.measured)
    for trace in never:
        assert trace.error == "cancelled"
        assert trace.due_ns is not None
        given_up_ns = trace.due_ns + trace.queued_ns
        assert last_due_ns + 1_000_000_000 <= given_up_ns <= ran.over_ns


async def test_conversations_of_an_open_loop_are_measured_to_their_last_turn(
    truth: Truth, tmp_path: Path
) -> None:
    content = Content(turns=3, think_time="0.05")
    load = load_of("50", requests=12, warmup=4, content=content)
    ran = await run(truth(ttft_ms=20).url, tmp_path, load)
    assert Counter(trace.turn for trace in ran.measured) == {0: 12, 1: 12, 2: 12}
    assert {trace.session for trace in ran.measured} == set(range(4, 16))


async def test_a_conversation_that_fails_ends_and_nobody_waits_for_it(
    truth: Truth, tmp_path: Path
) -> None:
    content = Content(turns=5, think_time="0.01")
    load = load_of("50", requests=8, warmup=0, content=content)
    ran = await run(truth(error_at=2).url, tmp_path, load)
    assert Counter(trace.turn for trace in ran.measured) == {0: 8}


async def test_a_window_by_time(truth: Truth, tmp_path: Path) -> None:
    load = load_of("100", requests=1_000_000, duration_s=0.5, arrivals="constant")
    ran = await run(truth().url, tmp_path, load)
    assert len(ran.measured) == 50


async def test_what_is_in_flight_when_patience_ends_is_kept_as_cut_off(
    truth: Truth, tmp_path: Path
) -> None:
    server = truth(hang_at=2)
    load = load_of("100", requests=10, warmup=0, grace_s=1.0)
    ran = await run(server.url, tmp_path, load)
    assert ran.stopped == ""
    assert [trace.error for trace in ran.measured] == ["cancelled"] * 10
    assert all(trace.body.count(b"data:") == 2 for trace in ran.measured)


async def test_an_interrupt_keeps_what_is_in_flight(truth: Truth, tmp_path: Path) -> None:
    load = load_of("50", requests=1000, warmup=0)
    ran = await run(truth(ttft_ms=500).url, tmp_path, load, interrupt_after=5)
    assert ran.stopped == "enough"
    assert {trace.error for trace in ran.traces} == {"", "cancelled"}


async def test_failures_end_a_hopeless_cell(truth: Truth, tmp_path: Path) -> None:
    ran = await run(truth(status=500).url, tmp_path, load_of("200", requests=1000))
    assert ran.stopped == "stopped after 10 failures in a row (http-500)"
    ran = await run(truth(status=500).url, tmp_path, load_of("200", max_failures="4"))
    assert "after 5 of 5 requests failed, more than --max-failures 4" in ran.stopped


async def test_a_first_token_that_does_not_come(truth: Truth, tmp_path: Path) -> None:
    late, begun = truth(ttft_ms=60_000), truth(ttft_ms=3, itl_ms=300)
    load = load_of("50", requests=5, warmup=0)
    ran = await run(late.url, tmp_path, load, first_token_timeout_s=0.2)
    assert {trace.error for trace in ran.measured} == {"timeout"}
    assert {trace.detail for trace in ran.measured} == {"no first token within 0.2 s"}
    ran = await run(begun.url, tmp_path, load, first_token_timeout_s=1.0)
    assert {trace.error for trace in ran.measured} == {""}


async def test_the_times_of_a_trace_and_its_lengths(truth: Truth, tmp_path: Path) -> None:
    trace = tmp_path / "trace.jsonl"
    rows = [
        {"timestamp": 300 * n, "input_length": 20 + n, "output_length": 3 + n % 2, "hash_ids": [n]}
        for n in range(12)
    ]
    trace.write_bytes(b"\n".join(map(msgspec.json.encode, rows)))
    content = Content(dataset=str(trace), format="mooncake")
    load = load_of("trace", speed=10.0, warmup=0, requests=1_000_000, content=content)
    ran = await run(truth().url, tmp_path, load)
    dues = sorted(trace.due_ns or 0 for trace in ran.measured)
    assert [due - dues[0] for due in dues] == [30_000_000 * n for n in range(12)]
    tokens = [
        trace.body.count(b'"content"') for trace in sorted(ran.measured, key=lambda t: t.index)
    ]
    assert [each - tokens[0] for each in tokens] == [n % 2 for n in range(12)]


class Waits(Client):
    """A client that is only waited with."""

    def __init__(self) -> None:
        self.waited_ns: list[int] = []

    def wait(self, until_ns: int) -> None:
        self.waited_ns.append(until_ns)
        sleep_until(until_ns)


async def test_until_returns_at_its_time() -> None:
    client = Waits()
    while not client.waited_ns:  # a busy machine may be past the time at once
        due_ns = time.monotonic_ns() + 5_000_000
        await until(due_ns, client)
        assert time.monotonic_ns() >= due_ns
    assert client.waited_ns == [due_ns - SPIN_NS]
    await until(due_ns - 10**9, client)  # past: at once, without giving way
    assert len(client.waited_ns) == 1


# ── as a user ────────────────────────────────────────────────────────────────────────────────────


def test_workers_share_the_arrivals(truth: Truth, run_llmbench: Llmbench, run_dir: Path) -> None:
    flags = "--request-rate 100 --requests 60 --workers 3 --no-calibrate --output-tokens 4"
    done = run_llmbench(
        "sweep", "--target", truth().url, *flags.split(), "--out", run_dir, "--format", "json"
    )
    (cell,) = done.cells
    assert cell["requests"]["sent"] == cell["requests"]["ok"] == 60 - cell["warmup_removed"]
    assert cell["request_rate"] == 100
    assert cell["concurrency"] is None
    traces = list(RunDirectory.open(run_dir).traces())
    sessions = [trace.session for trace in traces]
    assert len(set(sessions)) == len(sessions)
    assert set(range(60)) <= set(sessions)
    in_order = sorted(traces, key=lambda trace: trace.session)
    dues = [trace.due_ns or 0 for trace in in_order]
    assert dues == sorted(dues)  # one clock, one schedule


def test_what_a_stall_costs_users_shows_from_due_times(
    truth: Truth, run_llmbench: Llmbench, tmp_path: Path
) -> None:
    """Coordinated omission: a closed loop sends nothing while the server stalls, and sees one slow
    request. Users would have come."""
    server = truth(ttft_ms=5, itl_ms=1, output_tokens=5)

    def stalled(name: str, *flags: object) -> list[Trace]:
        """The requests that waited for half a second or more."""
        process = run_llmbench.start(
            *("sweep", "--target", server.url, "--out", name, "--no-calibrate"),
            *("--output-tokens", 5, "--prompt-tokens", 16, *flags),
        )
        wait_until(lambda: measured(server) >= 20)
        os.kill(server.pid, signal.SIGSTOP)
        time.sleep(1.0)
        os.kill(server.pid, signal.SIGCONT)
        assert run_llmbench.end(process).code in (0, 4)
        server.reset()
        traces = list(RunDirectory.open(tmp_path / name).traces())
        assert not any(trace.error for trace in traces if trace.phase == "measured")
        return [each for each in traces if waited_ns(each) > 500_000_000]

    assert len(stalled("closed", "--concurrency", 1, "--requests", 300)) == 1
    assert len(stalled("open", "--request-rate", 60, "--requests", 200)) > 20


def waited_ns(trace: Trace) -> int:
    """From when a request was due, or sent, to the end of its reply."""
    due_ns = trace.sent_ns if trace.due_ns is None else trace.due_ns
    return trace.sent_ns + trace.end_ns - due_ns


def test_a_conversation_goes_on_with_the_models_own_words(
    threaded: Threaded, run_llmbench: Llmbench, in_process: InProcess, run_dir: Path
) -> None:
    def answer(asked: Asked) -> Answer:
        time.sleep(0.01)
        return 200, "text/event-stream", asked.good()

    server = threaded(answer)
    flags = "--concurrency 2 --turns 3 --think-time 20ms --requests 12 --warmup 0 --text voice"
    done = run_llmbench(
        *("sweep", "--no-calibrate", "--target", server.url, "--output-tokens", 3),
        *(*flags.split(), "--out", run_dir),
    )
    assert done.code in (0, 4), done.err
    loads = [
        asked.document["messages"] for asked in server.asked if "x-request-id" in asked.headers
    ]
    by_turn = Counter(len(messages) for messages in loads)
    assert set(by_turn) == {1, 3, 5}
    for messages in loads:
        roles = [message["role"] for message in messages]
        assert roles == ["user", "assistant", "user", "assistant", "user"][: len(roles)]
        assert all(each["content"] == " w0 w1 w2" for each in messages if each["role"] != "user")
        # the whole of an earlier turn is repeated as it was
        assert len(messages) == 1 or messages[:-2] in loads
    traces = list(RunDirectory.open(run_dir).traces())
    assert {trace.turn for trace in traces} == {0, 1, 2}
    report = in_process("report", run_dir, "--format", "json").cells[0]
    assert [turn["turn"] for turn in report["turns"]] == [1, 2, 3]
    assert "turn" in done.out


def test_a_broken_row_ends_a_cell_and_loses_nothing(
    truth: Truth, run_llmbench: Llmbench, tmp_path: Path, run_dir: Path
) -> None:
    rows = [f'{{"messages": [{{"role": "user", "content": "row {n}"}}]}}' for n in range(200)]
    rows[150] = "{"
    dataset = tmp_path / "rows.jsonl"
    dataset.write_text("\n".join(rows))
    flags = ("--requests", 400, "--warmup", 0, "--no-calibrate", "--dataset", dataset)
    common = ("sweep", "--target", truth().url, "--output-tokens", 3, "--concurrency", 4, *flags)
    done = run_llmbench(*common, "--out", run_dir)
    assert done.code == 4
    told = " ".join(done.out.split())
    assert "PARTIAL, " in told or "INVALID, " in told  # a busy machine
    assert "line 151" in told
    assert len(list(RunDirectory.open(run_dir).traces())) >= 140
    done = run_llmbench(*common, "--skip-broken", "--format", "json")
    assert done.code in (0, 4)
    (cell,) = done.cells
    assert cell["requests"]["ok"] + cell["warmup_removed"] == 400
    assert any("skipped" in note and "line 151" in note for note in cell["notes"])


def test_until_a_figure_is_certain(truth: Truth, run_llmbench: Llmbench) -> None:
    flags = "--concurrency 4 --until ci=50% --requests 640 --no-calibrate --output-tokens 3"
    done = run_llmbench(
        "sweep", "--target", truth(ttft_ms=40).url, *flags.split(), "--format", "json"
    )
    (cell,) = done.cells
    assert 40 <= cell["requests"]["sent"] < 640
    assert any("reached at look" in note for note in cell["notes"])


def test_cold_and_warm_stand_side_by_side(threaded: Threaded, run_llmbench: Llmbench) -> None:
    def answer(asked: Asked) -> Answer:
        time.sleep(0.01)
        return 200, "text/event-stream", asked.good()

    server = threaded(answer)
    flags = "--concurrency 2 --cache cold,warm --requests 10 --no-calibrate --output-tokens 3"
    done = run_llmbench("sweep", "--target", server.url, *flags.split())
    assert "cache" in done.out.splitlines()[0]
    prompts: dict[bool, list[str]] = {False: [], True: []}
    for asked in server.asked:
        if "x-request-id" in asked.headers:
            prompts[asked.document["cache_prompt"]].append(asked.prompt)
    assert len(set(prompts[True])) == 1
    assert len(set(prompts[False])) == len(prompts[False])
