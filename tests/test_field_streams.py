"""Streams as servers and gateways send them, read as the SDKs do; how those that end badly fail."""

import json
from array import array
from itertools import accumulate
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmbench.apis import APIS, bodies, lenient, sse
from llmbench.apis.chunks import decode_all
from llmbench.measure import speech
from llmbench.measure.early import reply_text
from llmbench.measure.timeline import decode
from llmbench.records import Event, Kind, Reads, Timeline, Trace, Usage

MS = 1_000_000
DONE = b"data: [DONE]\n\n"
CHAT = APIS["chat"].decode


def event(document: Any, name: str = "") -> bytes:
    head = f"event: {name}\n" if name else ""
    return f"{head}data: {json.dumps(document)}\n\n".encode()


def delta(**fields: Any) -> bytes:
    return event({"choices": [{"index": 0, "delta": fields, "finish_reason": None}]})


def finish(reason: Any = "stop", **choice: Any) -> bytes:
    return event({"choices": [{"index": 0, "delta": {}, "finish_reason": reason, **choice}]})


def read(body: bytes) -> list[Event]:
    return decode_all(sse.parse(body))


def one(body: bytes) -> Event:
    (told,) = read(body)
    return told


def timeline(*pieces: bytes, **fields: Any) -> Timeline:
    """Pieces that were read one by one, a millisecond apart."""
    ends = array("q", accumulate(map(len, pieces)))
    none = array("q", [0] * len(pieces))
    facts: dict[str, Any] = {
        "cell": 0,
        "index": 0,
        "stream": 0,
        "phase": "measured",
        "sent_ns": 0,
        "end_ns": 99 * MS,
        "status": 200,
        "headers": {"content-type": "text/event-stream"},
        "reads": Reads(ends, array("q", [MS * (n + 1) for n in range(len(pieces))]), none, none),
        "body": b"".join(pieces),
    }
    return decode(Trace(**(facts | fields)), CHAT)


def failed(*pieces: bytes, **fields: Any) -> tuple[str, str]:
    told = timeline(*pieces, **fields)
    return told.failure, told.detail


SAID = delta(content="Hi")
GOOD = SAID + finish() + DONE


# ---- where text is usual


@pytest.mark.parametrize(
    ("content", "kind", "text", "answer"),
    [
        (6, Kind.ANSWER, "6", "6"),
        (0, Kind.ANSWER, "0", "0"),
        (0.5, Kind.ANSWER, "0.5", "0.5"),
        (True, 0, "", ""),
        ({"type": "text", "text": "Hi"}, Kind.ANSWER, "Hi", "Hi"),
        ({"text": {"value": "Hi"}}, Kind.ANSWER, "Hi", "Hi"),
        ({"answer": 6}, Kind.ANSWER, '{"answer": 6}', '{"answer": 6}'),
        ({}, 0, "", ""),
        (["Hi", " you"], Kind.ANSWER, "Hi you", "Hi you"),
        ([{"type": "text", "text": ""}], 0, "", ""),
        ([{"type": "thinking", "thinking": "Hm"}], Kind.REASONING, "Hm", ""),
        (
            [{"type": "thinking", "thinking": [{"type": "text", "text": "Hm"}]}],
            Kind.REASONING,
            "Hm",
            "",
        ),
        ([{"type": "reasoning", "summary": [{"text": "Hm"}]}], Kind.REASONING, "Hm", ""),
        (
            [{"type": "thinking", "thinking": "Hm"}, {"type": "text", "text": "Hi"}],
            Kind.REASONING | Kind.ANSWER,
            "HmHi",
            "Hi",
        ),
        ([{"type": "reference", "reference_ids": [1]}], 0, "", ""),
    ],
)
def test_content_of_any_type(content: Any, kind: int, text: str, answer: str) -> None:
    told = one(delta(content=content))
    assert (told.kind, told.text, told.answer) == (kind, text, answer)


@pytest.mark.parametrize(
    "fields",
    [
        {"reasoning_content": "Hm"},
        {"reasoning": "Hm"},
        {"reasoning": {"content": "Hm"}},
        {"thinking": "Hm"},
        {"reasoning_details": [{"type": "reasoning.text", "text": "Hm"}]},
        {"reasoning_details": [{"type": "reasoning.summary", "summary": "Hm"}]},
        {"reasoning": "Hm", "reasoning_details": [{"type": "reasoning.text", "text": "Hm"}]},
    ],
)
def test_reasoning_by_any_name_counts_once(fields: Any) -> None:
    told = one(delta(**fields, content=""))
    assert (told.kind, told.text, told.answer) == (Kind.REASONING, "Hm", "")


