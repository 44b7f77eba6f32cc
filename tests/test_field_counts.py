"""Tokens as servers count them, worked out by hand: what is known, was seen, and is withheld."""

import json
from array import array
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import pytest

from llmbench.apis import APIS
from llmbench.measure.cell import judged
from llmbench.measure.gaps import token_gaps
from llmbench.measure.metrics import measure
from llmbench.measure.requests import Requests
from llmbench.measure.summary import summarize
from llmbench.measure.timeline import decode
from llmbench.measure.usage import is_cumulative, usage_of
from llmbench.records import (
    UNKNOWN_TOKENS,
    Cell,
    CellFacts,
    CompletionDetails,
    Load,
    PromptDetails,
    Reads,
    RequestMetrics,
    Target,
    Trace,
    Usage,
)

MS = 1_000_000
TARGET = Target(spec="http://h", name="h", url="http://h/v1")

Timed = tuple[float, dict[str, Any]]


def chunk(text: str = "word ", usage: Any = None, **more: Any) -> dict[str, Any]:
    return {"choices": [{"delta": {"content": text}}], "usage": usage, **more}


def thought(text: str = "hmm ") -> dict[str, Any]:
    return {"choices": [{"delta": {"reasoning_content": text}}]}


def counts(completion: int, prompt: int = 7, **more: Any) -> dict[str, Any]:
    return {"prompt_tokens": prompt, "completion_tokens": completion, **more}


def end(usage: Any = None, finish: str = "stop", **choice: Any) -> dict[str, Any]:
    return {"choices": [{"delta": {}, "finish_reason": finish, **choice}], "usage": usage}


def measured(events: Sequence[Timed], **fields: Any) -> RequestMetrics:
    """A request whose events came each in a read of its own, (milliseconds after sent, event)."""
    pieces = [f"data: {json.dumps(each)}\n\n".encode() for _, each in events]
    at_ns = array("q", [round(at_ms * MS) for at_ms, _ in events])
    none = array("q", [0] * len(events))
    facts: dict[str, Any] = {
        "cell": 0,
        "index": 0,
        "stream": 0,
        "phase": "measured",
        "sent_ns": 0,
        "end_ns": at_ns[-1] + MS,
        "status": 200,
        "headers": {"content-type": "text/event-stream"},
        "reads": Reads(array("q", accumulate(map(len, pieces))), at_ns, none, none),
        "body": b"".join(pieces),
    }
    trace = Trace(**(facts | fields))
    return measure(trace, decode(trace, APIS["chat"].decode))


def every_10_ms(chunks: Sequence[dict[str, Any]], last: Any = None) -> list[Timed]:
    """``chunks`` from 20 ms on, and the end with the last of them."""
    timed = [(20.0 + 10 * number, each) for number, each in enumerate(chunks)]
    return [
        *timed,
        (timed[-1][0], last if isinstance(last, dict) and "choices" in last else end(last)),
    ]


def cell_of(events: Sequence[Timed], requests: int = 8, turns: int = 1) -> Cell:
    """The row of as many requests, one after the other, all with these ``events``."""
    rows = [
        measured(events, index=number, sent_ns=number * 2_000 * MS, end_ns=2_000 * MS)
        for number in range(requests)
    ]
    load = Load(
        concurrency=1,
        prompt_tokens=7,
        output_tokens=8,
        requests=requests,
        duration_s=None,
        warmup=0,
    )
    facts = CellFacts(cell=0, target=0, client="wire", load=load, stored=requests)
    return judged(summarize(TARGET, facts, Requests.of(rows)), facts)


# ---- what usage says


SPLIT = PromptDetails(90)
DETAILS = CompletionDetails(30)


