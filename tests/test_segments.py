"""A window in segments: how it is cut, how streams are set off anew, and what intervals go by."""

import math
from typing import Any

import numpy as np
import pytest
from conftest import bare_cell
from msgspec.structs import replace
from scipy.stats import chi2, norm
from scipy.stats import t as student_t
from test_summary import request

from llmbench.drive import board as board_module
from llmbench.drive.board import Board, Ticket
from llmbench.measure import statistics as stats
from llmbench.measure import step
from llmbench.measure.cell import requests_in
from llmbench.measure.rates import segments_reach, window_of
from llmbench.measure.requests import Requests
from llmbench.measure.shared import Shared, share_worth
from llmbench.measure.statistics import Worth, cluster_worth
from llmbench.plan.segments import Segments, by_looks, by_requests, by_time
from llmbench.records import Load, Segment, Trace

LOAD = Load(concurrency=2, prompt_tokens=1, output_tokens=1, requests=16, duration_s=None, warmup=2)


# ── how a window is cut ──────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("requests", "streams", "most", "found"),
    [
        (63, 8, 32, Segments(1, 63)),  # not eight requests a stream
        (64, 8, 32, Segments(8, 8)),  # one a stream
        (128, 8, 32, Segments(8, 16)),
        (256, 8, 32, Segments(16, 16)),  # two a stream
        (512, 8, 32, Segments(16, 32)),
        (1024, 8, 32, Segments(32, 32)),  # four a stream
        (8000, 8, 32, Segments(32, 250)),
        (250, 8, 32, Segments(15, 17)),  # the last one is smaller
        (256, 8, 1, Segments(1, 256)),
        (256, 8, 4, Segments(4, 64)),
    ],
)
def test_by_requests(requests: int, streams: int, most: int, found: Segments) -> None:
    assert by_requests(requests, streams, most) == found


@pytest.mark.parametrize(
    ("turns", "found"),
    [
        (31.0, Segments(1, 0)),
        (32.0, Segments(8, 8)),  # 4 mean replies each: 1 measured, 3 between
        (80.0, Segments(16, 16)),
        (224.0, Segments(32, 32)),
        (320.0, Segments(32, 56)),
    ],
)
def test_by_time(turns: float, found: Segments) -> None:
    assert by_time(turns, 8, 32) == found


def test_looks_fall_on_ends_of_segments() -> None:
    assert by_looks(192, 8) == 24
    assert by_looks(192, 32) == 32


# ── the board ────────────────────────────────────────────────────────────────────────────────────


def test_streams_are_set_off_anew_before_each_segment() -> None:
    """Two streams, 16 requests: eight segments of two. Replies take 1 s each."""
    board = Board(replace(LOAD, segments=32))
    assert (board.start(), board.start()) == (0, 0)
    assert board.take() == Ticket(0, "warmup")
    assert board.take() == Ticket(1, "warmup")
    for _ in range(2):
        board.ended("warmup", False, 0.1, 1_000_000_000)
    seen = []
    for segment in range(1, 9):
        assert board.segment == segment
        assert 0 <= board.pause_s() <= 1
        board.start()
        ramp = board.take()  # the other stream is not back yet
        assert ramp is not None
        assert ramp.phase == ("warmup" if segment == 1 else "cooldown")
        board.start()
        taken = [board.take(), board.take()]
        assert [each and each.phase for each in taken] == ["measured"] * 2
        assert [each and each.segment for each in taken] == [segment] * 2
        after = board.take()
        assert after is not None
        assert after.phase == "cooldown"
        board.ended("measured", False, 0.1, 1_000_000_000, segment=segment)
        assert board.segment == segment  # the last measured reply is waited for
        board.ended("measured", False, 0.1, 1_000_000_000, segment=segment)
        seen.append(board.over)
    assert seen == [False] * 7 + [True]
    assert board.measured == 16


def test_a_loop_that_is_to_be_in_step_is_never_set_off_anew() -> None:
    board = Board(LOAD)
    board.start()
    board.start()
    for index in range(2):
        assert board.take() == Ticket(index, "warmup")
        board.ended("warmup", False)
    assert [board.take() for _ in range(2)] == [Ticket(2, "measured"), Ticket(3, "measured")]


