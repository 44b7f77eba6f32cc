"""Anthropic Messages: what is asked, what each event carries, and the official SDK beside us."""

import json
from array import array
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmbench.apis import APIS, sse
from llmbench.apis.messages import DIALECTS
from llmbench.measure.timeline import decode
from llmbench.records import Content, Event, Kind, Message, Reads, Timeline, Trace
from llmbench.truth.process import TruthServer

API = APIS["messages"]
STANDARD, BARE = DIALECTS


def told(*documents: Any) -> list[Event]:
    events = [(0, json.dumps(each).encode(), each.get("type", "")) for each in documents]
    return API.decode(events)


def start(**usage: Any) -> dict[str, Any]:
    return {"type": "message_start", "message": {"content": [], "usage": usage}}


def block(kind: str, index: int = 0, **fields: Any) -> dict[str, Any]:
    return {
        "type": "content_block_start",
        "index": index,
        "content_block": {"type": kind, **fields},
    }


def delta(kind: str, index: int = 0, **fields: Any) -> dict[str, Any]:
    return {"type": "content_block_delta", "index": index, "delta": {"type": kind, **fields}}


def text(said: Any) -> dict[str, Any]:
    return delta("text_delta", text=said)


def last(reason: str | None = "end_turn", **usage: Any) -> dict[str, Any]:
    return {"type": "message_delta", "delta": {"stop_reason": reason}, "usage": usage}


STOP = {"type": "message_stop"}


# ── what is asked ────────────────────────────────────────────────────────────────────────────────


def test_a_system_prompt_stands_apart() -> None:
    said = [Message("system", "Be kind."), Message("user", "Hi"), Message("assistant", "Ho")]
    assert json.loads(API.encode("m", said, 9, STANDARD, Content())) == {
        "model": "m",
        "system": "Be kind.",
        "messages": [
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": "Ho"},
        ],
        "stream": True,
        "max_tokens": 9,
        "temperature": 0,
    }
    assert "system" not in json.loads(API.encode("m", said[1:], 9, BARE, Content()))


def test_the_key_goes_both_ways() -> None:
    version = {"anthropic-version": "2023-06-01"}
    assert API.headers("") == version
    assert API.headers("k") == version | {"x-api-key": "k", "Authorization": "Bearer k"}


# ── what each event carries ──────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("document", "event"),
    [
        (text("Sure"), Event(Kind.ANSWER, "Sure")),
        (text(""), Event(0)),
        (text(7), Event(Kind.ANSWER, "7")),
        (text(None), Event(0)),
        (delta("thinking_delta", thinking="Hm"), Event(Kind.REASONING, "Hm")),
        (delta("input_json_delta", partial_json='{"a'), Event(Kind.TOOL, '{"a')),
        (delta("signature_delta", signature="x"), Event(0)),
        (delta("citations_delta", citation={"cited_text": "no"}), Event(0)),
        (block("text", text=""), Event(0)),
        (block("text", text="Su"), Event(Kind.ANSWER, "Su")),
        (block("redacted_thinking", data="opaque"), Event(0)),
        (block("tool_use", id="1", name="f", input={}), Event(0)),
        ({"type": "ping"}, Event(0)),
        ({"type": "something_new", "text": "no"}, Event(0)),
        ({}, Event(0)),
    ],
)
def test_events(document: dict[str, Any], event: Event) -> None:
    assert told(document) == [event]


def test_a_tool_call_without_arguments_counts_at_its_end() -> None:
    stop = {"type": "content_block_stop", "index": 0}
    tool = block("tool_use", id="1", name="f", input={})
    assert told(tool, delta("input_json_delta", partial_json=""), stop)[-1] == Event(Kind.TOOL)
    assert told(tool, delta("input_json_delta", partial_json="{}"), stop)[-1] == Event(0)


