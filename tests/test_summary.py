"""One cell from its traces: counts, percentiles, rates and the verdict, worked out by hand."""

import json
import math
from array import array
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import msgspec
import numpy as np
import pytest

from llmbench.config import Sweep
from llmbench.measure.cell import judged, requests_in
from llmbench.measure.rates import add_rate_intervals
from llmbench.measure.requests import Requests
from llmbench.measure.summary import block, summarize
from llmbench.records import (
    Calibration,
    Cell,
    CellFacts,
    Connect,
    Health,
    Load,
    Range,
    Reads,
    RequestMetrics,
    Target,
    Trace,
)
from llmbench.store import Run, summary_json

MS = 1_000_000
INF = float("inf")
TARGET = Target(spec="http://h:8000", name="h:8000", url="http://h:8000/v1", quantization="int8")


def request(
    sent_ms: float,
    *at_ms: float,
    end_ms: float | None = None,
    tokens: int | None = -1,
    prompt: int = 128,
    cached: int | None = None,
    finish: str = "length",
    lag_ms: float = 0,
    slack_ms: float = 0,
    **fields: Any,
) -> Trace:
    """A request with one word at each time after ``sent``, which ends with the last or as told.

    ``tokens`` are what the server counts, by default the words; without a finish it is truncated.
    """
    events: list[Any] = [{"choices": [{"delta": {"content": "four"}}]} for _ in at_ms]
    times = list(at_ms)
    if finish:
        usage = {
            "prompt_tokens": prompt,
            "completion_tokens": len(at_ms) if tokens == -1 else tokens,
            "prompt_tokens_details": None if cached is None else {"cached_tokens": cached},
        }
        end = {"choices": [{"delta": {}, "finish_reason": finish}]}
        events.append(end | ({} if tokens is None else {"usage": usage}))
        times.append(at_ms[-1])
    pieces = [f"data: {json.dumps(event)}\n\n".encode() for event in events]
    after_ms = end_ms if end_ms is not None else (at_ms[-1] if at_ms else 0)
    facts = {
        "cell": 0,
        "index": 0,
        "stream": 0,
        "phase": "measured",
        "sent_ns": round(sent_ms * MS),
        "end_ns": round(after_ms * MS),
        "status": 200,
        "headers": {"content-type": "text/event-stream"},
        "reads": Reads(
            array("q", accumulate(map(len, pieces))),
            array("q", [round(time * MS) for time in times]),
            array("q", [round(lag_ms * MS)] * len(times)),
            array("q", [round(slack_ms * MS)] * len(times)),
        ),
        "body": b"".join(pieces),
    }
    return Trace(**(facts | fields))


def broken(sent_ms: float, kind: str = "reset", end_ms: float = 100) -> Trace:
    return request(sent_ms, end_ms=end_ms, finish="", error=kind, detail="words", status=0)


def facts_of(concurrency: int = 1, output_tokens: int = 3, **fields: Any) -> CellFacts:
    load = Load(
        concurrency=concurrency,
        prompt_tokens=128,
        output_tokens=output_tokens,
        requests=80,
        duration_s=None,
        warmup=1,
    )
    known = {"cell": 0, "target": 0, "client": "wire", "load": load, "model": "m"}
    return CellFacts(**(known | fields))


def cell_of(traces: Sequence[Trace], facts: CellFacts | None = None) -> Cell:
    facts = facts or facts_of()
    return judged(summarize(TARGET, facts, requests_in(traces, TARGET.api)), facts)


def steady(count: int, *at_ms: float, **fields: Any) -> list[Trace]:
    """``count`` measured requests of one stream, one right after the other."""
    return [request(n * at_ms[-1], *at_ms, **fields) for n in range(count)]


def growing(good: int, failed: int = 0) -> list[Trace]:
    """Requests of 200 ms each with TTFTs of 1, 2, 3 … ms, and those that fail, shuffled."""
    ranks = [37 * n % (good + failed) for n in range(good + failed)]
    return [
        request(200 * n, rank + 1, rank + 51, 200) if rank < good else broken(200 * n, end_ms=200)
        for n, rank in enumerate(ranks)
    ]


WELL: dict[str, Any] = {
    "cpu_share": 0.1,
    "cpu_wait_share": 0.0,
    "clock_step_ms": 0.0,
    "throttled_ms": 0.0,
    "collections": 0,
}


# ---- counts and percentiles


def test_a_good_cell() -> None:
    cell = cell_of(steady(80, 40, 60, 80))
    assert (cell.verdict, cell.reasons, cell.notes) == ("valid", [], [])
    assert (cell.target, cell.client, cell.api, cell.model) == ("h:8000", "wire", "chat", "m")
    assert (cell.engine, cell.quantization, cell.request_rate) == (None, "int8", None)
    assert (cell.concurrency, cell.prompt_tokens, cell.output_tokens) == (1, 128, 3)
    counts = cell.requests
    assert (counts.sent, counts.ok, counts.failed, counts.cancelled) == (80, 80, 0, 0)
    assert counts.failures == {}
    assert cell.window_s == pytest.approx(80 * 0.080)
    assert cell.otps == pytest.approx(3 / 0.080)
    assert cell.requests_per_s == pytest.approx(1 / 0.080)
    assert cell.chars_per_s == pytest.approx(12 / 0.080)
    assert cell.in_flight == pytest.approx(1)
    for block_, n, value in [
        (cell.ttfr_ms, 80, 40),
        (cell.ttft_ms, 80, 40),
        (cell.ttfat_ms, 80, 40),
        (cell.e2e_ms, 80, 80),
        (cell.tpot_ms, 80, 20),
        (cell.icl_ms, 160, 20),
        (cell.itl_ms, 160, 20),
        (cell.itl_request_mean_ms, 80, 20),
        (cell.otps_per_user, 80, 50),
        (cell.otps_end_to_end, 80, 37.5),
    ]:
        assert block_ is not None
        assert block_.n == n
        figures = (block_.mean, block_.min, block_.p50, block_.p90, block_.p95, block_.max)
        assert figures == pytest.approx((value,) * 6)
    assert cell.measured_output_tokens == Range(3, 3, 3)
    assert cell.measured_prompt_tokens == Range(128, 128, 128)
    assert (cell.token_source, cell.tokens_per_event) == ("usage", 1)
    assert (cell.itl_imputed_share, cell.burst_index) == (0, 0)


