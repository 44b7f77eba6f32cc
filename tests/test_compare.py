"""Runs side by side: ratios, verdicts, what is refused, the formats and the exit codes."""

import argparse
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from msgspec.structs import replace
from test_summary import broken, request

from llmbench.apis import APIS
from llmbench.compare import add_flags, run
from llmbench.config import Sweep
from llmbench.errors import UserError
from llmbench.measure.claims import decide, holm, rounded, span, verdict
from llmbench.measure.compare import Estimate, Result, compare_cells, resampled
from llmbench.measure.likeness import Side, Stored, differences, matched
from llmbench.measure.metrics import measure
from llmbench.measure.requests import Requests
from llmbench.measure.statistics import Floats, student
from llmbench.measure.summary import summarize
from llmbench.measure.timeline import decode
from llmbench.records import CellFacts, Content, Load, Range, Target, Trace
from llmbench.store import RunDirectory

INF = math.inf
LOAD = Load(
    concurrency=1, prompt_tokens=128, output_tokens=3, requests=80, duration_s=None, warmup=0
)


def facts_of(cell: int = 0, **load: Any) -> CellFacts:
    return CellFacts(cell=cell, target=0, client="wire", load=replace(LOAD, **load), model="m")


def target(name: str = "h", **fields: Any) -> Target:
    return Target(spec=f"http://{name}", name=name, url=f"http://{name}/v1", **fields)


def lognormal(n: int, seed: int, scale: float = 1.0, sigma: float = 0.05) -> Floats:
    """TTFTs in ms about 50 × ``scale``."""
    return 50 * scale * np.exp(sigma * np.random.default_rng(seed).normal(size=n))


def traces(
    ttfts: Sequence[float] | Floats,
    failed: int = 0,
    fail: Callable[[float], Trace] = broken,
    **fields: Any,
) -> list[Trace]:
    """Requests of one stream with three tokens, 10% of the TTFT apart, and some among them that
    ``fail``."""
    sent, made = 0.0, []
    failing = set(np.random.default_rng(9).permutation(len(ttfts))[:failed].tolist())
    for index, ttft in enumerate(ttfts):
        made.append(request(sent, ttft, 1.1 * ttft, 1.2 * ttft, index=index, **fields))
        sent += 1.2 * ttft
        if index in failing:
            made.append(fail(sent))
            sent += 100
    return made


def stored(
    its: Sequence[Trace], facts: CellFacts | None = None, its_target: Target | None = None
) -> Stored:
    facts, its_target = facts or facts_of(), its_target or target()
    decoder = APIS[its_target.api].decode
    requests = Requests.of(measure(trace, decode(trace, decoder)) for trace in its)
    return Stored(facts, summarize(its_target, facts, requests), requests)


def results(base: Sequence[Stored], other: Sequence[Stored]) -> dict[str, Result]:
    """The results by metric, judged."""
    compared = compare_cells(Side(base), Side(other))
    decide(compared.results)
    return {each.metric: each for each in compared.results}


# ── ratios ───────────────────────────────────────────────────────────────────────────────────────


def test_a_run_against_itself_is_the_same() -> None:
    one = stored(traces(lognormal(400, 1, sigma=0.02)))
    told = results([one], [one])
    assert {each.ratio for each in told.values()} == {1.0}
    assert told["ttft.p50"].verdict.kind == "same"
    assert told["ttft.p50"].verdict.words == "same within 3%"
    assert all(low <= 1 <= high for low, high in (each.ci95 for each in told.values()))


def test_a_percentile_of_too_few_requests_has_its_bounds() -> None:
    """Of 40 requests a p95 has no interval; it is at least the 35th in order (test_estimates)."""
    a, b = stored(traces(lognormal(40, 1))), stored(traces(lognormal(40, 2, scale=3)))
    compared = compare_cells(Side([a]), Side([b]))
    assert "ttft.p95" in compared.left_out
    for side, (least, most) in zip((a, b), compared.bounds["ttft.p95"], strict=True):
        ordered = np.sort(side.requests.ttft_s) * 1e3
        assert (least, most) == (pytest.approx(ordered[34]), INF)
    assert "ttft.p50" not in compared.bounds
    assert "otps" not in compared.bounds


