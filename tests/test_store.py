"""The run directory: what is stored comes back as it was, or it is said what is wrong."""

import errno
import json
import os
import resource
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmbench import store
from llmbench.config import Sweep
from llmbench.errors import UserError
from llmbench.records import CellFacts, Connect, Load, Reads, Target, Trace
from llmbench.store import RunDirectory, StoreError

LOAD = Load(concurrency=1, prompt_tokens=9, output_tokens=9, requests=9, duration_s=None, warmup=0)
TARGETS = [Target(spec="http://h", name="h:8000", url="http://h/v1")]


def facts(cell: int = 0) -> CellFacts:
    return CellFacts(cell=cell, target=0, client="wire", load=LOAD)


def seen(body: bytes = b"data: a\n\n", index: int = 0, **fields: Any) -> Trace:
    reads = Reads(*(array("q", [column]) for column in (len(body), 5, 1, 2)))
    known = {"cell": 0, "index": index, "stream": 0, "phase": "measured", "sent_ns": 3}
    return Trace(**(known | {"end_ns": 9, "reads": reads, "body": body} | fields))


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    """A run that holds nothing yet."""
    return RunDirectory.create(Sweep(out=str(tmp_path / "run")), TARGETS, {"cpu": "x"})


def stored(directory: RunDirectory) -> list[Trace]:
    return list(RunDirectory.open(directory.path).traces())


def kept(directory: RunDirectory) -> list[tuple[int, int | None]]:
    """The cells that run.json knows of, each with how many requests are stored of it."""
    return [(cell.cell, cell.stored) for cell in RunDirectory.open(directory.path).run.cells]


def evidence(directory: RunDirectory) -> Path:
    return directory.path / "requests.jsonl"


# ---- traces


NUMBERS = st.integers(-(2**63), 2**63 - 1)
TEXTS = st.text('aé🙂\n\r"\\\u2028\x00', max_size=5)
BODIES = (
    st.binary(max_size=40)
    | TEXTS.map(str.encode)
    | st.sampled_from([b"\xef\xbb\xbfdata", b"\xf0\x9f\x99", b"\xed\xa0\x80", bytes(range(256))])
)


@st.composite
def any_trace(draw: st.DrawFn) -> Trace:
    body = draw(BODIES)
    cuts = sorted(draw(st.lists(st.integers(0, len(body)), max_size=4)))
    ends = [*cuts, len(body)] if body or cuts else draw(st.sampled_from([[], [0]]))
    columns = [draw(st.lists(NUMBERS, min_size=len(ends), max_size=len(ends))) for _ in range(3)]
    connect = st.builds(Connect, dns_ns=NUMBERS, tcp_ns=NUMBERS, tls_ns=NUMBERS)
    return Trace(
        cell=draw(NUMBERS),
        index=draw(NUMBERS),
        stream=draw(NUMBERS),
        phase=draw(st.sampled_from(["warmup", "measured", "cooldown"])),
        sent_ns=draw(NUMBERS),
        end_ns=draw(NUMBERS),
        request_id=draw(TEXTS),
        send_ns=draw(NUMBERS),
        status=draw(st.integers(0, 999)),
        headers=draw(st.dictionaries(TEXTS, TEXTS, max_size=3)),
        connect=draw(st.none() | connect),
        error=draw(TEXTS),
        detail=draw(TEXTS),
        stamps=draw(st.sampled_from(["kernel", "user"])),
        reads=Reads(*(array("q", column) for column in (ends, *columns))),
        body=body,
    )


@given(any_trace())
def test_a_trace_comes_back_as_it_was(trace: Trace) -> None:
    line = store._encode(trace)
    assert b"\n" not in line
    assert store._decode(line) == trace


@pytest.mark.parametrize("body", [b"", b"data: \xc3\xa9\n\n", b"\xc3", bytes(range(256))])
def test_a_body_is_text_where_it_can_be(body: bytes) -> None:
    trace = seen(body)
    line = json.loads(store._encode(trace))
    assert line["body"].encode(line["encoding"]) == body
    assert (line["encoding"] == "utf-8") == (body in (b"", b"data: \xc3\xa9\n\n"))
    assert "body" not in line["request"]