@pytest.mark.parametrize(
    ("reason", "finish"),
    [
        ("end_turn", "stop"),
        ("stop_sequence", "stop"),
        ("max_tokens", "length"),
        ("model_context_window_exceeded", "length"),
        ("tool_use", "tool_calls"),
        ("refusal", "content_filter"),
        ("pause_turn", "pause_turn"),
        (None, ""),
    ],
)
def test_why_it_ended_is_known_at_the_end(reason: str | None, finish: str) -> None:
    before, end = told(last(reason), STOP)
    assert not before.kind & (Kind.FINISH | Kind.DONE)
    assert (end.kind, end.finish) == (Kind.FINISH | Kind.DONE, finish)


@pytest.mark.parametrize(
    "document",
    [
        {"type": "error", "error": {"type": "overloaded_error", "message": "no more"}},
        {"type": "error", "message": "no more"},
        {"error": {"message": "no more"}},
    ],
)
def test_errors(document: dict[str, Any]) -> None:
    assert told(document) == [Event(Kind.ERROR, error="no more")]


def test_a_bare_error_goes_by_its_name() -> None:
    data = b'{"code":500,"message":"no more","type":"server_error"}'
    assert API.decode([(0, data, "error")]) == [Event(Kind.ERROR, error="no more")]
    assert API.decode([(0, b"oops", "error")]) == [Event(Kind.ERROR, error="oops")]


def counts(*documents: Any) -> tuple[int | None, int | None, int | None]:
    """The prompt's, the output's and the cached tokens that a reply ends with."""
    usage = [event.usage for event in told(*documents) if event.usage is not None][-1]
    return usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens


def test_cached_tokens_are_part_of_the_prompt() -> None:
    begun = start(input_tokens=9, cache_read_input_tokens=20, cache_creation_input_tokens=3)
    assert counts(begun, last(output_tokens=16)) == (32, 16, 20)


def test_a_later_count_takes_the_place_of_its_own() -> None:
    begun = start(input_tokens=9, output_tokens=1)
    assert counts(begun, last(output_tokens=16)) == (9, 16, None)
    assert counts(begun, last(output_tokens=4, input_tokens=11), last(output_tokens=16)) == (
        11,
        16,
        None,
    )


def test_what_a_reply_begins_with_is_no_count_of_its_tokens() -> None:
    assert counts(start(input_tokens=9, output_tokens=5)) == (9, None, None)
    assert counts(start(), last()) == (None, None, None)


def test_a_reply_that_came_whole() -> None:
    parts = [{"type": "thinking", "thinking": "Hm"}, {"type": "text", "text": "Hi"}]
    usage = {"input_tokens": 9, "output_tokens": 4}
    reply = {"type": "message", "content": parts, "stop_reason": "max_tokens", "usage": usage}
    (event,) = told(reply)
    assert (event.text, event.finish, counts(reply)) == ("Hi", "length", (9, 4, None))
    assert event.kind == Kind.ANSWER | Kind.USAGE | Kind.FINISH | Kind.DONE


KEYS = ["delta", "content_block", "message", "usage", "index", "error", "text"]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.sampled_from(KEYS), inner),
    max_leaves=8,
)
TYPES = st.sampled_from(
    ["message_start", "content_block_start", "content_block_delta", "message_delta", "error", "x"]
)


@given(st.lists(st.tuples(TYPES, st.dictionaries(st.sampled_from(KEYS), JSON)), max_size=4))
def test_nothing_raises(events: Sequence[tuple[str, dict[str, Any]]]) -> None:
    data = [(0, json.dumps(fields).encode(), name) for name, fields in events]
    assert len(API.decode(data)) == len(data)


@given(st.binary(), st.sampled_from(["", "error", "message_delta"]))
def test_no_bytes_raise(data: bytes, name: str) -> None:
    assert len(API.decode([(0, data, name)])) == 1


# ── a reply as a whole ───────────────────────────────────────────────────────────────────────────


def whole(*documents: Any) -> Timeline:
    """The timeline of a reply that came in one read."""
    body = b"".join(b"data: " + json.dumps(each).encode() + b"\n\n" for each in documents)
    zero = array("q", [0])
    trace = Trace(
        cell=0,
        index=0,
        stream=0,
        phase="measured",
        sent_ns=0,
        end_ns=1,
        status=200,
        headers={"content-type": "text/event-stream"},
        stamps="user",
        reads=Reads(end=array("q", [len(body)]), at_ns=zero, lag_ns=zero, slack_ns=zero),
        body=body,
    )
    return decode(trace, API.decode)


