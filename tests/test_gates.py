"""Each gate fires on a real cause: hogs, a stopped process, bursts, a proxy that buffers, …"""

import gc
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from conftest import LATE, InProcess, bare_cell, measured, until, valid

from llmbench.drive import clock as clock_module
from llmbench.drive import health as health_module
from llmbench.drive.clock import Clock
from llmbench.drive.health import HealthWatch
from llmbench.measure.steady import drift
from llmbench.measure.verdict import judge
from llmbench.records import Cell, CellFacts, Health, Load

Run = Callable[..., Any]
QUICK = ("--output-tokens", "20", "--prompt-tokens", "32", "--no-calibrate", "--format", "json")


BURN = "import os; os.sched_setaffinity(0, {0})\nwhile True: pass"


@contextmanager
def hogs(count: int) -> Iterator[None]:
    """``count`` processes that want all of core 0."""
    running = [subprocess.Popen([sys.executable, "-S", "-c", BURN]) for _ in range(count)]
    try:
        yield
    finally:
        for hog in running:
            hog.kill()
            hog.wait()


def yield_to_others(pid: int) -> None:
    """Or the scheduler gives it its fair share. It shares among sessions first, where it is told to
    (sched(7), autogroup), and among the processes of one after that."""
    os.setpriority(os.PRIO_PROCESS, pid, 10)
    with suppress(OSError):
        Path(f"/proc/{pid}/autogroup").write_text("10")


def test_a_client_starved_by_cpu_hogs_publishes_nothing(truth: Any, run_llmbench: Run) -> None:
    server = truth(ttft_ms=10.0, itl_ms=4.0, output_tokens=20)
    process = run_llmbench.start(  # type: ignore[attr-defined]
        "sweep", "--target", server.url, "--concurrency", 32, "--duration", 4, *QUICK
    )
    until(lambda: measured(server) >= 64)  # the warm-up is over
    yield_to_others(process.pid)
    os.sched_setaffinity(process.pid, {0})
    with hogs(6):  # beyond the end of the window: a bad start alone may pass for warm-up
        time.sleep(5.0)
    done = run_llmbench.end(process)  # type: ignore[attr-defined]
    (cell,) = done.cells
    assert (done.code, cell["verdict"]) == (4, "invalid")
    assert any(reason.startswith(LATE) for reason in cell["reasons"]), cell["reasons"]
    assert cell["ttft_ms"]["mean"] > 0  # the figures stay in the JSON


def test_a_stopped_process_is_noticed(truth: Any, run_llmbench: Run) -> None:
    server = truth(ttft_ms=10.0, itl_ms=5.0, output_tokens=20)
    process = run_llmbench.start(  # type: ignore[attr-defined]
        "sweep", "--target", server.url, "--concurrency", 8, "--duration", 3, *QUICK
    )
    until(lambda: measured(server) >= 16)  # the warm-up is over
    for _ in range(4):
        process.send_signal(signal.SIGSTOP)
        time.sleep(0.25)
        process.send_signal(signal.SIGCONT)
        time.sleep(0.25)
    (cell,) = run_llmbench.end(process).cells  # type: ignore[attr-defined]
    assert cell["verdict"] == "invalid"
    assert any(reason.startswith(LATE) for reason in cell["reasons"]), cell["reasons"]


def test_bursts_from_the_server_hide_itl_and_nothing_else(truth: Any, run_llmbench: Run) -> None:
    server = truth(ttft_ms=20.0, itl_ms=5.0, coalesce=4)
    target = ("--target", server.url, "--concurrency", 2, "--requests", 40)
    (cell,) = run_llmbench("sweep", *target, *QUICK).cells
    assert cell["itl_ms"] is None
    assert cell["icl_ms"]["n"] == (40 - cell["warmup_removed"]) * 19
    assert cell["ttft_ms"]["p50"] >= 20
    assert any("bursts" in note for note in cell["notes"]), cell["notes"]


def test_a_proxy_that_buffers_hides_itl(truth: Any, run_llmbench: Run) -> None:
    server = truth(ttft_ms=20.0, itl_ms=5.0, output_tokens=20)
    with buffering_proxy(server.url, hold_s=0.04) as url:
        target = ("--target", url, "--concurrency", 2, "--requests", 20)
        (cell,) = run_llmbench("sweep", *target, *QUICK).cells
    assert cell["itl_ms"] is None
    assert any("bursts" in note for note in cell["notes"]), cell["notes"]


