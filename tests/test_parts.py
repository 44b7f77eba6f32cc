"""What is kept of a cell that never came to its end: its parts, and who reads them."""

import errno
import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, Llmbench
from hypothesis import given, settings
from hypothesis import strategies as st
from test_export import answered
from test_store import TARGETS, any_trace, evidence, facts, files_no_larger_than, run, seen

from llmbench import store
from llmbench.apis.dialect import DIALECTS
from llmbench.cli import main
from llmbench.drive.job import Job
from llmbench.drive.spool import Spool
from llmbench.parts import count_in_part, part_path, read_part
from llmbench.plan.scale import Scale
from llmbench.records import Target, Trace
from llmbench.store import RunDirectory, StoreError
from llmbench.truth.process import TruthServer

__all__ = ["run"]  # the fixture
Truth = Callable[..., TruthServer]


STUBBORN = "sleep 60.25"


def spooled(path: Path, *traces: Trace) -> Path:
    spool = Spool(path)
    for trace in traces:
        assert spool.append(trace) == trace
    spool.close()
    return path


# ---- records


@settings(deadline=None)
@given(traces=st.lists(any_trace(), max_size=3))
def test_traces_come_back_as_they_were(
    tmp_path_factory: pytest.TempPathFactory, traces: list[Trace]
) -> None:
    path = spooled(tmp_path_factory.mktemp("part") / "part", *traces)
    assert list(read_part(path)) == traces
    assert count_in_part(path) == len(traces)


def test_a_record_that_was_cut_off_is_passed_over(tmp_path: Path) -> None:
    traces = [seen(index=number) for number in range(3)]
    whole = spooled(tmp_path / "part", *traces).read_bytes()
    third = len(spooled(tmp_path / "two", *traces[:2]).read_bytes())
    for size in range(third, len(whole)):
        (tmp_path / "part").write_bytes(whole[:size])
        assert list(read_part(tmp_path / "part")) == traces[:2], size
        assert count_in_part(tmp_path / "part") == 2


def test_a_damaged_record_ends_the_reading(tmp_path: Path) -> None:
    traces = [seen(index=number) for number in range(3)]
    path = spooled(tmp_path / "part", *traces)
    whole = path.read_bytes()
    size = len(whole) // 3
    for damaged in (b"\xc1" * (size - 4), b"\x91" * (size - 4), b"\x80" + b"\xc0" * (size - 5)):
        path.write_bytes(whole[: size + 4] + damaged + whole[2 * size :])
        assert list(read_part(path)) == traces[:1]
    path.write_bytes(whole[:size] + b"\xff\xff\xff\xff" + whole[size + 4 :])  # a size of 4 GB
    assert list(read_part(path)) == traces[:1]


@settings(deadline=None)
@given(place=st.integers(0), value=st.integers(0, 255))
def test_no_damage_is_an_error(
    tmp_path_factory: pytest.TempPathFactory, place: int, value: int
) -> None:
    path = spooled(tmp_path_factory.mktemp("part") / "part", seen(index=0), seen(index=1))
    damaged = bytearray(path.read_bytes())
    place %= len(damaged)
    damaged[place] = value
    path.write_bytes(damaged)
    read = list(read_part(path))
    if place >= len(damaged) // 2:
        assert read[0] == seen(index=0)


def test_reads_that_cannot_be_are_damage(tmp_path: Path) -> None:
    good, short = seen(index=0), seen(index=1)
    short.reads.end[0] -= 1
    assert list(read_part(spooled(tmp_path / "part", good, short, seen(index=2)))) == [good]


def test_a_full_disk_keeps_what_was_written(tmp_path: Path) -> None:
    path = tmp_path / "part"
    spool = Spool(path)
    with files_no_larger_than(10_000):
        spool.append(seen(b"x" * 5_000, index=0))
        for _ in range(2):  # half a record is no more in the way than none
            with pytest.raises(OSError, match=re.escape(os.strerror(errno.ENOSPC))):
                spool.append(seen(b"x" * 6_000, index=1))
        spool.append(seen(b"x" * 1_000, index=2))
    spool.close()
    fits = seen(b"x" * 5_000, index=0), seen(b"x" * 1_000, index=2)
    assert path.read_bytes() == spooled(tmp_path / "fits", *fits).read_bytes()


