"""``llmbench calibrate``, and the calibration that every sweep does."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from conftest import bare_cell

from llmbench.config import Sweep
from llmbench.drive.sweep import SilentView
from llmbench.records import Block, Calibration, CellFacts, Load
from llmbench.store import Run, RunDirectory
from llmbench.truth import calibrate

SMALL = ("--concurrency", "4", "--requests", "24", "--output-tokens", "20", "--itl-ms", "5")


def test_the_table_of_calibrate_is_narrow_and_says_how_far_off(run_llmbench: Any) -> None:
    done = run_llmbench("calibrate", *SMALL)
    assert done.code == 0, done.err
    lines = done.out.splitlines()
    assert max(map(len, lines)) <= 120  # 100, but for the long figures of a busy machine
    row = lines[3].split()
    assert row[:2] == ["4", "wire"]
    assert row[3] == "TTFT"
    assert float(row[4]) >= 50.0  # what was sent, at p50
    assert abs(float(row[7]) - float(row[4])) < 25  # what was read
    assert any(line.startswith("wire reads") for line in lines)


def test_calibrate_as_json_holds_every_stamp_against_the_log(run_llmbench: Any) -> None:
    done = run_llmbench("calibrate", *SMALL, "--client", "wire,aiohttp", "--format", "json")
    wire, aiohttp = json.loads(done.out)
    assert (wire["client"], aiohttp["client"]) == ("wire", "aiohttp")
    for run in (wire, aiohttp):
        assert run["errors"]["ttft"]["n"] == 24
        assert run["errors"]["itl"]["n"] == 24 * 19
        assert set(run["errors"]["itl"]["error_ms"]) == {"p50", "p99", "p999"}


def calibration(
    concurrency: int, gap_ms: float, error_ms: float = 0.1, client: str = "wire"
) -> Calibration:
    return Calibration(
        client=client,
        concurrency=concurrency,
        gap_ms=gap_ms,
        events_per_s=concurrency / gap_ms * 1e3,
        ttft_error_ms=dict.fromkeys(["p50", "p95", "p99"], error_ms),
        itl_error_ms=dict.fromkeys(["p50", "p95", "p99"], error_ms / 2),
    )


@pytest.fixture
def calibrated(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[..., tuple[list[tuple[str, int]], list[Calibration | None]]]:
    """``calibrated(loads, elapsed_s, *stored)``: which loads (concurrency, gap in ms) were measured
    after a run that took so long, and what each cell got."""
    monkeypatch.setenv("LLMBENCH_CACHE", str(tmp_path))

    def run(
        loads: list[tuple[int, float]], elapsed_s: float, *stored: Calibration
    ) -> tuple[list[tuple[str, int]], list[Calibration | None]]:
        measured = []

        def measure(need: calibrate.Need) -> Calibration:
            measured.append((need.client, need.concurrency))
            return calibration(need.concurrency, need.gap_ms, client=need.client)

        now_s = iter(range(0, 4000, 4))  # each calibration takes 4 s
        monkeypatch.setattr(calibrate, "measure", measure)
        monkeypatch.setattr(calibrate, "_stored", lambda: list(stored))
        monkeypatch.setattr(calibrate.time, "monotonic", lambda: next(now_s))
        cells = [bare_cell(icl_ms=Block(n=9, p50=gap_ms)) for _, gap_ms in loads]
        facts = [
            CellFacts(
                cell=number,
                target=0,
                client="wire",
                load=Load(
                    concurrency=concurrency,
                    prompt_tokens=1,
                    output_tokens=1,
                    requests=1,
                    duration_s=None,
                    warmup=0,
                ),
            )
            for number, (concurrency, _) in enumerate(loads)
        ]
        kept = Run(started="", sweep=Sweep(), targets=[], host={}, cells=facts)
        directory = RunDirectory(tmp_path, kept)
        calibrate.calibrate_cells(directory, cells, SilentView(), elapsed_s)
        return measured, [each.calibration for each in directory.run.cells]

    return run


Calibrated = Callable[..., tuple[list[tuple[str, int]], list[Calibration | None]]]


def test_the_heaviest_load_does_for_lighter_ones(calibrated: Calibrated) -> None:
    measured, got = calibrated([(1, 10.0), (32, 134.0), (8, 38.0)], 80.0)
    assert measured == [("wire", 32)]
    assert {each.concurrency for each in got if each} == {32}


def test_a_calibration_costs_a_tenth_of_the_run(calibrated: Calibrated) -> None:
    """A run of 39 s has 3.9 s, and one takes 4; one of 80 s has time for two."""
    assert calibrated([(4, 10.0)], 39.0) == ([], [None])
    lighter = [(8, 2.0), (16, 20.0), (64, 100.0)]  # 4,000, 800 and 3,200 events a second
    assert calibrated(lighter, 79.0)[0] == [("wire", 8)]
    measured, got = calibrated(lighter, 80.0)
    assert measured == [("wire", 8), ("wire", 64)]
    assert [each and each.concurrency for each in got] == [8, 64, 64]


def test_what_is_known_costs_nothing(calibrated: Calibrated) -> None:
    known = calibration(64, 10.0)
    assert calibrated([(8, 10.0)], 1.0, known) == ([], [known])
    closer = calibration(16, 5.0)
    assert calibrated([(8, 10.0)], 1.0, known, closer) == ([], [closer])
    assert calibrated([(65, 10.0)], 1.0, known, closer) == ([], [None])
    assert calibrated([(8, 2.0)], 1.0, closer) == ([], [None])  # more events a second
    assert calibrated([(8, 10.0)], 1.0, calibration(64, 10.0, client="openai")) == ([], [None])


def test_a_heavier_load_that_was_not_held_does_for_no_lighter_one(calibrated: Calibrated) -> None:
    bad = calibration(64, 10.0, error_ms=0.6)
    assert calibrated([(8, 10.0)], 1.0, bad) == ([], [None])
    itself = calibration(8, 2.0 ** round(math.log2(10.0), 1), error_ms=12.0)
    assert calibrated([(8, 10.0)], 1.0, itself) == ([], [itself])


def test_a_sweep_takes_a_stored_calibration_and_report_says_the_same(
    truth: Any,
    run_llmbench: Any,
    run_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LLMBENCH_CACHE", str(tmp_path / "cache"))
    stored = calibrate._folder() / "wire-64-2.json"
    stored.parent.mkdir(parents=True)
    stored.write_bytes(msgspec.json.encode(calibration(64, 2.0, error_ms=0.25)))
    server = truth(ttft_ms=10.0, itl_ms=4.0)
    done = run_llmbench(
        *("sweep", "--target", server.url, "--concurrency", 2, "--requests", 20),
        *("--format", "json", "--out", run_dir),
    )
    (cell,) = done.cells
    assert cell["ruler"]["calibrated"]
    assert cell["ruler"]["ttft_error_ms"]["p50"] >= 0.25
    assert list(stored.parent.iterdir()) == [stored]
    assert run_llmbench("report", run_dir, "--format", "json").cells == done.cells


def test_calibrate_keeps_what_is_enough_to_rely_on(
    run_llmbench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLMBENCH_CACHE", str(tmp_path / "cache"))
    fast = ("calibrate", "--ttft-ms", 2, "--itl-ms", 1, "--output-tokens", 3, "--concurrency", 8)
    assert run_llmbench(*fast, "--requests", 24).code == 0
    assert calibrate._stored() == []
    assert run_llmbench(*fast, "--requests", 104).code == 0
    (kept,) = calibrate._stored()
    assert (kept.client, kept.concurrency, kept.gap_ms) == ("wire", 8, 1.0)
