"""The whole path, from the command line to the run directory, as a user sees it."""

import csv
import io
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from operator import add
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from conftest import (
    MS,
    PATIENCE_S,
    Answer,
    Asked,
    Certificates,
    Done,
    InProcess,
    Llmbench,
    ThreadedServer,
    measured,
    peak,
    port_of,
    quiet,
    stored,
    until,
    valid,
    was_busy,
)

from llmbench.cli import COMMANDS
from llmbench.store import RunDirectory
from llmbench.truth.process import TruthServer

Truth = Callable[..., TruthServer]
Threaded = Callable[[Callable[[Asked], Answer]], ThreadedServer]

STREAM = "text/event-stream"
STEADY = {"ttft_ms": 60.0, "itl_ms": 5.0}
"""Replies so long that what the client does between them is little."""

SMALL = ("--no-calibrate", "--prompt-tokens", 24, "--output-tokens", 4, "--warmup", 0)


@pytest.fixture
def sweep(run_llmbench: Llmbench, run_dir: Path) -> Callable[..., Done]:
    """``sweep(url, …, *flags)``: a small sweep of one cell, into ``run_dir``."""

    def run(*args: object, env: dict[str, str] | None = None, requests: int = 6) -> Done:
        flags = [] if "--concurrency" in args else ["--concurrency", 1]
        targets = [each for arg in args if str(arg)[:4] == "http" for each in ("--target", arg)]
        others = [arg for arg in args if str(arg)[:4] != "http"]
        return run_llmbench(
            *("sweep", "--out", run_dir, *SMALL, "--requests", requests),
            *(*flags, *targets, *others),
            env=env,
        )

    return run


def counts(cell: dict[str, Any]) -> dict[str, int]:
    """What became of the measured requests."""
    return {name: cell["requests"][name] for name in ("sent", "ok", "failed", "cancelled")}


def rows(table: str) -> list[list[str]]:
    """The rows of a table, split into words; those of several targets without their gaps."""
    return [row for group in groups(table) for row in group]


def groups(table: str) -> list[list[list[str]]]:
    """The rows of a table, split into words, in the groups that empty lines part."""
    lines = table.splitlines()
    (rule,) = [number for number, line in enumerate(lines) if set(line) == {"-", " "}]
    found: list[list[list[str]]] = [[]]
    for line in lines[rule + 1 :]:
        if not line:
            found.append([])
        elif len(line.split("  ")) < 5:
            break
        else:
            found[-1].append(line.split())
    return found


# ── what is printed and stored ───────────────────────────────────────────────────────────────────


class Told(NamedTuple):
    """What a server's log says of a run's requests, in ms."""

    ttfts: list[float]
    e2es: list[float]
    gaps: list[float]


def truth_of(run_dir: Path, server: TruthServer) -> Told:
    log = {reply.request_id: reply for reply in server.log()}
    pairs = [
        (trace, log[trace.request_id])
        for trace in RunDirectory.open(run_dir).traces()
        if trace.request_id in log and not trace.error
    ]
    # The two clocks are one but for the run's zero: the quickest request took no time.
    zero_ns = min(reply.received_ns - trace.sent_ns for trace, reply in pairs)
    came_ns = [
        (trace.sent_ns + zero_ns, list(map(add, reply.token_sent_ns, reply.token_took_ns)))
        for trace, reply in pairs
    ]
    return Told(
        [(tokens[0] - sent_ns) / MS for sent_ns, tokens in came_ns],
        [(tokens[-1] - sent_ns) / MS for sent_ns, tokens in came_ns],
        [(b - a) / MS for _, tokens in came_ns for a, b in pairwise(tokens)],
    )


