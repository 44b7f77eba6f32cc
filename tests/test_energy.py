"""GPU energy by a stand-in for NVML's module: no GPU was at hand."""

import json
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import bare_cell
from msgspec import structs

from llmbench import energy
from llmbench.cli import main
from llmbench.energy import Reading, between
from llmbench.measure.cost import Costed
from llmbench.measure.energy import joules_per_token
from llmbench.measure.requests import Requests
from llmbench.records import Billed, Energy, RequestMetrics
from llmbench.report.cost import render_cost
from llmbench.store import RunDirectory
from llmbench.truth.process import TruthServer


class NVMLError(Exception):
    pass


class Nvml:
    """``counters`` in millijoules by GPU; ``None`` for one that has no counter."""

    NVMLError = NVMLError

    def __init__(self, *counters: int | None, driver: bool = True) -> None:
        self.counters = counters
        self.driver = driver
        self.open = 0

    def nvmlInit(self) -> None:  # noqa: N802 - NVML's own names
        if not self.driver:
            raise NVMLError
        self.open += 1

    def nvmlShutdown(self) -> None:  # noqa: N802
        self.open -= 1

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        return len(self.counters)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:  # noqa: N802
        return index

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: int) -> int:  # noqa: N802
        if (counter := self.counters[handle]) is None:
            raise NVMLError
        return counter


def test_millijoules_are_joules_and_a_gpu_without_a_counter_is_left_out() -> None:
    nvml = Nvml(1_500, None, 7_000_250)
    reading = energy.read(nvml)
    assert reading is not None
    assert reading.joules == {0: 1.5, 2: 7000.25}
    assert nvml.open == 0


@pytest.mark.parametrize("nvml", [Nvml(driver=False), Nvml(), Nvml(None)])
def test_no_driver_no_gpu_no_counter(nvml: Nvml) -> None:
    assert energy.read(nvml) is None
    assert nvml.open == 0


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise ImportError(name)

    monkeypatch.setattr(energy, "import_module", missing)
    assert energy.read() is None


def test_what_was_taken_between() -> None:
    before = Reading(5_000_000_000, {0: 100.0, 1: 1.0, 2: 9.0})
    after = Reading(45_000_000_000, {0: 6100.0, 1: 2001.0})
    assert between(before, after) == Energy(joules=8000.0, seconds=40.0, gpus=2)
    assert between(None, after) is None
    assert between(before, Reading(6_000_000_000, {0: 99.0})) is None  # the driver came back
    assert between(before, Reading(6_000_000_000, {7: 1.0})) is None


def tokens(count: int) -> list[RequestMetrics]:
    """Two requests of which one is no part of the window: it took energy too."""
    none = array("f")
    common: dict[str, Any] = {"sent_ns": 0, "end_ns": 1, "token_source": "usage", "events": 0}
    common |= {"stamps": "kernel", "gaps_s": none, "lag_ms": none, "tokens": count // 2}
    return [RequestMetrics(phase="warmup", **common), RequestMetrics(phase="measured", **common)]


def test_joules_a_token() -> None:
    # 8,000 J for 20,000 tokens
    taken = Energy(joules=8000.0, seconds=40.0, gpus=2)
    requests, brief = Requests.of(tokens(20_000)), structs.replace(taken, seconds=29.9)
    assert joules_per_token(taken, requests) == 0.4
    assert joules_per_token(brief, requests) is None
    assert joules_per_token(taken, Requests.of(())) is None
    assert joules_per_token(None, requests) is None


def test_a_sweep_reads_the_counters_before_and_after(
    truth: Callable[..., TruthServer], run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    readings = iter([Reading(0, {0: 100.0}), Reading(40_000_000_000, {0: 260.0})])
    monkeypatch.setattr(energy, "read", lambda: next(readings))
    flags = [
        "--concurrency",
        "1",
        "--requests",
        "3",
        "--warmup",
        "1",
        "--output-tokens",
        "4",
        "--no-calibrate",
    ]
    main(["sweep", "--target", truth().url, *flags, "--out", str(run_dir)])
    (facts,) = RunDirectory.open(run_dir).run.cells
    assert facts.energy == Energy(joules=160.0, seconds=40.0, gpus=1)
    (cell,) = json.loads((run_dir / "summary.json").read_text())["cells"]
    # At least three replies of four tokens; what came after the window took energy too.
    assert 0 < cell["joules_per_token_gpu_only"] <= 160 / 12
    assert cell["energy_gpu_only"]["joules"] == 160


def test_the_cost_table_has_a_column_where_it_is_known() -> None:
    cell = bare_cell()
    rows = [Costed(cell, None, None, Billed(), None)]
    assert "J/token" not in render_cost(rows, "table")
    cell.joules_per_token_gpu_only = 0.44
    assert "J/token" in render_cost(rows, "table")
    assert "0.44" in render_cost(rows, "table")