def test_what_the_client_could_not_time_is_not_compared() -> None:
    a, b = stored(traces(lognormal(100, 1))), stored(traces(lognormal(100, 2)))
    b.cell.untimed = {"ttft.p50": 12.0}
    left_out = compare_cells(Side([a]), Side([b])).left_out
    assert left_out["ttft.p50"] == "the client could not time it: it can be off by 12 ms"
    assert "ttft.p90" not in left_out


def test_ratios_are_of_the_figures_of_the_table() -> None:
    a, b = stored(traces(lognormal(100, 1))), stored(traces(lognormal(90, 2, scale=1.3)))
    told = results([a], [b])
    for p in ("p50", "p90"):
        for name in ("ttft", "tpot", "e2e"):
            mine, its = (getattr(getattr(each.cell, f"{name}_ms"), p) for each in (a, b))
            assert told[f"{name}.{p}"].ratio == pytest.approx(its / mine)
            assert told[f"{name}.{p}"].baseline.value == pytest.approx(mine)
    assert told["otps"].ratio == pytest.approx(b.cell.otps / a.cell.otps)
    assert told["requests_per_s"].other.value == pytest.approx(b.cell.requests_per_s)
    assert told["itl.p50"].baseline.n == 100


def test_what_was_taken_as_warmup_is_in_neither() -> None:
    slow_start = np.concatenate((lognormal(20, 3, scale=4), lognormal(100, 1)))
    one = stored(traces(slow_start))
    assert one.cell.warmup_removed == 20
    told = results([one], [stored(traces(lognormal(100, 1)))])
    assert told["ttft.p90"].baseline.n == one.cell.ttft_ms.n == 100
    assert told["ttft.p90"].ratio == pytest.approx(1.0)


def test_slower_and_faster() -> None:
    a, b = stored(traces(lognormal(100, 1))), stored(traces(lognormal(100, 2, scale=1.2)))
    slower, faster = results([a], [b]), results([b], [a])
    assert {each.verdict.kind for each in slower.values()} == {"slower"}
    assert {each.verdict.kind for each in faster.values()} == {"faster"}
    assert slower["ttft.p50"].verdict.words.endswith("% slower")
    assert slower["otps"].verdict.words.endswith("% less")
    assert faster["otps"].verdict.words.endswith("% more")
    low, high = slower["ttft.p50"].ci95
    assert 1.1 < low < 1.2 < high < 1.3


def test_a_percentile_that_the_sample_cannot_carry() -> None:
    a, b = stored(traces(lognormal(71, 1))), stored(traces(lognormal(400, 2)))
    compared = compare_cells(Side([a]), Side([b]))
    assert "ttft.p90" in {each.metric for each in compared.results}
    assert compared.left_out["ttft.p95"] == "p95 needs 72 independent requests a side; one has 71"
    assert compared.left_out["e2e.p99"].startswith("p99 needs 368")


def test_failures_are_without_end_and_keep_their_place() -> None:
    a = stored(traces(lognormal(100, 1)))
    b = stored(traces(lognormal(100, 2), failed=40))
    told = results([a], [b])
    assert told["ttft.p50"].ratio < 1.2
    assert told["ttft.p90"].ratio == INF
    assert told["ttft.p90"].ci95 == (INF, INF)
    assert told["ttft.p90"].verdict.kind == "slower"
    assert results([b], [a])["ttft.p90"].verdict.kind == "faster"
    compared = compare_cells(Side([b]), Side([b]))
    assert "no ratio of inf to inf" in compared.left_out["ttft.p90"]


def test_what_was_cut_off_is_no_quantile() -> None:
    def cut(sent_ms: float) -> Trace:
        return request(sent_ms, 60.0, finish="", error="cancelled", end_ms=100)

    b = stored(traces(lognormal(80, 2), failed=20, fail=cut))
    compared = compare_cells(Side([b]), Side([b]))
    assert "cut off" in compared.left_out["e2e.p90"]
    assert "e2e.p50" in {each.metric for each in compared.results}


