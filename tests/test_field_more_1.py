"""More of what servers and gateways send: errors by other names, endings, counts, lone events."""

import json
from array import array
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import pytest

from llmbench.apis import APIS, lenient
from llmbench.apis.refusals import is_error, read_refusal
from llmbench.measure.cell import judged
from llmbench.measure.metrics import measure
from llmbench.measure.requests import Requests
from llmbench.measure.summary import summarize
from llmbench.measure.timeline import decode
from llmbench.measure.usage import usage_of
from llmbench.records import (
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
from llmbench.report.live import LiveView

MS = 1_000_000
DONE = b"data: [DONE]\n\n"
CHAT = APIS["chat"].decode


def event(document: Any) -> bytes:
    return b"data: " + json.dumps(document).encode() + b"\n\n"


def said(text: str = "w ", **more: Any) -> bytes:
    return event(
        {"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None}]} | more
    )


def finish(reason: str = "length") -> bytes:
    return event({"choices": [{"index": 0, "delta": {}, "finish_reason": reason}]})


def usage(prompt: int, completion: int, **more: Any) -> bytes:
    counts = {"prompt_tokens": prompt, "completion_tokens": completion} | more
    return event({"choices": [], "usage": counts})


def traced(*pieces: bytes, **fields: Any) -> Trace:
    """A reply whose pieces came 10 ms apart."""
    none = array("q", [0] * len(pieces))
    facts: dict[str, Any] = {
        "cell": 0,
        "index": 0,
        "stream": 0,
        "phase": "measured",
        "sent_ns": 0,
        "end_ns": 10 * MS * (len(pieces) + 1),
        "status": 200,
        "headers": {"content-type": "text/event-stream"},
        "reads": Reads(
            array("q", accumulate(map(len, pieces))),
            array("q", [10 * MS * (number + 1) for number in range(len(pieces))]),
            none,
            none,
        ),
        "body": b"".join(pieces),
    }
    return Trace(**(facts | fields))


def failed(*pieces: bytes, **fields: Any) -> tuple[str, str]:
    told = decode(traced(*pieces, **fields), CHAT)
    return told.failure, told.detail


def measured(*pieces: bytes, **fields: Any) -> RequestMetrics:
    trace = traced(*pieces, **fields)
    return measure(trace, decode(trace, CHAT))


def cell_of(pieces: Sequence[bytes]) -> Cell:
    """The row of four such replies, one after the other."""
    rows = [measured(*pieces, index=number, sent_ns=number * 3_000 * MS) for number in range(4)]
    load = Load(
        concurrency=1,
        prompt_tokens=7,
        output_tokens=8,
        requests=4,
        duration_s=None,
        warmup=0,
    )
    target = Target(spec="http://h", name="h", url="http://h/v1")
    facts = CellFacts(cell=0, target=0, client="wire", load=load, stored=4)
    return judged(summarize(target, facts, Requests.of(rows)), facts)


# ---- errors


@pytest.mark.parametrize(
    ("error", "words"),
    [
        ({"error_code": 18, "error_msg": "too many requests"}, "too many requests"),
        ({"errorCode": "E1", "message": "no such plan"}, "no such plan"),
        ({"base_resp": {"status_code": 1008, "status_msg": "no balance"}}, "no balance"),
        ({"success": False, "errors": [{"code": 7, "message": "no route"}]}, "no route"),
    ],
)
def test_errors_by_other_names(error: Any, words: str) -> None:
    for choices in ({}, {"choices": None}, {"choices": []}):
        assert failed(said(), event(choices | error), DONE) == ("stream-error", words)
    whole = traced(json.dumps(error).encode(), headers={"content-type": "application/json"})
    told = decode(whole, CHAT)
    assert (told.failure, told.detail) == ("stream-error", words)


@pytest.mark.parametrize(
    "fine",
    [
        {"base_resp": {"status_code": 0, "status_msg": ""}},
        {"error_code": 0, "error_msg": ""},
        {"success": True},
        {"code": 0, "message": "success"},
        {"code": 200, "msg": "ok"},
        {"success": False},
    ],
)
def test_what_is_no_error(fine: dict[str, Any]) -> None:
    assert failed(said(**fine), finish(), DONE)[0] == ""
    assert not lenient.states_error({"choices": [{}]} | fine)


def test_status_codes_that_are_good() -> None:
    for code in (0, 200, "200"):
        told = {"code": code, "message": "success", "choices": []}
        assert failed(event(told), said(), finish(), DONE) == ("", "")
    assert failed(said(), event({"code": 500, "msg": "broken"}), DONE) == ("stream-error", "broken")


@pytest.mark.parametrize(
    "body",
    [
        b'{"error_code": 7, "error_msg": "unsupported parameter ignore_eos"}',
        b'{"code": 400, "msg": "ignore_eos is not supported", "success": false}',
    ],
)
def test_a_refusal_by_other_names_with_a_good_status(body: bytes) -> None:
    assert is_error(body)
    assert read_refusal(body).names(["ignore_eos", "temperature"]) == ["ignore_eos"]


def test_words_where_json_is_usual_are_kept() -> None:
    text = b"data: upstream connect error or reset before headers\n\n"
    kind, detail = failed(said(), text, finish(), DONE)
    assert kind == "malformed"
    assert detail.endswith(": upstream connect error or reset before headers")
    typed = decode(traced(text), APIS["responses"].decode)
    assert typed.detail.endswith(": upstream connect error or reset before headers")


def test_words_after_the_last_event_are_kept() -> None:
    kind, detail = failed(said(), b"Internal Server Error")
    assert (kind, detail.rpartition(": ")[2]) == ("truncated", "Internal Server Error")


@pytest.mark.parametrize(
    "cut", [b"da", b"data: ", b'data: {"choices": [{"in', b": ping", b"event: x y"]
)
def test_what_is_cut_is_not_quoted(cut: bytes) -> None:
    assert failed(said(), cut) == (
        "truncated",
        "the stream ended without a finish reason or [DONE]",
    )


@pytest.mark.parametrize("line_end", [b"\n", b"\r\n"])
def test_events_that_no_blank_line_parts(line_end: bytes) -> None:
    body = (said() + said() + finish()).replace(b"\n\n", line_end)
    kind, detail = failed(body)
    assert kind == "truncated"
    assert "no blank lines" in detail


# ---- endings


@pytest.mark.parametrize(
    "reason",
    [
        "OTHER",
        "guardrail_intervened",
        "sensitive",
        "resource_exhausted",
        "preempted",
        "rate_limit",
        "oom",
        "killed",
        "server_shutdown",
        "disconnected",
        "not_finished",
        "UNEXPECTED_TOOL_CALL",
    ],
)
def test_an_end_that_is_none(reason: str) -> None:
    assert failed(said(), finish(reason), DONE)[0] == reason.lower()


@pytest.mark.parametrize(
    "reason",
    [
        "stop",
        "length",
        "tool_calls",
        "function_call",
        "eos",
        "eos_token",
        "end_turn",
        "stop_sequence",
        "stop_token",
        "max_tokens",
        "model_length",
        "max_time",
        "COMPLETE",
        "pause_turn",
    ],
)
def test_an_end_like_any_other(reason: str) -> None:
    assert failed(said(), finish(reason), DONE) == ("", "")


def test_what_the_server_cancelled_has_failed() -> None:
    """Unlike what was cut off in flight when its cell was over."""
    row = measured(said(), finish("cancelled"), DONE)
    assert row.failure == "abort"
    told = Requests.of([row])
    assert (int(told.cancelled.sum()), int(told.lost.sum())) == (0, 1)


def test_an_end_in_many_words_is_an_error() -> None:
    assert failed(said(), finish("error: no more memory"), DONE)[0] == "error"


def test_an_exact_reply_that_stops_early_without_counts() -> None:
    kind, detail = failed(said(), finish("stop"), DONE, exact_tokens=24)
    assert (kind, "after 1 events of 24 tokens" in detail) == ("short", True)
    assert failed(said(), finish("length"), DONE, exact_tokens=24) == ("", "")
    assert failed(*[said()] * 24, finish("stop"), DONE, exact_tokens=24) == ("", "")


def test_a_reply_that_is_all_hidden_reasoning_names_the_flag() -> None:
    details = {"completion_tokens_details": {"reasoning_tokens": 8}}
    kind, detail = failed(finish(), usage(7, 8, **details), DONE)
    assert kind == "empty"
    assert "--output-tokens" in detail
    assert "--output-tokens" not in failed(finish("stop"), DONE)[1]


# ---- odd shapes


@pytest.mark.parametrize(
    "odd",
    [
        {"choices": {}},
        {"choices": [{"index": 0, "delta": []}]},
        {"choices": [{"index": 0, "delta": ""}]},
        {"choices": [], "usage": []},
    ],
)
def test_empty_values_of_any_type(odd: Any) -> None:
    assert failed(said(), event(odd), finish(), DONE) == ("", "")


# ---- counts


@pytest.mark.parametrize(
    ("stated", "prompt", "completion"),
    [
        # What is larger than its total stands beside it, whatever the sum says.
        (Usage(2, 8, PromptDetails(62), None, 10), 64, 8),
        (Usage(2, 8, None, None, 10, None, 62), 64, 8),
        (Usage(20, 60, None, CompletionDetails(600), 80), 20, 660),
        (Usage(20, 60, None, CompletionDetails(600), 680), 20, 660),
        (Usage(20, 660, None, CompletionDetails(600), 680), 20, 660),
        (Usage(64, 8, PromptDetails(62), None, 72), 64, 8),
    ],
)
def test_parts_larger_than_their_total(stated: Usage, prompt: int, completion: int) -> None:
    told = usage_of([stated])
    assert (told.prompt_tokens, told.completion_tokens) == (prompt, completion)


def test_a_running_count_that_stands_still_is_none() -> None:
    """Some gateways put the usage of the whole reply on each of its events."""
    whole = {"usage": {"prompt_tokens": 7, "completion_tokens": 8}}
    row = measured(*[said(**whole)] * 8, finish(), DONE)
    assert (row.tokens, row.counted) == (8, False)
    assert row.tpot_s == pytest.approx(0.01)


def test_several_tokens_in_the_first_event_are_seen_by_its_text() -> None:
    """8 of 64 tokens come first, then one every 10 ms: 10 ms a token, and not 560 ÷ 63."""
    pieces = [said("w " * 8), *[said()] * 56, finish() + usage(7, 64) + DONE]
    assert measured(*pieces).head_share == pytest.approx(7 / 63)
    cell = cell_of(pieces)
    assert cell.tpot_ms is None
    assert cell.ttft_ms is not None
    assert any("come with the first" in note for note in cell.notes)


def test_a_long_first_word_of_many_single_tokens_is_one_token() -> None:
    pieces = [said("w" * 60), *[said()] * 63, finish() + usage(7, 64) + DONE]
    assert measured(*pieces).head_share == 0
    assert cell_of(pieces).tpot_ms is not None


def test_replies_that_come_whole_are_said_to() -> None:
    cell = cell_of([said("w " * 8), finish() + usage(7, 8) + DONE])
    assert (cell.tpot_ms, cell.itl_ms) == (None, None)
    assert any("does not stream" in note for note in cell.notes)
    assert not any(
        "does not stream" in note for note in cell_of([said(), usage(7, 1) + DONE]).notes
    )


def test_nothing_is_said_of_prompts_where_no_reply_counted_them() -> None:
    cell = cell_of([finish() + usage(7, 8) + DONE])
    assert cell.requests.failed == 4
    assert not any("prompt" in note for note in cell.notes)


# ---- probes


def test_a_refusal_for_want_of_room() -> None:
    def is_of_context(words: str) -> bool:
        return read_refusal(json.dumps({"error": {"message": words}}).encode()).is_of_context

    assert is_of_context("This model's maximum context length is 16 tokens")
    assert is_of_context("the request exceeds the available context size")
    assert is_of_context(
        "The decoder prompt is longer than the max model len of 16: it is too long"
    )
    assert not is_of_context("Unrecognized request argument: ignore_eos")


def test_a_wait_is_told_where_no_terminal_is(capsys: pytest.CaptureFixture[str]) -> None:
    view = LiveView()
    assert not view.live
    view.say("starting")
    view.wait("waiting for t to answer")
    assert capsys.readouterr().err == "waiting for t to answer\n"