def test_percentiles_and_their_intervals() -> None:
    ttft = cell_of(growing(80)).ttft_ms
    assert ttft is not None
    assert (ttft.mean, ttft.min, ttft.max) == pytest.approx((40.5, 1, 80))
    assert (ttft.p50, ttft.p90, ttft.p95) == pytest.approx((40, 72, 76))
    assert ttft.p99 is None  # needs 368
    assert set(ttft.ci95) == {"p50", "p90", "p95"}
    assert ttft.ci95["p50"] == pytest.approx((31, 50))  # the classic table, n = 80


@pytest.mark.parametrize(("failed", "p50"), [(0, 40), (10, 40), (40, 40), (41, INF), (79, INF)])
def test_failures_are_infinite(failed: int, p50: float) -> None:
    ttft = cell_of(growing(80 - failed, failed)).ttft_ms
    assert ttft is not None
    assert ttft.n == 80
    assert ttft.p50 == pytest.approx(p50)
    good = 80 - failed
    assert (ttft.mean, ttft.min, ttft.max) == pytest.approx(((good + 1) / 2, 1, good))
    assert ttft.p95 == pytest.approx(76 if failed == 0 else INF)
    assert ttft.ci95["p50"][1] == pytest.approx(INF if failed > 30 else 50)


def test_failures_are_the_slow_side_of_a_rate() -> None:
    cell = cell_of(growing(39, 41))
    assert cell.otps_per_user is not None
    assert cell.otps_per_user.n == 80
    assert (cell.otps_per_user.p50, cell.otps_per_user.p5) == (0, 0)
    assert cell.otps_per_user.min == pytest.approx(2 / 0.199)  # from 1 to 200 ms
    assert cell.otps_end_to_end is not None
    assert cell.otps_end_to_end.p50 == 0
    assert cell.otps_end_to_end.min == pytest.approx(3 / 0.2)


def test_the_slow_side_of_a_rate_has_its_own_percentiles() -> None:
    rates = np.random.default_rng(0).permutation(400) + 1.0
    told = block(rates, slow_side_low=True)
    assert (told.p1, told.p5, told.p50, told.p99) == (4, 20, 200, 396)
    slow = block(rates)
    assert "p1" not in json.loads(summary_json(RUN, [cell_with(slow)]))["cells"][0]["ttft_ms"]


def test_what_became_of_the_requests() -> None:
    kinds = ["reset", "timeout", "timeout", "cancelled", "cancelled", "cancelled"]
    traces = growing(5) + [broken(1000 + n, kind) for n, kind in enumerate(kinds)]
    traces.append(request(2000, 10, 20, finish=""))
    counts = cell_of([*traces, request(0, 10, phase="warmup"), broken(0)]).requests
    assert (counts.sent, counts.ok, counts.failed, counts.cancelled) == (13, 5, 5, 3)
    assert counts.failures == {"timeout": 2, "reset": 2, "truncated": 1}
    assert counts.details["reset"] == counts.details["timeout"] == "words"
    assert counts.details.keys() == counts.failures.keys()


def test_other_phases_have_no_part_in_the_latencies() -> None:
    traces = [
        request(0, 500, 600, 700, phase="warmup"),
        *[request(700 + 80 * n, 40, 60, 80) for n in range(10)],
        request(1500, 900, 901, phase="cooldown"),
        request(0, 1, finish="", phase="warmup"),
    ]
    cell = cell_of(traces)
    assert cell.requests.sent == 10
    assert cell.ttft_ms is not None
    assert (cell.ttft_ms.n, cell.ttft_ms.max) == (10, pytest.approx(40))
    assert cell.icl_ms is not None
    assert (cell.icl_ms.n, cell.icl_ms.max) == (20, pytest.approx(20))
    assert cell.measured_output_tokens == Range(3, 3, 3)


def test_six_requests_have_a_median_and_five_have_none() -> None:
    for count, p50 in ((5, None), (6, pytest.approx(40))):
        cell = cell_of(steady(count, 40, 60, 80))
        assert cell.ttft_ms is not None
        assert (cell.ttft_ms.n, cell.ttft_ms.p50, cell.ttft_ms.p95) == (count, p50, None)
        assert cell.ttft_ms.mean == pytest.approx(40)