def test_an_invalid_cell_is_not_compared() -> None:
    one = stored(traces(lognormal(80, 1)))
    bad = replace(one.cell, verdict="invalid", reasons=["client saturated"])
    compared = compare_cells(Side([one]), Side([one._replace(cell=bad)]))
    assert not compared.results
    assert set(compared.left_out.values()) == {"the other run is INVALID: client saturated"}


def test_what_was_never_answered_is_no_other_work() -> None:
    one = stored(traces(lognormal(80, 1)))
    none = stored([broken(n) for n in range(80)])
    assert differences(one, none) == []
    compared = compare_cells(Side([one]), Side([none]))
    (why,) = set(compared.left_out.values())
    assert why == "no request of the other run succeeded (80 reset: words)"
    counts = replace(none.cell.requests, details={})
    silent = none._replace(cell=replace(none.cell, requests=counts))
    turned = compare_cells(Side([silent]), Side([one]))
    assert set(turned.left_out.values()) == {"no request of the baseline succeeded (80 reset)"}
    assert [each.failed for each in compared.failures] == [0, 80]
    assert compared.failures[1].ci95[1] == 1.0


def test_an_open_loop_has_no_rate_to_compare() -> None:
    its = [request(100 * n, 50, 55, 60, due_ns=100_000_000 * n) for n in range(80)]
    one = stored(its, facts_of(rate="10", arrivals="constant"))
    compared = compare_cells(Side([one]), Side([one]))
    assert "open loop" in compared.left_out["otps"]
    assert "ttft.p95" in {each.metric for each in compared.results}


def test_static_batches_are_the_unit() -> None:
    base = np.repeat(lognormal(40, 1), 4)
    one = stored(traces(base), facts_of(batch_size=4))
    told = compare_cells(Side([one]), Side([one])).results
    p50 = next(each for each in told if each.metric == "ttft.p50")
    assert p50.baseline.n == 160
    assert p50.baseline.worth == pytest.approx(40, rel=0.2)


def test_the_ruler_widens_the_interval() -> None:
    a = stored(traces(lognormal(100, 1)))
    a.cell.ruler.ttft_error_ms = {"p50": 0.0, "p95": 0.0}
    sharp = results([a], [a])["ttft.p50"]
    a.cell.ruler.ttft_error_ms = {"p50": 2.5, "p95": 2.5}
    blunt = results([a], [a])["ttft.p50"]
    assert blunt.ruler == pytest.approx(5 / blunt.baseline.value)
    assert blunt.ci95[1] == pytest.approx(sharp.ci95[1] * (1 + blunt.ruler))
    assert blunt.verdict.words.startswith("can't tell: the ruler is off by up to")


# ── several runs a side ──────────────────────────────────────────────────────────────────────────


def test_resamples_keep_to_their_runs() -> None:
    rows = np.concatenate(list(resampled(np.random.default_rng(1), [30, 50], 1)))
    assert rows.shape == (2000, 80)
    assert (rows.min(), rows.max()) == (0, 79)
    parts = rows.reshape(2000, 2, 40) < 30
    assert (parts.all(axis=2) | (~parts).all(axis=2)).all()  # each part is of one run
    assert parts.all(axis=(1, 2)).mean() == pytest.approx(0.25, abs=0.05)  # both of the first


def test_blocks_are_neighbours() -> None:
    rows = np.concatenate(list(resampled(np.random.default_rng(1), [40], 4)))
    steps = np.diff(rows.reshape(2000, 10, 4), axis=2) % 40
    assert (steps == 1).all()


def test_runs_that_differ_among_themselves_prove_less() -> None:
    slower = [stored(traces(lognormal(100, seed, scale=1.1))) for seed in (1, 2, 3)]
    alike = [stored(traces(lognormal(100, seed))) for seed in (4, 5, 6)]
    apart = [
        stored(traces(lognormal(100, seed, scale=scale)))
        for seed, scale in ((4, 0.8), (5, 1.0), (6, 1.2))
    ]
    assert results(alike, slower)["ttft.p50"].verdict.kind == "slower"
    unsure = results(apart, slower)["ttft.p50"].verdict
    assert unsure.kind == "unknown"
    assert unsure.words.endswith("more runs")


