"""A turn against its budget: stages, sums, chances and verdicts, by hand or simulated."""

import argparse
import json
import math
import xml.etree.ElementTree as ET
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT, InProcess, Llmbench, content, finish, was_busy
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import beta, lognorm
from test_speech import trace_of

from llmbench import budget as command
from llmbench.errors import UserError
from llmbench.measure.budget import (
    Chance,
    Level,
    Stage,
    Sums,
    chance,
    generator,
    left_s,
    read_stage,
    sampled_stage,
    share_interval,
    sums,
    turns_s,
    verdict,
)
from llmbench.measure.requests import Requests
from llmbench.measure.speech import Manner
from llmbench.measure.summary import summarize
from llmbench.measure.turn_budget import budget_row, counted, spoken
from llmbench.records import CellFacts, Load, Target, Trace
from llmbench.store import RunDirectory
from llmbench.truth.process import TruthServer

INF = math.inf
FIXED = [read_stage("stt", "150ms"), read_stage("tts", "120ms"), read_stage("net", "60ms")]


def spent(*stages: Stage, draws: int = 20_000) -> Sums:
    return sums(stages, generator(1), draws)


def flags(*words: object) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    command.add_flags(parser)
    return parser.parse_args(list(map(str, words)))


# ── stages ───────────────────────────────────────────────────────────────────────────────────────


def test_a_fixed_stage() -> None:
    stage = read_stage("stt", "150ms")
    assert (stage.fixed, stage.values_s.tolist(), stage.sampled) == (True, [0.15], False)


def test_p50_and_p95_make_the_lognormal_through_both() -> None:
    stage = read_stage("stt", "120ms/300ms")
    assert stage.quantile_s(0.5) == pytest.approx(0.12, rel=1e-3)
    assert stage.quantile_s(0.95) == pytest.approx(0.3, rel=1e-3)
    law = lognorm(math.log(300 / 120) / 1.6448536, scale=0.12)
    assert stage.quantile_s(0.8) == pytest.approx(law.ppf(0.8), rel=1e-3)
    assert stage.values_s.mean() == pytest.approx(law.mean(), rel=1e-3)
    assert read_stage("stt", "120ms/120ms").fixed


def test_a_distribution_in_the_words_of_think_times() -> None:
    assert read_stage("stt", "uniform(0.1,0.3)").quantile_s(0.5) == pytest.approx(0.2, rel=1e-3)


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("150", "no unit"),
        ("fast", "no time"),
        ("300ms/120ms", "lower first"),
        ("0ms/120ms", "lower first"),
        ("120ms/uniform(1,2)", "lower first"),
        ("lognormal(1)", "lognormal(median,sigma)"),
        ("-5ms", "no time"),
    ],
)
def test_a_stage_that_is_none(text: str, word: str) -> None:
    with pytest.raises(UserError, match=r"^--stage stt: ") as raised:
        read_stage("stt", text)
    assert word in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("text", "values_s"),
    [
        ("stt_ms\n150\n200.5\n", [0.15, 0.2005]),
        ("time (s)\n0.15,x\n0.2,y\n", [0.15, 0.2]),
        ("150ms\n0.2s\n", [0.15, 0.2]),
        ("latency\n150 ms\n\n1.5s\n", [0.15, 1.5]),
    ],
)
def test_samples_of_a_stage(tmp_path: Path, text: str, values_s: list[float]) -> None:
    path = tmp_path / "s.csv"
    path.write_text(text)
    assert command.read_samples(path, "--stage stt") == pytest.approx(values_s)


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("150\n200\n", "line 1: '150' has no unit"),
        ("stt_ms\n150\nslow\n", "line 3: 'slow' is no time"),
        ("stt_ms\n", "no samples"),
        ("", "no samples"),
    ],
)
def test_samples_that_are_none(tmp_path: Path, text: str, word: str) -> None:
    path = tmp_path / "s.csv"
    path.write_text(text)
    with pytest.raises(UserError, match=word):
        command.read_samples(path, "--stage stt")


# ── sums ─────────────────────────────────────────────────────────────────────────────────────────


def test_fixed_stages_are_added() -> None:
    total = spent(*FIXED)
    assert total.total_s.tolist() == pytest.approx([0.33])
    assert left_s(total, 0.8, 0.95) == pytest.approx(0.47)
    assert spent().total_s.tolist() == [0]
    waits = np.array([0.4, 0.2, INF])
    assert turns_s(waits, total, generator(0)).tolist() == pytest.approx([0.53, 0.73, INF])


