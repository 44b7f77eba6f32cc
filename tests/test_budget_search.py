"""``llmbench budget --search``: the number of users, found by the search for capacity."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import InProcess, Llmbench, was_busy

from llmbench.measure.turn_budget import BudgetRow, Quantiles, beyond_budget, searched
from llmbench.plan.search import Answer
from llmbench.records import Beyond, Block
from llmbench.truth.process import TruthServer


def row(users: int, in_budget: float, **changed: Any) -> BudgetRow:
    told: dict[str, Any] = {
        "target": "t",
        "client": "wire",
        "concurrency": users,
        "request_rate": None,
        "arrivals": None,
        "batch_size": None,
        "prompt_tokens": 64,
        "output_tokens": 16,
        "cache_asked": "session",
        "turns": 400,
        "answered": 400,
        "ttsc_ms": Block(n=400),
        "turn_ms": Quantiles(),
        "in_budget": in_budget,
        "in_budget_ci95": (in_budget - 0.02, in_budget + 0.02),
        "worth": 200.0,
    }
    return BudgetRow(**(told | changed))


def test_what_a_search_is_told_of_a_row() -> None:
    assert beyond_budget(row(4, 0.75), 0.95) == {"turn": Beyond(0.25, 400, 200.0, 0.05)}
    assert beyond_budget(row(4, 0.75, verdict="invalid"), 0.95) == {}
    assert beyond_budget(row(4, 0.75, in_budget_ci95=None), 0.95) == {}


def test_the_answer_is_between_the_last_that_kept_it_and_the_first_that_did_not() -> None:
    shares = {1: 1.0, 4: 1.0, 16: 0.0, 8: 0.3, 6: 1.0, 7: 0.6}
    found = searched([row(users, share) for users, share in shares.items()], 0.95, 1, 64)
    assert found == Answer(6, 6, 6)


def test_no_load_keeps_it() -> None:
    found = searched([row(1, 0.2), row(1, 0.2)], 0.95, 1, 64)
    assert found == Answer(None, None, 1)


def test_the_slots_of_a_server_are_found(
    truth: Callable[..., TruthServer],
    run_llmbench: Llmbench,
    in_process: InProcess,
    run_dir: Path,
) -> None:
    """Two replies at a time, of 135 ms each: three users wait for 67 ms on average. A busy machine
    may make it less than two, if its stamps say that it was."""
    server = truth(ttft_ms=40, itl_ms=5, output_tokens=20, max_parallel=2)
    budget = ("--budget", "140ms", "--stage", "tts=20ms", "--format", "json")
    done = run_llmbench(
        *("budget", "--search", "--most", 16, "--target", server.url, *budget),
        *("--turns", 1, "--output-tokens", 20, "--requests", 72),
        *("--out", run_dir),
        timeout_s=500,
    )
    assert done.code in (0, 4), done.err
    report = json.loads(done.out)
    (verdict,) = report["verdicts"]
    if was_busy(run_dir):
        assert (verdict["probable"] or 0) <= 2
    else:
        assert verdict["probable"] == 2
        assert verdict["says"].startswith("up to 2 users at 95% (95% interval ")
    loads = [each["concurrency"] for each in report["rows"]]
    assert loads == sorted(loads)
    assert in_process("budget", run_dir, *budget).out == done.out


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--most 8", "--most: it is for a search: give --search, too"),
        ("--search --concurrency 4", "--concurrency: a search chooses its loads"),
        ("--search --least 9 --most 4", "--least 9: must be less than --most 4"),
    ],
)
def test_what_cannot_be_searched(in_process: InProcess, flags: str, words: str) -> None:
    target = ("--target", "http://localhost:9", "--budget", "1s")
    done = in_process("budget", *target, *flags.split())
    assert done.code == 2
    assert words in done.err
    assert len(done.err.splitlines()) == 1
