"""The search for the highest load that meets an objective: its steps, its answer, and for real."""

import math
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import InProcess, Llmbench, bare_cell, stored, was_busy
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs

from llmbench.config import load_search
from llmbench.errors import UserError
from llmbench.measure.beyond import beyond
from llmbench.measure.capacity import answers, beyonds
from llmbench.measure.requests import Requests
from llmbench.plan.knee import lowest, requests_a_sample
from llmbench.plan.search import MOST_PROBES, MOST_REQUESTS, Answer, Beyonds, Search
from llmbench.records import Beyond, Cell, Counts, Objective, RequestMetrics
from llmbench.truth.process import TruthServer

Truth = Callable[..., TruthServer]
UNKNOWN: Beyonds = {}


def share(of: float, n: int = 400, worth: float = 400.0, allowed: float = 0.05) -> Beyonds:
    return {"ttft.p95": Beyond(of, n, worth, allowed)}


def searched(seen: Callable[[float], Beyonds], most: float = 1024, *, whole: bool = True) -> Search:
    search = Search(1, most, whole=whole)
    while (load := search.next()) is not None:
        search.add(load, seen(load))
    return search


def below(knee: float) -> Callable[[float], Beyonds]:
    """A server with so many slots: nobody waits, or everybody."""
    return lambda load: share(0.0 if load <= knee else 1.0)


# ── the search ───────────────────────────────────────────────────────────────────────────────────


def test_the_steps_to_a_knee() -> None:
    search = searched(below(21))
    loads = [each.load for each in search.probes]
    assert loads[:4] == [1, 4, 16, 64]  # fourfold to the first miss
    assert {21, 22} <= set(loads[4:])  # then both sides of the edge
    assert search.answer == Answer(21, 21, 21)


@pytest.mark.slow
@given(st.floats(1, 1000), st.booleans())
@settings(deadline=None, max_examples=40)
def test_any_knee_is_found_in_few_probes(knee: float, whole: bool) -> None:
    search = searched(below(knee), whole=whole)
    found = search.answer
    assert found.load is not None
    assert found.low is not None
    assert found.high is not None
    assert len(search.probes) <= MOST_PROBES
    if whole and knee < 20:
        assert found.load == math.floor(knee)
    assert found.load == pytest.approx(knee, rel=0.06, abs=whole)
    assert found.low * 0.97 - 1 <= knee <= found.high * 1.03 + 1


def test_no_load_will_do() -> None:
    search = searched(below(0))
    assert [each.load for each in search.probes] == [1, 1]  # a miss of the least may be chance
    assert search.answer == Answer(None, None, 1)


def test_every_load_will_do() -> None:
    search = searched(below(math.inf), most=50)
    assert [each.load for each in search.probes] == [1, 4, 16, 50]
    assert search.answer == Answer(50, 50, None, "50 is the most that was asked for")


def test_what_was_met_by_too_few_requests_is_not_sure() -> None:
    """None of 20 requests is late: of all there may be 16%."""
    search = searched(lambda _: share(0.0, worth=20.0), most=4)
    why = "4 is the most that was asked for"
    assert search.answer == Answer(4, None, None, why, sure=False)


def test_a_search_that_was_ended_early_says_so() -> None:
    search = Search(1, 64, whole=True)
    for load in (1, 4):
        search.add(load, share(0.0))
    assert search.answer == Answer(4, 4, None, "heavier loads were not tried")
    for load, seen in ((16, share(1.0)), (8, UNKNOWN)):
        search.add(load, seen)
    assert search.answer.open_end == "nothing could be told at 8"


def test_an_answer_keeps_within_what_was_asked_for() -> None:
    search = Search(1, 16, whole=True)
    for load, late in ((1, 0.0), (4, 0.0), (16, 0.06)):
        search.add(load, share(late, worth=50.0))
    found = search.answer
    assert found.low is not None
    assert found.high is not None
    assert 1 <= found.low <= found.high <= 16


def test_a_load_of_which_nothing_can_be_told_is_tried_once_more() -> None:
    search = searched(lambda load: share(0.0) if load < 16 else UNKNOWN)
    assert [each.load for each in search.probes] == [1, 4, 16, 16]
    assert search.answer == Answer(4, 4, None, "nothing could be told at 16")


def test_the_limit_that_is_met_least_decides() -> None:
    def seen(load: float) -> Beyonds:
        itl = Beyond(0.0 if load <= 9 else 0.5, 400, 400.0, 0.01)
        return below(30)(load) | {"itl.p99": itl}

    assert searched(seen).answer.load == 9


def test_requests_that_depend_on_each_other_widen_the_answer() -> None:
    def rising(worth: float) -> Search:
        # 5% at 20; the odds rise with the tenth power of the load
        def seen(load: float) -> Beyonds:
            odds = (load / 20) ** 10 / 19
            return share(odds / (1 + odds), 400, worth)

        return searched(seen, whole=False)

    sure, unsure = rising(400).answer, rising(20).answer
    assert sure.load == pytest.approx(20, rel=0.05)
    assert unsure.load == pytest.approx(20, rel=0.2)
    assert sure.low is not None
    assert sure.high is not None
    assert unsure.low is not None
    assert unsure.high is not None
    assert unsure.low < sure.low < 20 < sure.high < unsure.high