def test_percentiles_do_not_add() -> None:
    """Two lognormals of p95 300 ms each: together less than 600, as convolving them says."""
    stage = read_stage("a", "120ms/300ms")
    together = np.sort(spent(stage, stage, draws=100_000).total_s)
    rng = np.random.default_rng(5)
    sigma = math.log(2.5) / 1.6448536
    truth = 0.12 * np.exp(sigma * rng.standard_normal((2, 1_000_000))).sum(axis=0)
    p95 = float(np.quantile(truth, 0.95))
    assert p95 < 0.52
    assert float(np.quantile(together, 0.95)) == pytest.approx(p95, rel=0.02)
    assert left_s(Sums(together, []), 1.0, 0.95) == pytest.approx(1 - p95, rel=0.02)


# ── chances ──────────────────────────────────────────────────────────────────────────────────────


def test_with_fixed_stages_turns_are_counted() -> None:
    waits = np.array([0.1] * 90 + [0.6] * 7 + [INF] * 3)
    told = chance(waits, spent(*FIXED), 0.8)
    assert told is not None
    assert told.value == 0.9
    assert told.low == pytest.approx(beta.ppf(0.025, 90, 11))
    assert told.high == pytest.approx(beta.ppf(0.975, 91, 10))
    assert chance(np.empty(0), spent(*FIXED), 0.8) is None


def test_with_random_stages_each_wait_has_its_chance() -> None:
    """A stage of 0 to 1 s evenly, a budget of 1 s: a wait of w seconds has the chance 1 − w."""
    stage = read_stage("stt", "uniform(0,1)")
    told = chance(np.array([0.25, 0.5, INF]), spent(stage), 1.0)
    assert told is not None
    assert told.value == pytest.approx((0.75 + 0.5 + 0) / 3, abs=1e-3)
    # 72 turns of the same wait tell more than 72 counts would, but not all
    same = chance(np.full(72, 0.25), spent(stage), 1.0)
    assert same is not None
    count_low, count_high = share_interval(0.75, 72)
    assert count_low < same.low < same.value < same.high < count_high


def test_a_few_samples_of_a_stage_are_worth_no_more_than_they_are() -> None:
    waits, stage = np.full(10_000, 0.3), sampled_stage("stt", "@s.csv", [0.1] * 18 + [0.9] * 2)
    told = chance(waits, spent(stage), 0.8)
    assert told is not None
    assert told.value == pytest.approx(0.9)
    low, high = share_interval(0.9, 20)
    assert (told.low, told.high) == (pytest.approx(low, abs=0.01), pytest.approx(high, abs=0.01))


@pytest.mark.parametrize("hits", [0, 1, 36, 71, 72])
def test_the_interval_is_clopper_and_pearsons(hits: int) -> None:
    low, high = share_interval(hits / 72, 72)
    assert low == pytest.approx(beta.ppf(0.025, hits, 73 - hits) if hits else 0, abs=1e-9)
    assert high == pytest.approx(beta.ppf(0.975, hits + 1, 72 - hits) if hits < 72 else 1, abs=1e-9)


@settings(max_examples=30)  # each takes bisections of a beta distribution
@given(st.floats(0, 1), st.floats(0.5, 1e6))
def test_an_interval_holds_its_share(share: float, n: float) -> None:
    low, high = share_interval(share, n)
    assert 0 <= low <= share + 1e-9
    assert share - 1e-9 <= high <= 1


RANDOM = (("stt", "120ms/300ms"), ("tts", "120ms/200ms"), ("net", "60ms"))


def _plain(rng: np.random.Generator, n: int) -> Any:
    return 0.3 * np.exp(0.25 * rng.standard_normal(n))


def _stalling(rng: np.random.Generator, n: int) -> Any:
    """Nearly always 300 ms; one turn in fifty takes 2 s, and one in a hundred never comes."""
    chances = rng.random(n)
    waits = 0.3 + 0.01 * rng.standard_normal(n)
    return np.where(chances < 0.01, INF, np.where(chances < 0.03, 2.0, waits))