def test_one_run_against_several_is_as_two_runs() -> None:
    alike = [stored(traces(lognormal(100, seed))) for seed in (1, 2, 3)]
    lone = stored(traces(lognormal(300, 4, scale=1.1)))
    p50 = results(alike, [lone])["ttft.p50"]
    assert (p50.baseline.runs, p50.other.runs) == (3, 1)
    assert p50.verdict.kind == "slower"
    assert 1.05 < p50.ci95[0] < p50.ci95[1] < 1.15


@pytest.mark.parametrize(
    ("freedom", "value"), [(1, 12.706), (2, 4.303), (4, 2.776), (8, 2.306), (30, 2.042)]
)
def test_students_t(freedom: int, value: float) -> None:
    assert student(0.975, freedom) == pytest.approx(value, rel=0.01)


# ── verdicts ─────────────────────────────────────────────────────────────────────────────────────


def result(
    ratio: float,
    half: float,
    metric: str = "ttft.p50",
    n: int = 100,
    headline: bool = True,
    p_value: float = 1.0,
) -> Result:
    """A result whose intervals are ``half`` wide on either side, on the scale of logarithms."""
    side = Estimate(value=1.0, ci95=(1, 1), n=n, worth=n, runs=1)
    bounds = [(ratio * math.exp(-h), ratio * math.exp(h)) for h in (half, half * 1.645 / 1.96)]
    return Result(
        metric=metric,
        headline=headline,
        baseline=side,
        other=side,
        ratio=ratio,
        ci95=bounds[0],
        ci90=bounds[1],
        ruler=0.0,
        p_value=p_value,
    )


def test_same_is_within_the_margin_as_a_whole() -> None:
    assert verdict(result(1.0, 0.02), False, 0.03, 1).kind == "same"
    assert verdict(result(1.02, 0.02), False, 0.03, 1).kind == "unknown"
    assert verdict(result(1.02, 0.02), False, 0.05, 1).words == "same within 5%"
    assert verdict(result(1.01, 0.005), True, 0.03, 1).kind == "same"  # so little does not matter


def test_how_many_more_are_needed() -> None:
    # 2.054 instead of 1.960 standard errors, for a test at 4%, and from 0.0629 half a width down to
    # log 1.03 = 0.02956: (0.0629 / 0.02956)² = 4.52 times as many
    assert verdict(result(1.0, 0.06), False, 0.03, 1).needs == 360
    # what was seen is 20%: half of it is enough, log 1.1 = 0.0953, and a quarter more at the least
    assert verdict(result(1.2, 0.06), False, 0.03, 1).needs == 25
    assert verdict(result(1.2, 0.2), False, 0.03, 1).words == "can't tell, needs ~390 more requests"
    # four tests, each at 1%: 2.576 standard errors
    assert verdict(result(1.0, 0.06), False, 0.03, 4).needs == 620


def test_how_many_more_runs_are_needed() -> None:
    one = result(1.0, 0.0591)  # at 4% (0.0591 × 1.048) / 0.02956 = 2.095 times too wide
    for side in ("baseline", "other"):
        setattr(one, side, replace(getattr(one, side), runs=3))
    # t(4) / √3 = 1.603, a 2.095th of it is 0.765; t(14) / √8 = 0.758, t(12) / √7 = 0.823
    told = verdict(one, False, 0.03, 1)
    assert (told.needs, told.words) == (5, "can't tell, needs ~5 more runs")