def test_many_tokens_of_few_requests_have_no_p99() -> None:
    """Each reply has a pace of its own: 400 gaps are worth no more than their eight replies."""
    paces = range(1, 9)
    cell = cell_of([request(900 * pace, *range(50, 51 + 50 * pace, pace)) for pace in paces])
    assert cell.icl_ms is not None
    assert cell.icl_ms.n == 8 * 50
    assert cell.icl_ms.p50 == pytest.approx(4)
    assert (cell.icl_ms.p90, cell.icl_ms.p95, cell.icl_ms.p99) == (None, None, None)


# ---- rates


def overlapping() -> list[Trace]:
    """A window from 100 to 200 ms, with a warm-up request and a cool-down one across its edges."""
    return [
        request(50, 30, 60, 70, tokens=6, end_ms=80, phase="warmup"),  # 80, 110, 120; ends 130
        request(100, 40, 60, 80, end_ms=100),  # 140, 160, 180; ends 200
        request(150, 40, 60, tokens=2, end_ms=70, phase="cooldown"),  # 190, 210; ends 220
        request(0, 10, 20, phase="warmup"),  # over before the window
    ]


def test_the_window_counts_what_arrived_inside() -> None:
    cell = cell_of(overlapping(), facts_of(concurrency=2))
    assert cell.window_s == pytest.approx(0.100)
    assert cell.otps == pytest.approx((6 * 2 / 3 + 3 + 1) / 0.100)
    assert cell.chars_per_s == pytest.approx(4 * (2 + 3 + 1) / 0.100)
    # a request counts by the share of its time inside: 30 of 80 ms, all of it, 50 of 70 ms, none
    assert cell.requests_per_s == pytest.approx((30 / 80 + 1 + 50 / 70) / 0.100)
    assert cell.in_flight == pytest.approx((30 + 100 + 50) / 100)


def test_what_a_broken_reply_brought_counts_by_its_events() -> None:
    traces = [request(0, 40, 60, 80, tokens=6), request(80, 10, 20, finish="", end_ms=80)]
    cell = cell_of(traces)
    assert cell.tokens_per_event == 2
    assert cell.otps == pytest.approx((6 + 2 * 2) / 0.160)
    assert cell.requests_per_s == pytest.approx(1 / 0.160)
    assert cell.chars_per_s == pytest.approx(20 / 0.160)


def test_the_window_ends_with_the_last_measured_reply() -> None:
    traces = [request(100, 50, end_ms=300), request(150, 50), broken(300, end_ms=700)]
    assert cell_of(traces).window_s == pytest.approx(0.900)


# ---- open loops


def asked(rate: str = "10", concurrency: int = 0, **fields: Any) -> CellFacts:
    """An open loop of Poisson arrivals."""
    facts = facts_of(concurrency)
    load = msgspec.structs.replace(facts.load, rate=rate, arrivals="poisson", **fields)
    return msgspec.structs.replace(facts, load=load)


def due(due_ms: float, late_ms: float, *at_ms: float, **fields: Any) -> Trace:
    """A request that was due at ``due_ms`` and sent so much later."""
    return request(due_ms + late_ms, *at_ms, due_ns=round(due_ms * MS), **fields)


def test_latencies_of_an_open_loop_count_from_due() -> None:
    cell = cell_of([due(100 * n, 0.5, 40, 60, 80) for n in range(80)], asked())
    assert (cell.verdict, cell.reasons, cell.notes) == ("valid", [], [])
    assert (cell.concurrency, cell.request_rate, cell.arrivals) == (None, 10, "poisson")
    assert cell.arrivals_per_s == pytest.approx(10)
    for block_, value in [
        (cell.ttfr_ms, 40.5),
        (cell.ttft_ms, 40.5),
        (cell.ttfat_ms, 40.5),
        (cell.e2e_ms, 80.5),
        (cell.ttft_from_sent_ms, 40),
        (cell.e2e_from_sent_ms, 80),
        (cell.tpot_ms, 20),
        (cell.itl_ms, 20),
        (cell.dispatch_lag_ms, 0.5),
    ]:
        assert block_ is not None
        assert (block_.p50, block_.mean) == pytest.approx((value, value))
    assert cell.queue_wait_ms is None
    assert cell.otps_end_to_end is not None
    assert cell.otps_end_to_end.p50 == pytest.approx(3 / 0.0805)
    closed = cell_of(steady(80, 40, 60, 80))
    assert (closed.arrivals, closed.arrivals_per_s, closed.dispatch_lag_ms) == (None, None, None)
    assert (closed.ttft_from_sent_ms, closed.request_rate) == (None, None)


def test_a_request_that_was_sent_early_is_not_made_faster() -> None:
    cell = cell_of([due(100 * n, -0.25, 40, 60, 80) for n in range(80)], asked())
    assert cell.dispatch_lag_ms is not None
    assert (cell.dispatch_lag_ms.min, cell.dispatch_lag_ms.p99) == pytest.approx((-0.25, -0.25))
    assert cell.ttft_ms is not None
    assert cell.ttft_ms.p50 == pytest.approx(39.75)


def test_the_wait_for_a_slot_is_latency_and_not_the_clients_lag() -> None:
    traces = [due(100 * n, 30.25, 40, 60, 80, queued_ns=30 * MS) for n in range(80)]
    cell = cell_of(traces, asked(concurrency=2))
    assert cell.concurrency == 2
    assert cell.ttft_ms is not None
    assert cell.ttft_ms.p50 == pytest.approx(70.25)
    assert cell.dispatch_lag_ms is not None
    assert cell.dispatch_lag_ms.p50 == pytest.approx(0.25)
    assert cell.queue_wait_ms is not None
    assert cell.queue_wait_ms.p50 == pytest.approx(30)
    assert cell.verdict == "valid"