@pytest.mark.parametrize(
    ("stated", "total"),
    [
        ([Usage(20, 5)], Usage(20, 5)),
        ([Usage(0, 5)], Usage(None, 5)),  # no prompt has no tokens
        ([Usage(20, 0)], Usage(20, None)),
        # the last word on each count; what a later one leaves out, or has as 0, stands
        ([Usage(20), Usage(None, 5)], Usage(20, 5)),
        ([Usage(20, 1), Usage(0, 5), Usage(0, 0)], Usage(20, 5)),
        ([Usage(20, 1, PromptDetails(4)), Usage(20, 5)], Usage(20, 5, PromptDetails(4))),
        # reasoning inside, and beside
        ([Usage(20, 50, None, DETAILS, 70)], Usage(20, 50, None, DETAILS, 70)),
        ([Usage(20, 50, None, DETAILS, 100)], Usage(20, 80, None, DETAILS, 100)),
        ([Usage(20, 10, None, DETAILS)], Usage(20, 40, None, DETAILS)),
        ([Usage(20, 0, None, DETAILS)], Usage(20, 30, None, DETAILS)),
        ([Usage(20, 10, None, DETAILS, 30)], Usage(20, 40, None, DETAILS, 30)),
        # cached inside, and beside
        ([Usage(100, 5, SPLIT)], Usage(100, 5, SPLIT)),
        ([Usage(100, 5, SPLIT, None, 105)], Usage(100, 5, SPLIT, None, 105)),
        ([Usage(100, 5, SPLIT, None, 195)], Usage(190, 5, SPLIT, None, 195)),
        ([Usage(10, 5, SPLIT)], Usage(100, 5, SPLIT)),
        ([Usage(0, 5, SPLIT)], Usage(90, 5, SPLIT)),
        # both beside
        ([Usage(10, 5, SPLIT, DETAILS, 135)], Usage(100, 35, SPLIT, DETAILS, 135)),
    ],
)
def test_usage(stated: list[Usage], total: Usage) -> None:
    assert usage_of(stated) == total


def test_cached_tokens_by_any_name() -> None:
    assert Usage(20, cached=3).cached_tokens == 3
    assert Usage(20, prompt_cache_hit_tokens=3).cached_tokens == 3
    assert Usage(20, cache_read_input_tokens=3).cached_tokens == 3
    assert Usage(20, prompt_tokens_details=PromptDetails(0), cached=3).cached_tokens == 0
    assert Usage(20, reasoning=3).reasoning_tokens == 3


@pytest.mark.parametrize(
    ("said", "events", "chars", "cumulative"),
    [
        ([8], 8, 40, True),
        ([1, 2, 3, 4], 4, 20, True),
        ([1, 1, 2, 3], 4, 20, True),
        ([4, 8, 12], 3, 50, True),
        ([8, 8, 8, 8], 4, 40, True),  # a server that had the whole reply before it sent any
        ([*range(1, 50), 48], 49, 200, True),  # a correction
        ([0, 0, 0, 0], 4, 20, True),  # none were stated
        ([1, 1, 1, 1], 4, 20, False),
        ([0, 1, 1, 1], 4, 20, False),
        ([4, 4, 4, 4], 4, 64, False),  # 16 characters a token are none
        ([3, 1, 2, 4], 4, 40, False),
    ],
)
def test_counts_of_all_tokens_and_of_single_events(
    said: list[int], events: int, chars: int, cumulative: bool
) -> None:
    assert is_cumulative(said, events, chars) == cumulative


@pytest.mark.parametrize(
    ("said", "tokens"),
    [([1] * 8, 8), ([2] * 8, 16), ([3, 1, 2, 4], 10), ([3, 1, 2, 4, 10], 10), ([1] * 8 + [8], 8)],
)
def test_counts_of_single_events_add_up(said: list[int], tokens: int) -> None:
    stated = [Usage(7, each) for each in said]
    assert usage_of(stated, cumulative=False).completion_tokens == tokens


