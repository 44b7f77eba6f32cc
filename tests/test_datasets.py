"""Datasets and traces: what is read of each format, what is refused of it, and in how much memory.

Each format has a good file and a bad twin in ``data/datasets``.
"""

import gzip
import io
import json
import os
import sys
import tracemalloc
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, cast

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmbench.datasets import FORMATS, Broken, Rows, detect, open_dataset
from llmbench.errors import UserError
from llmbench.records import Message, Sample

DATA = Path(__file__).parent / "data" / "datasets"


def user(text: str, **more: Any) -> Sample:
    return Sample(messages=[Message("user", text)], **more)


def system(words: str, text: str, **more: Any) -> Sample:
    return Sample(messages=[Message("system", words), Message("user", text)], **more)


def lengths(prompt: int, output: int, at_s: float, blocks: list[int] | None = None) -> Sample:
    return Sample(prompt_tokens=prompt, output_tokens=output, at_s=at_s, blocks=blocks or [])


def read(name: str, data: bytes | str, **columns: str) -> list[Sample | Broken]:
    data = data.encode() if isinstance(data, str) else data
    return list(FORMATS[name](io.BytesIO(data), columns))


def request(text: str = "a", **more: Any) -> str:
    return json.dumps({"messages": [{"role": "user", "content": text}], **more})


def conversation(text: str) -> str:
    return json.dumps({"conversations": [{"from": "human", "value": text}]})


def refusal(path: Path | str, *args: Any, **kwargs: Any) -> str:
    with pytest.raises(UserError) as raised:
        list(open_dataset(str(path), *args, **kwargs))
    said = str(raised.value)
    assert "\n" not in said
    return said


# ---- good files

CONVERSATIONS = [
    user("Where is the harbour?"),
    Sample(
        messages=[
            Message("user", "Is it open?"),
            Message("assistant", "Until six."),
            Message("user", "And on Sunday?"),
        ]
    ),
    system("You keep a lighthouse.", "How tall is it?"),
    user("Ünter, über – 海"),
]

GOOD = {
    "good.openai.jsonl": (
        "openai",
        [
            user("Name three tides.", output_tokens=40),
            system("Be brief.", "Why is the sea salt?"),
            user("Count to ten.", output_tokens=25),
            user("A lamp is lit.", output_tokens=7),
            Sample(
                messages=[
                    Message("user", "Grüße?"),
                    Message("assistant", "Hallo."),
                    Message("user", "Und nun?"),
                ]
            ),
        ],
    ),
    "good.sharegpt.json": ("sharegpt", CONVERSATIONS),
    "good.sharegpt.jsonl": ("sharegpt", CONVERSATIONS),
    "good.text.txt": (
        "text",
        [
            user("What turns the lamp?"),
            user("How far does it shine?"),
            user("  Indented – on purpose."),
            user("No newline at the end"),
        ],
    ),
    "good.csv": (
        "csv",
        [
            user("What turns the lamp?", output_tokens=12, at_s=0.0),
            system("Be brief.", 'Two lines,\nand a "quote"', output_tokens=8, at_s=0.25),
            user("How far?", at_s=0.25),
            user("Grüße", output_tokens=3, at_s=1.5),
            user("Last one", output_tokens=4, at_s=3.5),
        ],
    ),
    "good.tsv": (
        "tsv",
        [
            user("What, turns the lamp?", output_tokens=12),
            system("Be brief.", "Two\nlines", output_tokens=8),
            user("How far?"),
            user("Last, one", output_tokens=4),
        ],
    ),
    "good.mooncake.jsonl": (
        "mooncake",
        [
            lengths(1100, 52, 0.0, [46, 47, 48]),
            lengths(512, 1, 0.0, [46]),
            lengths(513, 500, 3.053, [46, 2366]),
            lengths(10, 3, 3.053, [9]),  # 1 ms early: rounding, not time that runs backwards
            lengths(20, 4, 3.5185),
        ],
    ),
    "good.burstgpt.csv": (
        "burstgpt",
        [
            lengths(472, 18, 0.0),
            lengths(1087, 230, 40.0),
            lengths(417, 276, 113.0),
            lengths(1360, 647, 113.5),
        ],
    ),
    "good.azure.csv": (
        "azure",
        [
            lengths(4808, 10, 0.0),
            lengths(3180, 8, 0.052),
            lengths(110, 27, 15140576.02997),
            lengths(7433, 14, 15140577.02004),
        ],
    ),
}