@pytest.mark.parametrize(
    ("ttft_ms", "lag_ms", "verdict"),
    [(10, 0.9, "valid"), (10, 1.1, "invalid"), (400, 19, "valid"), (400, 21, "invalid")],
)
def test_a_client_that_sends_late_is_not_the_load(
    ttft_ms: float, lag_ms: float, verdict: str
) -> None:
    """More than a millisecond and 5% of TTFT, once in a hundred."""
    late = [lag_ms if n % 80 == 3 else 0 for n in range(320)]
    traces = [due(100 * n, lag, ttft_ms, ttft_ms + 9) for n, lag in enumerate(late)]
    cell = cell_of(traces, asked())
    assert cell.verdict == verdict
    if verdict == "invalid":
        told = f"the client sent late: dispatch lag p99 {lag_ms:.1f} ms; "
        assert cell.reasons[0].startswith(told)


def test_one_hiccup_among_few_requests_is_no_reason() -> None:
    def cell_with(late: int) -> Cell:
        lags = [30 if n < late else 0 for n in range(60)]
        return cell_of([due(100 * n, lag, 10, 19) for n, lag in enumerate(lags)], asked())

    assert cell_with(3).verdict == "valid"
    assert cell_with(4).reasons[0].startswith("the client sent late: dispatch lag p95 30.0 ms; ")


def test_late_by_a_typical_latency_where_no_median_is_told() -> None:
    traces = [due(100 * n, 3.0, 150, 160) for n in range(4)]
    assert cell_of(traces, asked()).verdict == "valid"


@pytest.mark.parametrize(
    ("fields", "rate", "arrivals"),
    [
        ({"rate": "ramp(2,32)"}, 17, "poisson"),
        ({"rate": "steps(2,8,32)"}, 14, "poisson"),
        ({"rate": "0.5", "concurrency": 4}, 0.5, "poisson"),
        ({"rate": "trace"}, None, "trace"),
        ({"rate": "trace", "speed": 2.0}, None, "trace ×2"),
        ({"rate": "trace", "speed": 0.5}, None, "trace ×0.5"),
    ],
)
def test_the_rate_that_was_asked_for(
    fields: dict[str, Any], rate: float | None, arrivals: str
) -> None:
    cell = cell_of([due(100 * n, 0, 40, 60, 80) for n in range(80)], asked(**fields))
    assert (cell.request_rate, cell.arrivals) == (rate, arrivals)


def test_the_window_of_an_open_loop_is_that_of_its_arrivals() -> None:
    """From 100 to 300 ms. Tokens count where they came, requests where they ended."""
    traces = [
        due(0, 0, 60, 110, 120, phase="warmup"),  # ends 120; the tokens at 110 and 120 are inside
        due(100, 0, 40, 60, 80),
        due(300, 0, 40, 60, 80),
        due(250, 10, 30, 40, 80, phase="cooldown"),  # 260 to 340; those at 290 and 300 are inside
    ]
    cell = cell_of(traces, asked())
    assert cell.window_s == pytest.approx(0.200)
    assert cell.arrivals_per_s == pytest.approx(5)
    assert cell.otps == pytest.approx((2 + 3 + 0 + 2) / 0.200)
    assert cell.requests_per_s == pytest.approx((1 + 1) / 0.200)
    assert cell.in_flight == pytest.approx((20 + 80 + 40) / 200)


def test_one_arrival_has_no_rate() -> None:
    cell = cell_of([due(0, 0, 40, 60, 80)], asked())
    assert (cell.window_s, cell.arrivals_per_s, cell.otps) == (None, None, None)


# ---- tokens


def test_itl_is_not_shown_where_it_would_lie() -> None:
    traces = steady(80, *range(20, 80, 2), tokens=60)
    cell = cell_of(traces, facts_of(output_tokens=60))
    assert cell.itl_ms is None
    assert cell.icl_ms is not None
    assert cell.notes == ["ITL not shown: 4,800 tokens came in 2,400 events; ICL is"]
    assert cell.verdict == "valid"
    cell = cell_of(steady(80, 80), facts_of(output_tokens=1))
    assert (cell.itl_ms, cell.icl_ms, cell.tpot_ms, cell.notes) == (None, None, None, [])


def test_without_a_count_there_is_no_rate_of_tokens() -> None:
    cell = cell_of(steady(80, 40, 60, 80, tokens=None))
    assert cell.token_source == "chunks"
    assert (cell.itl_ms, cell.tpot_ms, cell.otps_per_user) == (None, None, None)
    assert (cell.otps_end_to_end, cell.otps) == (None, None)
    assert cell.ttft_ms is not None
    assert cell.icl_ms is not None
    assert cell.chars_per_s == pytest.approx(12 / 0.080)
    assert cell.notes[0] == "ITL not shown: the server does not count its tokens; ICL is"
    assert cell.notes[1].startswith("no tok/s: ")
    assert len(cell.notes) == 2