def test_no_segment_begins_for_which_there_is_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """One stream, replies of 1 s, 40 s: ten segments, each of 4 s with what lies between. After
    37 s there is no time for another."""
    now_s = [0.0]
    monkeypatch.setattr(board_module.time, "monotonic_ns", lambda: round(now_s[0] * 1e9))
    board = Board(replace(LOAD, segments=32, concurrency=1, warmup=1, duration_s=40.0))
    board.start()
    board.take()
    now_s[0] = 1.0
    board.ended("warmup", False, 0.1, 1_000_000_000)
    board.start()
    ticket = board.take()
    assert ticket == Ticket(1, "measured", 1)
    now_s[0] = 38.5
    board.ended("measured", False, 0.1, 1_000_000_000, segment=1)
    assert not board.over  # the one segment goes on: it is to have two requests
    assert board.take() == Ticket(2, "measured", 1)
    board.ended("measured", False, 0.1, 1_000_000_000, segment=1)
    assert board.over


# ── what a sample is worth ───────────────────────────────────────────────────────────────────────


def test_the_worth_of_clusters_by_hand() -> None:
    """Shares of 0, 1 and ½ in clusters of 2: the variance of the mean ½ is
    (1 + 1 + 0) / 36 · 3/2 = 1/12, that of one value ¼: three values."""
    assert cluster_worth(np.array([0, 2, 1]), np.array([2, 2, 2])) == Worth(pytest.approx(3.0), 2)


def test_clusters_that_are_alike_are_worth_more_than_they_have_but_not_without_end() -> None:
    assert cluster_worth(np.array([1, 1, 1]), np.array([2, 2, 2])) == Worth(4.0 * 6, 2)
    assert cluster_worth(np.array([2, 2, 2]), np.array([2, 2, 2])) == Worth(6.0, 2)


def test_the_interval_by_clusters_by_hand() -> None:
    """The median of 100 values that are worth 25, by 9 clusters: log odds of 0 ± t₈ / √(25/4)."""
    ordered = np.arange(1.0, 101.0)
    reach = student_t.ppf(0.975, 8) / math.sqrt(25 / 4)
    low, high = (1 / (1 + math.exp(sign * reach)) for sign in (1, -1))
    found = stats.interval(ordered, 0.5, Worth(25.0, 8))
    assert found == (math.floor(low * 100) + 1, math.ceil(high * 100) + 1)


@pytest.mark.parametrize(
    ("count", "worth", "told"),
    [(72, 50.0, True), (71, 50.0, False), (72, 49.0, False), (300, 50.0, True)],
)
def test_what_a_p95_takes(count: int, worth: float, told: bool) -> None:
    """72 values, and 2.5 independent ones beyond it."""
    found = stats.interval(np.arange(float(count)), 0.95, Worth(worth, 15))
    assert (found is not None) == told


def test_student_is_counted_in_where_a_worth_stands_for_itself() -> None:
    factor = (norm.ppf(0.975) / student_t.ppf(0.975, 15)) ** 2
    assert Worth(100.0, 15).sure == pytest.approx(100 * factor, rel=1e-3)
    assert Worth(100.0).sure == 100


def test_intervals_by_clusters_hold() -> None:
    """Sixteen clusters of sixteen values, which have half of their variance in common."""
    rng = np.random.default_rng(5)
    clusters = np.repeat(np.arange(1, 17, dtype=np.int32), 16)
    shared, held = Shared(segments=clusters), {0.5: 0, 0.9: 0, 0.95: 0}
    for _ in range(300):
        values = np.repeat(rng.normal(size=16), 16) + rng.normal(size=256)
        ordered, worths = np.sort(values), shared.worth(values)
        for p in held:
            bounds = stats.bounds(ordered, p, worths(stats.quantile(ordered, p)))
            truth = math.sqrt(2) * norm.ppf(p)
            low, high = (-math.inf, math.inf) if None in bounds else bounds
            held[p] += low <= truth <= high  # type: ignore[operator]
    assert min(held.values()) >= 0.90 * 300


def test_too_few_segments_tell_nothing() -> None:
    segments = np.repeat(np.arange(5, dtype=np.int32), 4)
    assert Shared(segments=segments).clusters is None
    runs = np.repeat(np.arange(2, dtype=np.int32), 10)
    both = Shared(runs=runs, segments=np.tile(segments[::2], 2)).clusters
    assert both is not None
    assert both.max() == 9  # five segments in each of two runs