def test_two_targets_stand_side_by_side(
    truth: Truth, sweep: Callable[..., Done], run_dir: Path
) -> None:
    fast, slow = truth(**STEADY, model="m1"), truth(ttft_ms=260.0, itl_ms=30.0, model="m2")
    done = valid(
        sweep(f"{fast.url}?name=fast", f"{slow.url}/v1?name=slow", "--concurrency", "1,2"), run_dir
    )
    assert [[row[:2] for row in group] for group in groups(done.out)] == [
        [["fast", "1"], ["slow", "1"]],
        [["fast", "2"], ["slow", "2"]],
    ]
    assert "prompts of 24 tokens" in done.out  # one for all, and no column
    for fast_row, slow_row in groups(done.out):
        assert (fast_row[-1], slow_row[-1]) == ("0", "0")
        if not was_busy(run_dir):
            assert 60 <= float(fast_row[2].rstrip("*")) < float(slow_row[2])  # never the best
    cells = stored(run_dir, "summary.json")["cells"]
    assert [cell["target"] for cell in cells] == ["fast", "fast", "slow", "slow"]
    assert [cell["model"] for cell in cells] == ["m1", "m1", "m2", "m2"]
    asked = [(60, 5, fast)] * 2 + [(260, 30, slow)] * 2
    for cell, (ttft_ms, itl_ms, server) in zip(cells, asked, strict=True):
        assert counts(cell) == {"sent": 6, "ok": 6, "failed": 0, "cancelled": 0}
        assert cell["engine"] == "llmbench-truth"
        # No server can answer sooner than it was told to, nor later than it did.
        told = truth_of(run_dir, server)
        assert ttft_ms <= cell["ttft_ms"]["p50"] <= max(told.ttfts) + 1
        assert ttft_ms + 3 * itl_ms <= cell["e2e_ms"]["p50"] <= max(told.e2es) + 1
        if cell["verdict"] == "valid":
            assert min(told.gaps) - 1 <= cell["icl_ms"]["p50"] <= max(told.gaps) + 1
        assert cell["measured_prompt_tokens"] == {"min": 24, "p50": 24, "max": 24}
        assert cell["measured_output_tokens"] == {"min": 4, "p50": 4, "max": 4}
        assert cell["token_source"] == "usage"
        assert cell["ruler"]["stamps"] == ("kernel" if sys.platform == "linux" else "user")
    log = fast.log()
    asked = [reply for reply in log if reply.request_id.startswith("llmbench-")]
    assert len(asked) >= 12
    assert {reply.path for reply in log} == {"/v1/chat/completions"}
    evidence = (run_dir / "requests.jsonl").read_text().splitlines()
    assert len(evidence) >= 24
    run = stored(run_dir)
    assert run["interrupted"] is False
    assert run["ended"] >= run["started"]
    assert len(run["cells"]) == 4


@pytest.mark.parametrize("style", ["table", "markdown", "csv", "json"])
def test_report_prints_the_same_again(
    truth: Truth,
    sweep: Callable[..., Done],
    in_process: InProcess,
    run_dir: Path,
    style: str,
) -> None:
    server = truth(**STEADY)
    done = valid(sweep(f"{server.url}?name=here", "--format", style, requests=7), run_dir)
    before = {path.name: path.read_bytes() for path in run_dir.iterdir()}
    server.stop()
    again = in_process("report", run_dir, "--format", style)
    assert again == Done(done.code, done.out, "")
    assert {path.name: path.read_bytes() for path in run_dir.iterdir()} == before
    assert set(before) == {"run.json", "requests.jsonl", "summary.json"}
    match style:
        case "table":
            assert rows(done.out)[0][:3] == ["here", "1", "24"]
            assert max(map(len, done.out.splitlines())) <= 110
        case "markdown":
            assert done.out.startswith("| target")
            assert done.out.splitlines()[2].startswith("| here")
        case "csv":
            (row,) = csv.DictReader(io.StringIO(done.out))
            assert (row["target"], row["requests.ok"], row["ttft_ms.n"]) == ("here", "7", "7")
        case "json":
            assert done.out.encode() == before["summary.json"]
            assert json.loads(done.out)["schema"] == "llmbench.summary/1"
            (cell,) = done.cells
            assert cell["ttft_ms"]["n"] == cell["requests"]["ok"] == 7


def test_a_good_run_exits_with_0(
    truth: Truth, run_llmbench: Llmbench, in_process: InProcess, tmp_path: Path
) -> None:
    """Within three attempts, unless the stamps of all say that the machine was busy."""
    url = truth(ttft_ms=100, itl_ms=20).url
    for attempt in range(3):
        run_dir = tmp_path / str(attempt)
        flags = ("--target", url, "--concurrency", 1, "--requests", 6, "--out", run_dir)
        done = valid(run_llmbench("sweep", *SMALL, *flags), run_dir)
        if done.code == 0:
            break
    (cell,) = in_process("report", run_dir, "--format", "json").cells
    assert (cell["verdict"] == "valid") == (done.code == 0)
    assert ("INVALID" in done.out) == (done.code == 4)