def test_more_requests_are_asked_for_at_the_edge() -> None:
    search = Search(1, 64, whole=False)
    assert search.requests == 0
    search.add(1, share(0.0))
    assert search.requests == 0
    search.add(4, share(0.06, worth=40.0))
    # 10 requests are worth one: 5 slow ones of 5% take 5 × 10 ÷ (0.05 × 0.95)
    assert search.requests == 1053
    search.add(2, share(0.04, worth=1.0))
    assert search.requests == MOST_REQUESTS


def test_overload_says_nothing_of_how_requests_depend_on_each_other() -> None:
    (calm,), (overloaded,) = share(0.02, worth=80.0).values(), share(0.9, worth=2.0).values()
    assert requests_a_sample([(1, calm), (9, overloaded)]) == 5
    assert requests_a_sample([(9, overloaded)]) == 1


def test_a_knee_lies_between_what_met_and_what_missed() -> None:
    (met,), (missed,) = share(0.0).values(), share(1.0).values()
    bounds = lowest([[(10, met), (20, missed)]], 1, 64)
    assert 9.5 <= bounds.low < 11
    assert bounds.median == pytest.approx(math.sqrt(200), rel=0.03)
    assert 18 < bounds.high <= 20.5


# ── what a cell says ─────────────────────────────────────────────────────────────────────────────


def request(index: int, ttft_s: float | None, failure: str = "", end_s: float = 1.0) -> Any:
    return RequestMetrics(
        phase="measured",
        index=index,
        sent_ns=index * 1_000_000,
        end_ns=index * 1_000_000 + round(end_s * 1e9),
        failure=failure,
        ttft_s=ttft_s,
        tokens=1,
        token_source="usage",
        events=1,
        gaps_s=array("f"),
        lag_ms=array("f"),
        stamps="kernel",
    )


def test_requests_beyond_a_limit() -> None:
    seen = [
        *(request(n, 0.1) for n in range(6)),
        request(6, 0.6),
        request(7, None, "timeout"),  # a failure is beyond any limit
        request(8, None, "cancelled", end_s=0.7),  # cut off, and late by then
        request(9, None, "cancelled", end_s=0.2),  # cut off too soon to tell
    ]
    found = beyond(bare_cell(), Requests.of(seen), {"ttft.p90": 500.0, "e2e.mean": 900.0})
    assert found == {"ttft.p90": Beyond(3 / 9, 9, 9.0, 0.1)}


def test_gaps_beyond_a_limit() -> None:
    metrics = request(0, 0.1)
    gaps = [array("f", each) for each in ([0.01] * 10, [0.01] * 8 + [0.09] * 2)]
    seen = [
        structs.replace(metrics, index=n, events=11, tokens=11, gaps_s=each)
        for n, each in enumerate(gaps)
    ]
    (found,) = beyond(bare_cell(), Requests.of(seen), {"itl.p90": 50.0}).values()
    assert (found.share, found.n, found.allowed) == (pytest.approx(0.1), 20, 0.1)
    assert found.worth < 20  # both late ones came in one reply


def cell(load: int, of: float, **changed: Any) -> Cell:
    seen = {"ttft.p95": Beyond(of, 400, 400.0, 0.05)}
    told: dict[str, Any] = {
        "concurrency": load,
        "requests": Counts(sent=400, ok=400),
        "slo": {"ttft.p95": Objective(500.0, 100.0, of <= 0.05)},
        "beyond": seen,
        "otps": 100.0 * load,
    }
    return bare_cell(**(told | changed))


def test_a_cell_that_is_invalid_says_nothing() -> None:
    assert beyonds(cell(4, 0.5)) == {"ttft.p95": Beyond(0.5, 400, 400.0, 0.05)}
    assert beyonds(cell(4, 0.5, verdict="invalid")) == {}


def test_an_objective_about_a_mean_is_met_or_not() -> None:
    told = {"e2e.mean": Objective(500.0, 700.0, False)}
    (found,) = beyonds(cell(4, 0.0, slo=told, beyond=None)).values()
    assert found.share > found.allowed


def test_an_unknown_objective_makes_a_load_unknown_unless_another_was_missed() -> None:
    known = Objective(500.0, 100.0, True)
    told = {"ttft.p95": known, "tpot.p99": Objective(50.0, None, None)}
    assert beyonds(cell(4, 0.0, slo=told)) == {}
    assert beyonds(cell(4, 0.9, slo=told)).keys() == {"ttft.p95"}


