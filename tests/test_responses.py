"""OpenAI Responses: what is asked, what each event carries, and the official SDK beside us."""

import json
from array import array
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import openai
import pytest
from conftest import InProcess, Llmbench, stored
from hypothesis import given
from hypothesis import strategies as st

from llmbench.apis import APIS, sse
from llmbench.apis.responses import DIALECTS
from llmbench.measure.timeline import decode
from llmbench.records import (
    Content,
    Event,
    Kind,
    Message,
    PromptDetails,
    Reads,
    Timeline,
    Trace,
)
from llmbench.store import RunDirectory
from llmbench.truth.errors import compare
from llmbench.truth.process import TruthServer

API = APIS["responses"]
EXACT, STANDARD, REASONING, BARE = DIALECTS


def told(*documents: Any) -> list[Event]:
    events = [(0, json.dumps(each).encode(), each.get("type", "")) for each in documents]
    return API.decode(events)


def delta(what: str, said: Any, **more: Any) -> dict[str, Any]:
    return {"type": f"response.{what}.delta", "item_id": "i", "delta": said, **more}


def end(status: str = "completed", name: str = "", **fields: Any) -> dict[str, Any]:
    response = {"status": status, "max_output_tokens": 9, "incomplete_details": None, **fields}
    return {"type": f"response.{name or status}", "response": response}


# ── what is asked ────────────────────────────────────────────────────────────────────────────────

SAID = [Message("system", "Be kind."), Message("user", "Hi"), Message("assistant", "Ho")]


def asked(dialect: Any, content: Content | None = None) -> dict[str, Any]:
    whole: dict[str, Any] = json.loads(API.encode("m", SAID, 9, dialect, content or Content()))
    return whole


def test_a_conversation_is_typed_messages() -> None:
    whole = asked(BARE)
    assert whole == {
        "model": "m",
        "input": [
            {"type": "message", "role": "system", "content": "Be kind."},
            {"type": "message", "role": "user", "content": "Hi"},
            {"type": "message", "role": "assistant", "content": "Ho"},
        ],
        "stream": True,
        "max_output_tokens": 9,
    }


def test_how_much_to_reason() -> None:
    assert API.effort("low") == {"reasoning": {"effort": "low"}}
    assert APIS["messages"].effort("low") == {"output_config": {"effort": "low"}}
    assert APIS["chat"].effort("low") == {"reasoning_effort": "low"}


def test_the_dialects_grow_plainer() -> None:
    assert asked(EXACT)["ignore_eos"] is True
    assert "ignore_eos" not in asked(EXACT, Content(natural_stops=True))
    assert asked(STANDARD)["stream_options"] == {"include_obfuscation": False}
    assert "temperature" not in asked(REASONING)
    assert [dialect.exact_length for dialect in DIALECTS] == [True, False, False, False]


# ── what each event carries ──────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("what", "kind"),
    [
        ("output_text", Kind.ANSWER),
        ("refusal", Kind.ANSWER),
        ("reasoning_text", Kind.REASONING),
        ("reasoning_summary_text", Kind.REASONING),
        ("function_call_arguments", Kind.TOOL),
        ("custom_tool_call_input", Kind.TOOL),
        ("mcp_call_arguments", Kind.TOOL),
        ("code_interpreter_call_code", Kind.TOOL),
    ],
)
def test_deltas(what: str, kind: int) -> None:
    assert told(delta(what, " it")) == [Event(kind, " it")]
    assert told(delta(what, "")) == [Event(0)]


@pytest.mark.parametrize(
    "document",
    [
        {"type": "response.created", "response": {"status": "in_progress", "error": None}},
        {"type": "response.output_item.added", "item": {"content": [{"text": "no"}]}},
        {"type": "response.content_part.done", "part": {"text": "no"}},
        {"type": "keepalive", "sequence_number": 3},
        {"type": "response.something_new.delta", "delta": "what"},
        {},
    ],
)
def test_structure_and_the_unknown_carry_nothing(document: dict[str, Any]) -> None:
    assert told(document) == [Event(0)]


def test_what_is_repeated_whole_counts_once() -> None:
    done = {"type": "response.output_text.done", "item_id": "i", "text": "ab"}
    events = told(delta("output_text", "a"), delta("output_text", "b"), done)
    assert [event.text for event in events] == ["a", "b", ""]