@contextmanager
def buffering_proxy(url: str, hold_s: float) -> Iterator[str]:
    """Passes bytes on, but holds what the server says for ``hold_s`` and sends it in one piece."""
    backend = (urlsplit(url).hostname, urlsplit(url).port)
    listener = socket.create_server(("127.0.0.1", 0))
    opened = [listener]

    def serve() -> None:
        with suppress(OSError):
            while True:
                client, _ = listener.accept()
                server = socket.create_connection(backend)
                opened.extend((client, server))
                threading.Thread(target=pump, args=(client, server, 0.0), daemon=True).start()
                threading.Thread(target=pump, args=(server, client, hold_s), daemon=True).start()

    def pump(source: socket.socket, sink: socket.socket, hold_s: float) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                if hold_s:
                    time.sleep(hold_s)
                    with suppress(BlockingIOError):
                        data += source.recv(65536, socket.MSG_DONTWAIT)
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)

    threading.Thread(target=serve, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        for sock in opened:
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)  # wakes the thread that waits on it
            sock.close()


def test_a_load_that_was_not_kept_up(
    truth: Any, run_llmbench: Run, in_process: InProcess, run_dir: Path
) -> None:
    """The evidence of a third of the requests is lost: fewer were in flight than were asked for."""
    server = truth(ttft_ms=5.0, itl_ms=2.0)
    target = ("--target", server.url, "--concurrency", 2, "--requests", 60, "--out", run_dir)
    valid(run_llmbench("sweep", *target, *QUICK), run_dir)
    evidence = run_dir / "requests.jsonl"
    lines = evidence.read_bytes().splitlines(keepends=True)
    evidence.write_bytes(b"".join(line for number, line in enumerate(lines) if number % 3))
    done = in_process("report", run_dir, "--format", "json")
    (cell,) = done.cells
    assert (done.code, cell["verdict"]) == (4, "invalid")
    assert any("evidence is missing" in reason for reason in cell["reasons"])
    assert any("in flight on average, not 2" in reason for reason in cell["reasons"])


def test_token_counts_that_disagree(threaded: Any, run_llmbench: Run) -> None:
    def answer(asked: Any) -> tuple[int, str, bytes]:
        wanted = asked.document["max_tokens"]
        body = asked.good().replace(
            b'"completion_tokens": %d' % wanted, b'"completion_tokens": %d' % (wanted // 2)
        )
        return 200, "text/event-stream", body

    server = threaded(answer)
    target = ("--target", server.url, "--concurrency", 1, "--requests", 10)
    (cell,) = run_llmbench("sweep", *target, *QUICK).cells
    assert cell["requests"]["ok"] == 10
    assert cell["tpot_ms"] is None
    assert any("its events split tokens, or it counts too few" in each for each in cell["notes"])


# ── the process and its machine: what cannot be made to happen here is simulated ─────────────────


def verdict_on(health: Health) -> Cell:
    load = Load(
        concurrency=1, prompt_tokens=1, output_tokens=1, requests=1, duration_s=None, warmup=0
    )
    cell = bare_cell()
    judge(cell, CellFacts(cell=0, target=0, client="wire", load=load, health=health))
    return cell


@pytest.fixture
def clock() -> Iterator[Clock]:
    clock = Clock()
    yield clock
    clock.close()


def test_an_undisturbed_process_is_healthy(clock: Clock) -> None:
    gc.disable()
    try:
        assert verdict_on(HealthWatch(clock).report()).verdict == "valid"
    finally:
        gc.enable()


def test_a_garbage_collection_inside_a_cell(clock: Clock) -> None:
    watch = HealthWatch(clock)
    gc.collect()
    (reason,) = verdict_on(watch.report()).reasons
    assert "garbage collector ran 1 times" in reason


def test_a_clock_that_is_set(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    watch = HealthWatch(clock)
    true_offset_ns = clock_module._realtime_offset_ns()
    monkeypatch.setattr(clock_module, "_realtime_offset_ns", lambda: true_offset_ns + 3_000_000)
    clock.resample()
    reasons = verdict_on(watch.report()).reasons
    assert any("clock was set while measuring, by 3 ms" in reason for reason in reasons)


def test_a_throttled_control_group(
    clock: Clock, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "own").write_text("0::/a/b\n")
    stat = tmp_path / "a" / "b" / "cpu.stat"
    stat.parent.mkdir(parents=True)
    stat.write_text("usage_usec 9\nnr_throttled 1\nthrottled_usec 1000\n")
    monkeypatch.setattr(health_module, "_OWN_GROUP", tmp_path / "own")
    monkeypatch.setattr(health_module, "_GROUPS", tmp_path)
    watch = HealthWatch(clock)
    stat.write_text("usage_usec 9\nnr_throttled 3\nthrottled_usec 8500\n")
    reasons = verdict_on(watch.report()).reasons
    assert any("throttled for 7.5 ms" in reason for reason in reasons)


def test_a_drift_is_told_from_noise() -> None:
    settled = [1.0 + 0.1 * (i * 7919 % 13) for i in range(100)]
    assert drift(settled) is None
    assert drift([value * (1 + i / 50) for i, value in enumerate(settled)]) == pytest.approx(
        5 / 3, rel=0.1
    )
    assert drift([1.0] * 10 + [9.0] * 10) is None  # too few to tell by
    assert drift([2.0] * 30 + [1.0] * 30) == 0.5
