"""``--workers``: several processes, one plan, one window, one result."""

import time
from pathlib import Path
from typing import Any

import pytest

from llmbench.drive import workers as workers_module
from llmbench.drive.workers import how_many
from llmbench.records import Load
from llmbench.store import RunDirectory


def test_workers_share_the_streams_and_the_count(
    truth: Any, run_llmbench: Any, run_dir: Path
) -> None:
    server = truth(ttft_ms=10.0, itl_ms=4.0)
    flags = ("--concurrency", 5, "--requests", 41, "--workers", 3, "--no-calibrate")
    done = run_llmbench(
        "sweep", "--target", server.url, *flags, "--out", run_dir, "--format", "json"
    )
    (cell,) = done.cells
    assert cell["requests"]["sent"] == cell["requests"]["ok"] == 41 - cell["warmup_removed"]
    directory = RunDirectory.open(run_dir)
    traces = list(directory.traces())
    assert directory.run.cells[0].workers == 3
    assert {trace.stream for trace in traces} == set(range(5))
    indices = [trace.index for trace in traces]
    assert sorted(indices) == list(range(len(indices)))  # each drawn once, by whichever worker
    log = {reply.request_id for reply in server.log()}
    assert {trace.request_id for trace in traces if not trace.error} <= log
    # One clock: what the workers measured lies in one window.
    measured = [trace for trace in traces if trace.phase == "measured"]
    warm = [trace for trace in traces if trace.phase == "warmup"]
    assert min(trace.sent_ns for trace in measured) >= min(trace.sent_ns for trace in warm)
    assert not list(run_dir.glob("*.part"))


def test_a_server_that_dies_ends_every_worker(truth: Any, run_llmbench: Any, run_dir: Path) -> None:
    server = truth(ttft_ms=10.0, itl_ms=4.0)
    flags = ("--concurrency", 4, "--duration", 30, "--workers", 2, "--no-calibrate")
    process = run_llmbench.start("sweep", "--target", server.url, *flags, "--out", run_dir)
    while len(server.log()) < 12 and process.poll() is None:  # the probes, and some of the cell
        time.sleep(0.05)
    server.stop()
    done = run_llmbench.end(process)
    assert done.code in (3, 4)
    assert "failures in a row" in done.out + done.err
    assert not list(run_dir.glob("*.part"))


@pytest.mark.parametrize(
    ("asked", "streams", "cores", "count"),
    [
        (1, 64, 8, 1),
        (4, 64, 2, 4),
        (4, 2, 8, 2),
        ("auto", 64, 8, 1),
        ("auto", 1000, 8, 4),
        ("auto", 4000, 4, 3),
        ("auto", 4000, 1, 1),
    ],
)
def test_how_many_workers(
    asked: int | str, streams: int, cores: int, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers_module.os, "cpu_count", lambda: cores)
    assert how_many(asked, load(concurrency=streams)) == count


def load(concurrency: int = 0, rate: str = "") -> Load:
    return Load(
        concurrency=concurrency,
        prompt_tokens=1,
        output_tokens=1,
        requests=1,
        duration_s=None,
        warmup=0,
        rate=rate,
    )


@pytest.mark.parametrize(
    ("asked", "rate", "count"),
    [(3, "8", 3), ("auto", "8", 1), ("auto", "ramp(2,600)", 3), ("auto", "trace", 1)],
)
def test_how_many_workers_for_a_rate(
    asked: int | str, rate: str, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers_module.os, "cpu_count", lambda: 8)
    assert how_many(asked, load(rate=rate)) == count