def test_the_key_is_never_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", key := "sk-test-secret-123")
    target = Target(spec="http://h", name="h", url="http://h/v1")
    job = Job(
        facts=facts(),
        target=target,
        dialect=DIALECTS[0],
        scale=Scale(((8, 8),)),
        salt="s",
        timeout_s=1.0,
    )
    spool = job.spool(tmp_path)
    said = f"data: {key}{key}\n\n".encode()
    written = spool.append(seen(said, detail=f"not {key}!", headers={"via": f"1.1 {key}"}))
    spool.close()
    stars = "*" * len(key)
    assert key.encode() not in spool.path.read_bytes()
    assert written.body == f"data: {stars}{stars}\n\n".encode()
    assert (written.detail, written.headers) == (f"not {stars}!", {"via": f"1.1 {stars}"})
    assert list(read_part(spool.path)) == [written]


def test_what_was_put_off_is_finished(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "cell-0.0.part")
    for number in range(3):
        spool.append(seen(index=number))
    spool.settle(lambda trace: seen(b"settled", index=trace.index))
    spool.close()
    assert list(spool) == [seen(b"settled", index=number) for number in range(3)]
    assert [path.name for path in tmp_path.iterdir()] == ["cell-0.0.part"]


def test_what_was_put_off_finds_no_room(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "cell-0.0.part")
    spool.append(seen(index=0))
    with files_no_larger_than(5_000), pytest.raises(OSError, match="space"):
        spool.settle(lambda trace: seen(b"x" * 6_000))
    spool.close()
    assert list(spool) == [seen(index=0)]
    assert [path.name for path in tmp_path.iterdir()] == ["cell-0.0.part"]


# ---- a run that ended in the middle of a cell


def killed(directory: RunDirectory, *traces: Trace) -> RunDirectory:
    """``directory`` as a kill leaves it: cell 0 is stored, cell 1 was running in two processes."""
    directory.add_cell(facts(0), [answered(0, 0)])
    directory.begin_cell(facts(1))
    spooled(part_path(directory.path, 1, 0), *traces[::2])
    spooled(part_path(directory.path, 1, 1), *traces[1::2])
    assert directory._lock is not None
    os.close(directory._lock)
    directory._lock = None
    return directory


CUT = tuple(answered(1, number) for number in range(5))
IN_PARTS = [CUT[0], CUT[2], CUT[4], CUT[1], CUT[3]]
WHY = (
    "the run ended in the middle of this cell (killed, or the disk was full): 5 requests had ended"
)


def test_the_cell_that_was_running_is_read(run: RunDirectory) -> None:
    again = RunDirectory.open(killed(run, *CUT).path)
    assert list(again.traces()) == [answered(0, 0), *IN_PARTS]
    assert [(cell.cell, cell.stored, cell.stopped) for cell in again.run.cells] == [
        (0, 1, ""),
        (1, 5, WHY),
    ]


def test_a_kill_while_the_cell_is_stored_counts_nothing_twice(run: RunDirectory) -> None:
    path = killed(run, *CUT).path
    with evidence(run).open("ab") as file:
        file.write(store._encode(CUT[0]) + b"\n" + store._encode(CUT[2])[:50])
    assert list(RunDirectory.open(path).traces()) == [answered(0, 0), *IN_PARTS]


def test_a_kill_after_the_cell_is_stored(run: RunDirectory, monkeypatch: Any) -> None:
    """Its parts are still there, and stand for nothing."""
    killed(run, *CUT)
    monkeypatch.setattr(Path, "unlink", lambda *_, **__: None)
    run.add_cell(facts(1), run.part_traces(1))
    again = RunDirectory.open(run.path)
    assert list(again.traces()) == [answered(0, 0), *IN_PARTS]
    assert [cell.stopped for cell in again.run.cells] == ["", ""]


def test_a_run_that_goes_on_is_read_and_left_alone(run: RunDirectory) -> None:
    run.begin_cell(facts(0))
    spool = Spool(part_path(run.path, 0))
    spool.append(answered(0, 0))
    before = {path: path.read_bytes() for path in run.path.iterdir()}
    again = RunDirectory.open(run.path)
    assert again.run.cells[0].stopped == "the run is still running: 1 requests had ended"
    spool.append(answered(0, 1))  # after it was opened
    assert [trace.index for trace in again.traces()] == [0]
    before[spool.path] = spool.path.read_bytes()
    spool.close()
    assert main(["report", str(run.path)]) == 4
    assert {path: path.read_bytes() for path in run.path.iterdir()} == before