@pytest.mark.parametrize(
    ("ci95", "words"),
    [
        ((1.08, 1.12), "8–12%"),
        ((0.88, 0.92), "8–12%"),
        ((1.004, 1.16), "0.4–16%"),
        ((1.082, 1.084), "8.2–8.4%"),
        ((1.0821, 1.0824), "8.2%"),
        ((1.9, 2.2), "90–120%"),
        ((1.2, INF), "at least 20%"),
        ((INF, INF), "endlessly"),
        ((0.0, 0.0), "endlessly"),
    ],
)
def test_spans(ci95: tuple[float, float], words: str) -> None:
    assert span(ci95) == words


@pytest.mark.parametrize(
    ("count", "told"), [(0.3, 1), (7.2, 8), (140, 140), (141, 150), (9999, 10000)]
)
def test_two_digits_are_enough(count: float, told: int) -> None:
    assert rounded(count) == told


def test_holm() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005], 0.05) == [True, False, False, True]  # 0.03 > 0.05 / 2
    assert holm([0.012, 0.016, 0.02, 0.04], 0.05) == [True] * 4
    assert holm([0.039, 0.001]) == [True, True]
    assert holm([]) == []


def test_the_other_metrics_are_tested_where_a_headline_metric_differs() -> None:
    tail = result(1.5, 0.1, "ttft.p99", headline=False, p_value=1e-9)
    calm, loud = (result(1.0, 0.1), result(1.5, 0.1, p_value=1e-9))
    decide([calm, tail])
    assert (calm.verdict.kind, tail.verdict.kind) == ("unknown", "unknown")
    decide([loud, tail])
    assert (loud.verdict.kind, tail.verdict.kind) == ("slower", "slower")


def test_equal_runs_are_seldom_called_different() -> None:
    called = 0
    for seed in range(40):
        sides = [[stored(traces(lognormal(72, 2 * seed + side, sigma=0.3)))] for side in (0, 1)]
        kinds = {each.verdict.kind for each in results(*sides).values()}
        called += bool(kinds & {"slower", "faster"})
    assert called <= 6  # 2 are expected; the benchmark has the exact share


# ── what is compared with what ───────────────────────────────────────────────────────────────────

ONE = stored(traces([50.0] * 3))


def at(name: str = "h", **load: Any) -> Stored:
    facts = facts_of(**load)
    cell = replace(ONE.cell, target=name, cache_asked=facts.load.content.cache)
    return Stored(facts, cell, Requests.of(()))


def test_one_target_each_matches_by_load() -> None:
    mine = [at("old", concurrency=c) for c in (1, 8)]
    its = [at("new", concurrency=c) for c in (8, 32)]
    pairs, left, right = matched(mine, its)
    assert [(a.facts.load.concurrency, b.cell.target) for a, b in pairs] == [(8, "new")]
    assert [each.facts.load.concurrency for each in (*left, *right)] == [1, 32]


def test_several_targets_match_by_name() -> None:
    mine = [at(name, concurrency=c) for name in ("x", "y") for c in (1, 8)]
    pairs, left, right = matched(mine, list(reversed(mine)))
    assert all(a is b for a, b in pairs)
    assert not left
    assert not right


def test_cold_and_warm_are_paired_with_their_like_or_refused() -> None:
    cold, warm = at(), at(content=Content(cache="warm"))
    assert matched([cold, warm], [warm, cold])[0] == [(cold, cold), (warm, warm)]
    assert matched([cold], [warm])[0] == [(cold, warm)]
    assert differences(cold, warm) == ["cache cold against warm"]


def test_single_cells_are_paired_whatever_they_are() -> None:
    one, other = at(concurrency=1), at(concurrency=2)
    assert matched([one], [other])[0] == [(one, other)]
    assert differences(one, other) == ["concurrency 1 against 2"]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"api": "completions"}, "api chat against completions"),
        ({"cache": "warm"}, "cache cold against warm"),
        ({"measured_prompt_tokens": Range(130, 130, 130)}, ""),
        ({"measured_prompt_tokens": Range(131, 131, 131)}, "prompts of 128 against 131 tokens"),
        ({"measured_output_tokens": Range(1, 4, 9)}, "replies of 3 against 4 tokens"),
    ],
)
def test_differences_of_cells(fields: dict[str, Any], words: str) -> None:
    told = differences(ONE, ONE._replace(cell=replace(ONE.cell, **fields)))
    assert len(told) == bool(words)
    assert all(line.startswith(words) for line in told)