def test_running_counts_of_single_events() -> None:
    told = measured(every_10_ms([chunk(usage=counts(each)) for each in (3, 1, 2, 4)]))
    assert (told.tokens, told.token_source, told.counted) == (10, "usage", True)
    assert told.steps is not None
    assert told.steps.tolist() == [1, 2, 4]
    assert told.tpot_s == pytest.approx(0.030 / 7)  # the first three came with the first event


@pytest.mark.parametrize(
    "last",
    [
        end(counts(4)),
        end(usage=counts(4)),
        {"choices": [{"delta": {}, "finish_reason": "stop", "usage": counts(4)}]},
        {"choices": [{"delta": {}, "finish_reason": "stop"}], "x_groq": {"usage": counts(4)}},
        end({"prompt_tokens": "7", "completion_tokens": 4.0}),
    ],
)
def test_where_usage_stands(last: dict[str, Any]) -> None:
    told = measured(every_10_ms([chunk()] * 4, last))
    assert (told.prompt_tokens, told.tokens, told.token_source) == (7, 4, "usage")


@pytest.mark.parametrize("bad", [[], 5, {"completion_tokens": -1}, {"completion_tokens": "many"}])
def test_usage_that_says_nothing(bad: Any) -> None:
    told = measured(every_10_ms([chunk()] * 4, end(bad)))
    assert (told.failure, told.tokens, told.token_source) == ("", 4, "chunks")


# ---- several tokens an event


def test_the_tokens_of_the_first_event_are_not_in_tpot() -> None:
    events = [(40.0 * n, chunk(usage=counts(4 * n))) for n in range(1, 17)]
    told = measured([*events, (640.0, end(counts(64)))])
    assert told.tpot_s == pytest.approx(0.010)  # (640 − 40) ms over 64 − 4 tokens
    assert told.head_share is None


def test_most_tokens_in_the_first_event() -> None:
    events = [chunk(usage=counts(60)), chunk(usage=counts(61)), chunk(usage=counts(62))]
    cell = cell_of(every_10_ms(events, counts(62)))
    assert cell.tpot_ms is not None
    assert cell.tpot_ms.p50 == pytest.approx(10)


def test_counts_that_rise_before_any_text() -> None:
    silent = [chunk("", usage=counts(n)) for n in range(1, 31)]
    spoken = [chunk(usage=counts(n)) for n in range(31, 41)]
    told = measured(every_10_ms(silent + spoken, counts(40)))
    assert told.ttft_s == pytest.approx(0.320)
    assert told.tpot_s == pytest.approx(0.010)  # 90 ms over the 9 tokens after the first text
    assert token_gaps(Requests.of([told])).why_not == ""


def test_all_tokens_in_one_instant() -> None:
    told = measured([(20.0, chunk(usage=counts(3))), (20.0, chunk(usage=counts(8)))])
    assert told.tpot_s is None


# ---- hidden reasoning


def reasoning(tokens: int) -> dict[str, Any]:
    return {"completion_tokens_details": {"reasoning_tokens": tokens}}


def test_reasoning_that_is_not_streamed_is_in_no_rate() -> None:
    events = every_10_ms([chunk()] * 60, counts(660, **reasoning(600)))
    told = measured(events)
    assert (told.tokens, told.hidden_tokens) == (660, 600)
    assert told.tpot_s == pytest.approx(0.010)  # 590 ms over 60 − 1 tokens
    cell = cell_of(events)
    assert cell.tpot_ms is not None
    assert cell.otps_per_user is not None
    assert cell.otps_end_to_end is not None
    assert cell.measured_output_tokens is not None
    assert (cell.tpot_ms.p50, cell.otps_per_user.p50) == pytest.approx((10, 100))
    assert cell.otps_end_to_end.p50 == pytest.approx(60 / 0.610)
    assert cell.measured_output_tokens.p50 == 660
    assert cell.tokens_per_event == 1
    assert cell.itl_ms is not None
    assert cell.otps == pytest.approx(60 * 8 / (cell.window_s or 0))
    note = "replies have 600 tokens of reasoning that are not streamed: TPOT and tok/s are of the"
    assert any(each.startswith(note) for each in cell.notes)