def test_no_rate_after_a_first_event_with_many_tokens() -> None:
    """2 of 10 events share the first one's time: 1 of 9 tokens came in none."""
    times = [40, 40, *range(60, 220, 20)]
    cell = cell_of(steady(80, *times), facts_of(output_tokens=10))
    assert (cell.tpot_ms, cell.otps_per_user) == (None, None)
    assert cell.otps_end_to_end is not None
    assert cell.otps == pytest.approx(10 / 0.200)
    assert [note for note in cell.notes if "11% of the tokens come with the first" in note]
    times = [40, 40, *range(42, 92, 2)]  # 1 of 26
    cell = cell_of(steady(80, *times), facts_of(output_tokens=27))
    assert cell.notes == []
    assert cell.tpot_ms is not None
    assert cell.tpot_ms.p50 == pytest.approx(50 / 26)


def test_itl_is_not_shown_of_bursts() -> None:
    times = [20, 80, 80, 80, 140, 140, 140]
    cell = cell_of(steady(80, *times), facts_of(output_tokens=7))
    assert cell.burst_index == pytest.approx(4 / 6)
    (note,) = cell.notes
    assert note.startswith("ITL not shown: 67% of the gaps are bursts")
    assert (cell.itl_ms, cell.itl_request_mean_ms, cell.itl_imputed_share) == (None, None, None)
    assert cell.icl_ms is not None
    assert cell.tpot_ms is not None
    assert cell.tpot_ms.p50 == pytest.approx(20)


def test_replies_that_come_at_once_have_only_a_ttft() -> None:
    cell = cell_of(steady(80, 80, 80, 80))
    assert (cell.burst_index, cell.itl_ms, cell.tpot_ms, cell.otps_per_user) == (
        1,
        None,
        None,
        None,
    )
    assert cell.ttft_ms is not None
    assert cell.icl_ms is not None


def test_a_few_bursts_do_no_harm() -> None:
    cell = cell_of(steady(80, 40, 50, 51, 60, 70, 80), facts_of(output_tokens=6))
    assert cell.burst_index == pytest.approx(1 / 5)
    assert cell.itl_ms is not None


def test_the_prompts_that_came_from_a_cache() -> None:
    cell = cell_of(steady(80, 40, 60, 80, prompt=100, cached=50))
    assert (cell.cached_share, cell.cache) == (0.5, "warm")
    assert cell.notes == ["warm: 50% of the prompt tokens came from a cache"]
    assert cell.verdict == "valid"
    cell = cell_of(steady(80, 40, 60, 80, prompt=100, cached=1))
    assert (cell.cached_share, cell.cache, cell.notes) == (0.01, "cold", [])
    cell = cell_of(steady(80, 40, 60, 80, prompt=100, cached=0))
    assert (cell.cached_share, cell.cache) == (0, "cold")
    cell = cell_of(steady(80, 40, 60, 80))
    assert (cell.cached_share, cell.cache) == (None, None)


def test_the_lengths_that_came() -> None:
    traces = [request(80 * n, *range(40, 40 + 10 * n, 10), 80, prompt=100 + n) for n in range(4)]
    cell = cell_of(traces)
    assert cell.measured_prompt_tokens == Range(100, 101, 103)
    assert cell.measured_output_tokens == Range(1, 2, 4)
    words = "replies of 1–4 tokens, asked for 3"
    assert f"{words} (this server stops where it likes)" in cell.notes
    assert words in cell_of(traces, facts_of(exact_length=True)).notes


def test_what_connecting_took() -> None:
    opened = [
        Connect(dns_ns=MS, tcp_ns=2 * MS),
        Connect(tcp_ns=4 * MS, proxy_ns=6 * MS, tls_ns=9 * MS),
    ]
    traces = [request(80 * n, 80, connect=each) for n, each in enumerate([*opened, None])]
    told = cell_of(traces).connect_ms
    assert told is not None
    assert {stage: (each.n, each.max, each.mean) for stage, each in told.items()} == {
        "dns": (2, 1, 0.5),
        "tcp": (2, 4, 3),
        "proxy": (2, 6, 3),
        "tls": (2, 9, 4.5),
    }
    assert cell_of(steady(3, 80)).connect_ms is None
    early = [request(0, 80, connect=opened[0], phase="warmup"), *steady(3, 80)]
    of_warmup = cell_of(early).connect_ms
    assert of_warmup is not None
    assert of_warmup["tcp"].max == 2


# ---- verdicts


def test_nothing_was_measured() -> None:
    cell = cell_of([], facts_of(unmeasured="the host is down"))
    assert (cell.verdict, cell.reasons, cell.notes) == ("invalid", ["the host is down"], [])
    assert (cell.requests.sent, cell.ttft_ms, cell.otps, cell.window_s) == (0, None, None, None)
    cell = cell_of([])
    assert (cell.verdict, cell.reasons) == ("invalid", ["no request succeeded"])
    cell = cell_of([request(0, 10, phase="warmup")])
    assert (cell.verdict, cell.reasons) == ("invalid", ["no request succeeded"])


def test_nothing_succeeded() -> None:
    cell = cell_of([broken(100 * n) for n in range(80)])
    assert (cell.verdict, cell.reasons) == ("invalid", ["no request succeeded"])
    assert cell.requests.failures == {"reset": 80}
    assert cell.ttft_ms is None
    assert cell.ruler.stamps is None