@pytest.mark.slow
@pytest.mark.parametrize("draw", [_plain, _stalling])
@pytest.mark.parametrize(
    ("stages", "sampled"),
    [((("all", "330ms"),), False), (RANDOM, False), (RANDOM[1:], True)],
    ids=["fixed", "random", "sampled"],
)
@pytest.mark.parametrize("requests", [24, 72])
def test_the_interval_holds_the_truth(
    draw: Callable[[np.random.Generator, int], Any],
    stages: Sequence[tuple[str, str]],
    sampled: bool,
    requests: int,
) -> None:
    """In 93 of 100 simulated runs at least; the truth comes from a million turns."""
    budget_s, rng = 0.85, np.random.default_rng(7)

    def stt(count: int) -> Any:
        return 0.15 * np.exp(0.5 * rng.standard_normal(count))

    total = draw(rng, 1_000_000)
    for name, text in stages:
        total += rng.choice(read_stage(name, text).values_s, len(total))
    truth = float((total + (stt(len(total)) if sampled else 0) <= budget_s).mean())
    held = 0
    for _ in range(100):
        its = [read_stage(name, text) for name, text in stages]
        if sampled:
            its.append(sampled_stage("stt", "@stt.csv", stt(100).tolist()))
        told = chance(draw(rng, requests), sums(its, rng, 10_000), budget_s)
        assert told is not None
        held += told.low <= truth <= told.high
    assert held >= 93


# ── the verdict ──────────────────────────────────────────────────────────────────────────────────

SURE, LIKELY, NO = Chance(0.99, 0.96, 1.0), Chance(0.97, 0.9, 0.99), Chance(0.8, 0.7, 0.9)


@pytest.mark.parametrize(
    ("chances", "sure", "probable"),
    [
        ({1: SURE, 8: SURE, 24: NO}, 8, 8),
        ({24: NO, 8: SURE, 1: SURE}, 8, 8),
        ({1: SURE, 8: LIKELY, 24: NO}, 1, 8),
        ({1: LIKELY, 8: SURE, 24: NO}, None, 8),
        ({1: NO, 8: SURE}, None, None),
        ({1: SURE, 8: None, 24: SURE}, 1, 1),
        ({1: None}, None, None),
    ],
)
def test_up_to_which_load(
    chances: dict[float, Chance | None], sure: float | None, probable: float | None
) -> None:
    found = verdict([Level(load, its) for load, its in chances.items()], 0.95)
    assert (found.sure, found.probable, found.most) == (sure, probable, max(chances))


# ── the command ──────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", ["voice-strict", "voice", "chat-reading", "agent"])
def test_the_presets_can_be_used(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = command.settings_from(flags("RUN", "--preset", name))
    asked = command.read_budget(settings)
    assert asked.budget_s > 0
    assert left_s(asked.spent, asked.budget_s, 0.5) > 0


def test_flags_go_over_a_preset_of_ones_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs/s.csv").write_text("100ms\n300ms\n")
    (tmp_path / "configs/budget-mine.toml").write_text(
        'budget = "1s"\nchars = 30\n[stage]\nstt = "@s.csv"\ntts = "100ms"\n'
    )
    words = ("RUN", "--preset", "mine", "--budget", "900ms", "--stage", "tts=50ms")
    settings = command.settings_from(flags(*words, "--stage", "net=30ms"))
    assert (settings.budget, settings.chars) == ("900ms", 30)
    assert settings.stage == {"stt": "@configs/s.csv", "tts": "50ms", "net": "30ms"}
    asked = command.read_budget(settings)
    assert asked.stages[0].values_s.tolist() == [0.1, 0.3]
    assert asked.manner.first_deadline_s == pytest.approx(0.9 - 0.1 - 0.08)  # p50: the first


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "give --budget"),
        (("--budget", "800"), "--budget: '800' has no unit"),
        (("--budget", "0ms"), "a turn takes time"),
        (("--budget", "uniform(1,2)"), "write one time"),
        (("--budget", "1s", "--share", "1"), "--share: '1'"),
        (("--budget", "1s", "--share", "100%"), "--share"),
        (("--budget", "1s", "--stage", "stt"), "NAME=TIME"),
        (("--budget", "1s", "--stage", "a=1ms", "--stage", "a=2ms"), "twice"),
        (("--budget", "1s", "--stage", "a=@/none.csv"), "cannot be read"),
        (("--budget", "1s", "--speak", "0"), "--speak: expected"),
        (("--preset", "nope"), "agent, chat-reading, voice, voice-strict"),
        (("--preset", "/nope.toml"), "cannot be read"),
    ],
)
def test_wrong_usage_is_one_line(words: Sequence[str], message: str) -> None:
    with pytest.raises(UserError) as raised:
        command.read_budget(command.settings_from(flags("RUN", *words)))
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("text", ["stages = 1", "budget = 5", "budget = ", "[stage]\nstt = 5"])
def test_a_preset_that_is_none(tmp_path: Path, text: str) -> None:
    path = tmp_path / "p.toml"
    path.write_text(text)
    with pytest.raises(UserError, match=r"p\.toml"):
        command.settings_from(flags("RUN", "--preset", path))