@pytest.mark.parametrize("name", GOOD)
def test_good_files(name: str) -> None:
    format_name, expected = GOOD[name]
    rows = open_dataset(str(DATA / name))
    assert list(rows) == expected
    assert (rows.format, rows.skipped, rows.skipped_count) == (format_name, [], 0)


@pytest.mark.parametrize("name", GOOD)
def test_formats_are_detected_and_can_be_named(name: str) -> None:
    format_name, expected = GOOD[name]
    assert detect(str(DATA / name)) == format_name
    assert list(open_dataset(str(DATA / name), format_name)) == expected


@pytest.mark.parametrize("name", GOOD)
def test_gzipped_files(name: str, tmp_path: Path) -> None:
    path = tmp_path / f"{name}.gz"
    path.write_bytes(gzip.compress((DATA / name).read_bytes()))
    assert list(open_dataset(str(path))) == GOOD[name][1]


def test_every_format_has_a_good_file() -> None:
    others = {"parquet", "json"}  # see test_field_datasets for the latter
    assert {format_name for format_name, _ in GOOD.values()} == set(FORMATS) - others


# ---- bad files: the line and words of what is said about it, or the sample

BAD: dict[str, list[Sample | tuple[int, str]]] = {
    "bad.openai.jsonl": [
        user("This one is fine."),
        (2, "it is not JSON"),
        (3, "it is not a JSON object"),
        (4, "messages is missing"),
        Sample(
            messages=[
                Message(
                    "user",
                    [
                        {"type": "text", "text": "See"},
                        {"type": "image_url", "image_url": {"url": "x"}},
                    ],
                )
            ]
        ),
        (6, "the last message is of role 'system', not 'user'"),
        (7, "max_tokens is negative"),
        (8, "max_tokens is not a number: true"),
        (9, "max_tokens is not a number: '9'"),
        (10, "max_tokens is not a whole number: 2.5"),
        (11, "max_tokens is too large"),
        (12, "there is no message of the user's"),
        (13, "the content of message 1 is missing"),
        (14, "there is no message of the user's"),
        (15, "the last message is empty"),
        (16, "messages is not a list: 'hello'"),
        (17, "body is not an object"),
        (18, "it is not JSON"),
        (19, "message 1 is not an object: 'hello'"),
        user("This one too."),
    ],
    "bad.sharegpt.json": [
        user("This one is fine."),
        (2, "conversations has no turn of a human"),
        (3, "no turn of a human"),
        (4, "turn 1: 'parrot' is not a speaker; known are human, user, gpt"),
        (5, "the value of turn 1 is not text: a number"),
        (6, "conversations is missing"),
        (7, "it is not a JSON object"),
        (8, "conversations is not a list: an object"),
        user("This one too."),
        (10, "the file cannot be read from here on: lexical error"),
    ],
    "bad.sharegpt.jsonl": [
        user("This one is fine."),
        (2, "conversations has no turn of a human"),
        (3, "no turn of a human"),
        (4, "turn 1: 'parrot' is not a speaker"),
        (5, "the value of turn 1 is not text: a number"),
        (6, "conversations is missing"),
        (7, "it is not a JSON object"),
        (8, "conversations is not a list: an object"),
        user("This one too."),
        (10, "it is not JSON"),
        user("Reached."),
    ],
    "bad.text.txt": [
        user("Fine."),
        (2, "it is not UTF-8"),
        user("Fine again."),
        (4, "it is not UTF-8"),
    ],
    "bad.csv": [
        user("Fine.", output_tokens=12, at_s=0.0),
        (3, "question is empty"),
        (4, "the header has 4 fields, this row 3"),
        (5, "the header has 4 fields, this row 5"),
        (6, "output_tokens is not a number: 'many'"),
        (8, "output_tokens is negative"),
        (9, "output_tokens is 0, less than 1"),
        (10, "output_tokens is not a finite number: inf"),
        (11, "output_tokens is not a finite number: nan"),
        (12, "at is negative"),
        (13, "at is missing"),
        (14, "it is not UTF-8"),
        user("Fine too.", output_tokens=5, at_s=4.0),
        (16, "at runs backwards, by 0.5 s"),
        (17, "it is not CSV"),
        (18, "output_tokens is not a number: '1_000'"),
        (19, "output_tokens is too large: more than 1,000,000,000"),
        user("Fine again.", output_tokens=6, at_s=7.0),
        (21, "a quote is not closed"),
    ],
    "bad.tsv": [
        user("Fine.", output_tokens=1),
        (3, "the header has 2 fields, this row 1"),
        (4, "prompt is empty"),
        (5, "output_tokens is not a number: 'many'"),
        (6, "it is not UTF-8"),
        user("Fine too.", output_tokens=5),
    ],
    "bad.mooncake.jsonl": [
        lengths(10, 5, 0.0, [1]),
        (2, "hash_ids is of length 1, and an input_length of 513 needs 2 (one for 512 tokens)"),
        (3, "hash_ids is of length 2, and an input_length of 512 needs 1"),
        (4, "input_length is negative"),
        (5, "output_length is missing"),
        (6, "timestamp is not a number: true"),
        (7, "timestamp is neither a number nor a time like 2023-11-16 18:17:03.9799600: '1'"),
        (8, "hash_ids has an id that is not a whole number: 'a'"),
        (9, "hash_ids is not a list"),
        lengths(10, 5, 5.0, [1]),
        (11, "timestamp runs backwards, by 0.002 s"),
        (12, "input_length is too large"),
        (13, "timestamp is too large: more than 1,000,000,000 s after the first row's"),
        (14, "timestamp is too large"),
        (15, "hash_ids has an id that is negative"),
        (16, "it is not JSON"),
        lengths(10, 5, 6.0, [1]),
    ],
    "bad.burstgpt.csv": [
        lengths(472, 18, 0.0),
        (3, "Timestamp is neither a number nor a time like"),
        (4, "Request tokens is negative"),
        (5, "Response tokens is missing"),
        (6, "the header has 6 fields, this row 4"),
        (7, "Timestamp runs backwards, by 2 s"),
        (8, "Response tokens is not a whole number: 18.5"),
        (9, "Request tokens is not a number: 'True'"),
        lengths(10, 20, 7.0),
    ],
    "bad.azure.csv": [
        lengths(4808, 10, 0.0),
        (
            3,
            "TIMESTAMP is neither a number nor a time like 2023-11-16 18:17:03.9799600: "
            "'yesterday'",
        ),
        (4, "TIMESTAMP runs backwards, by 0.00996 s"),
        (5, "ContextTokens is 0, less than 1"),
        (6, "GeneratedTokens is not a number: 'x'"),
        (7, "TIMESTAMP is neither a number nor a time"),
        (8, "TIMESTAMP is missing"),
        lengths(12, 5, 2.02004),
    ],
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files(name: str) -> None:
    path = DATA / name
    with path.open("rb") as file:
        found = list(FORMATS[detect(str(path))](file, {}))
    assert len(found) == len(BAD[name])
    for item, expected in zip(found, BAD[name], strict=True):
        if isinstance(expected, Sample):
            assert item == expected
        else:
            assert isinstance(item, Broken), expected
            assert item.line == expected[0]
            assert expected[1] in item.why


def test_every_good_file_has_a_bad_twin() -> None:
    assert [name.replace("good", "bad") for name in GOOD if name.replace("good", "bad") in BAD] == [
        name.replace("good", "bad") for name in GOOD
    ]


@pytest.mark.parametrize("name", BAD)
def test_skip_broken_passes_over_them(name: str) -> None:
    expected = [item for item in BAD[name] if isinstance(item, Sample)]
    broken = [item for item in BAD[name] if not isinstance(item, Sample)]
    rows = open_dataset(str(DATA / name), skip_broken=True)
    assert list(rows) == expected
    assert rows.skipped_count == len(broken)
    assert [item.line for item in rows.skipped] == [line for line, _ in broken[:5]]


@pytest.mark.parametrize("name", BAD)
def test_without_it_the_first_is_an_error(name: str) -> None:
    line, words = next(item for item in BAD[name] if not isinstance(item, Sample))
    said = refusal(DATA / name)
    unit = "row" if name == "bad.sharegpt.json" else "line"
    assert said.startswith(f"{DATA / name}, {unit} {line}: {words}")
    assert said.endswith(f"; --skip-broken passes over such {unit}s")


def test_rows_before_a_broken_one_come_first() -> None:
    rows = open_dataset(str(DATA / "bad.text.txt"))
    assert next(rows) == user("Fine.")
    with pytest.raises(UserError):
        next(rows)


# ---- what one row can say


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (request(max_tokens=3, max_completion_tokens=4, output_tokens=5), 5),
        (request(max_tokens=3, max_completion_tokens=4), 4),
        (request(max_tokens=3, max_completion_tokens=None), 3),
        (request(max_tokens=3.0), 3),
        (f'{{"body":{request(max_tokens=3)},"max_tokens":9}}', 3),
        (request(), None),
    ],
)
def test_output_tokens_of_openai(row: str, expected: int | None) -> None:
    assert read("openai", row) == [user("a", output_tokens=expected)]