def test_what_only_comes_whole_counts() -> None:
    call = {"type": "response.function_call_arguments.done", "item_id": "f", "arguments": "{}"}
    assert told(call, call) == [Event(Kind.TOOL, "{}"), Event(0)]


def test_a_name_stands_in_for_a_missing_type() -> None:
    data = b'{"delta":"Hi"}'
    assert API.decode([(0, data, "response.output_text.delta")]) == [Event(Kind.ANSWER, "Hi")]


@pytest.mark.parametrize(
    ("said", "read"),
    [(7, "7"), (["a", {"text": "b"}], "ab"), ({"a": 1}, '{"a": 1}'), (None, ""), ({}, "")],
)
def test_other_values_than_text_are_read(said: Any, read: str) -> None:
    assert told(delta("output_text", said))[0].text == read


def test_a_reply_that_came_whole() -> None:
    part = {"type": "output_text", "text": "Hi"}
    output = [{"type": "reasoning", "content": [{"text": "Hm"}]}, {"type": "message"}]
    output[1]["content"] = [part, part]
    document = {"object": "response", "error": None, "output": output, **end()["response"]}
    data = json.dumps(document | {"usage": USED}).encode()
    for name in ("", "error"):
        (event,) = API.decode([(0, data, name)])
        assert (event.text, event.finish, event.error) == ("HiHi", "stop", "")
        assert event.kind == Kind.ANSWER | Kind.USAGE | Kind.FINISH | Kind.DONE


def test_half_a_surrogate_pair_is_a_mark() -> None:
    data = rb'{"type":"response.output_text.delta","delta":"a\ud83d"}'
    assert API.decode([(0, data, "")]) == [Event(Kind.ANSWER, "a�")]


USED = {
    "input_tokens": 12,
    "input_tokens_details": {"cached_tokens": 4},
    "output_tokens": 9,
    "output_tokens_details": {"reasoning_tokens": 0},
}


def test_the_end_has_the_counts() -> None:
    (event,) = told(end(usage=USED))
    assert event.kind == Kind.USAGE | Kind.FINISH | Kind.DONE
    assert event.usage is not None
    assert (event.usage.prompt_tokens, event.usage.completion_tokens) == (12, 9)
    assert event.usage.prompt_tokens_details == PromptDetails(4)


def test_counts_that_are_none_are_left_out() -> None:
    (event,) = told(end(usage={"input_tokens": "many", "output_tokens": 3.0}))
    assert event.usage is not None
    assert (event.usage.prompt_tokens, event.usage.completion_tokens) == (None, 3)
    assert told(end(usage=None))[0].usage is None


@pytest.mark.parametrize(
    ("document", "finish"),
    [
        (end(), "stop"),
        (end("incomplete", incomplete_details={"reason": "max_output_tokens"}), "length"),
        (end("incomplete", incomplete_details={"reason": "content_filter"}), "content_filter"),
        (end("incomplete"), "length"),
        (end("incomplete", name="completed"), "length"),  # vLLM
        ({"type": "response.completed", "response": {"status": "completed"}}, ""),  # llama.cpp
    ],
)
def test_why_it_ended(document: dict[str, Any], finish: str) -> None:
    (event,) = told(document)
    assert (event.finish, event.error) == (finish, "")
    assert event.kind & Kind.DONE


@pytest.mark.parametrize(
    "document",
    [
        {"type": "error", "code": "server_error", "message": "no more", "param": None},
        {"type": "error", "error": {"code": "x", "message": "no more"}},
        {"error": {"message": "no more"}},
        end("failed", error={"code": "server_error", "message": "no more"}),
        end("failed", name="completed", error={"code": "server_error", "message": "no more"}),
    ],
)
def test_errors(document: dict[str, Any]) -> None:
    assert told(document) == [Event(Kind.ERROR, error="no more")]


def test_an_error_without_words_is_one() -> None:
    (event,) = told(end("cancelled"))
    assert (event.kind, "cancelled" in event.error) == (Kind.ERROR, True)
    assert API.decode([(0, b"oops", "error")]) == [Event(Kind.ERROR, error="oops")]
    assert API.decode([(0, b"[1]", "")])[0].error.startswith("malformed")