def test_a_report_without_its_summary_makes_it_again(
    truth: Truth, sweep: Callable[..., Done], in_process: InProcess, run_dir: Path
) -> None:
    done = valid(sweep(truth(**STEADY).url), run_dir)
    summary = run_dir / "summary.json"
    before = summary.read_bytes()
    summary.unlink()
    assert in_process("report", run_dir) == Done(done.code, done.out, "")
    assert summary.read_bytes() == before


def test_clients_are_rows(truth: Truth, sweep: Callable[..., Done], run_dir: Path) -> None:
    server = truth(**STEADY)
    done = sweep(server.url, "--client", "wire,aiohttp,openai", "--format", "json")
    quiet(done, run_dir)
    assert [cell["client"] for cell in done.cells] == ["wire", "aiohttp", "openai"]
    for cell in done.cells:
        assert cell["requests"]["ok"] == 6
        assert cell["measured_output_tokens"] == {"min": 4, "p50": 4, "max": 4}
        assert cell["ttft_ms"]["min"] >= 60
    assert [cell["ruler"]["stamps"] for cell in done.cells][1:] == ["user", "user"]


def test_completions(truth: Truth, sweep: Callable[..., Done], run_dir: Path) -> None:
    server = truth(**STEADY)
    done = valid(sweep(server.url, "--api", "completions", "--format", "json"), run_dir)
    (cell,) = done.cells
    assert cell["api"] == "completions"
    assert cell["requests"]["ok"] == 6
    assert cell["measured_prompt_tokens"]["p50"] == 24
    assert {reply.path for reply in server.log()} == {"/v1/completions"}


def test_a_model_that_is_named(threaded: Threaded, sweep: Callable[..., Done]) -> None:
    server = threaded(lambda asked: (200, STREAM, asked.good()))
    done = sweep(f"{server.url}?model=mine", "--model", "other", "--format", "json", requests=2)
    assert {asked.document["model"] for asked in server.asked} == {"mine"}
    assert done.cells[0]["model"] == "mine"
    server.asked.clear()


def test_a_plain_dialect_is_found(truth: Truth, sweep: Callable[..., Done], run_dir: Path) -> None:
    """A server that takes nothing but OpenAI's own fields."""
    valid(sweep(truth(**STEADY, reject_unknown=True).url), run_dir)
    (facts,) = stored(run_dir)["cells"]
    assert facts["dialect"] == "standard"
    assert facts["exact_length"] is False


def test_a_server_that_does_not_count(
    truth: Truth, sweep: Callable[..., Done], run_dir: Path
) -> None:
    done = quiet(sweep(truth(**STEADY, missing_usage=True).url, "--format", "json"), run_dir)
    (cell,) = done.cells
    assert cell["requests"]["ok"] == 6
    assert cell["token_source"] == "chunks"
    assert cell["itl_ms"] is None
    assert cell["icl_ms"]["n"] == 18
    assert cell["measured_prompt_tokens"] is None
    assert any("ITL not shown" in note for note in cell["notes"])


def test_https(
    truth: Truth, sweep: Callable[..., Done], certificates: Certificates, run_dir: Path
) -> None:
    server = truth(**STEADY, tls=certificates.for_host("localhost"))
    url = f"https://localhost:{port_of(server.url)}"
    done = valid(sweep(url, "--ca-file", certificates.ca_file, "--format", "json"), run_dir)
    (cell,) = done.cells
    assert cell["requests"]["ok"] == 6
    assert cell["connect_ms"]["tls"]["max"] > 0


def test_https_that_is_not_trusted(
    truth: Truth, sweep: Callable[..., Done], certificates: Certificates
) -> None:
    server = truth(**STEADY, tls=certificates.for_host("localhost"))
    done = sweep(f"https://localhost:{port_of(server.url)}")
    assert done.code == 3
    (line,) = done.problems
    assert "(tls: " in line
    assert "certificate" in line