@pytest.mark.parametrize("form", ["[%s]", "  \n [%s]", "\ufeff[%s]", "%s", "\n\n%s\n", "\ufeff%s"])
def test_json_in_an_array_or_in_lines(form: str) -> None:
    assert read("sharegpt", form % conversation("a")) == [user("a")]
    assert read("openai", form % request()) == [user("a")]
    row = '{"timestamp":7,"input_length":1,"output_length":2}'
    assert read("mooncake", form % row) == [lengths(1, 2, 0.0)]


def test_an_array_that_ends_too_early_or_too_late() -> None:
    row = conversation("a")
    whole = "the file cannot be read from here on: parse error: "
    assert read("sharegpt", f"[{row},") == [user("a"), Broken(2, whole + "premature EOF", "row")]
    assert read("sharegpt", f"[{row}] {row}") == [
        user("a"),
        Broken(2, whole + "trailing garbage", "row"),
    ]


def test_nesting_takes_no_memory() -> None:
    deep = "[" * 100_000
    (broken,) = read("sharegpt", deep)
    assert "nested too deeply" in cast(Broken, broken).why
    broken, sample = read("openai", f'{{"a":{deep}\n{request()}')
    assert "nested too deeply" in cast(Broken, broken).why
    assert sample == user("a")


def test_lone_surrogates_cannot_be_sent() -> None:
    (broken,) = read("openai", '{"messages":[{"role":"user","content":"\\ud800"}]}')
    assert isinstance(broken, Broken)