def test_a_cell_that_was_stopped_is_partial() -> None:
    cell = cell_of(steady(10, 40, 60, 80), facts_of(stopped="interrupted"))
    assert (cell.verdict, cell.reasons) == ("partial", ["interrupted"])
    idle = [request(200 * n, 40, 60, 80) for n in range(10)]
    cell = cell_of(idle, facts_of(stopped="interrupted"))  # it need not have kept the load up
    assert (cell.verdict, cell.reasons) == ("partial", ["interrupted"])
    cell = cell_of([broken(0)], facts_of(stopped="interrupted"))  # nothing good came of it
    assert (cell.verdict, cell.reasons) == ("invalid", ["interrupted"])
    late = facts_of(stopped="interrupted", health=Health(**(WELL | {"collections": 1})))
    cell = cell_of(steady(10, 40, 60, 80), late)
    assert cell.verdict == "invalid"
    assert cell.reasons[0] == "interrupted"


def test_evidence_that_is_missing() -> None:
    traces = steady(80, 40, 60, 80)
    assert cell_of(traces, facts_of(stored=80)).verdict == "valid"
    cell = cell_of(traces, facts_of(stored=81))
    assert cell.verdict == "invalid"
    assert cell.reasons == ["evidence is missing: 80 of 81 requests are there"]


def test_what_was_cut_off_counts_as_at_least_as_slow_as_it_was_seen_to_be() -> None:
    """80 TTFTs of 1 to 80 ms, 40 that had none after 100 ms: the median of 120 is the 60th."""
    traces = growing(80) + [broken(16_000, "cancelled") for _ in range(40)]
    cell = cell_of(traces, facts_of(stopped="interrupted"))
    assert (cell.requests.sent, cell.requests.cancelled, cell.requests.failed) == (120, 40, 0)
    ttft = cell.ttft_ms
    assert ttft is not None
    assert (ttft.n, ttft.p50, ttft.max) == pytest.approx((120, 60, 80))
    assert (ttft.p90, ttft.p95) == (None, None)  # a third is beyond 80 ms
    assert (ttft.mean, ttft.ci95.keys()) == (pytest.approx(40.5), {"p50"})
    assert cell.notes == [
        "TTFT p90 is beyond what was seen before the cut: at least 100 ms",
        "40 requests were cut off in flight: they count as at least as slow as they were seen to "
        "be",
    ]
    assert cell.e2e_ms is not None  # 200 ms each: those that were cut at 100 do not say otherwise
    assert (cell.e2e_ms.n, cell.e2e_ms.p50, cell.e2e_ms.p95) == pytest.approx((120, 200, 200))
    assert cell.tpot_ms is not None
    assert cell.tpot_ms.n == 80


@pytest.mark.parametrize(("pause_ms", "verdict"), [(1, "valid"), (3, "invalid")])
def test_a_load_that_was_not_kept_up(pause_ms: float, verdict: str) -> None:
    cell = cell_of([request((100 + pause_ms) * n, 40, 70, 100) for n in range(80)])
    assert cell.verdict == verdict
    assert ["in flight on average" in reason for reason in cell.reasons] == (
        [] if verdict == "valid" else [True]
    )


@pytest.mark.parametrize(("concurrency", "verdict"), [(1, "invalid"), (2, "valid"), (3, "invalid")])
def test_the_load_is_the_one_that_was_asked_for(concurrency: int, verdict: str) -> None:
    cell = cell_of(steady(80, 40, 60, 80) * 2, facts_of(concurrency=concurrency))
    assert cell.in_flight == pytest.approx(2)
    assert cell.verdict == verdict


def test_a_server_that_had_not_settled() -> None:
    slow = [request(80 * n, 60 + n % 7, 75, 80) for n in range(60)]
    swift = [request(80 * n, 40 + n % 7, 60, 80) for n in range(60, 100)]
    cell = cell_of(slow + swift)
    (note,) = cell.notes
    assert note.startswith("not settled: TTFT p50 of the second half is 0.7 times")  # 44 over 63
    assert (cell.settled, cell.warmup_removed) == (False, 0)
    assert cell_of(swift[::-1] + slow).notes == [note]  # whichever came first on the disk
    mixed = [request(80 * n, 60 - 20 * (n % 2), 75, 80) for n in range(80)]
    cell = cell_of(mixed)
    assert (cell.settled, cell.notes) == (True, [])
    assert cell_of(mixed[:30]).settled is None


def test_a_server_that_waits_for_delayed_acks() -> None:
    times = [40, 41, 42, 43, 83, 84]
    cell = cell_of(steady(80, *times), facts_of(output_tokens=6))
    assert [note for note in cell.notes if "delayed" in note and note.startswith("20%")]
    slow = cell_of(steady(80, 40, 80, 120, 160), facts_of(output_tokens=4))
    assert slow.notes == []  # an honest 40 ms a token


def test_counts_that_disagree() -> None:
    cell = cell_of(steady(80, 40, 60, 80, tokens=2), facts_of(output_tokens=2))
    assert cell.verdict == "valid"
    assert cell.ttft_ms is not None
    assert cell.e2e_ms is not None
    assert (cell.itl_ms, cell.tpot_ms, cell.otps_per_user) == (None, None, None)
    assert cell.notes[0].startswith("TPOT and tok/s per user not shown: 0.67 tokens an event")


def test_a_server_that_limits_the_rate() -> None:
    refused = [
        request(8000 + n, end_ms=1, finish="", status=429, headers={"retry-after": "1"})
        for n in range(3)
    ]
    cell = cell_of(steady(100, 40, 60, 80) + refused)
    assert cell.requests.failures == {"http-429": 3}
    assert cell.notes == ["rate-limited: the server answered 429"]


