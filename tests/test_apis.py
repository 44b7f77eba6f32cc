"""What the events of each API carry, and what is asked of a server."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmbench.apis import APIS, chunks
from llmbench.apis.chunks import MALFORMED, error_message
from llmbench.apis.dialect import DIALECTS, Dialect
from llmbench.records import Content, Event, Kind, Message, PromptDetails, Usage

EXACT, TRANSFORMERS, STANDARD, BARE, REASONING, BARE_REASONING = DIALECTS
OPENAI_CHUNKS = ("chat", "completions")


def chat(**choice: Any) -> Event:
    chunk = {"id": "1", "object": "chat.completion.chunk", "choices": [{"index": 0, **choice}]}
    return decode("chat", chunk)


def completion(**choice: Any) -> Event:
    return decode("completions", {"object": "text_completion", "choices": [{"index": 0, **choice}]})


def decode(api: str, chunk: Any, name: str = "") -> Event:
    data = chunk if isinstance(chunk, bytes) else json.dumps(chunk).encode()
    (event,) = APIS[api].decode([(len(data), data, name)])
    return event


# ---- chat


@pytest.mark.parametrize(
    ("delta", "kind", "text"),
    [
        ({"role": "assistant"}, Kind.ROLE, ""),
        ({"role": "assistant", "content": ""}, Kind.ROLE, ""),
        ({"role": "assistant", "content": None}, Kind.ROLE, ""),
        ({"role": "assistant", "content": "Hi"}, Kind.ROLE | Kind.ANSWER, "Hi"),
        ({"content": "Hi"}, Kind.ANSWER, "Hi"),
        ({"content": " "}, Kind.ANSWER, " "),
        ({"content": "\ufffd🙂"}, Kind.ANSWER, "\ufffd🙂"),
        ({"content": [{"type": "text", "text": "Hi"}]}, Kind.ANSWER, "Hi"),
        ({"content": []}, 0, ""),
        ({"reasoning_content": "Hm"}, Kind.REASONING, "Hm"),
        ({"reasoning": "Hm"}, Kind.REASONING, "Hm"),
        ({"reasoning": "Hm", "reasoning_content": "Hm"}, Kind.REASONING, "Hm"),
        ({"reasoning_content": "Hm", "content": ""}, Kind.REASONING, "Hm"),
        ({"reasoning_content": None, "content": "Hi"}, Kind.ANSWER, "Hi"),
        ({"refusal": "No"}, Kind.ANSWER, "No"),
        ({"tool_calls": [{"index": 0, "function": {"arguments": "{"}}]}, Kind.TOOL, ""),
        ({"tool_calls": []}, 0, ""),
        ({"tool_calls": None, "function_call": None, "audio": {"x": 1}}, 0, ""),
        ({}, 0, ""),
        (None, 0, ""),
    ],
)
def test_a_chat_delta(delta: Any, kind: int, text: str) -> None:
    assert chat(delta=delta, finish_reason=None) == Event(kind, text)


def test_reasoning_and_answer_in_one_event_are_told_apart() -> None:
    event = chat(delta={"reasoning_content": "Hm", "content": "Hi"})
    assert event == Event(Kind.REASONING | Kind.ANSWER, "HmHi", thought=2)
    assert event.answer == "Hi"


def test_a_chat_finish() -> None:
    assert chat(delta={}, finish_reason="stop") == Event(Kind.FINISH, finish="stop")
    last = chat(delta={"content": "."}, finish_reason="length")
    assert last == Event(Kind.ANSWER | Kind.FINISH, ".", finish="length")
    assert chat(delta={"content": "a"}, finish_reason="") == Event(Kind.ANSWER, "a")


def test_chat_token_ids() -> None:
    assert chat(delta={"content": "a"}, token_ids=[5, 6, 7]).tokens == 3
    assert chat(delta={"content": "a"}, token_ids=[]).tokens == 0
    assert chat(delta={"content": "a"}, token_ids=None).tokens is None


def test_unknown_fields_are_passed_over() -> None:
    chunk = {
        "x_groq": {"id": 1},
        "system_fingerprint": None,
        "choices": [{"delta": {"content": "a", "annotations": [1]}, "logprobs": {"content": []}}],
    }
    assert decode("chat", chunk) == Event(Kind.ANSWER, "a")


@pytest.mark.parametrize("choices", [None, []])
@pytest.mark.parametrize("api", OPENAI_CHUNKS)
def test_no_choices(api: str, choices: Any) -> None:
    assert decode(api, {"choices": choices}) == Event(0)
    assert decode(api, {}) == Event(0)


# ---- completions


@pytest.mark.parametrize(
    ("choice", "event"),
    [
        ({"text": "Hi", "finish_reason": None}, Event(Kind.ANSWER, "Hi")),
        ({"text": "", "finish_reason": None}, Event(0)),
        ({"text": None}, Event(0)),
        ({"text": "", "finish_reason": "length"}, Event(Kind.FINISH, finish="length")),
        (
            {"text": "a", "finish_reason": "stop", "token_ids": [1]},
            Event(Kind.ANSWER | Kind.FINISH, "a", 1, finish="stop"),
        ),
    ],
)
def test_a_completion_choice(choice: dict[str, Any], event: Event) -> None:
    assert completion(**choice) == event


# ---- what they share


@pytest.mark.parametrize("api", OPENAI_CHUNKS)
def test_final_usage(api: str) -> None:
    usage = {"prompt_tokens": 20, "completion_tokens": 5, "total_tokens": 25}
    event = decode(api, {"choices": [], "usage": usage})
    assert event == Event(Kind.USAGE, usage=Usage(20, 5, total_tokens=25))
    assert event.usage is not None
    assert event.usage.cached_tokens is None


@pytest.mark.parametrize(
    ("details", "cached"),
    [({"cached_tokens": 16, "audio_tokens": 0}, 16), ({"cached_tokens": 0}, 0), ({}, None)],
)
@pytest.mark.parametrize("api", OPENAI_CHUNKS)
def test_cached_tokens(api: str, details: dict[str, int], cached: int | None) -> None:
    chunk = {"choices": [], "usage": {"prompt_tokens": 20, "prompt_tokens_details": details}}
    event = decode(api, chunk)
    assert event.usage == Usage(20, None, PromptDetails(cached))
    assert event.usage.cached_tokens == cached


def test_continuous_usage_comes_with_the_content() -> None:
    usage = {"prompt_tokens": 20, "completion_tokens": 3, "prompt_tokens_details": None}
    chunk = {"choices": [{"delta": {"content": "a"}}], "usage": usage}
    assert decode("chat", chunk) == Event(Kind.ANSWER | Kind.USAGE, "a", usage=Usage(20, 3))
    chunk = {"choices": [{"text": "a"}], "usage": usage}
    assert decode("completions", chunk) == Event(Kind.ANSWER | Kind.USAGE, "a", usage=Usage(20, 3))


@pytest.mark.parametrize("api", OPENAI_CHUNKS)
def test_no_usage_yet(api: str) -> None:
    assert decode(api, {"choices": [], "usage": None}) == Event(0)


@pytest.mark.parametrize("api", OPENAI_CHUNKS)
def test_done(api: str) -> None:
    assert decode(api, b"[DONE]") == Event(Kind.DONE)


OPENAI = {"error": {"message": "overloaded", "type": "server_error", "code": None}}


@pytest.mark.parametrize("api", OPENAI_CHUNKS)
@pytest.mark.parametrize(
    ("data", "name"),
    [
        (OPENAI, ""),
        (OPENAI, "error"),
        ({"error": "overloaded", "error_type": "generation"}, ""),
        ({"error": {"type": "overloaded"}}, ""),
        ({"object": "error", "message": "overloaded", "code": 50001}, ""),
        ({"message": "overloaded"}, "error"),
        (b"overloaded", "error"),
    ],
)
def test_an_error_in_the_stream(api: str, data: Any, name: str) -> None:
    assert decode(api, data, name) == Event(Kind.ERROR, error="overloaded")


@pytest.mark.parametrize("api", OPENAI_CHUNKS)
def test_no_error(api: str) -> None:
    assert decode(api, {"choices": [], "error": None}) == Event(0)


@pytest.mark.parametrize("api", OPENAI_CHUNKS)
@pytest.mark.parametrize(
    "data",
    [
        *(b"{", b"5", b"[]", b"DONE", b'{"choices":5}', b'{"choices":[5]}', b'"a"'),
        *(b'{"choices":[{"delta":"a"}]}', b'{"choices":[]} x', b'{"choices":[]}]'),
        *(b'{"%s":' % key + b"[" * 50_000 for key in (b"choices", b"error", b"foo")),
    ],
    ids=lambda data: data[:30].decode(),
)
def test_what_is_malformed(api: str, data: bytes) -> None:
    event = decode(api, data)
    assert event.kind == Kind.ERROR
    assert event.error.startswith(MALFORMED)


@pytest.mark.parametrize("api", OPENAI_CHUNKS)
def test_bytes_that_are_not_utf8_are_replaced_as_the_standard_says(api: str) -> None:
    data = b'{"choices":[{"delta":{"content":"a\xc3"},"text":"a\xc3"}]}'
    assert decode(api, data) == Event(Kind.ANSWER, "a\ufffd")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text("a\ud800\x00é", max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["choices", "delta", "content", "usage", "error", "message", "detail"]),
            inner,
            max_size=3,
        )
    ),
    max_leaves=8,
)
DATA = st.binary(max_size=30) | JSON.map(lambda value: json.dumps(value).encode())


@given(DATA, st.sampled_from(["", "error"]), st.sampled_from(sorted(APIS)))
def test_no_data_makes_it_raise(data: bytes, name: str, api: str) -> None:
    assert isinstance(decode(api, data, name), Event)
    line = error_message(data)
    assert len(line) <= 200
    assert "\n" not in line


@given(st.lists(st.tuples(DATA | st.just(b"[DONE]"), st.sampled_from(["", "", "error"]))))
def test_many_events_decode_as_each_does_by_itself(events: list[tuple[bytes, str]]) -> None:
    numbered = [(end, data, name) for end, (data, name) in enumerate(events)]
    alone = [chunks.decode(data, name) for data, name in events]
    end = next((n for n, each in enumerate(alone) if each.kind & Kind.DONE), len(alone))
    told = chunks.decode_all(numbered)
    assert told[: end + 1] == alone[: end + 1]
    assert {each.kind for each in told[end + 1 :]} <= {0, Kind.ERROR}  # the reply was over


@pytest.mark.parametrize("odd", [b'{"choices":[', b"{}{}", b"", b"{\xff}", b'{"error":"busy"}'])
def test_one_odd_event_does_not_change_how_the_others_decode(odd: bytes) -> None:
    plain = b'{"choices":[{"delta":{"content":"a"}}]}'
    for data in ([odd, plain, plain], [plain, odd, plain], [plain, plain, odd]):
        events = [(0, each, "") for each in data]
        assert chunks.decode_all(events) == [chunks.decode(each) for each in data]


@pytest.mark.parametrize(
    ("body", "line"),
    [
        (OPENAI, "overloaded"),
        ({"error": "no such model"}, "no such model"),
        ({"message": "no such route", "request_id": "1"}, "no such route"),
        ({"object": "error", "message": "too long", "type": "BadRequestError"}, "too long"),
        ({"type": "error", "error": {"type": "x", "message": "busy"}}, "busy"),
        ({"detail": "Not Found"}, "Not Found"),
        (
            {"detail": [{"loc": ["body", "messages"], "msg": "Field required", "type": "missing"}]},
            "Field required",
        ),
        ([{"error": {"code": 400, "message": "API key not valid"}}], "API key not valid"),
        ({"error": {"message": "", "type": "server_error"}}, "server_error"),
        ({"code": 7}, "{'code': 7}"),
        ("just words", "just words"),
        (
            b"<html>\n  <h1>502\tBad   Gateway</h1>\r\n</html>",
            "<html> <h1>502 Bad Gateway</h1> </html>",
        ),
        (b"", ""),
        (b"\x1b[31mred\x07\x00\x1b[0m", "[31mred [0m"),  # nothing that a terminal would obey
        (b"\xff", "\ufffd"),
        (b"x" * 200, "x" * 200),
        (b"x" * 201, "x" * 199 + "…"),
        ({"error": {"message": "two\nlines " + "x" * 300}}, "two lines " + "x" * 189 + "…"),
    ],
)
def test_what_a_server_said_in_one_line(body: Any, line: str) -> None:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    assert error_message(data) == line


# ---- what is asked


USAGE_AT_END = {"include_usage": True}
OPTIONS: list[tuple[Dialect, dict[str, Any]]] = [
    (
        EXACT,
        {
            "max_tokens": 9,
            "min_tokens": 9,
            "ignore_eos": True,
            "temperature": 0,
            "cache_prompt": False,
            "stream_options": {"include_usage": True, "continuous_usage_stats": True},
        },
    ),
    (STANDARD, {"max_tokens": 9, "temperature": 0, "stream_options": USAGE_AT_END}),
    (REASONING, {"max_completion_tokens": 9, "stream_options": USAGE_AT_END}),
    (BARE, {"max_tokens": 9}),
]


SAID = [Message("user", 'say "é"')]


@pytest.mark.parametrize(("dialect", "options"), OPTIONS, ids=lambda it: getattr(it, "name", ""))
def test_what_is_asked_of_a_server(dialect: Dialect, options: dict[str, Any]) -> None:
    asked = json.loads(APIS["chat"].encode("m", SAID, 9, dialect, Content()))
    messages = [{"role": "user", "content": 'say "é"'}]
    assert asked == {"model": "m", "messages": messages, "stream": True} | options
    asked = json.loads(APIS["completions"].encode("m", SAID, 9, dialect, Content()))
    assert asked == {"model": "m", "prompt": 'say "é"', "stream": True} | options
    assert dialect.exact_length == (dialect is EXACT)


def test_where_it_is_asked() -> None:
    assert {name: api.path for name, api in APIS.items()} == {
        "chat": "/chat/completions",
        "completions": "/completions",
        "responses": "/responses",
        "messages": "/messages",
    }
