"""Users who cut a reply off: the server's end is seen, and the next turn goes out as it should."""

from array import array
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from conftest import Certificates, InProcess, Llmbench, valid
from test_open_loop import load_of, run
from test_summary import MS, cell_of, facts_of, request

from llmbench.apis import APIS
from llmbench.drive import barge_in as patience
from llmbench.measure.early import heard, reply_text
from llmbench.measure.timeline import decode
from llmbench.plan.feed import Feed
from llmbench.plan.scale import Scale
from llmbench.records import Content, Load, Trace
from llmbench.truth.process import TruthServer

Truth = Callable[..., TruthServer]
CHAT = APIS["chat"].decode
TALK = Content(turns=3, barge_in=1.0, barge_in_after="0.05")


def talk(**fields: Any) -> Load:
    return load_of("20", requests=12, warmup=0, output_tokens=40, content=TALK, **fields)


def cut(sent_ms: float, *at_ms: float, cut_ms: float, stop_ms: float | None, **more: Any) -> Trace:
    """A reply that its user cut off at ``cut_ms``; the server sent on for ``stop_ms``."""
    trace = request(sent_ms, *at_ms, finish="", end_ms=cut_ms + (stop_ms or 5000), **more)
    stop_ns = None if stop_ms is None else round(stop_ms * MS)
    return msgspec.structs.replace(trace, cut_ns=round(cut_ms * MS), stop_ns=stop_ns)


# ── what a cut reply is worth ────────────────────────────────────────────────────────────────────


def test_what_came_after_the_cut_was_for_nobody() -> None:
    trace = cut(0, 10, 20, 30, 40, cut_ms=25, stop_ms=20)
    timeline = decode(trace, CHAT)
    assert list(timeline.at_ns) == [10 * MS, 20 * MS]
    assert (timeline.failure, timeline.finish) == ("", "barge-in")
    assert reply_text(heard(trace), CHAT) == "fourfour"
    assert reply_text(heard(request(0, 10, 20, 30)), CHAT) == "fourfourfour"


def test_a_cut_reply_that_had_failed_before_has_failed() -> None:
    trace = cut(0, 10, 20, cut_ms=25, stop_ms=1)
    body = trace.body + b'data: {"error": {"message": "out of memory"}}\n\n'
    reads = msgspec.structs.replace(
        trace.reads,
        end=array("q", [*trace.reads.end, len(body)]),
        at_ns=array("q", [*trace.reads.at_ns, 22 * MS]),
        lag_ns=array("q", [0, 0, 0]),
        slack_ns=array("q", [0, 0, 0]),
    )
    timeline = decode(msgspec.structs.replace(trace, body=body, reads=reads), CHAT)
    assert timeline.failure == "stream-error"


def test_turns_after_a_cut_are_told_from_those_after_a_whole_reply() -> None:
    traces = []
    for session in range(40):
        first = {"session": session, "turn": 0}
        then = {"session": session, "turn": 1}
        at_ms = 400 * session
        if session % 2:
            traces.append(cut(at_ms, 40, 50, 60, cut_ms=55, stop_ms=3, **first))
            traces.append(request(at_ms + 100, 30, 40, 50, **then))
        else:
            traces.append(request(at_ms, 40, 50, 60, **first))
            traces.append(request(at_ms + 100, 20, 30, 40, **then))
    facts = facts_of()
    content = Content(turns=2, barge_in=0.5, barge_in_after="0.015")
    cell = cell_of(
        traces,
        msgspec.structs.replace(facts, load=msgspec.structs.replace(facts.load, content=content)),
    )
    assert (cell.requests.ok, cell.requests.failed, cell.requests.cancelled) == (80, 0, 0)
    told = cell.barge_in
    assert told is not None
    assert told.stop_ms is not None
    assert told.next_ttft_ms is not None
    assert told.other_ttft_ms is not None
    assert (told.cut, told.stop_ms.n, told.stop_ms.p50) == (20, 20, pytest.approx(3))
    assert (told.next_ttft_ms.n, told.next_ttft_ms.p50) == (20, pytest.approx(30))
    assert (told.other_ttft_ms.n, told.other_ttft_ms.p50) == (20, pytest.approx(20))
    # The end of a reply that was cut off is unknown, and later than the cut.
    assert cell.e2e_ms is not None
    assert cell.e2e_ms.n == 80
    assert cell.ttft_ms is not None
    assert cell.ttft_ms.n == 80


def test_a_server_that_never_stopped_counts_as_infinitely_slow() -> None:
    traces = [
        cut(300 * n, 10, 20, cut_ms=30, stop_ms=None if n < 5 else 2, session=n) for n in range(8)
    ]
    cell = cell_of(traces)
    assert cell.barge_in is not None
    assert cell.barge_in.stop_ms is not None
    assert cell.barge_in.stop_ms.n == 8
    assert cell.barge_in.stop_ms.p50 == float("inf")
    assert cell.barge_in.next_ttft_ms is None