def ran(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str]:
    code = command.run(flags(*words))
    return code, capsys.readouterr().out


THREE = ("--stage", "stt=150ms", "--stage", "tts=120ms", "--stage", "network=60ms")


def test_a_stored_run(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """The sample of 1, 8 and 32 users, whose TTSC p50 are 171, 1,307 and 4,491 ms."""
    svg = tmp_path / "b.svg"
    words = (ROOT / "results/sample", "--budget", "3s", *THREE)
    code, text = ran(capsys, *words, "--svg", svg)
    assert code == 0
    assert "left for the LLM at 95%: 2,670 ms" in text
    assert max(map(len, text.splitlines())) <= 100
    drawing = svg.read_text()
    assert ET.fromstring(drawing).tag.endswith("svg")
    assert "4,491" in drawing
    code, text = ran(capsys, *words, "--format", "json")
    report = json.loads(text)
    assert [row["concurrency"] for row in report["rows"]] == [1, 8, 32]
    assert [round(row["ttsc_ms"]["p50"]) for row in report["rows"]] == [171, 1307, 4491]
    assert report["rows"][0]["in_budget"] == 1
    assert report["rows"][2]["in_budget"] == pytest.approx(0.12, abs=0.005)
    assert report["verdicts"][0]["unit"] == "users"
    code, text = ran(capsys, *words, "--format", "csv")
    assert len(text.splitlines()) == 4
    code, text = ran(capsys, *words, "--format", "markdown")
    assert "| 32 " in text


def test_a_share_that_is_asked_for_is_a_gate(capsys: pytest.CaptureFixture[str]) -> None:
    words = (ROOT / "results/sample", "--budget", "500ms", *THREE)
    code, text = ran(capsys, *words)
    assert code == 0
    assert "not even 1 user at 95%" in text
    assert ran(capsys, *words, "--share", "95%")[0] == 1
    assert ran(capsys, *words[:2], "3s", *THREE, "--share", "95%")[0] == 0


def test_several_targets_fit_and_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    _, text = ran(capsys, ROOT / "results/sample-servers", "--budget", "1s", *THREE)
    assert max(map(len, text.splitlines())) <= 100
    assert "llama.cpp server via wire at 64 prompt tokens: " in text


def test_turns_of_a_conversation(
    truth: Callable[..., TruthServer],
    run_llmbench: Llmbench,
    run_dir: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    server = truth(output_tokens=12)
    done = run_llmbench(
        *("sweep", "--target", server.url, "--concurrency", "2", "--turns", "3"),
        *("--requests", "12", "--output-tokens", "12", "--no-calibrate", "--out", run_dir),
    )
    assert done.code in (0, 4), done.err
    words = (run_dir, "--budget", "60s", "--stage", "stt=100ms/200ms")
    _, text = ran(capsys, *words, "--format", "json")
    (row,) = json.loads(text)["rows"]
    assert (row["turns"], row["answered"], row["in_budget"]) == (12, 12, 1)
    assert [turn["turn"] for turn in row["by_turn"]] == [1, 2, 3]
    prompts = [turn["prompt_tokens"]["p50"] for turn in row["by_turn"]]
    assert prompts == sorted(set(prompts))
    code, text = ran(capsys, *words)
    assert "turn  requests" in text
    assert code == 0


def test_where_nothing_was_answered_one_line_says_why(
    truth: Callable[..., TruthServer],
    run_llmbench: Llmbench,
    in_process: InProcess,
    run_dir: Path,
) -> None:
    server = truth(truncate_at=4)
    sweep = ("sweep", "--target", server.url, "--concurrency", "1", "--requests", "3")
    run_llmbench(*sweep, "--no-calibrate", "--out", run_dir)
    done = in_process("budget", run_dir, "--budget", "60s")
    assert (done.code, done.out) == (3, "")
    assert "in the middle of the reply" in done.err
    assert len(done.err.splitlines()) == 1
    told = in_process("budget", run_dir, "--budget", "60s", "--format", "json")
    assert told.code == 3
    (row,) = json.loads(told.out)["rows"]
    assert row["verdict"] == "invalid"


# ── one cell, from its traces ────────────────────────────────────────────────────────────────────

MS = 1_000_000
TARGET = Target(spec="t", name="t", url="http://h/v1")
FACTS = CellFacts(
    cell=0,
    target=0,
    client="wire",
    load=Load(
        concurrency=2, prompt_tokens=8, output_tokens=5, requests=8, duration_s=None, warmup=0
    ),
)


def replies(count: int, **fields: Any) -> list[Trace]:
    """Replies that can be spoken after 100 ms, or fail."""
    return [
        trace_of(
            *((100, content("Yes. It")), (200, finish())),
            **({"index": index, "sent_ns": index * 1000 * MS, "end_ns": 200 * MS} | fields),
        )
        for index in range(count)
    ]


def test_failures_are_turns_that_are_never_in_budget() -> None:
    traces = [*replies(6), *replies(1, status=500, sent_ns=9000 * MS)]
    traces += replies(1, error="cancelled", sent_ns=9500 * MS)
    asked = command.read_budget(command.Settings(budget="250ms", stage={"stt": "150ms"}))
    requests = spoken(TARGET, traces, asked.manner)
    cell = summarize(TARGET, FACTS, Requests.of(each.request for each in requests))
    row = budget_row(cell, requests, asked)
    assert (cell.requests.ok, cell.requests.failed, cell.requests.cancelled) == (6, 1, 1)
    # the one that was cut off had been heard by then
    assert (row.turns, row.answered, row.in_budget) == (8, 7, 7 / 8)
    assert row.in_budget_ci95 == pytest.approx(share_interval(7 / 8, 8))
    assert (row.ttsc_ms.n, row.ttsc_ms.p50, row.turn_ms.p50) == (8, 100, 250)
    assert (row.stalls, row.stalled_share) == (0, 0)


def test_a_turn_that_was_cut_off_within_its_budget_counts_neither_way() -> None:
    traces = replies(6)
    for number, waited_ms in enumerate((100, 300), 6):
        its = {"index": number, "sent_ns": number * 1000 * MS, "end_ns": waited_ms * MS}
        traces.append(trace_of(error="cancelled", **its))
    asked = command.read_budget(command.Settings(budget="250ms"))
    requests = spoken(TARGET, traces, asked.manner)
    cell = summarize(TARGET, FACTS, Requests.of(each.request for each in requests))
    row = budget_row(cell, requests, asked)
    assert (row.turns, row.answered, row.in_budget) == (8, 6, 6 / 7)


def test_what_the_cell_took_for_warm_up_is_not_counted() -> None:
    requests = spoken(TARGET, replies(4)[::-1], Manner())
    cell = summarize(TARGET, FACTS, Requests.of(each.request for each in requests))
    cell.warmup_removed = 2
    assert [each.request.index for each in counted(cell, requests)] == [2, 3]


def test_without_a_run_the_target_is_measured_first(
    truth: Callable[..., TruthServer],
    run_llmbench: Llmbench,
    in_process: InProcess,
    run_dir: Path,
) -> None:
    flags = "--concurrency 1,2 --turns 2 --think-time 10ms --requests 8 --output-tokens 8"
    done = run_llmbench(
        *("budget", "--target", truth(ttft_ms=60, itl_ms=20).url, *flags.split(), "--out", run_dir),
        *("--budget", "60s", "--stage", "stt=100ms"),
    )
    assert done.code == 0, done.err
    rows = RunDirectory.open(run_dir).run.cells
    assert [each.load.concurrency for each in rows] == [1, 2]
    assert {each.load.content.text for each in rows} == {"voice"}
    assert "up to 2 users" in done.out or was_busy(run_dir)
    again = in_process("budget", run_dir, "--budget", "60s", "--stage", "stt=100ms")
    assert again.out == done.out