def test_reasoning_counted_beside_the_completion() -> None:
    told = measured(every_10_ms([chunk()] * 60, counts(60, total_tokens=667, **reasoning(600))))
    assert (told.tokens, told.hidden_tokens) == (660, 600)
    assert told.tpot_s == pytest.approx(0.010)


@pytest.mark.parametrize("each", [1, 4])
def test_reasoning_that_is_streamed_was_seen(each: int) -> None:
    thoughts, words = [thought("hmm " * each)] * 20, [chunk("word " * each)] * 10
    last = counts(30 * each, **reasoning(20 * each))
    told = measured(every_10_ms(thoughts + words, last))
    assert (told.tokens, told.hidden_tokens) == (30 * each, 0)


def test_reasoning_that_is_streamed_in_part_withholds_what_it_would_spoil() -> None:
    events = every_10_ms([thought()] * 20 + [chunk()] * 60, counts(680, **reasoning(620)))
    assert measured(events).hidden_tokens == UNKNOWN_TOKENS
    cell = cell_of(events)
    assert cell.verdict == "valid"
    assert cell.ttft_ms is not None
    assert cell.e2e_ms is not None
    assert (cell.tpot_ms, cell.itl_ms, cell.otps_per_user) == (None, None, None)
    assert (cell.otps, cell.otps_end_to_end, cell.otps_ci95) == (None, None, None)
    assert cell.tokens_per_event is None
    assert any("8 replies have tokens that came in no event" in each for each in cell.notes)


def test_hidden_tokens_that_nobody_owns_up_to() -> None:
    """60 words of 2 characters are not the text of 660 tokens."""
    assert measured(every_10_ms([chunk("w ")] * 60, counts(660))).hidden_tokens == UNKNOWN_TOKENS
    assert measured(every_10_ms([chunk("word " * 8)] * 60, counts(480))).hidden_tokens == 0
    calls = {"choices": [{"delta": {"tool_calls": [{"index": 0}]}}]}
    assert measured(every_10_ms([calls] * 6, counts(660))).hidden_tokens == 0  # they have no text


def test_a_reply_that_is_all_reasoning() -> None:
    told = measured(every_10_ms([thought()] * 20, counts(20, **reasoning(20))))
    assert (told.failure, told.hidden_tokens, told.ttfat_s) == ("", 0, None)
    cell = cell_of(every_10_ms([thought()] * 20, end(counts(20), finish="length")))
    assert any("8 replies reached their limit in reasoning" in each for each in cell.notes)


# ---- events that split a token


def test_events_that_split_tokens() -> None:
    cell = cell_of(every_10_ms([chunk("w")] * 12, counts(8)))
    assert cell.verdict == "valid"
    assert cell.ttft_ms is not None
    assert cell.e2e_ms is not None
    assert (cell.itl_ms, cell.tpot_ms, cell.otps_per_user) == (None, None, None)
    assert cell.otps is not None
    assert any("0.67 tokens an event" in each for each in cell.notes)


# ---- prompts


def test_a_prompt_of_no_tokens_is_not_counted() -> None:
    cell = cell_of(every_10_ms([chunk()] * 8, counts(8, prompt=0)))
    assert (cell.measured_prompt_tokens, cell.token_source) == (None, "usage")
    assert any("does not count prompt tokens" in each for each in cell.notes)


def test_prompts_with_their_cached_tokens_beside() -> None:
    usage = counts(8, prompt=10, prompt_tokens_details={"cached_tokens": 90})
    cell = cell_of(every_10_ms([chunk()] * 8, usage))
    assert cell.measured_prompt_tokens is not None
    assert cell.measured_prompt_tokens.p50 == 100
    assert cell.cached_share == pytest.approx(0.9)