@pytest.mark.parametrize(
    ("load", "words"),
    [
        ({"rate": "8", "arrivals": "poisson"}, "request rate none against 8"),
        ({"content": Content(natural_stops=True)}, "natural stops off against on"),
        ({"content": Content(text="code")}, "text lighthouse against code"),
        ({"content": Content(turns=4)}, "turns 1 against 4"),
        ({"batch_size": 4}, "batch size none against 4"),
    ],
)
def test_differences_of_loads(load: dict[str, Any], words: str) -> None:
    other = ONE._replace(facts=facts_of(**load))
    assert words in differences(ONE, other)


def test_stamps_differ() -> None:
    other = stored(traces([50.0] * 3, stamps="user"))
    assert "stamps kernel against user" in differences(ONE, other)


# ── the command ──────────────────────────────────────────────────────────────────────────────────

MakeRun = Callable[..., str]


@pytest.fixture
def make_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MakeRun:
    """Write a run of one target, a cell for each item; returns how to name it."""
    monkeypatch.chdir(tmp_path)

    def make(
        name: str,
        *cells: tuple[CellFacts, list[Trace]],
        api: str = "chat",
        targets: Sequence[str] = (),
    ) -> str:
        its = [target(each, api=api) for each in targets or (name,)]
        directory = RunDirectory.create(Sweep(out=name), its, {})
        for number, (facts, its) in enumerate(cells):
            numbered = [replace(trace, cell=number) for trace in its]
            directory.add_cell(replace(facts, cell=number), numbered)
        return name

    return make


def simple(make_run: MakeRun, name: str, seed: int, scale: float = 1.0, n: int = 100) -> str:
    return make_run(name, (facts_of(), traces(lognormal(n, seed, scale))))


def command(*words: str) -> int:
    parser = argparse.ArgumentParser()
    add_flags(parser)
    return run(parser.parse_args(words))