# ── exit codes ───────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["sweep", "--concurrency", "0"], "--concurrency"),
        (["sweep", "--concurrency", "1,x"], "--concurrency"),
        (["sweep", "--no-such-flag"], "--no-such-flag"),
        (["sweep", "--target", "ftp://host"], "ftp://host"),
        (["sweep", "--target", "http://host:99999"], "99999"),
        (["sweep", "--target", "http://u:secret@host"], "password"),
        (["sweep", "--target", "http://h?nme=x"], "'name'"),
        (["sweep", "--config", "no-such.toml"], "no-such.toml"),
        (["sweep", "--config", "odd.toml"], "'concurrency'"),
        (["sweep", "--client", "curl"], "--client"),
        (["sweep", "--requests", "3", "--duration", "3"], "--duration"),
        (["sweep", "--out", "full", "--target", "http://127.0.0.1:9"], "full"),
        (["sweep", "--target", "http://127.0.0.1:9?key_env=NOT_SET_HERE"], "NOT_SET_HERE"),
        (["report", "no-such-run"], "no-such-run"),
        (["report", "full"], "full"),
        (["no-such-command"], "no-such-command"),
        ([], "COMMAND"),
    ],
)
def test_wrong_usage_is_one_line(
    in_process: InProcess, tmp_path: Path, args: list[str], words: str
) -> None:
    full = tmp_path / "full"
    full.mkdir()
    (full / "precious.txt").write_text("kept")
    (tmp_path / "odd.toml").write_text("concurency = 3\n")
    done = in_process(*args)
    assert done.code == 2
    assert done.out == ""
    (line,) = done.problems
    assert line.startswith("llmbench")
    assert words in line
    assert "secret" not in line
    assert [path.name for path in full.iterdir()] == ["precious.txt"]


@pytest.mark.parametrize(
    "flags", [(), ("--stages",), *(("--format", style) for style in ("markdown", "csv", "json"))]
)
def test_a_report_against_a_baseline_that_is_not_there(
    truth: Truth,
    sweep: Callable[..., Done],
    in_process: InProcess,
    run_dir: Path,
    flags: tuple[str, ...],
) -> None:
    sweep(f"{truth(**STEADY).url}?name=here", requests=2)
    done = in_process("report", run_dir, "--baseline", "hre", *flags)
    assert (done.code, done.out) == (2, "")
    assert done.problems == [
        "llmbench: --baseline hre: no target has that name; there are: here",
    ]
    assert in_process("report", run_dir, "--baseline", "here", *flags).code != 2


UNMEASURABLE: dict[str, tuple[dict[str, Any], str]] = {
    "401": ({"api_key_env": "TRUTH_TEST_KEY"}, "401"),
    "404": ({"status": 404}, "404"),
    "429": ({"status": 429, "retry_after_s": 1}, "Retry-After: 1"),
    "500": ({"status": 500}, "500"),
    "html": ({"html": True}, "text/html"),
    "no models": ({"no_models": True}, "--model"),
    "truncated": ({"truncate_at": 1}, "truncated"),
    "stream error": ({"error_at": 1}, "fails mid-stream"),
}


@pytest.mark.parametrize("case", UNMEASURABLE)
def test_what_cannot_be_measured_is_one_line(
    truth: Truth,
    sweep: Callable[..., Done],
    in_process: InProcess,
    run_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    case: str,
) -> None:
    monkeypatch.setenv("TRUTH_TEST_KEY", "the-right-one")
    fields, words = UNMEASURABLE[case]
    server = truth(**fields)
    done = sweep(f"{server.url}?name=it", "--concurrency", "1,2", requests=2)
    assert done.code == 3
    assert done.out == ""
    *waits, line = done.problems
    assert waits == (["it answered 429: asking again in 1 s"] if case == "429" else [])
    assert line.startswith("llmbench: it: ")
    assert words in line
    if case in ("429", "500", "404"):
        # What is refused is not asked again, but where the server says when.
        assert len(server.log()) == (2 if case == "429" else 1)
    again = in_process("report", run_dir)
    assert (again.code, again.out, again.problems) == (3, "", [line])