def test_cells_come_back_in_order(run: RunDirectory) -> None:
    cells = [[seen(index=n, cell=cell) for n in range(3)] for cell in range(3)]
    for number, traces in enumerate(cells):
        run.add_cell(facts(number), iter(traces))
    assert stored(run) == [trace for traces in cells for trace in traces]
    assert kept(run) == [(0, 3), (1, 3), (2, 3)]


def test_a_run_without_requests(run: RunDirectory) -> None:
    assert stored(run) == []
    run.add_cell(facts(), [])
    assert stored(run) == []


def test_a_last_line_that_was_cut_off_is_passed_over(run: RunDirectory) -> None:
    run.add_cell(facts(), [seen(index=n) for n in range(3)])
    whole = evidence(run).read_bytes()
    third = whole.rindex(b"\n", 0, -1) + 1
    for size in range(third, len(whole) - 1):
        evidence(run).write_bytes(whole[:size])
        assert stored(run) == [seen(index=0), seen(index=1)], size
    evidence(run).write_bytes(whole[:-1])  # only its end is missing
    assert len(stored(run)) == 3


def broken_line(**changes: Any) -> bytes:
    """A stored line with some of the columns of its reads changed, or its body or encoding."""
    line = json.loads(store._encode(seen(b"data: a\n\n")))
    for key, value in changes.items():
        (line if key in ("body", "encoding") else line["request"]["reads"])[key] = value
    return json.dumps(line).encode() + b"\n"


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b'{"request": \n', ""),
        (b"\n", ""),
        (b"{}\n", "request"),
        (b"\xff\n", ""),
        (broken_line(end="x"), "end"),
        (broken_line(end=["x"]), "end"),
        (broken_line(end=[2**63]), "int"),
        (broken_line(at_ns=[]), "columns of its reads differ in length"),
        (broken_line(lag_ns=[1, 2]), "columns of its reads differ in length"),
        (broken_line(slack_ns=[]), "columns of its reads differ in length"),
        (broken_line(end=[8]), "reads do not end where its body does, at byte 9"),
        (broken_line(end=[10]), "reads do not end where its body does, at byte 9"),
        (broken_line(body=""), "reads do not end where its body does, at byte 0"),
        (broken_line(end=[], at_ns=[], lag_ns=[], slack_ns=[]), "at byte 9"),
        (
            broken_line(end=[10, 9], at_ns=[1, 2], lag_ns=[1, 2], slack_ns=[1, 2]),
            "backwards",
        ),
        (broken_line(encoding="utf-7"), "utf-7"),
        (broken_line(encoding="latin-1", body="光"), "latin-1"),
        (broken_line(body="\ud800"), ""),
    ],
)
def test_a_broken_line_is_named(run: RunDirectory, line: bytes, words: str) -> None:
    run.add_cell(facts(), [seen(index=0), seen(index=2)])
    first, second = evidence(run).read_bytes().splitlines(keepends=True)
    evidence(run).write_bytes(first + line + second)
    traces = run.traces()
    assert next(traces) == seen(index=0)
    with pytest.raises(UserError) as caught:
        next(traces)
    assert str(caught.value).startswith(f"{evidence(run)}, line 2: ")
    assert words in str(caught.value)


# ---- a disk that fails


