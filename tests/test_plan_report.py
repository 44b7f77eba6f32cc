"""What ``llmbench sweep --dry-run`` says, against counts worked out by hand."""

import contextlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Done
from msgspec.structs import replace

from llmbench.cli import main
from llmbench.config import load_sweep
from llmbench.report.plan import announcement, duration, render_plan

WORDS = re.compile(r"  +")


def planned(**flags: Any) -> tuple[list[list[str]], list[str]]:
    """The table's rows, its head first, and the lines below."""
    lines = render_plan(load_sweep(flags)).splitlines()
    (rule,) = [number for number, line in enumerate(lines) if set(line) == {"-", " "}]
    columns = len(WORDS.split(lines[rule]))
    end = next(n for n in range(rule + 1, len(lines)) if len(WORDS.split(lines[n])) != columns)
    table = [WORDS.split(line) for line in (lines[rule - 1], *lines[rule + 1 : end])]
    return table, lines[end:]


def test_a_row_a_cell_and_what_they_come_to() -> None:
    table, below = planned(
        target=["http://a?name=007", "http://b?name=1e3"],
        concurrency=[1, 64],
        prompt_tokens=[20],
        output_tokens=20,
        requests=192,
    )
    # A reply takes 0.5 s + 20 × 25 ms = 1 s. With one stream 1 + 192 replies follow each other;
    # 64 streams take 64 for the warm-up, and three times as many after it: four rounds.
    assert table == [
        ["target", "client", "conc.", "prompt", "output", "requests", "about"],
        ["007", "wire", "1", "20", "20", "192 + 1", "3 min"],
        ["007", "wire", "64", "20", "20", "192 + 64", "4 s"],
        ["1e3", "wire", "1", "20", "20", "192 + 1", "3 min"],
        ["1e3", "wire", "64", "20", "20", "192 + 64", "4 s"],
    ]
    assert below == [
        "4 cells, 898 requests with warm-up, about 7 min",  # 2 × (193 + 256); 394 s
        "guessed with 0.5 s to the first token and 25 ms a token; a slow engine takes longer",
    ]


def test_a_round_that_is_not_full_takes_as_long() -> None:
    table, below = planned(
        target=["http://a"], concurrency=[4], output_tokens=100, requests=9, warmup=5
    )
    assert table[1][5:] == ["9 + 5", "15 s"]  # 2 + 3 rounds of 3 s
    assert below[0] == "1 cell, 14 requests with warm-up, about 15 s"


def test_the_clients_of_a_server_and_of_an_engine() -> None:
    table, below = planned(
        target=["vllm:a/m", "vllm-server:a/m", "http://b"],
        client=["wire", "openai"],
        concurrency=[2],
        prompt_tokens=[8, 16],
        output_tokens=20,
        requests=1000,
        warmup=0,
    )
    assert [row[:4] for row in table[1:]] == [
        ["vllm m", "engine", "2", "8"],
        ["vllm m", "engine", "2", "16"],
        *(
            [name, client, "2", length]
            for name in ("vllm-server m", "b")
            for length in ("8", "16")
            for client in ("wire", "openai")
        ),
    ]
    # 500 replies of a second on each stream, and three more for each of 32 segments
    assert {row[6] for row in table[1:]} == {"10 min"}
    assert below[0] == (
        "10 cells, 11,470 requests with warm-up and what lies between segments, about 1.7 h"
    )
    assert below[2] == "starts vllm m, vllm-server m: 30 s each in the estimate"


def test_cells_by_time() -> None:
    table, below = planned(target=["http://a"], concurrency=[2], output_tokens=20, duration=86.0)
    assert table[1][5:] == ["by time + 2", "88 s"]  # the warm-up's reply, the time, the last reply
    assert below == ["1 cell, by time, about 88 s"]


def test_cells_with_a_budget_of_time() -> None:
    table, below = planned(target=["http://a"], concurrency=[2], output_tokens=20)
    assert table[1][5:] == ["by time + 2", "31 s"]  # a reply of the warm-up, and the time
    assert below[0] == "1 cell, by time, about 31 s"
    assert " ".join(map(str.strip, below[1:])) == (
        "a cell ends after 30 s (60 s of slow replies), or sooner, when TTFT p50 and tok/s are "
        "known to within ±5%; --requests, --duration or --until say otherwise"
    )
    slow, _ = planned(target=["http://a"], concurrency=[2], output_tokens=980)
    assert slow[1][6] == "75 s"  # 25 s a reply: one of the warm-up, and two of each stream


def test_what_a_sweep_says_before_it_starts() -> None:
    flags = {"target": ["http://a"], "concurrency": [2, 4], "output_tokens": 20}
    assert announcement(load_sweep(flags)) == "2 cells, about 62 s"
    search = replace(load_sweep(flags), search="concurrency")
    assert announcement(search) == ""


def test_static_batches() -> None:
    table, below = planned(target=["onnx:d"], batch_size=[5], output_tokens=20, requests=192)
    assert table[0][2] == "batch"
    assert table[1] == ["onnx d", "engine", "5", "128", "20", "195 + 5", "40 s"]
    assert below[0] == "1 cell, 200 requests with warm-up, about 70 s"


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.4, "0 s"),
        (45, "45 s"),
        (89, "89 s"),
        (91, "2 min"),
        (720, "12 min"),
        (5399, "90 min"),
        (5400, "1.5 h"),
        (12600, "3.5 h"),
    ],
)
def test_durations(seconds: float, words: str) -> None:
    assert duration(seconds) == words


@pytest.fixture
def sweep(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    """``llmbench sweep`` in this process, in a folder that is empty."""

    def run(*args: object) -> Done:
        with contextlib.chdir(tmp_path):
            code = main(["sweep", *map(str, args)])
        return Done(code, *capsys.readouterr())

    return run


def test_a_dry_run_leaves_and_contacts_nothing(
    sweep: Callable[..., Done], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object, **__: object) -> None:
        raise AssertionError("a dry run opened or started something")

    for name in ("socket.socket.connect", "socket.getaddrinfo", "subprocess.Popen.__init__"):
        monkeypatch.setattr(name, refused)
    targets = ("--target", "http://never.invalid", "--target", "vllm:m", "--agreement")
    done = sweep("--dry-run", "--out", tmp_path / "run", *targets)
    flags: dict[str, Any] = {"target": [*targets[1:4:2]], "agreement": True}
    assert (done.code, done.err) == (0, "")
    plan, _, request = done.out.partition("\nfirst request of never.invalid ")
    assert plan == render_plan(load_sweep(flags))
    assert "POST http://never.invalid/v1/chat/completions\n" in request
    assert "first request of" not in request  # an engine in process is asked by a call
    assert "6 cells" in done.out
    assert list(tmp_path.iterdir()) == []
    assert sweep("--dry-run").out.startswith("target")  # the embedded engine is not fetched either
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_refuses_what_a_run_would(sweep: Callable[..., Done]) -> None:
    done = sweep("--dry-run", "--target", "http://h", "--batch-size", 4)
    assert (done.code, done.out) == (2, "")
    (line,) = done.problems
    assert line.startswith("llmbench: --batch-size: h is a server")