def test_reasoning_that_is_encrypted_has_no_text() -> None:
    details = [{"type": "reasoning.encrypted", "data": "xyz"}]
    assert one(delta(reasoning_details=details)).kind == 0


def test_the_older_word_for_a_tool_call() -> None:
    assert one(delta(function_call={"arguments": "{"})).kind == Kind.TOOL


def test_the_halves_of_a_surrogate_pair() -> None:
    body = delta(content="\ud83d") + delta(content="\ude00") + delta(content="\ud83d") + DONE
    told = timeline(body)
    assert (len(told.at_ns), told.failure) == (3, "")
    assert reply_text(body, CHAT) == "😀\ufffd"


def test_a_lone_half_can_be_spoken() -> None:
    body = delta(content="Hello \ud83d") + delta(content="\ude00 there. And so on.") + GOOD
    trace = Trace(
        cell=0,
        index=0,
        stream=0,
        phase="measured",
        sent_ns=0,
        end_ns=9 * MS,
        status=200,
        headers={"content-type": "text/event-stream"},
        reads=Reads(array("q", [len(body)]), array("q", [MS]), array("q", [0]), array("q", [0])),
        body=body,
    )
    told, spoken = speech.read(trace, CHAT)
    assert speech.speech(spoken, speech.Manner(), told.failure).ttsc_s == 0.001


def test_what_is_said_back_is_the_answer_alone() -> None:
    body = delta(reasoning_content="Hm", content="Yes") + delta(content=".") + GOOD
    assert reply_text(body, CHAT) == "Yes.Hi"
    assert reply_text(delta(reasoning_content="Hm") + finish("length") + DONE, CHAT) is None


# ---- events


@pytest.mark.parametrize(
    "odd",
    [
        b"data:\n\n",
        b"data: \n\n",
        b"event: ping\ndata: \n\n",
        b"event: ping\ndata: ping\n\n",
        b'event: ping\ndata: {"type":"ping"}\n\n',
        b"data: null\n\n",
        b"data: {}\n\n",
        b": OPENROUTER PROCESSING\n\n",
        b"id: 7\nretry: 5\n\n",
    ],
)
def test_signs_of_life_change_nothing(odd: bytes) -> None:
    for body in (odd + GOOD, SAID + odd + finish() + DONE, GOOD + odd):
        told = timeline(body)
        assert (told.failure, len(told.at_ns), told.chars) == ("", 1, 2)


def test_the_first_event_has_data() -> None:
    assert timeline(b"data:\n\n", GOOD).first_event_ns == 2 * MS


@pytest.mark.parametrize("between", [b"", b" ", b"\ndata: ", b"data: "])
def test_two_documents_in_one_event(between: bytes) -> None:
    inner = SAID.removeprefix(b"data: ").strip()
    told = one(b"data: " + inner + between + inner + b"\n\n")
    assert (told.kind, told.text) == (Kind.ANSWER, "HiHi")


def test_a_list_of_documents_in_one_event() -> None:
    inner = json.loads(SAID.removeprefix(b"data: "))
    assert one(event([inner, inner])).text == "HiHi"


def test_the_last_document_and_the_end_in_one_event() -> None:
    told = one(
        b'data: {"choices":[{"delta":{"content":"Hi"},"finish_reason":"stop"}]}\ndata: [DONE]\n\n'
    )
    assert (told.kind, told.text) == (Kind.ANSWER | Kind.FINISH | Kind.DONE, "Hi")
    usages = [event({"usage": {"prompt_tokens": 1}}), event({"usage": {"prompt_tokens": 2}})]
    lines = b"\n".join(each.strip() for each in usages)
    assert one(lines + b"\n\n").usage == Usage(2)


def test_the_reply_is_over_at_its_marker() -> None:
    told = timeline(GOOD, SAID * 3 + b"data: {\n\n")
    assert (told.failure, told.chars) == ("", 2)
    wrong = event({"error": {"message": "too late"}})
    assert failed(GOOD, wrong) == ("stream-error", "too late")