def test_a_share_of_hits_that_come_together_is_worth_less() -> None:
    segments = np.repeat(np.arange(1, 17, dtype=np.int32), 16)
    together = segments <= 8
    apart = np.tile([True, False], 128)
    shared = Shared(segments=segments)
    assert share_worth(together, shared) < 20
    assert share_worth(apart, shared) == 256
    assert share_worth(np.zeros(256, dtype=bool), shared) > 150  # none: nothing shows how they vary


# ── rates ────────────────────────────────────────────────────────────────────────────────────────


def of_segment(segment: int, sent_ms: float, **fields: Any) -> Trace:
    return replace(request(sent_ms, 10, 20, 30, **fields), segment=segment)


def test_a_segment_counts_from_the_end_of_what_was_begun_before_it() -> None:
    """Requests of 30 ms. In the second segment one is under way when the measured one is sent."""
    its = requests_in(
        [
            of_segment(1, 0, index=0),
            of_segment(2, 100, index=1, phase="cooldown"),
            of_segment(2, 110, index=2),
            of_segment(3, 200, index=3, phase="cooldown"),  # nothing of it is measured
        ],
        "chat",
    )
    window = window_of(its, open_loop=False)
    assert (window.starts_ns / 1e6).tolist() == [0, 0, 130]
    assert (window.stops_ns / 1e6).tolist() == [0, 30, 140]
    assert window.seconds == pytest.approx(0.04)


def test_the_reach_of_a_rate_by_hand() -> None:
    """8 segments of 1 s with 9 or 11 tokens: 10 ± t₇ · √(8 / 64 · 8/7)."""
    segments = [Segment(seconds=1.0, tokens=9 + 2 * (n % 2), requests=1.0) for n in range(8)]
    expected = student_t.ppf(0.975, 7) * math.sqrt(8 / 64 * 8 / 7) / 10
    assert segments_reach(segments, "otps") == pytest.approx(expected, rel=1e-3)
    assert segments_reach(segments, "requests_per_s") == 0.0
    assert segments_reach(segments[:5], "otps") is None


# ── in step ──────────────────────────────────────────────────────────────────────────────────────


def told(ttfts_ms: list[float], segments: list[int], **load: Any) -> tuple[float | None, list[str]]:
    traces = [
        replace(request(1000.0 * n, ttft, ttft + 1, ttft + 2, index=n), segment=segment)
        for n, (ttft, segment) in enumerate(zip(ttfts_ms, segments, strict=True))
    ]
    load = {"concurrency": 2} | load
    cell = bare_cell(concurrency=load["concurrency"])
    step.add_step(cell, replace(LOAD, **load), requests_in(traces, "chat"))
    return cell.in_step, cell.notes


def test_a_loop_whose_segments_lie_far_apart_is_in_step() -> None:
    rng = np.random.default_rng(2)
    means = np.repeat(rng.normal(100, 20, 16), 16)
    segments = np.repeat(np.arange(1, 17), 16).tolist()
    times, notes = told((means + rng.normal(0, 5, 256)).tolist(), segments)
    assert times is not None
    assert times > 3
    assert len(notes) == 1
    assert notes[0].startswith(
        "in step: TTFT depends on how streams happened to start; 256 requests"
    )
    assert "(intervals go by 16 starts)" in notes[0]
    assert told(rng.normal(100, 20, 256).tolist(), segments) == (None, [])


def test_one_window_that_repeats_itself_is_in_step() -> None:
    """Six waits that come again and again, for 120 requests: they are worth six."""
    waits = [40.0, 55, 90, 62, 47, 71]
    rng = np.random.default_rng(3)
    ttfts = (np.tile(waits, 20) + rng.normal(0, 0.5, 120)).tolist()
    times, notes = told(ttfts, [1] * 120)
    assert times == pytest.approx(20, rel=0.1)
    assert "120 requests are worth 6 (--repeat 4 tells more)" in notes[0]
    _, notes = told(ttfts, [0] * 120, start="together")
    assert "as --start together wants it" in notes[0]
    assert told(ttfts, [1] * 120, concurrency=1) == (None, [])
    assert told(rng.permutation(ttfts).tolist(), [1] * 120) == (None, [])


def test_chance_goes_by_chi_square() -> None:
    assert step._by_chance(15) == pytest.approx(chi2.ppf(0.999, 15) / 15, rel=0.02)


def test_nothing_is_in_step_where_nothing_was_measured() -> None:
    cell = bare_cell()
    step.add_step(cell, LOAD, Requests.of([]))
    assert cell.in_step is None