def test_a_disk_that_fails_leaves_the_cells_before(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    run.add_cell(facts(0), [seen(index=0)])
    with monkeypatch.context() as patch:

        def full(_: int) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        patch.setattr(os, "fsync", full)
        with pytest.raises(StoreError) as caught:
            run.add_cell(facts(1), [seen(index=1)])
    assert caught.value.exit_code == 4
    assert "no space left on the disk; cell 2 was stopped; free space, then" in str(caught.value)
    assert stored(run) == [seen(index=0)]
    assert kept(run) == [(0, 1)]
    run.add_cell(facts(2), [seen(index=2)])
    assert stored(run) == [seen(index=0), seen(index=2)]


@contextmanager
def files_no_larger_than(size: int) -> Iterator[None]:
    """A real limit of the system: a write beyond it is cut short, then refused."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_disk_that_fills_up_within_a_cell(run: RunDirectory) -> None:
    run.add_cell(facts(0), [seen(index=0)])
    before = evidence(run).read_bytes()
    many = [seen(b"x" * 5000, index=n) for n in range(40)]
    with files_no_larger_than(100_000), pytest.raises(StoreError):
        run.add_cell(facts(1), many)
    assert evidence(run).read_bytes() == before
    assert stored(run) == [seen(index=0)]


def test_a_disk_that_fails_before_the_first_cell(run: RunDirectory) -> None:
    with files_no_larger_than(1000), pytest.raises(StoreError):
        run.add_cell(facts(0), [seen(b"x" * 5000)])
    assert stored(run) == []
    assert kept(run) == []


# ---- run.json


def test_a_run_comes_back_as_it_was(run: RunDirectory) -> None:
    assert RunDirectory.open(run.path).run == run.run
    assert (run.run.ended, run.run.interrupted) == (None, False)
    run.finish(interrupted=True)
    again = RunDirectory.open(run.path).run
    assert again == run.run
    assert again.interrupted
    assert again.ended is not None
    assert (again.targets, again.host) == (TARGETS, {"cpu": "x"})


def test_run_json_is_replaced_in_one_step(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = (run.path / "run.json").read_bytes()
    replaced: list[bytes] = []

    def crash(self: Path, target: Path) -> Path:
        replaced.append(self.read_bytes())
        raise OSError(errno.EIO, "the disk is gone")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", crash)
        with pytest.raises(OSError, match="the disk is gone"):
            run.finish(interrupted=False)
    assert json.loads(replaced[0])["ended"] is not None  # all of it was there to take its place
    assert (run.path / "run.json").read_bytes() == before
    assert [path.name for path in run.path.iterdir()] == ["run.json"]


def test_a_summary_is_written(run: RunDirectory) -> None:
    content = run.save_summary([])
    assert (run.path / "summary.json").read_bytes() == content
    assert json.loads(content) == {
        "schema": "llmbench.summary/1",
        "llmbench": run.run.llmbench,
        "started": run.run.started,
        "cells": [],
    }


# ---- where it goes


def create(out: Path | str) -> RunDirectory:
    return RunDirectory.create(Sweep(out=str(out)), TARGETS, {})


def test_where_a_run_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = create("").path
    assert path.parent == Path("results")
    date, time, name = path.name.split("-", 2)
    assert (len(date), len(time), name) == (8, 6, "h-8000")
    deep = tmp_path / "a" / "b"
    assert create(deep).path == deep
    (tmp_path / "empty").mkdir()
    assert create(tmp_path / "empty").path == tmp_path / "empty"


def test_what_is_there_is_not_touched(tmp_path: Path) -> None:
    path = create(tmp_path / "run").path
    before = (path / "run.json").read_bytes()
    file = tmp_path / "file"
    file.write_text("mine")
    for taken in (path, file):
        with pytest.raises(UserError, match="it exists and is not an empty directory"):
            create(taken)
    assert (path / "run.json").read_bytes() == before
    assert file.read_text() == "mine"
    with pytest.raises(UserError, match=r"--out .*cannot be made: Not a directory"):
        create(file / "run")


def test_a_directory_that_takes_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, content: bytes) -> int:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(Path, "write_bytes", refuse)
    with pytest.raises(UserError, match="Read-only file system"):
        create(tmp_path / "run")


def test_what_is_no_run(tmp_path: Path, run: RunDirectory) -> None:
    with pytest.raises(UserError, match=r"not a run directory: run\.json: No such file"):
        RunDirectory.open(tmp_path)
    file = run.path / "run.json"
    good = json.loads(file.read_bytes())
    file.write_bytes(json.dumps(good | {"schema": "llmbench.run/2"}).encode())
    with pytest.raises(
        UserError, match=r"schema llmbench\.run/2; this version reads llmbench\.run/1"
    ):
        RunDirectory.open(run.path)
    for content in (b"", b"{", b"[]", b"{}", json.dumps(good | {"cells": 1}).encode()):
        file.write_bytes(content)
        with pytest.raises(UserError, match="not a run that this version can read"):
            RunDirectory.open(run.path)
    file.write_bytes(json.dumps(good | {"later": 1}).encode())  # keys are only ever added
    assert RunDirectory.open(run.path).run == run.run
