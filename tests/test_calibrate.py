"""``llmbench calibrate``, and the calibration that every sweep does."""

import json
from pathlib import Path
from typing import Any

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


def test_a_sweep_is_calibrated_once_and_report_says_the_same(
    truth: Any, run_llmbench: Any, run_dir: Path, tmp_path: Path
) -> None:
    cache = {"LLMBENCH_CACHE": str(tmp_path / "cache")}
    server = truth(ttft_ms=10.0, itl_ms=4.0)
    sweep = ("sweep", "--target", server.url, "--concurrency", 2, "--requests", 20)
    first = run_llmbench(*sweep, "--format", "json", "--out", run_dir, env=cache)
    (cell,) = first.cells
    assert cell["ruler"]["calibrated"]
    (kept,) = (tmp_path / "cache" / "calibration").iterdir()
    before = kept.stat().st_mtime_ns
    again = run_llmbench(*sweep, "--format", "json", env=cache)
    assert again.cells[0]["ruler"]["calibrated"]
    assert kept.stat().st_mtime_ns == before
    assert run_llmbench("report", run_dir, "--format", "json").cells == first.cells