@pytest.mark.parametrize(
    ("sick", "word"),
    [
        ({"clock_step_ms": 3.0}, "clock"),
        ({"throttled_ms": 9.0}, "throttled"),
        ({"collections": 1}, "garbage"),
        ({"cpu_share": 1.0, "cpu_wait_share": 0.5}, ""),
    ],
)
def test_a_client_that_was_not_well(sick: dict[str, Any], word: str) -> None:
    cell = cell_of(steady(80, 40, 60, 80), facts_of(health=Health(**(WELL | sick))))
    assert cell.verdict == ("invalid" if word else "valid")
    assert [word in reason for reason in cell.reasons] == [True] * bool(word)


# ---- what the ruler says of itself


def test_stamps_are_the_kernels_only_if_all_are() -> None:
    assert cell_of(steady(80, 40, 60, 80)).ruler.stamps == "kernel"
    traces = [*steady(79, 40, 60, 80), request(79 * 80, 40, 60, 80, stamps="user")]
    ruler = cell_of(traces).ruler
    assert (ruler.stamps, ruler.ttft_error_ms, ruler.read_lag_ms) == ("user", None, None)


def test_a_request_left_within_its_sending_call() -> None:
    ruler = cell_of(steady(80, 40, 60, 80, send_ns=MS // 4)).ruler
    assert ruler.ttft_error_ms == pytest.approx({"p50": 0.25, "p95": 0.25, "p99": 0.25})
    assert ruler.itl_error_ms == pytest.approx({"p50": 0, "p95": 0, "p99": 0})


@pytest.mark.parametrize(("client", "untimed"), [("wire", 2.1), ("aiohttp", None)])
def test_a_figure_that_can_be_off_too_far(client: str, untimed: float | None) -> None:
    """2.1 ms are more than 5% of a TTFT of 40 ms: none of it can be stood behind, but ITL can."""
    traces = steady(80, 40, 60, 80, send_ns=round(2.1 * MS))
    cell = cell_of(traces, facts_of(client=client))
    assert cell.verdict == "valid"
    names = ["ttft.p50", "ttft.p95", "ttft.p99"] if untimed else []
    assert cell.untimed == pytest.approx(dict.fromkeys(names, untimed))
    assert any(note.startswith("client saturated: TTFT p50") for note in cell.notes) == bool(names)
    assert not cell_of(steady(80, 40, 60, 80, send_ns=round(1.9 * MS))).untimed


def test_a_cell_is_invalid_where_no_median_can_be_stood_behind() -> None:
    cell = cell_of(steady(80, 40, send_ns=round(2.1 * MS)))  # one event a reply, and so no ITL
    assert cell.verdict == "invalid"
    assert cell.reasons == ["client saturated: TTFT p50 can be off by 2.1 ms; use a faster machine"]


@pytest.mark.parametrize(
    ("cpu", "waited", "cause"),
    [
        (0.95, 0.05, "client saturated: TTFT p50 can be off by 2.1 ms; it used 95% of a core: use"),
        (0.95, 0.40, "client saturated: "),  # it waited, but it used more
        (0.20, 0.31, "machine busy: TTFT p50 can be off by 2.1 ms; this process waited for a core "
         "31% of the time: measure from"),
        (0.02, 0.01, "machine busy: "),  # it had little to do, whoever was in the way
        (0.55, 0.08, "client saturated: "),
    ],
)  # fmt: skip
def test_whose_doing_it_was(cpu: float, waited: float, cause: str) -> None:
    health = Health(**(WELL | {"cpu_share": cpu, "cpu_wait_share": waited}))
    cell = cell_of(steady(80, 40, send_ns=round(2.1 * MS)), facts_of(health=health))
    assert cell.reasons[0].startswith(cause)


@pytest.mark.parametrize(("lag_ms", "error_ms"), [(1.2, 0), (4, 15)])
def test_events_that_shared_a_read(lag_ms: float, error_ms: float) -> None:
    """A client that reads late has made them share it; one that was prompt has not."""
    shared = steady(80, 60, 60, 100, lag_ms=lag_ms, slack_ms=15)
    for trace in shared:
        first = trace.reads.end[1]
        trace.reads.end[0] = first  # the first two events came in one read
    ruler = cell_of(shared).ruler
    assert ruler.coalesced_share == pytest.approx(1 / 3)
    all_of_them = dict.fromkeys(["p50", "p95", "p99"], lag_ms)
    assert ruler.read_lag_ms == pytest.approx(all_of_them, rel=1e-3)  # kept in 11 bits
    error = dict.fromkeys(all_of_them, error_ms)
    assert ruler.ttft_error_ms == pytest.approx(error, rel=2e-3)


def test_streams_that_stand_idle_are_less_than_the_load() -> None:
    """The end of a reply of 80 ms may be read 1.6 ms late: 2% of the time."""
    late = cell_of(steady(80, 40, 60, 80, lag_ms=1.7))
    assert late.verdict == "invalid"
    assert late.reasons[0].startswith("client saturated: replies were read 1.7 ms after they had")
    assert cell_of(steady(80, 40, 60, 80, lag_ms=1.5)).verdict == "valid"
    # Of short replies the poller's own millisecond is no cause.
    assert cell_of(steady(80, 10, 20, 30, lag_ms=0.9)).verdict == "valid"
    assert cell_of(steady(80, 10, 20, 30, lag_ms=1.1)).verdict == "invalid"


def test_calibration_states_the_greater_error() -> None:
    calibration = Calibration(
        client="wire",
        concurrency=1,
        events_per_s=50.0,
        ttft_error_ms={"p50": 0.1, "p95": 0.2, "p99": 0.9},
        itl_error_ms={"p50": 0.1, "p95": 0.2, "p99": 0.3},
    )
    traces = steady(80, 40, 60, 80, send_ns=MS // 4)
    cell = cell_of(traces, facts_of(calibration=calibration))
    assert cell.ruler.calibrated
    assert cell.ruler.ttft_error_ms == pytest.approx({"p50": 0.25, "p95": 0.25, "p99": 0.9})
    assert cell.ruler.itl_error_ms == pytest.approx({"p50": 0.1, "p95": 0.2, "p99": 0.3})
    user = steady(80, 40, 60, 80, stamps="user")
    cell = cell_of(user, facts_of(calibration=calibration))
    assert cell.ruler.ttft_error_ms == calibration.ttft_error_ms
    failed = cell_of([broken(0)], facts_of(calibration=calibration))
    assert not failed.ruler.calibrated


# ---- the JSON


RUN = Run(started="2026-01-01T00:00:00+00:00", sweep=Sweep(), targets=[TARGET], host={})
BLOCK = {"n", "mean", "min", "p50", "p90", "p95", "p99", "max", "ci95"}
CONTRACT = {  # design.md, "What the outside sees"
    *("target", "engine", "model", "quantization", "api", "client", "concurrency"),
    *("request_rate", "prompt_tokens", "output_tokens", "requests", "ttft_ms", "itl_ms", "icl_ms"),
    *("tpot_ms", "e2e_ms", "otps_per_user", "otps", "requests_per_s", "ruler", "verdict"),
    "reasons",
}


def cell_with(ttft: Any) -> Cell:
    cell = cell_of([])
    cell.ttft_ms = ttft
    return cell


def no_such_number(word: str) -> None:
    raise AssertionError(f"{word} is not JSON")


def as_json(cell: Cell) -> dict[str, Any]:
    document = json.loads(summary_json(RUN, [cell]), parse_constant=no_such_number)
    assert document["schema"] == "llmbench.summary/1"
    (told,) = document["cells"]
    return dict(told)


@pytest.mark.parametrize(
    "traces", [[], growing(80), growing(80, 100), [broken(0)], steady(1, 10)], ids=len
)
def test_the_keys_of_the_json(traces: list[Trace]) -> None:
    told = as_json(cell_of(traces))
    assert told.keys() >= CONTRACT
    assert told["requests"].keys() >= {"sent", "ok", "failed"}
    assert told["ruler"].keys() >= {"stamps", "ttft_error_ms", "itl_error_ms"}
    blocks = [told[key] for key in sorted(CONTRACT) if key.endswith("_ms")] + [
        told["otps_per_user"]
    ]
    for each in blocks:
        assert each is None or each.keys() >= BLOCK


def test_infinity_is_null_in_the_json() -> None:
    told = as_json(cell_of(growing(30, 50)))["ttft_ms"]
    assert told["n"] == 80
    assert (told["p50"], told["p95"]) == (None, None)
    assert told["ci95"]["p50"] == [None, None]
    assert told["max"] == pytest.approx(30)


def test_the_json_says_what_the_cell_says() -> None:
    cell = cell_of(growing(80))
    told = as_json(cell)
    assert cell.ttft_ms is not None
    assert told["ttft_ms"]["p50"] == cell.ttft_ms.p50 == pytest.approx(40)
    assert told["ttft_ms"]["ci95"]["p50"] == pytest.approx([31, 50])
    counts = {"sent": 80, "ok": 80, "failed": 0, "cancelled": 0, "failures": {}}
    assert told["requests"].items() >= counts.items()
    assert told["measured_output_tokens"] == {"min": 3, "p50": 3, "max": 3}


def test_the_interval_of_a_rate_holds_the_truth() -> None:
    """Replies of one token that stay 100 ms or so, independently: 1 / mean a second."""
    rng, held = np.random.default_rng(5), 0
    for _ in range(200):
        stays_ms = 100 * rng.lognormal(0, 0.4, size=80)
        starts_ms = np.concatenate(([0.0], np.cumsum(stays_ms)))
        at_ms = zip(starts_ms.tolist(), stays_ms.tolist(), strict=False)
        rows = Requests.of(
            RequestMetrics(
                phase="measured",
                sent_ns=round(start * MS),
                end_ns=round((start + stay) * MS),
                tokens=1,
                token_source="usage",
                events=1,
                first_ns=0,
                last_ns=0,
                gaps_s=array("f"),
                lag_ms=array("f"),
                stamps="kernel",
            )
            for start, stay in at_ms
        )
        cell = cell_with(None)
        cell.otps = 80 / (starts_ms[-1] / 1e3)
        add_rate_intervals(cell, rows)
        assert cell.otps_ci95 is not None
        assert cell.requests_per_s_ci95 is None  # it has no rate
        low, high = cell.otps_ci95
        held += low <= 10 / math.exp(0.08) <= high
    assert 0.9 <= held / 200 <= 0.99


def test_few_requests_have_no_interval_of_their_rate() -> None:
    assert cell_of(steady(29, 10, 15, 20)).otps_ci95 is None
    even = cell_of(steady(40, 10, 15, 20))
    assert even.otps_ci95 == pytest.approx((even.otps, even.otps))  # all alike
