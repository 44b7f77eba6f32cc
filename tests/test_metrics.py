"""One request's figures and the gaps between its tokens, worked out by hand."""

import json
import math
from array import array
from itertools import accumulate
from typing import Any

import numpy as np
import pytest

from llmbench.apis import APIS
from llmbench.measure.gaps import at_most, burst_index, chunk_gaps, means, token_gaps
from llmbench.measure.metrics import measure
from llmbench.measure.requests import Ragged, Requests
from llmbench.measure.timeline import decode
from llmbench.records import Reads, RequestMetrics, Trace

MS = 1_000_000
DONE = "[DONE]"


def said(text: str = "a", running: int | None = None, **choice: Any) -> dict[str, Any]:
    """A chunk with content, and the running token count where one is given."""
    usage = {} if running is None else {"usage": {"completion_tokens": running}}
    return {"choices": [{"delta": {"content": text}, **choice}]} | usage


def ending(tokens: int | None = None, finish: str = "length") -> dict[str, Any]:
    usage = {} if tokens is None else {"usage": {"completion_tokens": tokens}}
    return {"choices": [{"delta": {}, "finish_reason": finish}]} | usage


def measured(*events: tuple[float, Any], **fields: Any) -> RequestMetrics:
    """A request whose events came each in a read of its own, (milliseconds after sent, event)."""
    lines = [each if isinstance(each, str) else json.dumps(each) for _, each in events]
    pieces = [f"data: {line}\n\n".encode() for line in lines]
    at_ns = [round(at_ms * MS) for at_ms, _ in events]
    none = array("q", [0] * len(events))
    facts = {
        "cell": 0,
        "index": 0,
        "stream": 0,
        "phase": "measured",
        "sent_ns": 7 * MS,
        "end_ns": max(at_ns, default=0) + MS,
        "status": 200,
        "headers": {"content-type": "text/event-stream"},
        "reads": Reads(array("q", accumulate(map(len, pieces))), array("q", at_ns), none, none),
        "body": b"".join(pieces),
    }
    trace = Trace(**(facts | fields))
    return measure(trace, decode(trace, APIS["chat"].decode))


def at(*times_ms: float, tokens: int | None = None, finish: str = "length") -> RequestMetrics:
    """A request with one word at each time, and a total of tokens where one is given."""
    end = (times_ms[-1], ending(tokens, finish))
    return measured(*((time, said()) for time in times_ms), end)


def running(*counts: tuple[float, int]) -> RequestMetrics:
    """A request with a running count: (milliseconds, tokens so far) an event."""
    last_ms, total = counts[-1]
    return measured(*((time, said(running=n)) for time, n in counts), (last_ms, ending(total)))


def itl_ms(*requests: RequestMetrics) -> list[float] | str:
    """The token gaps in milliseconds, or why there are none."""
    told = token_gaps(Requests.of(requests))
    return told.why_not if told.gaps is None else approximately(told.gaps)


def approximately(gaps: Ragged) -> list[float]:
    """In ms, to a part in 10⁷: gaps are kept in 24 bits."""
    return [round(float(gap) * 1e3, 4) for gap in gaps.values]


# ---- one request


def test_every_latency_of_a_reply() -> None:
    told = measured(
        (5, {"choices": [{"delta": {"role": "assistant"}}]}),
        (20, {"choices": [{"delta": {"reasoning_content": "Hm"}}]}),
        (30, {"choices": [{"delta": {"reasoning_content": "hm"}}]}),
        (40, said("Yes")),
        (60, said(".")),
        (65, ending(9)),
        (66, DONE),
        end_ns=70 * MS,
    )
    assert told.ttfr_s == 0.005
    assert told.ttft_s == 0.020
    assert told.ttfat_s == 0.040
    assert told.e2e_s == 0.060  # the last token's, not the end of the stream
    assert told.tpot_s == pytest.approx(0.040 / 8)  # (60 − 20) ms over 9 − 1 tokens
    assert (told.tokens, told.token_source) == (9, "usage")
    assert (told.sent_ns, told.end_ns) == (7 * MS, 77 * MS)