def test_a_cell_without_a_cut_says_nothing() -> None:
    assert cell_of([request(100 * n, 10, 20, 30) for n in range(8)]).barge_in is None


# ── who is cut off ───────────────────────────────────────────────────────────────────────────────


def test_the_last_turn_is_never_cut_off_and_the_share_is_the_one_asked() -> None:
    content = Content(turns=5, barge_in=0.25, barge_in_after="uniform(0.2,1)")
    load = load_of(content=content)
    feeds = [Feed(load, 0, "s", Scale(((8, 8),))) for _ in range(2)]
    sessions = [[feed.session(number) for number in range(500)] for feed in feeds]
    cuts = [[ask.cut_after_s for ask in each.asks] for each in sessions[0] if each is not None]
    assert all(each[-1] is None for each in cuts)
    some = [cut_s for each in cuts for cut_s in each if cut_s is not None]
    assert 0.22 < len(some) / 2000 < 0.28
    assert 0.2 <= min(some) <= max(some) <= 1
    assert sessions[0] == sessions[1]  # every process plans the same


# ── against a server ─────────────────────────────────────────────────────────────────────────────


async def test_the_servers_end_is_seen_and_the_next_turn_says_what_was_heard(
    truth: Truth, tmp_path: Path
) -> None:
    server = truth(ttft_ms=20, itl_ms=25, deaf_ms=60, output_tokens=40)
    ran = await run(server.url, tmp_path, talk())
    cuts = [trace for trace in ran.measured if trace.cut_ns is not None]
    assert len(cuts) == len([trace for trace in ran.measured if trace.turn < 2]) == 24
    assert {trace.error for trace in ran.measured} == {""}
    for trace in cuts:
        assert trace.stop_ns is not None
        assert trace.stop_ns >= 59 * MS  # it goes on for 60 ms, and never less
        assert trace.cut_ns is not None
        assert trace.cut_ns >= 70 * MS  # 50 ms after the first token at 20
        assert len(heard(trace)) < len(trace.body)  # some came for nobody
    # The second turn has the prompt, what was heard of the answer, and what the user said then.
    by_place = {(trace.session, trace.turn): trace for trace in ran.measured}
    first = by_place[cuts[0].session, 0]
    assert ran.job.reply(first) is not None
    assert ran.job.reply(first) != reply_text(first.body, CHAT)
    # It has a connection of its own that was open before it was due.
    assert all(trace.sent_ns - (trace.due_ns or 0) < 30e9 for trace in ran.measured)


async def test_it_is_seen_through_tls_too(
    truth: Truth, certificates: Certificates, tmp_path: Path
) -> None:
    server = truth(
        ttft_ms=20, itl_ms=25, deaf_ms=60, output_tokens=40, tls=certificates.for_host("127.0.0.1")
    )
    ran = await run(server.url, tmp_path, talk(), ca_file=certificates.ca_file)
    stops = [trace.stop_ns for trace in ran.measured if trace.cut_ns is not None]
    assert len(stops) == 24
    assert all(stop_ns is not None and stop_ns >= 59 * MS for stop_ns in stops)


async def test_a_server_that_goes_on_is_given_up(
    truth: Truth, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patience, "PATIENCE_S", 0.1)
    server = truth(ttft_ms=20, itl_ms=10, deaf_ms=9_000, output_tokens=100)
    ran = await run(server.url, tmp_path, talk())
    cuts = [trace for trace in ran.measured if trace.cut_ns is not None]
    assert len(cuts) == 24
    assert {trace.stop_ns for trace in cuts} == {None}
    assert {trace.error for trace in ran.measured} == {""}


async def test_a_reply_that_ends_before_the_cut_is_whole(truth: Truth, tmp_path: Path) -> None:
    content = Content(turns=2, barge_in=1.0, barge_in_after="2")
    server = truth(ttft_ms=10, itl_ms=2, output_tokens=10)
    load = load_of("20", requests=6, warmup=0, output_tokens=10, content=content)
    ran = await run(server.url, tmp_path, load)
    assert {trace.cut_ns for trace in ran.measured} == {None}
    assert {trace.error for trace in ran.measured} == {""}


def test_a_sweep_reports_it(
    truth: Truth, run_llmbench: Llmbench, in_process: InProcess, run_dir: Path
) -> None:
    server = truth(ttft_ms=20, itl_ms=10, deaf_ms=40, output_tokens=60)
    flags = ("--turns", 3, "--barge-in", 0.5, "--barge-in-after", "100ms", "--concurrency", 4)
    done = run_llmbench(
        *("sweep", "--target", server.url, *flags, "--requests", 40, "--output-tokens", 60),
        *("--prompt-tokens", 32, "--no-calibrate", "--out", run_dir),
    )
    valid(done, run_dir)
    if not done.code:
        assert "replies were cut off, and the server sent on for " in " ".join(done.out.split())
    assert "tokens, asked for 60" not in done.out  # they are shorter, as they should be
    again = in_process("report", run_dir, "--format", "json")
    assert 5 <= again.cells[0]["barge_in"]["cut"] <= 25
