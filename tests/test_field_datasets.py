"""Datasets as people have them: any wording, units and block sizes; what of a row is sent."""

import gzip
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmbench.apis.completions import encode
from llmbench.apis.dialect import DIALECTS
from llmbench.checks import is_traced
from llmbench.config import Sweep
from llmbench.datasets import detect, hub, open_dataset
from llmbench.errors import UserError
from llmbench.plan.feed import Feed
from llmbench.plan.scale import Scale
from llmbench.records import Content, Load, Message, Sample
from tests.conftest import Answer, Asked, Llmbench, ThreadedServer, content, finish, sse

ASKED = "Where does the river end?"
SAID = [Message("user", ASKED)]
IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}
AUDIO = {"type": "input_audio", "input_audio": {"data": "UklGRg==", "format": "wav"}}
WORDS = {"type": "text", "text": ASKED}
TOOL = {"type": "function", "function": {"name": "tide", "parameters": {"type": "object"}}}
CALL = {"id": "c1", "type": "function", "function": {"name": "tide", "arguments": "{}"}}

Write = Callable[..., str]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write rows as JSON lines, or a text, to a file; its path."""

    def to(*rows: Any, name: str = "rows.jsonl") -> str:
        path = tmp_path / name
        lines = [each if isinstance(each, str) else json.dumps(each) for each in rows]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return str(path)

    return to


def user(*turns: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": each} for each in turns]


def refusal(path: str, *args: Any, **kwargs: Any) -> str:
    with pytest.raises(UserError) as raised:
        list(open_dataset(path, *args, **kwargs))
    said = str(raised.value)
    assert "\n" not in said
    return said


# ---- prompts


@pytest.mark.parametrize(
    "key",
    ["prompt", "text", "question", "instruction", "input", "Prompt", "query", "text_input"],
)
def test_a_prompt_by_any_name(write: Write, key: str) -> None:
    path = write({"id": 7, key: ASKED, "answer": "In the sea."})
    assert detect(path) == "json"
    assert list(open_dataset(path)) == [Sample(messages=SAID)]


def test_an_instruction_is_followed_by_its_input(write: Write) -> None:
    rows = (
        {"instruction": "Translate.", "input": "Ebbe", "output": "low tide"},
        {"instruction": ASKED, "input": "", "output": "In the sea."},
        {"instruction": "Sum up.", "context": "Tides come twice."},
    )
    said = [row.messages[0].content for row in open_dataset(write(*rows))]
    assert said == ["Translate.\n\nEbbe", ASKED, "Sum up.\n\nTides come twice."]
    table = write("instruction,input\nTranslate.,Ebbe\nWhy?,", name="rows.csv")
    assert [row.messages[0].content for row in open_dataset(table)] == [
        "Translate.\n\nEbbe",
        "Why?",
    ]


def test_rows_of_several_wordings_in_one_file(write: Write) -> None:
    rows = ({"prompt": ASKED}, {"messages": user(ASKED)}, {"conversation": user(ASKED)})
    assert [row.messages for row in open_dataset(write(*rows))] == [SAID] * 3


def test_a_system_prompt_beside_any_of_them(write: Write) -> None:
    told = [Message("system", "Be brief."), *SAID]
    for key, value in (
        ("prompt", ASKED),
        ("messages", user(ASKED)),
        ("conversations", [{"from": "human", "value": ASKED}]),
    ):
        path = write({key: value, "system_prompt" if key == "prompt" else "system": "Be brief."})
        assert next(open_dataset(path)).messages == told


def test_json_with_columns_of_the_users(write: Write) -> None:
    path = write({"q": ASKED, "n": 12}, {"q": "Why?"})
    columns = {"prompt": "q", "output_tokens": "n"}
    first, second = open_dataset(path, columns=columns)
    assert (first.messages, first.output_tokens) == (SAID, 12)
    assert (second.messages, second.output_tokens) == ([Message("user", "Why?")], None)
    said = refusal(path, columns={"prompt": "qq"})
    assert said == f"--dataset {path}: no column 'qq', for prompt; did you mean 'q'?"


def test_a_column_of_messages_by_another_name(write: Write) -> None:
    rows = write({"dialog": user(ASKED)})
    assert next(open_dataset(rows, columns={"messages": "dialog"})).messages == SAID
    table = write('id,messages\n1,"[{""role"":""user"",""content"":""Why?""}]"', name="a.csv")
    assert next(open_dataset(table)).messages == [Message("user", "Why?")]


def test_a_prompt_that_is_a_list_of_messages(write: Write) -> None:
    assert next(open_dataset(write({"prompt": user(ASKED)}))).messages == SAID


@pytest.mark.parametrize(
    ("before", "after", "name"),
    [("", "", "a.json"), ("[", "]", "a.json"), ("\ufeff", "\r\n", "a.jsonl"), ("", "", "a.ndjson")],
)
def test_lines_arrays_marks_and_packed_files(
    tmp_path: Path, before: str, after: str, name: str
) -> None:
    data = f"{before}{json.dumps({'prompt': ASKED})}{after}".encode()
    plain, packed = tmp_path / name, tmp_path / f"{name}.gz"
    plain.write_bytes(data)
    packed.write_bytes(gzip.compress(data))
    assert list(open_dataset(str(plain))) == list(open_dataset(str(packed)))
    assert next(open_dataset(str(packed))).messages == SAID


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("key", ["data", "rows", "requests"])
def test_an_array_within_an_object(write: Write, key: str, indent: int | None, mark: str) -> None:
    rows = [{"prompt": ASKED, "tags": [{"a": 1}]}, {"prompt": "Why?"}]
    whole = {"version": "1.1", "count": 2, key: rows, "after": [{"prompt": "no row"}]}
    path = write(mark + json.dumps(whole, indent=indent), name="rows.json")
    assert [row.messages[0].content for row in open_dataset(path)] == [ASKED, "Why?"]


def test_lists_in_a_row_are_no_rows(write: Write) -> None:
    row = {"prompt": ASKED, "data": ["a", "b"]}
    assert [each.messages for each in open_dataset(write(row, row))] == [SAID] * 2


@pytest.mark.parametrize("sign", [";", "\t", ","])
def test_fields_apart_by_what_the_header_has(write: Write, sign: str) -> None:
    path = write(f"prompt{sign}output_tokens", f"{ASKED}{sign}12", name="rows.csv")
    assert list(open_dataset(path)) == [Sample(messages=SAID, output_tokens=12)]


# ---- conversations


@pytest.mark.parametrize("key", ["messages", "conversations", "conversation"])
@pytest.mark.parametrize(
    ("who", "what", "human", "model"),
    [
        ("from", "value", "human", "gpt"),
        ("role", "content", "user", "assistant"),
        ("from", "content", "user", "model"),
        ("role", "value", "Human", "Assistant"),
    ],
)
def test_conversations_in_any_wording(
    write: Write, key: str, who: str, what: str, human: str, model: str
) -> None:
    turns = [(human, "Hello?"), (model, "Hello."), (human, ASKED), (model, "In the sea.")]
    path = write({key: [{who: speaker, what: words} for speaker, words in turns]})
    assert next(open_dataset(path)).messages == [
        Message("user", "Hello?"),
        Message("assistant", "Hello."),
        *SAID,
    ]


def test_turns_of_both_wordings_in_one_conversation(write: Write) -> None:
    turns = [{"from": "system", "value": "Be brief."}, *user(ASKED)]
    assert next(open_dataset(write({"conversations": turns}))).messages == [
        Message("system", "Be brief."),
        *SAID,
    ]


# ---- requests: batches, tools, parts


def batch(**body: Any) -> dict[str, Any]:
    return {"custom_id": "r-1", "method": "POST", "url": "/v1/chat/completions", "body": body}


@pytest.mark.parametrize(
    "row",
    [
        batch(model="m", messages=user(ASKED), max_tokens=9),
        batch(model="m", messages=user(ASKED), max_completion_tokens=9),
        batch(model="m", prompt=ASKED, max_tokens=9) | {"url": "/v1/completions"},
        batch(model="m", input=ASKED, max_output_tokens=9) | {"url": "/v1/responses"},
        batch(
            model="m",
            input=[{"role": "user", "content": [{"type": "input_text", "text": ASKED}]}],
            max_output_tokens=9,
        )
        | {"url": "/v1/responses"},
        {"custom_id": "r-1", "params": {"messages": user(ASKED), "max_tokens": 9}},
    ],
)
def test_lines_of_batches(write: Write, row: dict[str, Any]) -> None:
    path = write(row)
    assert detect(path) == "openai"
    assert list(open_dataset(path)) == [Sample(messages=SAID, output_tokens=9)]


def test_a_batch_that_asks_for_no_text(write: Write) -> None:
    path = write(batch(model="m", input="a") | {"url": "/v1/embeddings"})
    assert refusal(path) == (
        f"{path}, line 1: url is '/v1/embeddings', which is asked for no text; "
        "--skip-broken passes over such lines"
    )


def test_tools_go_along(write: Write) -> None:
    asked = {"messages": user(ASKED), "tools": [TOOL], "tool_choice": "auto"}
    tools = {"tools": [TOOL], "tool_choice": "auto"}
    for row in (asked, batch(**asked), {"prompt": ASKED, **tools}):
        (sample,) = open_dataset(write(row))
        assert sample.fields == tools
    packed = {"conversations": user(ASKED), "tools": json.dumps([TOOL])}
    assert next(open_dataset(write(packed))).fields == {"tools": [TOOL]}
    for none in ([], "", None):
        assert next(open_dataset(write(asked | {"tools": none}))).fields == {}


def test_calls_of_tools_and_their_results_go_along(write: Write) -> None:
    call = {"role": "assistant", "content": None, "tool_calls": [CALL]}
    result = {"role": "tool", "tool_call_id": "c1", "content": "low"}
    (sample,) = open_dataset(write({"messages": [*user(ASKED), call, result], "tools": [TOOL]}))
    assert sample.messages == [
        *SAID,
        Message("assistant", None, tool_calls=[CALL]),
        Message("tool", "low", tool_call_id="c1"),
    ]


@pytest.mark.parametrize("part", [IMAGE, AUDIO, {"type": "image_url", "image_url": {"url": "u"}}])
def test_parts_go_along_as_they_are(write: Write, part: dict[str, Any]) -> None:
    (sample,) = open_dataset(write({"messages": user([WORDS, part])}))
    assert sample.messages == [Message("user", [WORDS, part])]
    assert sample.messages[0].text == ASKED
    assert not sample.messages[0].is_plain


def test_images_of_the_responses_api_are_put_into_the_words_of_chat(write: Write) -> None:
    parts = [
        {"type": "input_text", "text": ASKED},
        {"type": "input_image", "image_url": "https://pier.example/a.png", "detail": "low"},
    ]
    (sample,) = open_dataset(write({"body": {"input": user(parts)}}))
    image = {"url": "https://pier.example/a.png", "detail": "low"}
    assert sample.messages == [Message("user", [WORDS, {"type": "image_url", "image_url": image}])]


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"messages": user(["a"])}, "has a part that is not an object: 'a'"),
        ({"messages": user([{"type": "image_url"}])}, "a part of type image_url has no image_url"),
        ({"messages": user([{"text": "a"}])}, "the type of a part is missing"),
        ({"messages": user([])}, "the content of message 1 is empty"),
        ({"messages": user("a"), "tools": 7}, "tools is not a list: a number"),
        ({"messages": user("a"), "tools": "[1"}, "tools is not JSON: '[1'"),
        ({"messages": [{"role": "user"}]}, "the content of message 1 is missing"),
        ({"messages": [{"content": "a"}]}, "the role of message 1 is missing"),
        ({"prompt": 7}, "prompt is not text: a number"),
        ({"prompt": "", "id": 1}, "prompt is empty"),
    ],
)
def test_what_cannot_be_sent(write: Write, row: dict[str, Any], words: str) -> None:
    said = refusal(write({"messages": user("fine")}, row), "json")
    assert ", line 2: " in said
    assert words in said
    assert said.endswith("--skip-broken passes over such lines")


# ---- lengths


@pytest.mark.parametrize(
    ("prompt", "output"),
    [
        ("input_length", "output_length"),
        ("prompt_tokens", "completion_tokens"),
        ("input_tokens", "output_tokens"),
        ("prompt_len", "output_len"),
        ("ISL", "OSL"),
        ("num_prefill_tokens", "num_decode_tokens"),
        ("Request tokens", "Response tokens"),
        ("prompt_tokens_count", "output_tokens_count"),
        ("context_tokens", "generated-tokens"),
        ("input_seq_len", "max_tokens"),
    ],
)
def test_lengths_without_times_by_any_name(write: Write, prompt: str, output: str) -> None:
    expected = [Sample(prompt_tokens=40, output_tokens=9)]
    assert list(open_dataset(write({prompt: 40, output: 9}))) == expected
    table = write(f"id,{prompt},{output}\n1,40,9", name="rows.csv")
    assert list(open_dataset(table)) == expected


def test_where_there_are_both_the_text_counts(write: Write) -> None:
    (sample,) = open_dataset(write({"prompt": ASKED, "prompt_len": 7, "output_len": 9}))
    assert sample == Sample(messages=SAID, output_tokens=9)


def test_a_file_that_cannot_be_told_says_what_was_seen(write: Write) -> None:
    said = refusal(write({"id": 1, "frage": "Warum?"}))
    assert "its first object has the keys id, frage, and none that is a prompt" in said
    assert "name one with --dataset-columns prompt=KEY, or say --dataset-format NAME" in said


def test_a_row_without_a_prompt_is_a_broken_one(write: Write) -> None:
    path = write({"prompt": ASKED}, {"id": 2})
    assert "line 2: it has no prompt, no messages and no length" in refusal(path)
    rows = open_dataset(path, skip_broken=True)
    assert [len(list(rows)), rows.skipped_count] == [1, 1]


# ---- times


def due(path: str, **how: Any) -> list[float | None]:
    return [row.at_s for row in open_dataset(path, **how)]


def trace(*stamps: Any, key: str = "timestamp", **more: Any) -> list[dict[str, Any]]:
    return [{key: stamp, "input_length": 40, "output_length": 8, **more} for stamp in stamps]


@pytest.mark.parametrize(
    ("stamps", "expected"),
    [
        ([0.0, 1.0, 2.0, 3.0], [0, 1, 2, 3]),
        ([0.25, 1.5, 30.75], [0, 1.25, 30.5]),
        ([0, 1, 1, 2, 3], [0, 1, 1, 2, 3]),
        ([0, 1000, 1500, 4000], [0, 1, 1.5, 4]),
        ([0, 500_000, 900_000], [0, 0.5, 0.9]),
        ([1700000000.5, 1700000001.75], [0, 1.25]),
        ([1700000000, 1700000060], [0, 60]),
        ([1700000000000, 1700000000250], [0, 0.25]),
        ([1700000000000000, 1700000000250000], [0, 0.25]),
        ([1700000000000000000, 1700000000250000000], [0, 0.25]),
        (["2026-05-01T10:00:00Z", "2026-05-01T10:00:01.250Z"], [0, 1.25]),
        (["2026-05-01 10:00:00 UTC", "2026-05-01 12:00:01+02:00"], [0, 1]),
    ],
)
def test_the_unit_of_times_is_told(write: Write, stamps: list[Any], expected: list[float]) -> None:
    assert due(write(*trace(*stamps))) == expected
    lines = "\n".join(f"{stamp},40,8" for stamp in stamps)
    table = write(f"timestamp,input_length,output_length\n{lines}", name="rows.csv")
    assert due(table) == expected
    assert due(write(json.dumps(trace(*stamps)), name="rows.json")) == expected


@pytest.mark.parametrize(
    ("key", "unit_s"),
    [
        ("timestamp_ms", 1e-3),
        ("arrival_time_s", 1),
        ("at", 1),
        ("ts_us", 1e-6),
        ("TimestampSeconds", 1),
        ("time_ns", 1e-9),
    ],
)
def test_a_unit_in_the_name_is_believed(write: Write, key: str, unit_s: float) -> None:
    path = write(*trace(0, 500_000, key=key))
    assert due(path) == [0.0, pytest.approx(500_000 * unit_s)]
    assert [row.guessed_unit for row in open_dataset(path)] == ["", ""]


def test_the_user_can_say_the_unit(write: Write) -> None:
    path = write(*trace(0, 4))
    assert due(path, columns={"at_ms": "timestamp"}) == [0, 0.004]
    assert due(path, columns={"at_us": "timestamp"}) == [0, 0.000004]
    assert due(path, columns={"at_s": "timestamp"}) == [0, 4]
    assert due(path, columns={"at": "timestamp"}) == [0, 4]
    both = {"at_ms": "timestamp", "at_s": "timestamp"}
    assert "has both at_ms and at_s" in refusal(path, columns=both)


def test_a_guess_is_told_where_it_counts(write: Write) -> None:
    path = write(*trace(0.0, 1.0, 2.0))
    feed = feed_of(path, "mooncake", rate="trace")
    assert feed.session(2) is not None
    assert feed.remark == (
        "the times of the trace are taken for seconds; if they are not, say "
        "--dataset-columns at_s=COLUMN, at_ms=COLUMN or at_us=COLUMN"
    )
    quiet = feed_of(path, "mooncake")
    assert quiet.session(2) is not None
    assert quiet.remark == ""


def test_bad_times_matter_to_a_replay_alone(write: Write) -> None:
    path = write(*({"prompt": ASKED, "timestamp": stamp} for stamp in (5.0, 1.0, "noon", 6.5)))
    said = refusal(path)
    assert "line 2: timestamp runs backwards, by 4 s" in said
    assert [row.messages for row in open_dataset(path, timed=False)] == [SAID] * 4
    replayed = open_dataset(path, skip_broken=True)
    assert [row.at_s for row in replayed] == [0, 1.5]
    assert replayed.skipped_count == 2


def test_a_time_that_is_missing_in_the_middle(write: Write) -> None:
    rows = trace(0.0, 1.0, 2.0)
    del rows[1]["timestamp"]
    assert "line 2: timestamp is missing" in refusal(write(*rows))


@given(st.lists(st.integers(1, 400), min_size=2, max_size=50), st.sampled_from([1, 1000]))
def test_times_since_1970_are_the_same_in_any_unit(gaps: list[int], factor: int) -> None:
    from llmbench.datasets.times import Times

    stamps = [1_700_000_000 * factor]
    for gap in gaps:
        stamps.append(stamps[-1] + gap * factor)
    times = Times(lambda stamp: ("timestamp", stamp), stamps)
    assert [times(stamp)[0] for stamp in stamps] == [sum(gaps[:n]) for n in range(len(gaps) + 1)]


def test_times_of_day_in_parquet(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    since = 1_700_000_000_000_000_000
    stamps = pa.array([since, since + 1_250_000_123], pa.timestamp("ns", "UTC"))
    pq.write_table(pa.table({"conversation": [user(ASKED)] * 2, "timestamp": stamps}), path)
    rows = list(open_dataset(str(path)))
    assert [row.at_s for row in rows] == [0, 1.25]
    assert [row.messages for row in rows] == [SAID] * 2


def test_parts_and_tools_in_parquet(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    parts = [WORDS | {"image_url": None}, IMAGE | {"text": None}]
    table = pa.table({"messages": [user(parts)], "tools": [json.dumps([TOOL])]})
    pq.write_table(table, path)
    (sample,) = open_dataset(str(path))
    assert sample == Sample(messages=[Message("user", [WORDS, IMAGE])], fields={"tools": [TOOL]})


# ---- blocks


def shared(length: int, ids: list[int], **more: Any) -> dict[str, Any]:
    row = {"timestamp": 0, "input_length": length, "output_length": 8, "hash_ids": ids}
    return row | more


@pytest.mark.parametrize("size", [16, 24, 64, 256, 512, 1024])
@pytest.mark.parametrize("full_alone", [False, True])
def test_the_size_of_blocks_is_told(write: Write, size: int, full_alone: bool) -> None:
    lengths = [size * 6 + 5, size * 3, size * 9 + 1, size * 40 + 3]
    rows = [shared(n, list(range(n // size + (not full_alone and n % size > 0)))) for n in lengths]
    samples = list(open_dataset(write(*rows)))
    assert {sample.block_tokens for sample in samples} == {size}
    assert [len(sample.blocks) for sample in samples] == [len(row["hash_ids"]) for row in rows]


def test_the_size_of_blocks_can_be_said(write: Write) -> None:
    rows = (shared(100, [1, 2], block_size=64), shared(64, [1], block_size=64))
    assert [row.block_tokens for row in open_dataset(write(*rows))] == [64, 64]
    wrong = refusal(write(shared(100, [1, 2, 3, 4], block_size=64)))
    assert "hash_ids is of length 4, and an input_length of 100 needs 2 (one for 64" in wrong


def test_the_traces_of_bailian_are_in_seconds(write: Write) -> None:
    rows = [
        shared(n, list(range(-(-n // 16))), timestamp=at, chat_id=n, parent_chat_id=-1)
        for n, at in ((521, 61.114), (90, 61.5), (33, 90))
    ]
    samples = list(open_dataset(write(*rows)))
    assert [sample.at_s for sample in samples] == [0, 0.386, 28.886]
    assert {sample.block_tokens for sample in samples} == {16}
    assert {sample.guessed_unit for sample in samples} == {""}


def test_mooncakes_own_stay_milliseconds(write: Write) -> None:
    rows = [shared(1100, [1, 2, 3], timestamp=at) for at in (0, 2, 4)]
    samples = list(open_dataset(write(*rows)))
    assert [sample.at_s for sample in samples] == [0, 0.002, 0.004]
    assert {sample.guessed_unit for sample in samples} == {""}


def test_text_in_a_trace_of_blocks_is_asked(write: Write) -> None:
    row = {"timestamp": 0, "text_input": ASKED, "output_length": 4, "hash_ids": [1]}
    assert list(open_dataset(write(row))) == [Sample(messages=SAID, output_tokens=4, at_s=0.0)]


# ---- the feed


def feed_of(path: str, format_name: str, *, rate: str = "", **content: Any) -> Feed:
    load = Load(
        concurrency=1,
        prompt_tokens=50,
        output_tokens=20,
        requests=1,
        duration_s=None,
        warmup=0,
        rate=rate,
        content=Content(dataset=path, format=format_name, **content),
    )
    return Feed(load, 0, "run", Scale(((1, 1),)))


@pytest.mark.parametrize("size", [4, 16, 64])
def test_small_blocks_have_the_words_asked_for(write: Write, size: int) -> None:
    lengths = [size * 5, size * 2 + 1]
    long_id = (1 << 64) - 1
    rows = [shared(n, [long_id, 2, 3, 4, 5, 6][: -(-n // size)], block_size=size) for n in lengths]
    feed = feed_of(write(*rows), "mooncake")
    texts = []
    for number, length in enumerate(lengths):
        session = feed.session(number)
        assert session is not None
        words = session.asks[0].messages[0].text.split()[4:]
        assert len(words) == length
        texts.append(words)
    assert texts[0][: size * 2] == texts[1][: size * 2]


def test_tools_and_parts_reach_each_turn(write: Write) -> None:
    turns = [*user([IMAGE, WORDS]), {"role": "assistant", "content": "The sea."}, *user("Why?")]
    feed = feed_of(write({"messages": turns, "tools": [TOOL]}), "openai", turns=2)
    session = feed.session(0)
    assert session is not None
    first, second = session.asks
    assert (first.fields, second.fields) == ({"tools": [TOOL]}, {"tools": [TOOL]})
    mark, *parts = first.messages[0].content or []
    assert parts == [IMAGE, WORDS]
    assert isinstance(mark, dict)
    assert mark["type"] == "text"
    assert second.messages == (Message("user", "Why?"),)


def test_the_nonce_stands_in_a_text_that_comes_first(write: Write) -> None:
    feed = feed_of(write({"messages": user([WORDS, IMAGE])}), "openai")
    session = feed.session(0)
    assert session is not None
    text, image = session.asks[0].messages[0].content or []
    assert isinstance(text, dict)
    assert text["text"].endswith(f" {ASKED}")
    assert image == IMAGE


def test_completions_take_texts_alone() -> None:
    messages = [Message("user", [WORDS, IMAGE])]
    with pytest.raises(UserError, match="completions take texts alone"):
        encode("m", messages, 8, DIALECTS[0], Content())


def test_a_trace_is_told_from_a_rate() -> None:
    assert is_traced(Sweep(request_rate=["trace"]))
    assert not is_traced(Sweep(request_rate=[2]))


# ---- what is sent


def reply(asked: Asked) -> Answer:
    tokens = asked.document.get("max_tokens") or asked.document["max_completion_tokens"]
    texts = [content(f" w{number}") for number in range(tokens)]
    return 200, "text/event-stream", sse(*texts, finish(20, tokens), "[DONE]")


Threaded = Callable[[Callable[[Asked], Answer]], ThreadedServer]


def sweep(run_llmbench: Llmbench, *args: object) -> Any:
    return run_llmbench(
        *("sweep", "--no-calibrate", "--concurrency", 1, "--requests", 2, "--warmup", 0),
        *("--format", "json", *args),
    )


def test_a_request_is_sent_as_it_stands_in_the_file(
    threaded: Threaded, run_llmbench: Llmbench, write: Write
) -> None:
    server = threaded(reply)
    row = batch(
        messages=user([WORDS, IMAGE, AUDIO]), max_tokens=6, tools=[TOOL], tool_choice="auto"
    )
    sweep(run_llmbench, "--target", server.url, "--cache", "warm", "--dataset", write(row, row))
    sent = [each.document for each in server.asked if "tools" in each.document]
    assert len(sent) >= 2
    for document in sent:
        assert document["messages"] == user([WORDS, IMAGE, AUDIO])
        assert document["tools"] == [TOOL]
        assert document["tool_choice"] == "auto"
        assert document["max_tokens"] == 6


def test_images_are_refused_where_texts_alone_are_taken(
    run_llmbench: Llmbench, write: Write
) -> None:
    path = write({"messages": user([WORDS, IMAGE])})
    done = sweep(
        run_llmbench, "--target", "http://127.0.0.1:9", "--api", "completions", "--dataset", path
    )
    assert done.code == 2
    assert "its rows have images, audio or calls of tools" in done.err
    assert "--api chat" in done.err


# ---- the hub


class OfflineModeIsEnabled(ConnectionError):  # noqa: N818
    """As the library calls it."""


class RepositoryNotFoundError(Exception):
    """As the library calls it."""


class Hub:
    """Stands for huggingface_hub: some repositories in a folder, and how often it was asked."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files: dict[str | None, list[str]] = {None: []}
        self.offline = False
        self.fetched: list[tuple[str, str, str | None]] = []

    def list_repo_files(
        self, repo_id: str, *, repo_type: str, revision: str | None = None
    ) -> list[str]:
        assert repo_type == "dataset"
        if self.offline:
            raise OfflineModeIsEnabled("offline mode is on")
        if repo_id == "nobody/nothing":
            raise RepositoryNotFoundError("404 Client Error.\nMore words.")
        if revision not in self.files:
            raise ValueError("no such revision")
        return self.files[revision]

    def hf_hub_download(
        self, repo_id: str, filename: str, *, repo_type: str, revision: str | None = None
    ) -> str:
        assert repo_type == "dataset"
        self.fetched.append((repo_id, filename, revision))
        path = self.folder / filename.replace("/", "--")
        path.write_text(json.dumps({"prompt": ASKED}) + "\n")
        return str(path)