@pytest.mark.parametrize(
    ("times", "tokens", "tpot_ms"),
    [
        ([10, 20, 30], None, 10),
        ([10, 20, 30], 3, 10),
        ([10, 20, 30], 5, 5),
        ([10, 40], 2, 30),
        ([10], None, None),
        ([10], 1, None),
        ([10, 20], 1, None),  # a token over two events has no gap between tokens
        ([10], 5, None),  # nobody saw how long five tokens in one event took
        ([10, 10, 10], 3, None),
        ([10, 20], 0, 10),  # a reply of no tokens had no events: nobody counted
    ],
)
def test_tpot(times: list[float], tokens: int | None, tpot_ms: float | None) -> None:
    told = at(*times, tokens=tokens)
    assert told.tpot_s == (None if tpot_ms is None else pytest.approx(tpot_ms / 1e3))
    assert told.ttft_s == 0.010
    assert told.e2e_s == times[-1] / 1e3


def test_a_failed_request_has_no_latencies() -> None:
    told = measured((10, said()), (20, said()))
    assert told.failure == "truncated"
    assert (told.ttfr_s, told.ttft_s, told.ttfat_s, told.e2e_s, told.tpot_s) == (None,) * 5
    assert told.tokens == 2
    never = measured(error="refused", status=0)
    assert (never.ttft_s, never.e2e_s, never.tokens) == (None, None, 0)


def test_a_tool_call_has_no_answer() -> None:
    told = measured((10, {"choices": [{"delta": {"tool_calls": [{}]}}]}), (20, DONE))
    assert (told.ttft_s, told.ttfat_s) == (0.010, None)


def test_token_ids_come_before_usage_and_usage_before_events() -> None:
    ids = (10, said(token_ids=[1, 2, 3]))
    told = measured(ids, (20, ending(9)))
    assert (told.tokens, told.token_source) == (3, "token ids")
    told = measured((10, said()), (20, ending(9)))
    assert (told.tokens, told.token_source) == (9, "usage")
    told = measured((10, said()), (20, ending()))
    assert (told.tokens, told.token_source) == (1, "chunks")
    told = measured((10, said()), (20, ending(0)))
    assert (told.tokens, told.token_source) == (1, "chunks")


def test_the_last_usage_counts() -> None:
    assert running((10, 1), (20, 2)).tokens == 2
    assert measured((10, said(running=1)), (20, said(running=2)), (21, ending(3))).tokens == 3


def test_what_is_passed_on_of_a_trace() -> None:
    told = measured(
        (10, said()),
        (11, DONE),
        phase="warmup",
        stamps="user",
        send_ns=3,
    )
    assert (told.phase, told.stamps, told.send_ns) == ("warmup", "user", 3)
    assert list(told.lag_ms) == []  # nobody knows


def test_what_is_kept_of_a_token_is_small() -> None:
    """12 million tokens of a cell must fit into 300 MB, with a second array of all gaps."""
    counts = [(10.0 + n, n + 1 + (n > 50)) for n in range(200)]
    told = Requests.of([running(*counts)])
    assert told.steps is not None
    assert told.gaps_s.values.nbytes + told.steps.values.nbytes == 199 * (4 + 1)
    assert Requests.of([running(*((10.0 + n, n + 1) for n in range(200)))]).steps is None
    reply = measured(*((10.0 + n, said()) for n in range(200)), (300, ending(200)))
    kernel = Requests.of([reply])
    assert kernel.lag_ms.values.nbytes == 201 * 2
    assert (kernel.slack_ms, kernel.late_slack_ms) == (None, None)


@pytest.mark.parametrize("tokens", [1, 100, 40_000])
def test_steps_of_any_size(tokens: int) -> None:
    told = running((10, 1), (20, 2 + tokens), (30, 3 + tokens))
    assert told.steps is not None
    assert told.steps.tolist() == [1 + tokens, 1]


# ---- gaps between events