def test_the_table(make_run: MakeRun, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = simple(make_run, "old", 1), simple(make_run, "new", 2, scale=1.2)
    assert command(a, b) == 0
    out = capsys.readouterr().out
    lines = out.splitlines()
    assert lines[:2] == ["A: old", "B: new"]
    assert lines[2].startswith("one run a side: what changes from run to run is in no interval")
    assert lines[4] == "1 in flight, prompts of 128, replies of 3"
    row = next(line for line in lines if line.startswith("ttft.p50 ms"))
    assert "% slower" in row
    assert " ±" in row
    assert "1.2" in row
    assert max(map(len, lines)) <= 100
    assert "tested for a difference: ttft.p50, ttft.p95, itl.p50, otps" in out.replace(
        "tok/s", "otps"
    )
    assert "p99 needs 368" in " ".join(out.split())


def test_all_formats_say_the_same(make_run: MakeRun, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = simple(make_run, "old", 1), simple(make_run, "new", 2, scale=1.2)
    assert command(a, b, "--format", "json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["schema"] == "llmbench.compare/1"
    assert (told["baseline"], told["runs"], told["margin"]) == ("old", ["old", "new"], 0.03)
    (pair,) = told["pairs"]
    p50 = next(each for each in pair["results"] if each["metric"] == "ttft.p50")
    assert p50["verdict"]["kind"] == "slower"
    assert p50["headline"]
    command(a, b, "--format", "markdown")
    out = capsys.readouterr().out
    assert "| ttft.p50 ms " in out
    assert p50["verdict"]["words"] in out


def test_a_matrix(make_run: MakeRun, capsys: pytest.CaptureFixture[str]) -> None:
    names = [simple(make_run, f"run{n}", n, scale=1 + n / 5, n=300) for n in range(10)]
    assert command(*names, "--baseline", "run1") == 0
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 100
    assert out.startswith("A: run1\nB: run0\nC: run2\n")
    heads = [line.split() for line in out.splitlines() if line.startswith("metric")]
    assert len(heads) == 2  # nine columns are too many for one
    row = next(line for line in out.splitlines() if line.startswith("ttft.p50 ms"))
    assert row.count("*") == 7
    assert "*: differs from A beyond chance" in out
    command(*names, "--format", "markdown")
    assert "1.20* |" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("rule", "code", "word"),
    [
        ("ttft.p95 > +5%", 1, "FAILED"),
        ("ttft.p95 > +50%", 0, "passed"),
        ("ttft.p99 > +5%", 0, "not known (does not fail)"),
        ("ttft.p50 > 40ms", 1, "FAILED"),
        ("otps < -5%", 1, "FAILED"),
    ],
)
def test_the_gate(
    make_run: MakeRun, capsys: pytest.CaptureFixture[str], rule: str, code: int, word: str
) -> None:
    a, b = simple(make_run, "old", 1), simple(make_run, "new", 2, scale=1.2)
    assert command(a, b, "--single", "--fail-if", rule) == code
    assert f"{word}: {rule} at 1 in flight" in " ".join(capsys.readouterr().out.split())


def test_junit(make_run: MakeRun, capsys: pytest.CaptureFixture[str]) -> None:
    loads = [facts_of(), facts_of(prompt_tokens=64)]
    a = make_run("old", *((each, traces(lognormal(100, 1))) for each in loads))
    b = make_run("n<w", *((each, traces(lognormal(100, 2, 1.2))) for each in loads))
    rules = ("--fail-if", "ttft.p50 > +5%", "--fail-if", "ttft.p99>5%", "--fail-if", "e2e.p50>90%")
    assert command(a, b, "--single", "--format", "junit", *rules) == 1
    suite = ElementTree.fromstring(capsys.readouterr().out.split("\n", 1)[1])[0]
    counts = suite.get("tests"), suite.get("failures"), suite.get("skipped")
    assert counts == ("6", "2", "2")
    first = suite[0]
    assert first.get("name") == "ttft.p50 > +5%"
    assert first.get("classname").startswith("n<w: 1 in flight")
    assert first[0].tag == "failure"
    assert suite[1][0].get("message").startswith("not known: p99 needs")


def test_other_work_is_refused_unless_told(
    make_run: MakeRun, capsys: pytest.CaptureFixture[str]
) -> None:
    a = make_run("old", (facts_of(), traces(lognormal(80, 1))))
    b = make_run("new", (facts_of(), traces(lognormal(80, 2), prompt=140)))
    with pytest.raises(UserError) as refusal:
        command(a, b)
    assert refusal.value.exit_code == 2
    assert "prompts of 128 against 140 tokens" in str(refusal.value)
    assert "--anyway" in str(refusal.value)
    assert command(a, b, "--anyway") == 0
    assert "other work, compared all the same" in capsys.readouterr().out


def test_several_runs_a_side(make_run: MakeRun, capsys: pytest.CaptureFixture[str]) -> None:
    for seed in range(3):
        simple(make_run, f"a{seed}", seed)
        simple(make_run, f"b{seed}", 10 + seed, scale=1.2)
    assert command("a0,a1,a2", "b0,b1,b2", "--format", "json") == 0
    (pair,) = json.loads(capsys.readouterr().out)["pairs"]
    p50 = pair["results"][0]
    assert (p50["baseline"]["runs"], p50["baseline"]["n"]) == (3, 300)
    assert p50["verdict"]["kind"] == "slower"
    command("a0,a1,a2", "b0,b1,b2")
    assert "from run to run" not in capsys.readouterr().out


def test_repeats_of_a_run_are_runs(make_run: MakeRun, capsys: pytest.CaptureFixture[str]) -> None:
    for name, scale in (("old", 1.0), ("new", 1.2)):
        repeats = [replace(facts_of(), row=0, repeat=repeat) for repeat in range(3)]
        cells = [(its, traces(lognormal(100, n, scale))) for n, its in enumerate(repeats)]
        make_run(name, *cells)
    assert command("old", "new", "--format", "json") == 0
    (pair,) = json.loads(capsys.readouterr().out)["pairs"]
    assert pair["results"][0]["baseline"]["runs"] == 3
    assert pair["results"][0]["baseline"]["n"] == 300


def test_an_invalid_run_of_several_is_left_out_and_named(
    make_run: MakeRun, capsys: pytest.CaptureFixture[str]
) -> None:
    good = [simple(make_run, f"run{seed}", seed) for seed in range(4)]
    crowded = make_run("bad", (facts_of(concurrency=1), traces(lognormal(100, 9), lag_ms=60)))
    assert command(f"{good[0]},{crowded},{good[1]}", f"{good[2]},{good[3]}") == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "not compared: 1 in flight, prompts of 128, replies of 3, one of 3 runs of bad" in out


def test_targets_of_one_run_are_compared_in_the_order_in_which_they_were_named(
    make_run: MakeRun, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whichever was run first."""
    its = traces(lognormal(80, 1))
    cells = [(replace(facts_of(), target=number), its) for number in (1, 0)]
    run = make_run("both", *cells, targets=("old", "new"))
    assert command(run) == 0
    assert capsys.readouterr().out.startswith("A: old\nB: new\n")


def test_failures_of_either_side_are_said(
    make_run: MakeRun, capsys: pytest.CaptureFixture[str]
) -> None:
    its = traces(lognormal(80, 1))
    a = make_run("old", (facts_of(), its))
    b = make_run("new", (facts_of(), [broken(n) if n % 4 == 3 else x for n, x in enumerate(its)]))
    assert command(a, b, "--fail-if", "failed > 1%") == 1
    out = " ".join(capsys.readouterr().out.split())
    assert (
        "failed requests at 1 in flight, prompts of 128, replies of 3: A 0 of 80, B 20 of 80" in out
    )
    assert "FAILED: failed > 1% at 1 in flight, prompts of 128, replies of 3: 20 of 80 [" in out


def test_what_has_no_partner_is_named(
    make_run: MakeRun, capsys: pytest.CaptureFixture[str]
) -> None:
    its = traces(lognormal(80, 1))
    a = make_run("old", (facts_of(), its), (facts_of(concurrency=8), its))
    b = make_run("new", (facts_of(), its))
    assert command(a, b) == 0
    assert "not compared: 8 in flight, prompts of 128, replies of 3: in old alone" in " ".join(
        capsys.readouterr().out.split()
    )


def test_nothing_to_compare(make_run: MakeRun) -> None:
    a, b = simple(make_run, "old", 1, n=3), simple(make_run, "new", 2, n=3)
    with pytest.raises(UserError) as problem:
        command(a, b, "--single", "--fail-if", "ttft.p50 > 1%")
    assert problem.value.exit_code == 3
    assert "p50 needs 6" in str(problem.value)


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["old"], "two runs or more"),
        (["old", "old"], "named twice"),
        (["old", "./old"], "named twice"),
        (["old,old", "new"], "named twice"),
        (["old,new", "new"], "named twice"),
        (["old", "old,"], "named twice"),
        (["old", "gone"], "gone: not a run directory"),
        (["old", "new", "--baseline", "x"], "--baseline x: none of the runs"),
        (["old", "new", "--margin", "3"], "--margin 3: write a percentage"),
        (["old", "new", "--margin", "-3%"], "--margin"),
        (["old", "new", "--format", "junit"], "--fail-if"),
        (["old", "new", "--fail-if", "ttft > 3"], "--fail-if"),
        (["old", "new", "--fail-if", "ttft.p50 > 3ms"], "old is one run"),
    ],
)
def test_wrong_usage(make_run: MakeRun, words: list[str], why: str) -> None:
    simple(make_run, "old", 1, n=3)
    simple(make_run, "new", 2, n=3)
    words = [f"--margin={words[3]}", *words[:2]] if "--margin" in words else words
    with pytest.raises(UserError) as problem:
        command(*words)
    assert why in str(problem.value)
    assert problem.value.exit_code == 2
    assert "\n" not in str(problem.value)