def test_nobody_listens(sweep: Callable[..., Done], dead_url: str, run_dir: Path) -> None:
    done = sweep(f"{dead_url}?name=gone", "--format", "json")
    assert done.code == 3
    (cell,) = done.cells
    assert cell["verdict"] == "invalid"
    assert cell["ttft_ms"] is None
    assert "cannot reach" in cell["reasons"][0]
    assert "(connect: " in cell["reasons"][0]


def test_a_model_that_is_not_there(threaded: Threaded, sweep: Callable[..., Done]) -> None:
    said = {"error": {"message": "The model `nope` does not exist", "code": "model_not_found"}}
    server = threaded(lambda _: (404, "application/json", json.dumps(said).encode()))
    done = sweep(server.url, "--model", "nope")
    assert done.code == 3
    (line,) = done.problems
    assert "The model `nope` does not exist" in line


def test_one_dead_target_does_not_stop_the_other(
    truth: Truth, sweep: Callable[..., Done], dead_url: str, run_dir: Path
) -> None:
    done = sweep(f"{dead_url}?name=gone", f"{truth(**STEADY).url}?name=here")
    assert done.code == 4
    ((gone, here),) = groups(done.out)  # they share a load
    assert (gone[:2], here[:2]) == (["gone", "1"], ["here", "1"])
    assert set(gone[2:]) == {"—"}
    if not was_busy(run_dir):
        assert float(here[2]) >= 60  # with nobody to beat it is not marked
    assert here[-1] == "0"
    assert "cannot reach" in done.out


def test_failures_are_counted_by_kind(
    threaded: Threaded, sweep: Callable[..., Done], run_dir: Path
) -> None:
    counted: list[int] = []

    def flaky(asked: Asked) -> Answer:
        if "x-request-id" in asked.headers:
            counted.append(1)
        time.sleep(0.03)
        match len(counted):
            case 3 | 9:
                return 500, "application/json", b'{"error": {"message": "out of luck"}}'
            case 6:
                return 200, STREAM, asked.good()[:200]
            case 12:
                return 200, "text/html", b"<h1>Welcome</h1>"
            case _:
                return 200, STREAM, asked.good()

    server = threaded(flaky)
    done = sweep(server.url, requests=14)
    assert done.code == 4
    quiet(done, run_dir)
    (row,) = rows(done.out)
    assert row[-1] == "4/14"
    for words in ("2 × http-500", "1 × truncated", "1 × not-a-stream"):
        assert words in " ".join(done.out.split())
    (cell,) = stored(run_dir, "summary.json")["cells"]
    assert counts(cell) == {"sent": 14, "ok": 10, "failed": 4, "cancelled": 0}
    assert cell["requests"]["failures"] == {"http-500": 2, "truncated": 1, "not-a-stream": 1}
    assert cell["ttft_ms"]["n"] == 14  # a failure counts as infinitely slow
    assert len(counted) == 14  # and nothing was asked twice


def test_truncated_streams_are_failures(
    truth: Truth, sweep: Callable[..., Done], run_dir: Path
) -> None:
    """The probe for the dialect sees it too, and leaves it to the cell to show."""
    server = truth(truncate_at=8)
    done = sweep(server.url, "--output-tokens", 12, "--format", "json", requests=20)
    assert done.code == 3
    (cell,) = done.cells
    assert cell["requests"]["failures"] == {"truncated": 10}
    assert "10 failures in a row (truncated" in cell["reasons"][0]
    assert cell["verdict"] != "valid"
    assert cell["otps_per_user"] is None


def test_a_prompt_that_is_too_long_is_passed_over(truth: Truth, sweep: Callable[..., Done]) -> None:
    server = truth(**STEADY, context_limit=200)
    done = sweep(server.url, "--prompt-tokens", "20,4000,40", "--format", "json")
    assert done.code == 4
    assert [cell["prompt_tokens"] for cell in done.cells] == [20, 4000, 40]
    assert [cell["requests"]["ok"] for cell in done.cells] == [6, 0, 6]
    assert done.cells[1]["verdict"] == "invalid"
    (reason,) = done.cells[1]["reasons"]
    assert "maximum context length is 200 tokens" in reason
    assert "\n" not in reason


# ── what is interrupted ──────────────────────────────────────────────────────────────────────────