def test_a_good_reply() -> None:
    timeline = whole(start(input_tokens=9), text("Hi"), last("max_tokens", output_tokens=1), STOP)
    assert (timeline.failure, timeline.finish, timeline.chars) == ("", "length", 2)
    assert (timeline.usage.prompt_tokens, timeline.usage.completion_tokens) == (9, 1)


def test_a_stop_reason_is_no_end() -> None:
    assert whole(start(), text("Hi"), last("end_turn")).failure == "truncated"


def test_an_error_before_the_end_is_a_failure() -> None:
    error = {"type": "error", "error": {"type": "overloaded_error", "message": "too much"}}
    timeline = whole(start(), text("Hi"), error, STOP)
    assert (timeline.failure, timeline.detail) == ("stream-error", "too much")


# ── the official SDK, and the truth server ───────────────────────────────────────────────────────

REPLIES: dict[str, dict[str, Any]] = {
    "plain": {},
    "reasoning": {"reasoning_tokens": 2},
    "tool call": {"tool_call": True},
    "reasoning and tool call": {"reasoning_tokens": 2, "tool_call": True},
    "several tokens an event": {"tokens_per_event": 2, "reasoning_tokens": 2},
    "joined": {"coalesce": 3},
    "split": {"split_bytes": True},
    "crlf and comments": {"crlf": True, "comments": True, "no_space": True},
    "cached": {"cached_tokens": 3},
    "stops early": {"early_stop": 3},
}


def spoken(body: bytes) -> dict[str, str]:
    """What our decoder reads of a reply's ``body``, by kind."""
    kinds = {"text": Kind.ANSWER, "thinking": Kind.REASONING, "tool": Kind.TOOL}
    events = API.decode(sse.parse(body))
    return {
        name: "".join(event.text for event in events if event.kind & kind)
        for name, kind in kinds.items()
    }


@pytest.mark.parametrize("case", REPLIES)
def test_the_official_sdk_reads_the_same(truth: Callable[..., TruthServer], case: str) -> None:
    import anthropic

    server = truth(**REPLIES[case])
    ask: dict[str, Any] = {
        "model": "truth",
        "messages": [{"role": "user", "content": "one two"}],
        "max_tokens": 5,
    }
    with anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0) as sdk:
        raw = sdk.messages.with_raw_response.create(**ask, stream=True).http_response.read()
        with sdk.messages.stream(**ask) as stream:
            streamed = stream.get_final_message()
        plain = sdk.messages.create(**ask)
    read, usage = spoken(raw), whole_usage(raw)
    for message in (streamed, plain):
        found = {"text": "", "thinking": "", "tool": ""}
        for part in message.content:
            match part.type:
                case "text":
                    found["text"] += part.text
                case "thinking":
                    found["thinking"] += part.thinking
                case _:
                    found["tool"] += json.dumps(part.input, separators=(",", ":"))
        assert read == found
        assert usage.completion_tokens == message.usage.output_tokens
        assert usage.prompt_tokens == 12
        assert message.usage.input_tokens + message.usage.cache_read_input_tokens == 12


def whole_usage(body: bytes) -> Any:
    return [event.usage for event in API.decode(sse.parse(body)) if event.usage is not None][-1]


def test_the_official_sdk_is_refused_and_cut_off(truth: Callable[..., TruthServer]) -> None:
    import anthropic

    ask: dict[str, Any] = {"model": "truth", "messages": [], "max_tokens": 5}
    server = truth(error_at=3)
    with anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0) as sdk:
        with pytest.raises(anthropic.BadRequestError):
            sdk.messages.create(**ask | {"max_tokens": 0})
        with pytest.raises(anthropic.APIError, match="as told"), sdk.messages.stream(**ask) as it:
            it.get_final_message()