@pytest.mark.parametrize("name", ["openai", "text", "csv", "sharegpt"])
def test_what_is_too_long_is_broken(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("rows", "json_rows", "csv_rows"):
        monkeypatch.setattr(f"llmbench.datasets.{module}.LONGEST", 1000)
    wide = "w" * 500_000
    files = {
        "openai": f"{request(wide)}\n{request()}\n",
        "text": f"{wide}\na\n",
        "csv": f"prompt\n{wide}\na\n",
        "sharegpt": f"[{conversation(wide)},{conversation('a')}]",
    }
    found = read(name, files[name])
    assert isinstance(found[0], Broken)
    assert "it is longer than 64 MiB" in found[0].why
    assert found[1:] == ([] if name == "sharegpt" else [user("a")])


def test_a_record_of_too_many_lines_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmbench.datasets.csv_rows.LONGEST", 4000)
    broken, *_ = read("csv", 'prompt\n"never closed\n' + "x\n" * 5000)
    assert cast(Broken, broken).line == 2
    assert "field larger than field limit" in cast(Broken, broken).why


# ---- columns


@pytest.mark.parametrize("prompt", ["prompt", "question", "instruction", "input", "text"])
def test_the_column_of_the_prompt_is_found(prompt: str) -> None:
    assert read("csv", f"id,{prompt}\n1,a\n") == [user("a")]


def test_the_first_match_is_the_prompt() -> None:
    assert read("csv", "text,question,input\n1,2,3\n") == [user("2")]


def test_columns_by_name() -> None:
    table = "q,s,n,t\na,be,3,10.5\nb,,,12\n"
    columns = {"prompt": "q", "system": "s", "output_tokens": "n", "at": "t"}
    assert read("csv", table, **columns) == [
        system("be", "a", output_tokens=3, at_s=0.0),
        user("b", at_s=1.5),
    ]


def test_lengths_in_place_of_prompts() -> None:
    assert read("csv", "prompt_tokens,output_tokens\n5,6\n") == [
        Sample(prompt_tokens=5, output_tokens=6)
    ]
    assert read("csv", "n,text\n5,a\n", prompt_tokens="n") == [Sample(prompt_tokens=5)]
    assert read("csv", "prompt_tokens,text\n5,a\n") == [user("a")]


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"prompt": "quesion"}, "no column 'quesion', for prompt; did you mean 'question'?"),
        ({"promt": "question"}, "--dataset-columns has no 'promt'; did you mean 'prompt'?"),
        ({"prompt": "question", "prompt_tokens": "n"}, "has both prompt and prompt_tokens"),
        ({"at": "zzz"}, "no column 'zzz', for at; known are question, n"),
    ],
)
def test_columns_that_are_not_there(columns: dict[str, str], words: str, tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("question,n\na,1\n")
    said = refusal(path, columns=columns)
    assert said.startswith(f"--dataset {path}: ")
    assert words in said


def test_headers_that_cannot_be_used(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("a,b\n1,2\n")
    assert "say --dataset-columns prompt=NAME, where NAME is one of a, b" in refusal(path)
    assert "no column 'Timestamp'; its columns are a, b" in refusal(path, "burstgpt")
    path.write_text("text,text\n1,2\n")
    assert "more than one column is called 'text'" in refusal(path)
    path.write_bytes(b"\xff,text\n1,2\n")
    assert "its header cannot be read: it is not UTF-8" in refusal(path)


def test_columns_are_for_tables() -> None:
    said = refusal(DATA / "good.text.txt", columns={"prompt": "q"})
    assert "--dataset-columns is for csv, tsv, parquet, json, mooncake" in said


# ---- times


def test_times_since_1970() -> None:
    assert read("csv", "text,at\na,1700000000.25\nb,1700000001.5\n") == [
        user("a", at_s=0.0),
        user("b", at_s=1.25),
    ]


def test_times_never_run_backwards() -> None:
    rows = "\n".join(
        f'{{"timestamp":{ms},"input_length":1,"output_length":1,"hash_ids":[1]}}'
        for ms in (0, 10, 9, 8, 10)
    )
    first, second, third, broken, last = read("mooncake", rows)
    assert [cast(Sample, row).at_s for row in (first, second, third, last)] == [0, 0.01, 0.01, 0.01]
    assert isinstance(broken, Broken)
    assert (broken.line, broken.why) == (4, "timestamp runs backwards, by 0.002 s")


# ---- Parquet


def parquet(path: Path, **columns: Any) -> str:
    pq.write_table(pa.table(columns), path)
    return str(path)


def test_parquet_of_prompts(tmp_path: Path) -> None:
    path = parquet(
        tmp_path / "a.parquet", question=["a", "b", None, " "], n=[3, None, 1, 1], at=[1, 1.5, 2, 2]
    )
    rows = open_dataset(path, columns={"output_tokens": "n"}, skip_broken=True)
    assert list(rows) == [user("a", output_tokens=3, at_s=0.0), user("b", at_s=0.5)]
    assert rows.skipped == [
        Broken(3, "question is missing", "row"),
        Broken(4, "question is empty", "row"),
    ]
    assert rows.format == "parquet"


def test_parquet_of_messages(tmp_path: Path) -> None:
    messages = [
        [{"role": "user", "content": "a"}, {"role": "assistant", "content": "x"}],
        [{"role": "system", "content": "be"}, {"role": "user", "content": "b"}],
        None,
    ]
    path = parquet(
        tmp_path / "a.parquet", text=["1", "2", "3"], messages=messages, max_tokens=[7] * 3
    )
    rows = open_dataset(path, skip_broken=True)
    assert list(rows) == [user("a", output_tokens=7), system("be", "b", output_tokens=7)]
    assert rows.skipped == [Broken(3, "messages is missing", "row")]
    assert next(open_dataset(path, columns={"prompt": "text"})) == user("1", output_tokens=7)


def test_parquet_of_conversations(tmp_path: Path) -> None:
    turns = [[{"from": "human", "value": "a"}, {"from": "gpt", "value": "x"}]]
    path = parquet(tmp_path / "a.parquet", conversations=turns)
    assert list(open_dataset(path)) == [user("a")]


def test_bad_parquet(tmp_path: Path) -> None:
    not_text = pa.Array.from_buffers(pa.string(), 2, pa.array([b"\xff", b"ok"]).buffers())
    path = parquet(tmp_path / "a.parquet", text=not_text, output_tokens=pa.array(["3", None]))
    rows = open_dataset(path, skip_broken=True)
    assert list(rows) == [user("ok")]
    assert "it cannot be read" in rows.skipped[0].why
    for words, column in [
        ("output_tokens is not a number: '3'", ["3"]),
        ("output_tokens is not a number: true", [True]),
        ("output_tokens is not a finite number: nan", [float("nan")]),
        ("output_tokens is too large", [10**12]),
    ]:
        path = parquet(tmp_path / "b.parquet", text=["a"], output_tokens=column)
        assert f"{path}, row 1: {words}" in refusal(path)


def test_what_is_not_parquet(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    for data in (b"", b"text", b"PAR1" + b"\xff" * 30 + b"PAR1"):
        path.write_bytes(data)
        assert "it is not a Parquet file" in refusal(path)
    packed = tmp_path / "a.parquet.gz"
    packed.write_bytes(gzip.compress(b"x"))
    assert "unpack it (gunzip)" in refusal(packed)


def test_a_damaged_page_ends_the_file(tmp_path: Path) -> None:
    path = Path(parquet(tmp_path / "a.parquet", text=[f"prompt {n}" for n in range(100_000)]))
    data = bytearray(path.read_bytes())
    data[200_000:201_000] = b"\xff" * 1000
    path.write_bytes(data)
    assert "the file cannot be read from here on" in refusal(path)


def test_parquet_without_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = parquet(tmp_path / "a.parquet", text=["a"])
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert "needs pyarrow: pip install 'llmbench[parquet]'" in refusal(path)


# ---- files that are not there, or not datasets


def test_missing_files(tmp_path: Path) -> None:
    for path in (tmp_path / "none.jsonl", tmp_path / "none.txt"):
        with pytest.raises(UserError, match=f"^--dataset {path}: No such file or directory$"):
            open_dataset(str(path))
    assert refusal(tmp_path) == f"--dataset {tmp_path}: it is not a file"
    assert "--dataset " in refusal("a\0b.txt")


def test_files_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*_: Any) -> None:  # root, who may run this, may read everything
        raise PermissionError(13, "Permission denied")

    path = tmp_path / "a.txt"
    path.write_text("a")
    monkeypatch.setattr(Path, "open", denied)
    assert refusal(path) == f"--dataset {path}: Permission denied"


def test_the_file_that_went_away(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("a")
    rows = open_dataset(str(path))
    path.unlink()
    with pytest.raises(UserError, match="No such file"):
        next(rows)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("skip_broken", [True, False])
def test_empty_files(name: str, skip_broken: bool, tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"")
    said = refusal(path, name, skip_broken=skip_broken)
    assert said.startswith(f"--dataset {path}: it ")


def test_files_without_one_usable_row(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"messages":[]}\n[]\n')
    assert refusal(path, skip_broken=True) == (
        f"--dataset {path}: none of its 2 rows can be used; "
        "the first, line 1: there is no message of the user's"
    )
    path = tmp_path / "b.csv"
    path.write_text("Timestamp,Request tokens,Response tokens\n1,2,0\n")
    assert refusal(path) == f"--dataset {path}: it has no row that can be used"


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("a.log", b"a", "its name does not tell which format it has"),
        ("a", b"a", "its name does not tell"),
        (
            "a.json",
            b'{"a":"b"}',
            "its first object has the keys a, and none that is a prompt (messages, ",
        ),
        ("a.json", b"hello", "it holds no JSON object"),
        ("a.jsonl", b"", "it holds no JSON object"),
        ("a.csv", b"", "it is empty"),
    ],
)
def test_formats_that_cannot_be_told(name: str, data: bytes, words: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(data)
    said = refusal(path)
    assert said.startswith(f"--dataset {path}: {words}")
    assert said.endswith(
        "say --dataset-format NAME, where NAME is one of openai, sharegpt, json, text, csv, tsv, "
        "parquet, mooncake, burstgpt, azure"
    )


def test_a_format_that_is_unknown() -> None:
    said = refusal(DATA / "good.csv", "sharegtp")
    assert said == "--dataset-format sharegtp: unknown; did you mean 'sharegpt'?"


def test_damaged_gzip(tmp_path: Path) -> None:
    path = tmp_path / "a.txt.gz"
    packed = gzip.compress(b"\n".join(str(n).encode() for n in range(10_000)))
    for data in (packed[:-100], b"not gzip", packed[:100] + b"\0" * 50 + packed[150:]):
        path.write_bytes(data)
        assert refusal(path).startswith(f"--dataset {path}: ")
        assert detect(str(path)) == "text"
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(b"not gzip")
    assert refusal(path).startswith(f"--dataset {path}: ")


# ---- large files


class Counted(io.RawIOBase):
    """A file that counts what was read of it."""

    def __init__(self, path: Path) -> None:
        self.bytes_read = 0
        self._file = path.open("rb", buffering=0)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def readinto(self, buffer: Any) -> int:
        got = self._file.readinto(buffer) or 0
        self.bytes_read += got
        return got

    def close(self) -> None:
        self._file.close()
        super().close()


WORDS = "the lamp turns and the sea is dark " * 60
TRACE = "2023-11-16 18:17:03.9799600,4808,10\n" * 60
IDS = [123456789] * 200
ROWS = {
    "openai": ("", request(WORDS) + "\n", ""),
    "sharegpt": ("[", conversation(WORDS) + ",\n", conversation("end") + "]"),
    "text": ("", WORDS + "\n", ""),
    "csv": ("text\n", f'"{WORDS}"\n', ""),
    "tsv": ("text\n", WORDS + "\n", ""),
    "mooncake": (
        "",
        json.dumps({"timestamp": 1, "input_length": 102400, "output_length": 1, "hash_ids": IDS})
        + "\n",
        "",
    ),
    "azure": ("TIMESTAMP,ContextTokens,GeneratedTokens\n", TRACE, ""),
    "burstgpt": ("Timestamp,Request tokens,Response tokens\n", "1,2,3\n" * 300, ""),
}


def generated(folder: Path, name: str, size: int) -> Path:
    path = folder / name
    head, row, tail = ROWS[name]
    block = row * (100_000 // len(row))
    with path.open("w") as file:
        file.write(head)
        for _ in range(size // len(block)):
            file.write(block)
        file.write(tail)
    return path


@pytest.mark.parametrize("name", ROWS)
def test_the_first_row_comes_at_once(name: str, tmp_path: Path) -> None:
    path = generated(tmp_path, name, 50_000_000)
    with Counted(path) as counted, io.BufferedReader(counted) as file:
        rows = FORMATS[name](cast(BinaryIO, file), {})
        assert isinstance(next(rows), Sample)
        assert counted.bytes_read < 1_000_000
    path.unlink()


def test_the_first_row_of_parquet_comes_at_once(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    table = pa.table({"text": [f"{n} {os.urandom(512).hex()}" for n in range(40_000)]})
    pq.write_table(table, path, compression="none", use_dictionary=False)
    assert path.stat().st_size > 40_000_000
    with Counted(path) as counted, io.BufferedReader(counted) as file:
        assert isinstance(next(FORMATS["parquet"](cast(BinaryIO, file), {})), Sample)
        assert counted.bytes_read < 4_000_000


@pytest.mark.parametrize("name", ["openai", "sharegpt", "text", "csv", "mooncake"])
def test_memory_stays_the_same(name: str, tmp_path: Path) -> None:
    path = generated(tmp_path, name, 20_000_000)
    rows = open_dataset(str(path), name)
    next(rows)
    tracemalloc.start()
    try:
        count = sum(1 for _ in rows)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert count > 1000
    assert peak < 4_000_000


def test_a_pass_that_is_given_up_closes_the_file(tmp_path: Path) -> None:
    path = generated(tmp_path, "text", 1_000_000)
    rows = open_dataset(str(path), "text")
    next(rows)
    rows.close()
    assert list(rows) == []
    assert isinstance(rows, Rows)


# ---- any bytes

JSON = ("openai", "sharegpt", "mooncake", "json")
TABLE_HEADERS = {
    "csv": b"prompt,system,output_tokens,at\n",
    "tsv": b"prompt\tsystem\toutput_tokens\tat\n",
    "burstgpt": b"Timestamp,Request tokens,Response tokens\n",
    "azure": b"TIMESTAMP,ContextTokens,GeneratedTokens\n",
}
words = st.sampled_from(["user", "assistant", "human", "gpt", "text"]) | st.text(max_size=8)
COUNTS = ("input_length", "output_length", "max_tokens", "output_tokens")
LISTS = ("messages", "conversations", "hash_ids", "prompt", "tools", "tool_calls", "block_size")
keys = st.sampled_from(
    ["role", "content", "from", "value", "type", "text", "body", "timestamp", *COUNTS, *LISTS]
)


def documents(scalars: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.recursive(
        scalars,
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=5),
        max_leaves=20,
    )


tame = documents(st.none() | st.booleans() | st.integers(-(2**62), 2**62) | words)
wild = documents(st.integers() | st.floats() | st.just("\ud800") | words)
cells = st.text(alphabet='a1-.,"\t\r\n é', max_size=12) | st.floats().map(str)


def only_rows(found: Iterator[Sample | Broken]) -> list[Sample | Broken]:
    rows = list(found)
    for row in rows:
        assert isinstance(row, Sample | Broken)
        if isinstance(row, Sample):
            assert row.messages or row.prompt_tokens
            assert row.output_tokens is None or row.output_tokens > 0
            assert row.at_s is None or 0 <= row.at_s <= 1e9
        else:
            assert row.line > 0
            assert "\n" not in row.why
    return rows


@given(st.binary(max_size=200), st.sampled_from([*JSON, "text"]))
def test_any_bytes(data: bytes, name: str) -> None:
    only_rows(FORMATS[name](io.BytesIO(data), {}))


@given(st.binary(max_size=200), st.sampled_from(sorted(TABLE_HEADERS)))
def test_any_bytes_below_a_header(data: bytes, name: str) -> None:
    only_rows(FORMATS[name](io.BytesIO(TABLE_HEADERS[name] + data), {}))


@given(st.binary(max_size=60), st.sampled_from(sorted(TABLE_HEADERS)))
def test_any_bytes_for_a_header(data: bytes, name: str) -> None:
    with suppress(UserError):
        only_rows(FORMATS[name](io.BytesIO(data), {}))


@given(st.lists(st.lists(cells, min_size=2, max_size=5)), st.sampled_from(sorted(TABLE_HEADERS)))
def test_any_cells(table: list[list[str]], name: str) -> None:
    text = "\n".join(("\t" if name == "tsv" else ",").join(row) for row in table)
    only_rows(FORMATS[name](io.BytesIO(TABLE_HEADERS[name] + text.encode()), {}))


@settings(max_examples=200)
@given(st.lists(tame | wild, max_size=5), st.sampled_from(JSON))
def test_any_json(rows: list[Any], name: str) -> None:
    lines = "\n".join(json.dumps(row) for row in rows)
    only_rows(FORMATS[name](io.BytesIO(lines.encode()), {}))
    only_rows(FORMATS[name](io.BytesIO(json.dumps(rows).encode()), {}))


# ---- the same, however it is read


class Dribble(io.BytesIO):
    """A file whose every read is a single byte."""

    def read(self, size: int | None = -1, /) -> bytes:
        return super().read(1 if size != 0 else 0)


def one_by_one(name: str, lines: list[bytes]) -> list[Sample | Broken]:
    return [
        Broken(number, row.why) if isinstance(row, Broken) else row
        for number, line in enumerate(lines, 1)
        for row in read(name, line)
    ]


@given(st.lists(st.binary(max_size=20).map(lambda line: line.replace(b"\n", b"")), max_size=6))
def test_text_whole_and_line_by_line(lines: list[bytes]) -> None:
    lines = [line.removeprefix(b"\xef\xbb\xbf") for line in lines]
    assert read("text", b"\n".join(lines)) == one_by_one("text", lines)


@pytest.mark.parametrize("name", ["good.openai.jsonl", "bad.openai.jsonl", "bad.sharegpt.jsonl"])
def test_json_whole_and_line_by_line(name: str) -> None:
    lines = (DATA / name).read_bytes().splitlines()
    lines = [line for line in lines if not line.startswith(b"[")]  # by itself it is an array
    format_name = name.split(".")[1]
    assert read(format_name, b"\n".join(lines)) == one_by_one(format_name, lines)


@pytest.mark.parametrize("name", ["good.sharegpt.json", "bad.sharegpt.json"])
def test_an_array_in_single_bytes(name: str) -> None:
    data = (DATA / name).read_bytes()
    assert list(FORMATS["sharegpt"](Dribble(data), {})) == read("sharegpt", data)


@given(st.lists(st.dictionaries(keys, tame, max_size=4), max_size=5), st.sampled_from(JSON))
def test_an_array_is_its_lines(rows: list[dict[str, Any]], name: str) -> None:
    in_lines = [
        Broken(row.line, row.why, "row") if isinstance(row, Broken) else row
        for row in read(name, "\n".join(map(json.dumps, rows)))
    ]
    assert read(name, json.dumps(rows)) == in_lines


def test_a_dataset_that_is_not_there_is_said_to_be(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nope: cannot be read: no such file"):
        detect(str(tmp_path / "nope"))