@pytest.mark.parametrize(
    "headers",
    [{}, {"content-type": "application/json"}, {"content-type": "application/octet-stream"}],
)
@pytest.mark.parametrize("before", [b"", b"\n", b": ping\n\n", b"\xef\xbb\xbf", b"event: x\n"])
def test_a_stream_of_any_type(headers: dict[str, str], before: bytes) -> None:
    assert failed(before, GOOD, headers=headers) == ("", "")


@given(st.integers(0, len(GOOD)))
def test_what_is_a_stream_is_seen_by_its_beginning(size: int) -> None:
    assert (bodies.events(GOOD[:size], "") is not None) == (size > 4)


# ---- what ended badly


@pytest.mark.parametrize(
    "reason", ["abort", "error", "content_filter", "insufficient_system_resource", "canceled"]
)
def test_a_finish_reason_that_is_none(reason: str) -> None:
    said = f"the reply ended with finish_reason '{reason}'"
    assert failed(SAID, finish(reason), DONE) == (reason, said)
    assert failed(finish(reason.upper()), DONE)[0] == reason


@pytest.mark.parametrize(
    "reason", ["stop", "length", "tool_calls", "function_call", "eos", "end_turn", "max_tokens", 1]
)
def test_a_finish_reason_like_any_other(reason: Any) -> None:
    assert failed(SAID, finish(reason), DONE) == ("", "")


def test_the_reason_of_the_provider_behind() -> None:
    kind, words = failed(SAID, finish("stop", native_finish_reason="network_error"), DONE)
    assert (kind, words) == ("error", "the reply ended with finish_reason 'stop' (network_error)")
    assert failed(SAID, finish("stop", native_finish_reason="end_turn"), DONE) == ("", "")


def test_a_reason_that_is_an_object() -> None:
    reason = {"type": "abort", "message": "out of memory", "status_code": 500}
    kind, words = failed(SAID, finish(reason), DONE)
    assert (kind, words) == ("abort", "the reply ended with finish_reason 'abort' (out of memory)")
    assert failed(SAID, finish({"type": "length", "length": 2}), DONE) == ("", "")


FULL = {"code": 400, "message": "context is full", "type": "invalid_request_error"}
LINE = json.dumps({"error": FULL}).encode()


@pytest.mark.parametrize(
    "error",
    [
        event({"error": FULL}),
        event({"error": FULL}, name="error"),
        event(FULL, name="error"),
        event(FULL),
        event([{"error": FULL}]),
        event({"error": "context is full"}),
        event({"detail": "context is full"}),
        event({"type": "error", "message": "context is full"}),
        event({"choices": [{"delta": {}, "finish_reason": "error", "error": FULL}]}),
        event({"choices": [], "x_groq": {"id": "1", "error": "context is full"}}),
        b"event: error\ndata: context is full\n\n",
        b"error: " + json.dumps(FULL).encode() + b"\n\n",
        b"error: context is full\n\n",
        LINE + b"\n\n",
    ],
)
def test_an_error_in_the_stream_in_any_shape(error: bytes) -> None:
    for body in (error, SAID + error, SAID + error + DONE, SAID + error + finish() + DONE):
        assert failed(body) == ("stream-error", "context is full")


@pytest.mark.parametrize("cut", [LINE, LINE + b"\n", b"data: " + LINE, b"error: " + LINE + b"\n"])
def test_an_error_that_ends_the_bytes(cut: bytes) -> None:
    assert failed(SAID + cut) == ("stream-error", "context is full")
    assert failed(cut) == ("stream-error", "context is full")
    assert failed(cut, error="reset", detail="x") == ("stream-error", "context is full")
    assert failed(cut, headers={"content-type": "application/json"})[0] == "stream-error"


def test_an_error_without_words_is_one() -> None:
    assert failed(SAID + b"event: error\ndata:\n\n" + finish() + DONE)[0] == "stream-error"


def test_no_error() -> None:
    none = event({"error": None, "choices": []}) + event({"error": "", "choices": []})
    assert failed(none + GOOD) == ("", "")


def test_what_nobody_could_read_is_quoted() -> None:
    html = {"content-type": "text/html"}
    words = "the reply is text/html, not text/event-stream: <h1>No quota</h1>"
    assert failed(b"<h1>No quota</h1>", headers=html) == ("not-a-stream", words)
    assert failed(b"out of memory")[1].endswith("[DONE]: out of memory")
    quota = json.dumps({"code": 1113, "msg": "insufficient quota", "more": "x" * 999}).encode()
    json_type = {"content-type": "application/json"}
    assert failed(quota, headers=json_type) == ("stream-error", "insufficient quota")