def test_logprobs_count_tokens_where_all_have_them() -> None:
    two = [{"token": "a"}, {"token": "b"}]
    said = delta("output_text", "ab", logprobs=two)
    assert [event.tokens for event in told(said, said)] == [2, 2]
    assert [event.tokens for event in told(delta("reasoning_text", "x"), said)] == [None, None]
    assert told(delta("output_text", "ab", logprobs=[]))[0].tokens is None


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)
TYPES = st.sampled_from(
    ["response.output_text.delta", "response.output_text.done", "response.completed", "error", "x"]
)
KEYS = st.sampled_from(["delta", "text", "response", "item_id", "error", "logprobs", "usage"])


@given(st.lists(st.tuples(TYPES, st.dictionaries(KEYS, JSON)), max_size=4))
def test_nothing_raises(events: Sequence[tuple[str, dict[str, Any]]]) -> None:
    data = [(0, json.dumps(fields).encode(), name) for name, fields in events]
    assert len(API.decode(data)) == len(data)


@given(st.binary(), st.sampled_from(["", "error", "response.completed"]))
def test_no_bytes_raise(data: bytes, name: str) -> None:
    assert len(API.decode([(0, data, name)])) == 1


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
    "stops early": {"early_stop": 3},
}


def ours(body: bytes) -> dict[str, str]:
    """What our decoder reads of a reply's ``body``, by kind."""
    kinds = {"answer": Kind.ANSWER, "thoughts": Kind.REASONING, "tool": Kind.TOOL}
    events = API.decode(sse.parse(body))
    return {
        name: "".join(event.text for event in events if event.kind & kind)
        for name, kind in kinds.items()
    }


@pytest.mark.parametrize("case", REPLIES)
def test_the_official_sdk_reads_the_same(truth: Callable[..., TruthServer], case: str) -> None:
    server = truth(**REPLIES[case])
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as sdk:
        raw = sdk.responses.with_raw_response.create(
            model="truth", input="one two", max_output_tokens=5, stream=True
        )
        read = ours(raw.http_response.read())
        with sdk.responses.stream(model="truth", input="one two", max_output_tokens=5) as stream:
            events = list(stream)
        plain = sdk.responses.create(model="truth", input="one two", max_output_tokens=5)
    texts = [event for event in events if event.type == "response.output_text.delta"]
    assert read["answer"] == (texts[-1].snapshot if texts else "")
    for response in (events[-1].response, plain):
        thoughts = [item for item in response.output if item.type == "reasoning"]
        calls = [item for item in response.output if item.type == "function_call"]
        assert read["answer"] == response.output_text
        assert read["thoughts"] == "".join(each.text for it in thoughts for each in it.content)
        assert read["tool"] == "".join(call.arguments for call in calls)
        assert response.usage.output_tokens == (3 if case == "stops early" else 5)
        assert response.status == ("completed" if case == "stops early" else "incomplete")


def test_azure(truth: Callable[..., TruthServer], monkeypatch: pytest.MonkeyPatch) -> None:
    """The SDK for Azure finds the truth server at Azure's paths, with Azure's header."""
    monkeypatch.setenv("THE_KEY", "secret-of-azure")
    server = truth(api_key_env="THE_KEY")
    ask = {"model": "gpt", "messages": [{"role": "user", "content": "one two"}], "max_tokens": 3}
    with openai.AzureOpenAI(
        azure_endpoint=server.url, api_version="2024-10-21", api_key="secret-of-azure"
    ) as classic:
        reply = classic.chat.completions.create(**ask)
        assert reply.choices[0].message.content == " The ruler knows"
    with openai.OpenAI(base_url=f"{server.url}/openai/v1", api_key="secret-of-azure") as v1:
        assert v1.chat.completions.create(**ask).choices[0].message.content == " The ruler knows"
        said = v1.responses.create(model="gpt", input="one", max_output_tokens=3)
        assert said.output_text == " The ruler knows"
    assert [reply.path for reply in server.log()] == [
        "/openai/deployments/gpt/chat/completions",
        "/openai/v1/chat/completions",
        "/openai/v1/responses",
    ]
    with (
        openai.AzureOpenAI(azure_endpoint=server.url, api_version="1", api_key="wrong") as wrong,
        pytest.raises(openai.AuthenticationError),
    ):
        wrong.chat.completions.create(**ask)


# ── a reply as a whole ───────────────────────────────────────────────────────────────────────────