def test_the_answer_has_what_comes_out_at_it() -> None:
    cells = [cell(load, 0.0 if load <= 5 else 1.0) for load in (1, 4, 16, 8, 6, 5, 5, 6)]
    (found,) = answers(cells, 1, 64)
    assert (found.load, found.ci95, found.probes, found.by) == (5, (5, 5), 8, "concurrency")
    assert found.otps == 500.0
    assert found.limits_ms == {"ttft.p95": 500.0}


def test_without_objectives_there_is_no_answer() -> None:
    assert answers([cell(1, 0.0, slo=None)], 1, 64) == []


def test_what_was_broken_off_says_nothing_unless_the_server_refused() -> None:
    def broken_off(**failures: int) -> Cell:
        counts = Counts(sent=20, ok=10, failed=10, failures=failures)
        return cell(4, 0.5, verdict="partial", requests=counts)

    assert beyonds(broken_off()) == {}  # by the user
    assert beyonds(broken_off(refused=9, reset=1)) == {}  # the server is gone
    assert beyonds(broken_off(**{"http-503": 9, "timeout": 1})).keys() == {"ttft.p95"}


# ── for real ─────────────────────────────────────────────────────────────────────────────────────


def test_the_slots_of_a_server_are_found(
    truth: Truth, run_llmbench: Llmbench, in_process: InProcess, run_dir: Path
) -> None:
    """With four replies at a time, of 140 ms each, a fifth stream waits for 35 ms on average. A
    busy machine may make it less than four, if its stamps say that it was."""
    server = truth(ttft_ms=60, itl_ms=40, output_tokens=3, max_parallel=4)
    flags = "--slo ttft.p90=80ms --most 16 --requests 48 --output-tokens 3 --no-calibrate"
    done = run_llmbench(
        *("capacity", "--target", server.url, *flags.split(), "--out", run_dir), timeout_s=500
    )
    assert in_process("report", run_dir).out == done.out
    (found,) = stored(run_dir, "summary.json")["capacity"]
    assert (found["by"], found["limits_ms"]) == ("concurrency", {"ttft.p90": 80})
    if was_busy(run_dir):
        assert (found["load"] or 0) <= 4
    else:
        assert found["load"] == 4
        assert found["ci95"][0] <= 4 <= found["ci95"][1]
        assert "up to 4 requests in flight meet ttft.p90 ≤ 80 ms" in done.out, done.out
    loads = [line.split()[1] for line in done.out.splitlines()[3:] if line.startswith("127.")]
    numbers = [int(each) for each in loads if each.isdigit()]
    assert numbers == sorted(numbers)


def test_a_config_may_say_what_a_search_varies(tmp_path: Path) -> None:
    config = tmp_path / "c.toml"
    config.write_text('target = ["http://h"]\nby = "rate"\nmost = 9.5\nslo = "ttft.p95=1s"\n')
    found = load_search({}, config)
    assert (found.search, found.request_rate) == ("rate", [9.5])
    assert load_search({"most": 4.0}, config).request_rate == [4.0]
    for line in ('by = "both"', "most = 0", "most = 'x'", "most = true"):
        config.write_text(f'target = ["http://h"]\nslo = "ttft.p95=1s"\n{line}\n')
        with pytest.raises(UserError, match=rf"c\.toml: {line.split()[0]}: expected"):
            load_search({}, config)


def test_a_report_answers_by_the_objectives_that_it_was_given(
    truth: Truth, run_llmbench: Llmbench, in_process: InProcess, run_dir: Path
) -> None:
    server = truth(ttft_ms=20, itl_ms=1, output_tokens=4)
    flags = "--slo ttft.p90=2s --most 2 --requests 48 --output-tokens 4"
    run_llmbench("capacity", "--target", server.url, *flags.split(), "--out", run_dir)
    before = (run_dir / "summary.json").read_bytes()
    again = in_process("report", run_dir, "--slo", "ttft.p90=5ms")
    assert "no load that was tried meets ttft.p90 ≤ 5 ms" in again.out
    assert (run_dir / "summary.json").read_bytes() == before


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("", "--slo: say what is to be met"),
        ("--slo ttft.p95=1s --concurrency 4", "--concurrency: a search chooses its loads"),
        ("--slo ttft.p95=1s --least 9 --most 4", "--least 9: must be less than --most 4"),
        ("--slo ttft.p95=1s --by rate --batch-size 2", "--batch-size: a search chooses its loads"),
        ("--slo ttft.p95=1s --repeat 2", "--repeat: a search confirms its loads by itself"),
        ("--slo ttft.p95=1s --least 1.5", "--least 1.5: requests in flight are a whole number"),
        ("--slo ttft.p95=1s --most 1e9", "a whole number, at most 1,000,000"),
        ("--slo ttft.p95=1s --most 9.5", "--most 9.5: requests in flight are a whole number"),
    ],
)
def test_what_cannot_be_searched(in_process: InProcess, flags: str, words: str) -> None:
    done = in_process("capacity", "--target", "http://localhost:9", *flags.split())
    assert done.code == 2
    assert words in done.err
    assert len(done.err.splitlines()) == 1