# ---- an exact length


def usage(tokens: int) -> bytes:
    return event({"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": tokens}})


def test_a_reply_that_is_shorter_than_promised() -> None:
    kind, words = failed(SAID * 3, finish("stop"), usage(3), DONE, exact_tokens=8)
    assert kind == "short"
    assert words.startswith("the reply stopped after 3 of 8 tokens (finish_reason 'stop')")
    assert "--natural-stops" in words
    assert failed(SAID * 3, finish("length"), usage(3), DONE, exact_tokens=8)[0] == "short"


def test_a_reply_that_is_as_long_as_promised() -> None:
    assert failed(SAID * 2, finish("length"), usage(8), DONE, exact_tokens=8) == ("", "")
    assert failed(SAID * 8, finish("length"), usage(6), DONE, exact_tokens=8) == ("", "")  # split
    assert failed(SAID * 3, finish("length"), DONE, exact_tokens=8) == ("", "")  # nobody counts
    cut = timeline(SAID * 3, exact_tokens=8, cut_ns=2 * MS)
    assert cut.failure == ""


# ---- documents


def test_documents() -> None:
    assert lenient.documents('{"a":1} [2,3] null\n') == ([{"a": 1}, 2, 3], False)
    assert lenient.documents('{"a":NaN}[DONE] x')[1]
    assert lenient.documents("  ") == ([], False)
    with pytest.raises(ValueError, match="Expecting"):
        lenient.documents("{} x")


@given(st.lists(st.text("a😀é\ud83d\ude00", max_size=3), max_size=6))
def test_joined_texts_can_be_written(texts: list[str]) -> None:
    whole = lenient.joined(texts)
    whole.encode()
    plain = "".join(texts)
    if not any("\ud800" <= char <= "\udfff" for char in plain):
        assert whole == plain


# ---- over sockets

SWEEP = ("--output-tokens", 8, "--prompt-tokens", 32, "--no-calibrate", "--format", "json")


def test_replies_that_end_badly_fail_by_kind(threaded: Any, run_llmbench: Any) -> None:
    bad: list[tuple[str, bytes]] = [
        ("text/event-stream", SAID + finish("abort") + usage(1) + DONE),
        ("text/event-stream", SAID + finish("stop", native_finish_reason="network_error") + DONE),
        ("text/event-stream", SAID + b"error: " + json.dumps(FULL).encode() + b"\n\n" + DONE),
        ("text/event-stream", LINE),
        ("application/json", LINE),
        ("text/event-stream", SAID + finish("stop") + usage(1) + DONE),
    ]
    timed: list[int] = []

    def answer(asked: Any) -> tuple[int, str, bytes]:
        if "x-request-id" in asked.headers:
            timed.append(asked.number)
            if len(timed) % 2 == 0 and bad:
                return 200, *bad.pop(0)
        return 200, "", asked.good()

    target = ("--target", threaded(answer).url, "--concurrency", 1, "--requests", 14)
    done = run_llmbench("sweep", *target, "--warmup", 0, *SWEEP)
    asked = done.cells[0]["requests"]
    assert (done.code, asked["ok"]) == (4, 8)
    assert asked["failures"] == {"stream-error": 3, "abort": 1, "error": 1, "short": 1}
    assert asked["details"]["stream-error"] == "context is full"


def test_every_client_reads_what_its_sdk_does(threaded: Any, run_llmbench: Any) -> None:
    def answer(asked: Any) -> tuple[int, str, bytes]:
        odd = delta(content=6) + delta(content="\ud83d") + delta(content="\ude00")
        if asked.document["max_tokens"] < 8:
            return 200, "text/event-stream", asked.good()
        wanted = b'"completion_tokens": 8'
        said = asked.good().replace(wanted, b'"completion_tokens": 11')
        return 200, "text/event-stream", odd + said

    target = ("--target", threaded(answer).url, "--concurrency", 1, "--requests", 2)
    clients = ("--client", "wire,aiohttp,openai", "--turns", 2)
    cells = run_llmbench("sweep", *target, *clients, "--warmup", 0, *SWEEP).cells
    assert [each["requests"]["failed"] for each in cells] == [0, 0, 0]
    assert [each["tokens_per_event"] for each in cells] == [1, 1, 1]