def begin(run_llmbench: Llmbench, run_dir: Path, *args: object) -> "subprocess.Popen[str]":
    return run_llmbench.start("sweep", "--out", run_dir, *SMALL, *args)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupt_keeps_what_was_measured(
    truth: Truth,
    run_llmbench: Llmbench,
    in_process: InProcess,
    run_dir: Path,
    number: signal.Signals,
) -> None:
    server = truth(**STEADY)
    flags = ("--target", server.url, "--concurrency", "2,4", "--requests", 1000)
    process = begin(run_llmbench, run_dir, *flags)
    until(lambda: measured(server) >= 10)
    process.send_signal(number)
    done = run_llmbench.end(process)
    assert done.code == 130
    assert done.problems == ["llmbench: the run did not finish: 1 of 2 cells"]
    (row,) = rows(done.out)  # the second cell was never begun
    assert row[1] == "2"
    assert ", interrupted" in done.out
    (cell,) = stored(run_dir, "summary.json")["cells"]
    ended = counts(cell)
    assert ended["ok"] >= 10
    assert 0 <= measured(server) - ended["ok"] <= 2
    assert ended["sent"] == ended["ok"] + ended["cancelled"]
    assert cell["ttft_ms"]["p50"] >= 60
    assert stored(run_dir)["interrupted"] is True
    assert in_process("report", run_dir).out == done.out


def test_an_interrupt_before_the_baseline_has_run(
    truth: Truth, run_llmbench: Llmbench, in_process: InProcess, run_dir: Path
) -> None:
    server = truth(**STEADY)
    targets = ("--target", f"{server.url}?name=a", "--target", f"{server.url}?name=b")
    flags = ("--concurrency", 2, "--requests", 1000, "--baseline", "b")
    process = begin(run_llmbench, run_dir, *targets, *flags)
    until(lambda: measured(server) >= 4)
    process.send_signal(signal.SIGINT)
    done = run_llmbench.end(process)
    unfinished = ["llmbench: the run did not finish: 1 of 2 cells"]
    assert (done.code, done.problems) == (130, unfinished)
    assert [row[:2] for row in rows(done.out)] == [["a", "2"]]
    again = in_process("report", run_dir)
    assert (again.out, again.problems) == (done.out, unfinished)


def test_an_interrupt_before_anything_is_measured(
    truth: Truth, run_llmbench: Llmbench, in_process: InProcess, run_dir: Path
) -> None:
    server = truth(hang_at=0, early_headers=True)
    process = begin(run_llmbench, run_dir, "--target", server.url)
    until((run_dir / "run.json").exists)
    time.sleep(0.3)  # it now waits for its first probe
    process.send_signal(signal.SIGINT)
    done = run_llmbench.end(process)
    assert (done.code, done.out, done.problems) == (130, "", [])
    again = in_process("report", run_dir)
    assert again.code == 2
    assert again.problems == [f"llmbench: {run_dir}: no cell was finished"]


def test_a_kill_leaves_the_cells_before_readable(
    truth: Truth, run_llmbench: Llmbench, in_process: InProcess, run_dir: Path
) -> None:
    server = truth(**STEADY)
    flags = ("--target", server.url, "--concurrency", "1,2", "--requests", 12)
    process = begin(run_llmbench, run_dir, *flags)
    until((run_dir / "summary.json").exists)
    first = measured(server)
    until(lambda: measured(server) > first)
    process.kill()
    done = run_llmbench.end(process)
    assert done.code == -signal.SIGKILL
    again = in_process("report", run_dir, "--format", "json")
    assert (again.code, again.problems) == (4, [])
    whole, cut = again.cells
    assert (whole["concurrency"], whole["requests"]["ok"]) == (1, 12)
    assert cut["concurrency"] == 2
    assert cut["verdict"] in ("partial", "invalid")  # a busy machine
    assert cut["reasons"][0].startswith("the run ended in the middle of this cell (killed, or the")
    assert stored(run_dir)["ended"] is None