def test_chunk_gaps_stay_within_their_request() -> None:
    gaps = chunk_gaps(Requests.of([at(10, 20, 35), at(100), at(50, 51)]))
    assert approximately(gaps) == [10, 15, 1]
    assert list(gaps.sizes) == [2, 0, 1]
    assert means(gaps) == pytest.approx([0.0125, math.nan, 0.001], nan_ok=True)
    assert at_most(gaps, 0.002).tolist() == [0, 0, 1]
    assert at_most(gaps, 0.012).tolist() == [1, 0, 1]


def test_no_requests_have_no_gaps() -> None:
    assert list(chunk_gaps(Requests.of(())).values) == []
    assert list(chunk_gaps(Requests.of([at(10)])).values) == []


# ---- gaps between tokens


def test_one_token_an_event() -> None:
    assert itl_ms(at(10, 20, 35, tokens=3), at(10, 12, tokens=2)) == [10, 15, 2]


def test_a_running_count_spreads_a_gap_over_its_tokens() -> None:
    # 2 tokens in the 20 ms before the second event, 1 in 9 ms, 4 in 8 ms
    request = running((10, 1), (30, 3), (39, 4), (47, 8))
    told = token_gaps(Requests.of([request]))
    assert told.gaps is not None
    assert approximately(told.gaps) == [10, 10, 9, 2, 2, 2, 2]
    assert list(told.gaps.sizes) == [7]
    assert told.imputed_share == pytest.approx(6 / 7)


def test_the_tokens_of_the_first_event_have_no_gap() -> None:
    assert itl_ms(running((10, 5), (30, 7))) == [10, 10]


def test_an_event_without_a_new_token_joins_the_next_gap() -> None:
    assert itl_ms(running((10, 1), (20, 1), (30, 3), (31, 4))) == [10, 10, 1]


def test_nothing_is_imputed_where_each_event_is_a_token() -> None:
    requests = [running((10, 1), (30, 2)), running((10, 1), (15, 2), (16, 3))]
    told = token_gaps(Requests.of(requests))
    assert told.gaps is not None
    assert approximately(told.gaps) == [20, 5, 1]
    assert list(told.gaps.sizes) == [1, 2]
    assert told.imputed_share == 0


def test_a_running_count_in_some_replies_only_is_none() -> None:
    assert itl_ms(running((10, 1), (30, 3)), at(10, 20, tokens=2)) == "5 tokens came in 4 events"


def test_servers_that_do_not_count() -> None:
    why = "the server does not count its tokens"
    assert itl_ms(at(10, 20)) == why
    assert itl_ms(at(10, 20, tokens=2), at(10, 20)) == why


def test_several_tokens_an_event_without_a_running_count() -> None:
    words = [(time, said("word " * 400)) for time in (10, 20, 30)]
    assert itl_ms(measured(*words, (30, ending(2_000)))) == "2,000 tokens came in 3 events"


@pytest.mark.parametrize(
    ("events", "tokens", "finish", "known"),
    [
        (10, 11, "stop", True),  # the end token has no text
        (10, 10, "stop", True),
        (10, 12, "stop", False),
        (10, 11, "length", False),
        (10, 9, "length", False),
        (99, 100, "length", True),  # within one percent
        (98, 100, "length", False),
        (101, 100, "length", True),
    ],
)
def test_how_far_events_and_tokens_may_differ(
    events: int, tokens: int, finish: str, known: bool
) -> None:
    told = itl_ms(at(*range(10, 10 + events), tokens=tokens, finish=finish))
    assert (told == [1] * (events - 1)) == known


# ---- bursts


@pytest.mark.parametrize(
    ("gaps", "index"),
    [
        ([10], 0),
        ([10, 10, 10, 10], 0),
        ([10, 10, 1.9, 10], 0.25),
        ([10, 10, 2, 10], 0),  # a fifth is not below a fifth
        ([0, 0, 0, 40], 0.75),  # the median is of the gaps that are not 0
        ([0, 0, 0], 1),  # a reply that came at once
    ],
)
def test_the_burst_index(gaps: list[float], index: float) -> None:
    assert burst_index(np.sort(np.array(gaps, dtype=float))) == index
