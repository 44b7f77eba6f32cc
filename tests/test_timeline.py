"""Traces decoded: when each event had arrived, and how a stream ended."""

import gzip
import json
from array import array
from itertools import accumulate
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmbench.apis import APIS
from llmbench.measure.timeline import decode
from llmbench.records import Reads, Timeline, Trace, Usage

MS = 1_000_000
STREAM = {"content-type": "text/event-stream; charset=utf-8"}
DONE = b"data: [DONE]\n\n"


def chunk(finish: str | None = None, usage: Any = None, ids: Any = None, **delta: Any) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": finish} | (
        {"token_ids": ids} if ids is not None else {}
    )
    return event({"choices": [choice]} | ({"usage": usage} if usage else {}))


def event(data: Any, name: str = "") -> bytes:
    head = f"event: {name}\n" if name else ""
    return f"{head}data: {json.dumps(data)}\n\n".encode()


def said(text: str = "a", **fields: Any) -> bytes:
    return chunk(content=text, **fields)


def usage_event(tokens: int, prompt: int = 7) -> bytes:
    return event({"choices": [], "usage": {"prompt_tokens": prompt, "completion_tokens": tokens}})


FINISH = chunk(finish="length")


def seen(*reads: tuple[float, bytes], slack_ms: float = 0.3, **fields: Any) -> Trace:
    """A trace of reads, each (milliseconds after sent, bytes), all with the same slack."""
    pieces = [piece for _, piece in reads]
    at_ns = [round(at_ms * MS) for at_ms, _ in reads]
    facts = {
        "cell": 0,
        "index": 0,
        "stream": 0,
        "phase": "measured",
        "sent_ns": 5 * MS,
        "end_ns": max(at_ns, default=0) + MS,
        "status": 200,
        "headers": STREAM,
        "body": b"".join(pieces),
        "reads": Reads(
            array("q", accumulate(map(len, pieces))),
            array("q", at_ns),
            array("q", [at // MS for at in at_ns]),
            array("q", [round(slack_ms * MS)] * len(reads)),
        ),
    }
    return Trace(**(facts | fields))


def timeline(*reads: tuple[float, bytes], api: str = "chat", **fields: Any) -> Timeline:
    return decode(seen(*reads, **fields), APIS[api].decode)


def ms(times_ns: Any) -> list[float]:
    return [at / MS for at in times_ns]


def failed(*reads: tuple[float, bytes], **fields: Any) -> tuple[str, str]:
    told = timeline(*reads, **fields)
    return told.failure, told.detail


# ---- times


def test_one_event_a_read() -> None:
    told = timeline((10, said("Hi")), (20, said(" you")), (31, said(".")), (31.5, FINISH + DONE))
    assert ms(told.at_ns) == [10, 20, 31]
    assert ms(told.slack_ns) == [0, 0, 0]
    assert (told.first_event_ns, told.first_answer_ns) == (10 * MS, 10 * MS)
    assert (told.chars, told.finish, told.failure, told.detail) == (7, "length", "", "")
    assert told.usage == Usage()
    assert told.running_tokens is None
    assert told.token_ids is None


def test_an_event_has_arrived_with_its_last_byte() -> None:
    whole = said("é🙂")
    for cut in range(1, len(whole)):
        told = timeline((10, whole[:cut]), (12, whole[cut:] + said()), (14, DONE))
        assert ms(told.at_ns) == [12, 12], cut
        assert told.first_event_ns == 12 * MS
        assert told.chars == 3


def test_an_event_that_ends_with_its_read() -> None:
    told = timeline((10, said()), (12, said() + said()[:20]), (14, said()[20:]), (15, FINISH))
    assert ms(told.at_ns) == [10, 12, 14]


def test_a_crlf_event_is_complete_by_its_last_cr() -> None:
    body = said().replace(b"\n", b"\r\n")
    told = timeline((10, body[:-1]), (12, b"\n" + body[:-2]), (14, body[-2:]), (15, FINISH))
    assert ms(told.at_ns) == [10, 14]


def test_events_that_share_a_read_have_its_slack_but_the_last() -> None:
    told = timeline((10, said() * 3), (20, said()), (30, said() * 2), (31, FINISH), slack_ms=2)
    assert ms(told.at_ns) == [10, 10, 10, 20, 30, 30]
    assert ms(told.slack_ns) == [2, 2, 0, 0, 2, 0]


def test_what_is_no_content_does_not_make_it_uncertain() -> None:
    told = timeline((10, chunk(role="assistant") + said() + FINISH + DONE), slack_ms=2)
    assert ms(told.slack_ns) == [0]


def test_a_role_comes_before_the_first_token() -> None:
    told = timeline(
        (2, b": ping\n\n"), (3, chunk(role="assistant", content="")), (10, said() + DONE)
    )
    assert told.first_event_ns == 3 * MS
    assert ms(told.at_ns) == [10]
    assert told.first_answer_ns == 10 * MS


def test_reasoning_comes_before_the_first_answer() -> None:
    told = timeline(
        (3, chunk(role="assistant")),
        (10, chunk(reasoning_content="Hm")),
        (20, chunk(reasoning="hm")),
        (30, said("Hi")),
        (40, said("!")),
        (41, FINISH),
    )
    assert ms(told.at_ns) == [10, 20, 30, 40]
    assert (told.first_event_ns, told.first_answer_ns) == (3 * MS, 30 * MS)
    assert told.chars == 7


def test_tool_calls_are_generated_but_no_answer() -> None:
    told = timeline((10, chunk(tool_calls=[{"index": 0}])), (20, FINISH + DONE))
    assert ms(told.at_ns) == [10]
    assert told.first_answer_ns is None
    assert told.failure == ""


def test_usage_finish_done_and_comments_are_no_content() -> None:
    told = timeline(
        (10, said()), (20, b": ping\n\n"), (30, FINISH), (40, usage_event(1)), (50, DONE)
    )
    assert ms(told.at_ns) == [10]
    assert told.usage == Usage(7, 1)


def test_completions() -> None:
    words = [event({"choices": [{"text": text}]}) for text in ("Hi", " you", "")]
    told = timeline(*zip((10, 20, 30), words, strict=True), (40, DONE), api="completions")
    assert ms(told.at_ns) == [10, 20]
    assert told.chars == 6


CUTS = st.lists(st.integers(0, 2000), max_size=12)


@given(CUTS, st.booleans())
def test_times_by_any_reads(cuts: list[int], crlf: bool) -> None:
    """However the bytes were read: each event has the stamp of the read with its last byte."""
    events = [said(text) for text in ("a", "é", "🙂", "d", "e")] + [FINISH, DONE]
    if crlf:
        events = [each.replace(b"\n", b"\r\n") for each in events]
    body = b"".join(events)
    ends = sorted({*(cut % len(body) for cut in cuts), len(body)} - {0})
    starts = [0, *ends[:-1]]
    told = timeline(*((n, body[a:b]) for n, (a, b) in enumerate(zip(starts, ends, strict=True))))
    # the CR alone completes an event
    complete = [end - crlf for end in accumulate(map(len, events[:5]))]
    reads = [next(n for n, end in enumerate(ends) if end >= at) for at in complete]
    assert ms(told.at_ns) == reads
    assert [slack > 0 for slack in told.slack_ns] == [
        read in reads[number + 1 :] for number, read in enumerate(reads)
    ]


# ---- counts


def running(tokens: int) -> dict[str, int]:
    return {"prompt_tokens": 7, "completion_tokens": tokens}


def test_a_running_count() -> None:
    told = timeline(
        (5, chunk(role="assistant", usage=running(0))),
        (10, said(usage=running(1))),
        (20, said(usage=running(3))),
        (30, said(usage=running(4))),
        (31, usage_event(5) + DONE),
    )
    assert told.running_tokens is not None
    assert list(told.running_tokens) == [1, 3, 4]
    assert told.usage == Usage(7, 5)


@pytest.mark.parametrize(
    "events",
    [
        [said(), said(), usage_event(2)],
        [said(), said(usage=running(2))],  # a total that comes with the last content
        [said(usage=running(0)), said(usage=running(0))],
    ],
)
def test_what_is_no_running_count(events: list[bytes]) -> None:
    assert timeline((10, b"".join([*events, DONE]))).running_tokens is None


def test_token_ids() -> None:
    told = timeline((10, said(ids=[4])), (20, said(ids=[5, 6])), (30, FINISH), (31, usage_event(9)))
    assert told.token_ids == 3
    assert told.running_tokens is not None
    assert list(told.running_tokens) == [1, 3]
    assert timeline((10, said(ids=[])), (30, FINISH)).token_ids is None


# ---- failures


GOOD = said() + FINISH + DONE


@pytest.mark.parametrize(
    "ending", [FINISH + DONE, FINISH, DONE, FINISH + usage_event(1), said(finish="stop")]
)
def test_a_finish_reason_or_done_ends_a_good_reply(ending: bytes) -> None:
    assert failed((10, said()), (20, ending)) == ("", "")


def test_too_many_requests() -> None:
    headers = {"content-type": "application/json", "retry-after": "7"}
    body = b'{"error": {"message": "slow down"}}'
    told = timeline((10, body), status=429, headers=headers)
    assert (told.failure, told.detail) == ("http-429", "slow down (Retry-After: 7)")
    assert list(told.at_ns) == []
    assert told.first_event_ns is None
    assert failed((10, body), status=429, headers={}) == ("http-429", "slow down")


@pytest.mark.parametrize("status", [201, 302, 400, 500, 503])
def test_other_statuses(status: int) -> None:
    assert failed((10, b"no"), status=status, headers=STREAM) == (f"http-{status}", "no")


@pytest.mark.parametrize(
    ("headers", "body", "words"),
    [
        ({"content-type": "text/html"}, b"<!DOCTYPE html><title>Sign in", "text/html"),
        ({"content-type": "application/json"}, b"no JSON", "application/json"),
        ({"content-type": "application/json"}, b"", "application/json"),
        ({}, b"hello", "of no stated type"),
        (STREAM | {"content-encoding": "gzip"}, gzip.compress(GOOD), "gzip-encoded"),
    ],
)
def test_what_is_not_a_stream(headers: dict[str, str], body: bytes, words: str) -> None:
    failure, detail = failed((10, body), headers=headers)
    assert failure == "not-a-stream"
    assert words in detail


@pytest.mark.parametrize(
    "headers",
    [
        {"content-type": "text/event-stream"},
        {"content-type": "Text/Event-Stream;charset=UTF-8"},
        {"content-type": "text/event-stream", "content-encoding": "identity"},
        {"content-type": "text/event-stream", "content-encoding": "gzip"},  # unpacked on the way
        {"content-type": "application/json"},
        {},
    ],
)
def test_what_is_a_stream(headers: dict[str, str]) -> None:
    assert failed((10, GOOD), headers=headers) == ("", "")


def test_a_truncated_stream_keeps_the_times_of_what_came() -> None:
    told = timeline((10, said()), (20, said() + said()[:9]))
    assert told.failure == "truncated"
    assert ms(told.at_ns) == [10, 20]


def test_a_finish_that_was_cut_off_does_not_count() -> None:
    assert failed((10, said() + FINISH[:-1]))[0] == "truncated"
    assert failed()[0] == "truncated"


def test_an_error_in_the_stream() -> None:
    wrong = event({"error": {"message": "out of memory"}})
    assert failed((10, said() + wrong + DONE)) == ("stream-error", "out of memory")
    named = event({"message": "busy"}, name="error")
    assert failed((10, said() + named + wrong)) == ("stream-error", "busy")
    assert failed((10, GOOD + wrong))[0] == "stream-error"


def test_an_error_that_says_malformed_is_the_servers_own() -> None:
    wrong = event({"error": {"message": "malformed tool call"}})
    assert failed((10, said() + wrong)) == ("stream-error", "malformed tool call")


def test_a_malformed_chunk() -> None:
    failure, detail = failed((10, said() + b'data: {"choices":\n\n' + FINISH + DONE))
    assert failure == "malformed"
    assert detail.startswith("malformed chunk: ")


@pytest.mark.parametrize("body", [FINISH + DONE, DONE, chunk(role="assistant") + DONE])
def test_an_empty_reply(body: bytes) -> None:
    assert failed((10, body))[0] == "empty"


@pytest.mark.parametrize("kind", ["reset", "timeout", "refused", "cancelled"])
def test_what_the_transport_saw(kind: str) -> None:
    fields = {"error": kind, "detail": "words"}
    assert failed(status=0, headers={}, **fields) == (kind, "words")
    assert failed((10, said()), **fields) == (kind, "words")
    assert failed((10, b"x"), status=500, **fields) == (kind, "words")


def test_the_servers_own_words_come_before_the_transports() -> None:
    wrong = event({"error": {"message": "out of memory"}})
    assert failed((10, wrong), error="reset", detail="x") == ("stream-error", "out of memory")