def test_a_server_that_dies_ends_the_run(
    truth: Truth, run_llmbench: Llmbench, in_process: InProcess, run_dir: Path
) -> None:
    server = truth(**STEADY)
    flags = ("--target", server.url, "--concurrency", "2,4", "--requests", 1000)
    process = begin(run_llmbench, run_dir, *flags)
    until(lambda: measured(server) >= 10)
    os.kill(server.pid, signal.SIGKILL)
    done = run_llmbench.end(process)
    assert done.code == 4
    assert done.problems == []
    cells = stored(run_dir, "summary.json")["cells"]
    assert [cell["concurrency"] for cell in cells] == [2, 4]
    assert cells[0]["requests"]["ok"] >= 10
    assert cells[0]["requests"]["failures"]["connect"] >= 5
    assert "failures in a row" in cells[0]["reasons"][0]
    assert cells[1]["requests"]["ok"] == 0
    assert cells[1]["verdict"] != "valid"
    again = in_process("report", run_dir)
    assert (again.code, again.out) == (4, done.out)


# ── workers ──────────────────────────────────────────────────────────────────────────────────────


def family(process: "subprocess.Popen[str]") -> list[int]:
    """The processes of the group that ``process`` leads."""
    out = subprocess.run(
        ["ps", "-o", "pid=", "-g", str(process.pid)], capture_output=True, text=True, check=False
    ).stdout
    return [int(line) for line in out.split()]


def test_workers_measure_what_one_process_does(
    truth: Truth, sweep: Callable[..., Done], in_process: InProcess, run_dir: Path
) -> None:
    server = truth(**STEADY)
    done = sweep(server.url, "--concurrency", 4, "--workers", 2, "--warmup", 4, requests=25)
    quiet(done, run_dir)
    (cell,) = stored(run_dir, "summary.json")["cells"]
    assert cell["requests"]["ok"] == cell["requests"]["sent"] == 25 - cell["warmup_removed"]
    assert cell["ttft_ms"]["min"] >= 60
    log = [reply for reply in server.log() if reply.request_id.startswith("llmbench-")]
    assert peak([(reply.received_ns, reply.sent_ns[-1]) for reply in log if reply.sent_ns]) == 4
    assert len({reply.connection for reply in log}) == 4
    assert len({reply.request_id for reply in log}) == len(log)
    assert {path.name for path in run_dir.iterdir()} == {
        "run.json",
        "requests.jsonl",
        "summary.json",
    }
    assert in_process("report", run_dir).out == done.out


@pytest.mark.parametrize("early", [True, False], ids=["as they start", "at work"])
def test_workers_leave_an_interrupt_to_their_parent(
    truth: Truth, run_llmbench: Llmbench, run_dir: Path, early: bool
) -> None:
    """A terminal sends Ctrl-C to all of them."""
    server = truth(**STEADY)
    flags = ("--target", server.url, "--concurrency", 4, "--workers", 2, "--requests", 1000)
    process = begin(run_llmbench, run_dir, *flags)
    if early:
        until(lambda: len(family(process)) >= 3)
    else:
        until(lambda: measured(server) >= 12)
    os.killpg(process.pid, signal.SIGINT)
    done = run_llmbench.end(process)
    assert done.code == 130
    if not early:
        assert done.problems == []
        (cell,) = stored(run_dir, "summary.json")["cells"]
        assert cell["requests"]["ok"] >= 12
        assert cell["requests"]["failed"] == 0
    assert stored(run_dir)["interrupted"] is True
    assert not list(run_dir.glob("*.part"))
    until(lambda: family(process) == [])


def test_workers_end_with_their_parent(truth: Truth, run_llmbench: Llmbench, run_dir: Path) -> None:
    server = truth(**STEADY)
    flags = ("--target", server.url, "--concurrency", 4, "--workers", 2, "--requests", 1000)
    process = begin(run_llmbench, run_dir, *flags)
    until(lambda: measured(server) >= 8)
    assert len(family(process)) >= 3
    process.kill()
    until(lambda: family(process) in ([], [process.pid]))
    assert run_llmbench.end(process).code == -signal.SIGKILL


# ── secrets ──────────────────────────────────────────────────────────────────────────────────────

KEY = "sk-test-secret-123"


def everything(done: Done, run_dir: Path) -> str:
    """All that a run left behind."""
    files = [path.read_text("utf-8", "replace") for path in run_dir.rglob("*") if path.is_file()]
    return "\n".join([done.out, done.err, *files])


def said(key: str) -> dict[str, Any]:
    return {"error": {"message": f"Incorrect API key provided: {key}. Sorry.", "code": "bad"}}