@pytest.fixture
def the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    fake = Hub(tmp_path)
    module: Any = ModuleType("huggingface_hub")
    module.HfApi = lambda: SimpleNamespace(list_repo_files=fake.list_repo_files)
    module.hf_hub_download = fake.hf_hub_download
    monkeypatch.setitem(sys.modules, "huggingface_hub", module)
    monkeypatch.setenv("LLMBENCH_CACHE", str(tmp_path / "cache"))
    hub.fetched.cache_clear()
    return fake


FILES = ["README.md", "dataset_infos.json", "data/test-00000-of-00001.jsonl", "data/train.jsonl"]


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("hf:pier/tides", "data/train.jsonl"),
        ("hf:pier/tides:test", "data/test-00000-of-00001.jsonl"),
        ("hf:pier/tides/more/other.jsonl", "more/other.jsonl"),
    ],
)
def test_a_dataset_of_the_hub(the_hub: Hub, name: str, file: str) -> None:
    the_hub.files[None] = FILES
    assert detect(name) == "json"
    assert [row.messages for row in open_dataset(name)] == [SAID]
    assert the_hub.fetched == [("pier/tides", file, None)]  # once


def test_what_the_hub_has_converted(the_hub: Hub) -> None:
    the_hub.files = {None: ["README.md", "loader.py"], hub._CONVERTED: ["default/train/0000.jsonl"]}
    assert next(open_dataset("hf:pier/tides")).messages == SAID
    assert the_hub.fetched == [("pier/tides", "default/train/0000.jsonl", hub._CONVERTED)]


def test_without_a_network_what_was_fetched_is_read_again(the_hub: Hub) -> None:
    the_hub.files[None] = FILES
    assert hub.fetched("hf:pier/tides")
    hub.fetched.cache_clear()
    the_hub.offline = True
    assert next(open_dataset("hf:pier/tides")).messages == SAID


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("hf:tides", "write hf:owner/name, hf:owner/name:split or hf:owner/name/file"),
        ("hf:nobody/nothing", "no such dataset on the hub; a private one needs HF_TOKEN"),
        ("hf:pier/tides:dev", "no file is of a split 'dev'; its files are data/test-00000-of"),
    ],
)
def test_what_is_not_on_the_hub(the_hub: Hub, name: str, words: str) -> None:
    the_hub.files[None] = FILES
    said = refusal(name)
    assert said.startswith(f"--dataset {name}: {words}")


def test_no_network_and_no_library(the_hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    the_hub.offline = True
    assert refusal("hf:pier/tides") == (
        "--dataset hf:pier/tides: the hub cannot be reached, and the file is not in its cache; "
        "fetch it where there is a network and give its path"
    )
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    hub.fetched.cache_clear()
    assert "needs huggingface_hub: pip install 'llmbench[hf]'" in refusal("hf:pier/tides")