def test_a_cell_that_ends_while_it_is_read(run: RunDirectory) -> None:
    run.begin_cell(facts(0))
    spooled(part_path(run.path, 0), answered(0, 0))
    again = RunDirectory.open(run.path)
    run.add_cell(facts(0), run.part_traces(0))
    with pytest.raises(store.UserError, match="a cell ended while it was read; run this once more"):
        list(again.traces())
    assert list(RunDirectory.open(run.path).traces()) == [answered(0, 0)]


def test_every_reader_has_the_cell(run: RunDirectory, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(killed(run, *CUT).path)
    assert main(["report", path, "--format", "json"]) == 4
    whole, cut = json.loads(capsys.readouterr().out)["cells"]
    assert (whole["verdict"], cut["verdict"]) == ("valid", "partial")
    assert (cut["reasons"], cut["requests"]["ok"]) == ([WHY], 5)
    table = Path(path) / "requests.csv"
    assert main(["export", path, "--to", str(table)]) == 0
    assert len(table.read_text().splitlines()) == 1 + 1 + 5
    assert main(["budget", path, "--budget", "800ms", "--format", "json"]) in (0, 1)
    assert [row["turns"] for row in json.loads(capsys.readouterr().out)["rows"]] == [1, 5]


def test_a_killed_run_is_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = []
    for name in "ab":
        directory = RunDirectory.create(store.Sweep(out=str(tmp_path / name)), TARGETS, {})
        directory.begin_cell(facts(0))
        spooled(part_path(directory.path, 0), *(answered(0, number) for number in range(30)))
        paths.append(str(directory.path))
    assert main(["compare", *paths]) == 0
    assert "ttft" in capsys.readouterr().out.lower()


def test_a_run_without_requests_is_not_exported(
    run: RunDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("requests.csv", "requests.parquet"):
        assert main(["export", str(run.path), "--to", str(run.path / name)]) == 3
        (line,) = capsys.readouterr().err.splitlines()
        assert line == f"llmbench: {run.path}: no request was stored: there is nothing to export"
    assert [path.name for path in run.path.iterdir()] == ["run.json"]


def test_a_cell_that_finds_no_room_stays_in_its_parts(run: RunDirectory) -> None:
    traces = [answered(1, number, detail="x" * 400) for number in range(20)]
    killed(run, *traces)
    before = evidence(run).read_bytes()
    with files_no_larger_than(len(before) + 2_000), pytest.raises(StoreError) as caught:
        run.add_cell(facts(1), run.part_traces(1))
    parts = ", ".join(str(part_path(run.path, 1, number)) for number in range(2))
    assert str(caught.value) == (
        f"{run.path}: no space left on the disk; cell 2 was stopped, its 20 requests are kept in "
        f"{parts}; free space, then llmbench report {run.path}"
    )
    assert evidence(run).read_bytes() == before
    assert len(list(RunDirectory.open(run.path).traces())) == 21


# ---- sweeps


def in_parts(folder: Path) -> int:
    """How many requests of the running cell have ended."""
    return sum(map(count_in_part, folder.glob("cell-*.part")))


def until(true: Callable[[], object]) -> None:
    stop = time.monotonic() + 30
    while not true():
        assert time.monotonic() < stop, "it did not happen"
        time.sleep(0.01)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_disk_that_fills_up_ends_a_sweep(
    truth: Truth, run_llmbench: Llmbench, run_dir: Path, workers: int
) -> None:
    server = truth(ttft_ms=20.0, itl_ms=4.0)
    flags = ("--concurrency", 4, "--requests", 100_000, "--workers", workers, "--warmup", 0)
    flags += ("--output-tokens", 4, "--no-calibrate", "--out", run_dir)
    process = run_llmbench.start("sweep", "--target", server.url, *flags)
    until(lambda: len(list(run_dir.glob("cell-0.*.part"))) == workers)
    for pid in family(process.pid):
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (60_000, 60_000))
    done = run_llmbench.end(process)
    line = done.problems[-1]
    assert (done.code, done.out) == (4, "")
    assert line.startswith(
        f"llmbench: {run_dir}: no space left on the disk; cell 1 was stopped, its"
    )
    assert line.endswith(f"; free space, then llmbench report {run_dir}")
    kept = in_parts(run_dir)
    assert f"its {kept} requests are kept in {part_path(run_dir, 0)}" in line
    again = run_llmbench("report", run_dir, "--format", "json")
    (cell,) = again.cells
    assert again.code == 4
    assert cell["verdict"] == "partial" or len(cell["reasons"]) > 1  # a busy machine
    assert f"{kept} requests had ended" in cell["reasons"][0]
    assert cell["requests"]["ok"] > 10


def family(pid: int) -> list[int]:
    """The processes of the group that ``pid`` leads."""
    out = subprocess.run(
        ["ps", "-o", "pid=", "-g", str(pid)], capture_output=True, text=True, check=False
    ).stdout
    return [int(line) for line in out.split()]


def test_the_second_signal_waits_for_no_engine(run_llmbench: Llmbench, tmp_path: Path) -> None:
    """This one ignores the polite signal, and would be waited for for half a minute."""
    serve = (
        f"(trap '' TERM; exec {STUBBORN}) & "
        f"exec {sys.executable} -m llmbench truth-server --port $0 --ttft-ms 5 --itl-ms 1"
    )
    config = tmp_path / "sweep.toml"
    config.write_text(
        "calibrate = false\nrequests = 100000\nconcurrency = [2]\nwarmup = 0\n"
        '[[target]]\nname = "stubborn"\nhealth = "/v1/models"\n'
        f'command = ["sh", "-c", {json.dumps(serve)}, "{{port}}"]\n'
    )
    run_dir = tmp_path / "run"
    process = run_llmbench.start("sweep", "--config", config, "--out", run_dir)
    until(lambda: in_parts(run_dir) > 5)
    process.send_signal(signal.SIGTERM)
    until((run_dir / "summary.json").exists)  # the cell is kept, and now the engine is to end
    process.send_signal(signal.SIGHUP)
    done = run_llmbench.end(process, timeout_s=20)
    assert (done.code, done.problems) == (130, [])
    assert "interrupted" in done.out
    (cell,) = RunDirectory.open(run_dir).run.cells
    assert cell.stopped == "interrupted"
    assert (cell.stored or 0) > 5
    assert STUBBORN not in subprocess.check_output(["ps", "-eo", "args"], text=True).splitlines()


def test_the_second_signal_waits_for_no_worker(
    truth: Truth, run_llmbench: Llmbench, run_dir: Path
) -> None:
    server = truth(ttft_ms=10.0, itl_ms=4.0)
    flags = ("--concurrency", 4, "--requests", 1000, "--workers", 2, "--warmup", 0)
    flags += ("--output-tokens", 4, "--no-calibrate", "--out", run_dir)
    process = run_llmbench.start("sweep", "--target", server.url, *flags)
    until(lambda: in_parts(run_dir) > 20)
    os.kill(max(family(process.pid)), signal.SIGSTOP)
    process.send_signal(signal.SIGINT)
    time.sleep(0.5)  # it now waits for a worker that says nothing
    kept = in_parts(run_dir)
    process.send_signal(signal.SIGINT)
    done = run_llmbench.end(process, timeout_s=20)
    assert (done.code, done.problems) == (130, [])
    (cell,) = RunDirectory.open(run_dir).run.cells
    assert cell.stopped == "interrupted"
    assert (cell.stored or 0) >= kept


def test_a_worker_that_is_killed_ends_its_cell_alone(
    truth: Truth, run_llmbench: Llmbench, run_dir: Path
) -> None:
    server = truth(ttft_ms=10.0, itl_ms=4.0)
    flags = ("--concurrency", 4, "--requests", 1000, "--workers", 2, "--no-calibrate")
    process = run_llmbench.start("sweep", "--target", server.url, *flags, "--out", run_dir)
    until(lambda: in_parts(run_dir) > 20)
    os.kill(max(family(process.pid)), signal.SIGKILL)
    done = run_llmbench.end(process)
    assert (done.code, done.problems) == (4, [])
    assert ", a worker process ended without a word: killed, or out of memory" in done.out
    (cell,) = RunDirectory.open(run_dir).run.cells
    assert (cell.stored or 0) > 20


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "flags",
    [(), ("--workers", "2"), ("--client", "aiohttp")],
    ids=["one process", "workers", "aiohttp"],
)
def test_no_end_of_a_sweep_loses_a_request(flags: tuple[str, ...]) -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "kills.py"), "--moments", "2", *flags]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