def whole(*documents: Any) -> Timeline:
    """The timeline of a reply that came in one read."""
    data = [b"data: " + json.dumps(each).encode() + b"\n\n" for each in documents]
    body, zero = b"".join(data), array("q", [0])
    reads = Reads(end=array("q", [len(body)]), at_ns=zero, lag_ns=zero, slack_ns=zero)
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
        reads=reads,
        body=body,
    )
    return decode(trace, API.decode)


def test_a_good_reply() -> None:
    timeline = whole(delta("reasoning_text", "Hm"), delta("output_text", "Hi"), end(usage=USED))
    assert (timeline.failure, timeline.finish, timeline.chars) == ("", "stop", 4)
    assert (timeline.usage.completion_tokens, len(timeline.at_ns)) == (9, 2)


def test_a_reply_without_its_end_is_truncated() -> None:
    assert whole(delta("output_text", "Hi")).failure == "truncated"


def test_a_reply_that_failed_says_why() -> None:
    failed = end("failed", error={"code": "server_error", "message": "out of memory"})
    timeline = whole(delta("output_text", "Hi"), failed)
    assert (timeline.failure, timeline.detail) == ("stream-error", "out of memory")


# ── sweeps ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("api", ["responses", "messages"])
def test_a_sweep_times_what_the_server_sent(
    truth: Callable[..., TruthServer], run_llmbench: Llmbench, run_dir: Path, api: str
) -> None:
    """Each event of a token is seen, and none of the others is taken for one."""
    server = truth(reasoning_tokens=2, cached_tokens=4, output_tokens=8)
    done = run_llmbench(
        *("sweep", "--target", server.url, "--api", api, "--concurrency", 2, "--requests", 6),
        *("--warmup", 0, "--prompt-tokens", 32, "--output-tokens", 8, "--no-calibrate"),
        *("--format", "json", "--out", run_dir),
    )
    (cell,) = done.cells
    assert (cell["requests"]["ok"], cell["requests"]["failed"]) == (6, 0)
    assert (cell["token_source"], cell["tokens_per_event"]) == ("usage", 1.0)
    assert cell["measured_prompt_tokens"]["p50"] == 32
    assert cell["ttfat_ms"]["p50"] >= cell["ttft_ms"]["p50"]  # on a busy machine in one read
    log = {reply.request_id: reply for reply in server.log()}
    traces = [trace for trace in RunDirectory.open(run_dir).traces() if trace.phase == "measured"]
    timelines = [(trace.request_id, decode(trace, APIS[api].decode)) for trace in traces]
    assert compare(timelines, log).itl.n == 6 * 7  # which raises where events were missed


def test_the_openai_client_speaks_responses(
    truth: Callable[..., TruthServer], run_llmbench: Llmbench, run_dir: Path
) -> None:
    server = truth(output_tokens=8)
    small = ("--concurrency", 1, "--requests", 2, "--warmup", 0, "--prompt-tokens", 32)
    flags = ("sweep", "--target", server.url, "--client", "openai", *small, "--no-calibrate")
    done = run_llmbench(*flags, "--api", "responses", "--format", "json", "--out", run_dir)
    (cell,) = done.cells
    assert (cell["requests"]["ok"], cell["token_source"]) == (2, "usage")
    refused = run_llmbench(*flags, "--api", "messages")
    words = "openai's SDK does not speak messages; take wire or aiohttp"
    assert (refused.code, refused.err) == (2, f"llmbench: --client: {words}\n")


def test_engines_in_process_take_prompts_only(in_process: InProcess) -> None:
    done = in_process("sweep", "--target", "transformers:m", "--api", "responses")
    assert done.code == 2
    assert "engines in process take chat or completions; serve it over HTTP" in done.err


def test_strict_servers_are_found_a_dialect(
    truth: Callable[..., TruthServer], run_llmbench: Llmbench, run_dir: Path
) -> None:
    server = truth(reject_unknown=True)
    for api in ("responses", "messages"):
        done = run_llmbench(
            *("sweep", "--target", server.url, "--api", api, "--concurrency", 1, "--requests", 1),
            *("--warmup", 0, "--prompt-tokens", 32, "--no-calibrate", "--format", "json"),
            *("--out", run_dir.with_name(api)),
        )
        assert done.cells[0]["requests"]["ok"] == 1
        (facts,) = stored(run_dir.with_name(api))["cells"]
        assert (facts["dialect"], facts["exact_length"]) == ("standard", False)
