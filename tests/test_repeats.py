"""``--repeat``: cells run again and again in turns, pooled into one row, their spread beside it."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import InProcess, Llmbench
from test_summary import TARGET, facts_of, steady

from llmbench.config import Sweep
from llmbench.measure.cell import Measured, measured, report_cells, requests_in
from llmbench.plan.grid import grid
from llmbench.records import CellFacts, Health
from llmbench.store import RunDirectory
from llmbench.truth.process import TruthServer

Truth = Callable[..., TruthServer]


def test_repeats_take_turns_and_every_other_round_is_reversed() -> None:
    sweep = Sweep(target=["http://a", "http://b"], concurrency=[1, 8], repeat=4)
    cells = grid(sweep)
    assert [each.cell for each in cells] == list(range(16))
    rounds = [[each.row for each in cells[n : n + 4]] for n in range(0, 16, 4)]
    assert all(sorted(each) == [0, 1, 2, 3] for each in rounds)  # type: ignore[type-var]
    assert rounds[1] == rounds[0][::-1]
    assert rounds[3] == rounds[2][::-1]
    assert [each.repeat for each in cells] == [n for n in range(4) for _ in range(4)]
    # Each repeat draws its own load, the same for all that are compared.
    assert {(each.repeat, each.load.content.seed) for each in cells} == {(n, n) for n in range(4)}


def test_what_is_started_is_not_started_again_for_every_repeat() -> None:
    cells = grid(Sweep(target=["http://a", "vllm:m"], concurrency=[1, 8], repeat=2))
    assert [each.target for each in cells] == [0] * 4 + [1] * 4


def test_without_repeats_there_are_no_rows() -> None:
    assert {each.row for each in grid(Sweep(target=["http://a"]))} == {None}


def run(repeat: int, ttft_ms: float, count: int = 20, **fields: Any) -> Measured:
    facts = facts_of(row=0, repeat=repeat, **fields)
    traces = steady(count, ttft_ms, ttft_ms + 10, ttft_ms + 20)
    return measured(TARGET, facts, requests_in(traces, TARGET.api))


def test_one_row_over_the_requests_of_all() -> None:
    (cell,) = report_cells([TARGET], {}, [run(0, 40), run(1, 60), run(2, 50)])
    assert cell.requests.sent == cell.requests.ok == 60
    assert cell.ttft_ms is not None
    assert (cell.ttft_ms.n, cell.ttft_ms.mean, cell.ttft_ms.max) == (60, 50, 60)
    assert cell.repeats is not None
    assert cell.repeats.ttft_p50_ms == [40, 60, 50]
    assert any(note.startswith("3 repeats: TTFT p50 40–60 ms (CV 20.0%)") for note in cell.notes)


def test_a_spread_between_the_runs_makes_the_pool_worth_less() -> None:
    """Sixty requests in three runs that differ are worth three, which carry no median."""
    (apart,) = report_cells([TARGET], {}, [run(0, 40), run(1, 60), run(2, 50)])
    (alike,) = report_cells([TARGET], {}, [run(0, 50), run(1, 50), run(2, 50)])
    assert apart.ttft_ms is not None
    assert alike.ttft_ms is not None
    assert apart.ttft_ms.p50 is None
    assert alike.requests.ok == 60


def test_rates_are_over_all_windows() -> None:
    runs = [run(0, 40, 10), run(1, 60, 30)]
    (cell,) = report_cells([TARGET], {}, runs)
    windows = [each.cell.window_s or 0 for each in runs]
    rates = [each.cell.otps or 0 for each in runs]
    assert cell.window_s == pytest.approx(sum(windows))
    expected = sum(w * r for w, r in zip(windows, rates, strict=True)) / sum(windows)
    assert cell.otps == pytest.approx(expected)
    assert cell.otps_ci95 is not None
    reach = 12.706 * abs(rates[0] - rates[1]) / 2  # Student's t of one degree of freedom
    assert cell.otps_ci95[1] - cell.otps == pytest.approx(reach, rel=1e-3)


def test_an_invalid_repeat_is_left_out_and_told() -> None:
    sick = Health(cpu_share=0.1, cpu_wait_share=0, clock_step_ms=5.0, throttled_ms=0, collections=0)
    (cell,) = report_cells([TARGET], {}, [run(0, 40), run(1, 60, health=sick), run(2, 40)])
    assert cell.verdict == "valid"
    assert cell.requests.ok == 40
    assert any(note.startswith("repeat 2 left out: the system's clock") for note in cell.notes)
    (none,) = report_cells([TARGET], {}, [run(n, 40, health=sick) for n in range(2)])
    assert none.verdict == "invalid"


def test_a_sweep_with_repeats(
    truth: Truth, run_llmbench: Llmbench, in_process: InProcess, run_dir: Path
) -> None:
    url = truth().url
    flags = "--concurrency 1,2 --repeat 3 --requests 12 --output-tokens 4 --no-calibrate"
    done = run_llmbench(
        *("sweep", "--target", url, "--target", f"{url}?name=b", *flags.split()),
        *("--out", run_dir, "--format", "json"),
    )
    rows = [(cell["target"], cell["concurrency"]) for cell in done.cells]
    assert [concurrency for _, concurrency in rows] == [1, 2, 1, 2]
    for cell in done.cells:  # busy cores may make a repeat INVALID, which is said
        left_out = [note for note in cell["notes"] if " left out: " in note]
        assert cell["repeats"]["runs"] == 3 - len(left_out), cell["notes"]
    facts: list[CellFacts] = RunDirectory.open(run_dir).run.cells
    assert Counter(each.row for each in facts) == {0: 3, 1: 3, 2: 3, 3: 3}
    assert in_process("report", run_dir, "--format", "json").cells == done.cells