def test_a_key_that_is_refused_is_not_repeated(
    threaded: Threaded, sweep: Callable[..., Done], run_dir: Path
) -> None:
    def refuse(asked: Asked) -> Answer:
        assert asked.headers["authorization"] == f"Bearer {KEY}"
        echo = said(asked.headers["authorization"])
        return 401, "application/json", json.dumps(echo).encode()

    server = threaded(refuse)
    done = sweep(server.url, env={"OPENAI_API_KEY": KEY})
    assert done.code == 3
    assert server.asked
    (line,) = done.problems
    assert "OPENAI_API_KEY" in line  # the name of the variable is what helps
    assert KEY not in everything(done, run_dir)


def test_a_key_that_is_cut_off_by_the_length_of_a_message_is_not_repeated(
    threaded: Threaded, sweep: Callable[..., Done], run_dir: Path
) -> None:
    """A long message is shortened; what is left of a key in it is still a key's start."""
    length = 200 - len(KEY) // 2 - len("the key ")
    echo = json.dumps({"error": {"message": "x" * length + f"the key {KEY} is bad"}})
    done = sweep(
        threaded(lambda _: (401, "application/json", echo.encode())).url,
        env={"OPENAI_API_KEY": KEY},
    )
    assert done.code == 3
    assert KEY[:6] not in everything(done, run_dir)


@pytest.mark.parametrize("client", ["wire", "aiohttp", "openai", "wire in workers"])
def test_a_key_in_a_reply_is_not_stored(
    threaded: Threaded, sweep: Callable[..., Done], run_dir: Path, client: str
) -> None:
    """Echoed by an error's body, by an error in the stream, and by the answer itself."""
    counted = itertools.count(1)

    def echo(asked: Asked) -> Answer:
        key = asked.headers["authorization"].removeprefix("Bearer ")
        if "x-request-id" not in asked.headers:
            return 200, STREAM, asked.good()
        match next(counted) % 4:
            case 1:
                return 500, "application/json", json.dumps(said(key)).encode()
            case 2:
                error = f"data: {json.dumps(said(key))}\n\n".encode()
                return 200, STREAM, asked.good()[:200].partition(b"\n\n")[0] + b"\n\n" + error
            case 3:
                return 200, STREAM, asked.good().replace(b" w1", key.encode())
            case _:
                return 200, f"text/{key}", key.encode()

    server = threaded(echo)
    workers = ["--workers", 2, "--concurrency", 2] if "workers" in client else []
    flags = ["--client", client.split()[0], *workers]
    done = sweep(server.url, *flags, env={"OPENAI_API_KEY": KEY}, requests=8)
    assert done.code == 4
    (cell,) = stored(run_dir, "summary.json")["cells"]
    # Two at a time, one or the other kind may fall into the cool-down.
    failures = {kind: min(n, 1) for kind, n in cell["requests"]["failures"].items()}
    assert failures == {"http-500": 1, "stream-error": 1, "not-a-stream": 1}
    assert KEY not in everything(done, run_dir)
    assert "Incorrect API key provided" in everything(done, run_dir)  # the words are kept


def test_a_key_in_a_variable_of_its_own(
    truth: Truth, sweep: Callable[..., Done], run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_TEST_KEY", KEY)
    server = truth(**STEADY, api_key_env="MY_TEST_KEY")
    done = valid(sweep(f"{server.url}?key_env=MY_TEST_KEY"), run_dir)
    assert KEY not in everything(done, run_dir)


# ── starting up ──────────────────────────────────────────────────────────────────────────────────


def test_help_imports_nothing_heavy() -> None:
    command = [sys.executable, "-X", "importtime", "-m", "llmbench", "--help"]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=True,
    )
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "argparse" in imported
    assert imported.isdisjoint({"numpy", "aiohttp", "openai", "msgspec"})
    assert "sweep" in done.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(in_process: InProcess, command: str) -> None:
    done = in_process(command, "--help")
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith(f"usage: llmbench {command}")


def test_help_names_every_flag(in_process: InProcess) -> None:
    done = in_process("sweep", "--help")
    assert (done.code, done.err) == (0, "")
    for flag in ("--target", "--concurrency", "--prompt-tokens", "--requests", "--format"):
        assert flag in done.out
