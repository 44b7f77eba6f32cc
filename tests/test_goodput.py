"""Goodput by hand: which requests are good, their share, their rate; the presets by name."""

from array import array
from collections.abc import Mapping
from typing import Any

import pytest

from llmbench.errors import UserError
from llmbench.measure.goodput import fates, goodput, request_limits_ms
from llmbench.measure.requests import Requests
from llmbench.measure.slo import limits_ms, presets, read_slo
from llmbench.measure.statistics import wilson
from llmbench.records import Block, Cell, Counts, RequestMetrics

NONE = array("f")
SHOWN = Block(n=1)


def cell(**fields: Any) -> Cell:
    known: dict[str, Any] = {
        "target": "t",
        "engine": None,
        "model": None,
        "quantization": None,
        "api": "chat",
        "client": "wire",
        "concurrency": 4,
        "request_rate": None,
        "prompt_tokens": 100,
        "output_tokens": 50,
        "requests": Counts(),
        "ttft_ms": SHOWN,
        "tpot_ms": SHOWN,
        "e2e_ms": SHOWN,
    }
    return Cell(**(known | fields))


def request(ttft_s: float | None = 0.1, **fields: Any) -> RequestMetrics:
    """Ten tokens; the first after ``ttft_s``, then one each 20 ms."""
    known: dict[str, Any] = {
        "phase": "measured",
        "sent_ns": 0,
        "end_ns": 400_000_000,
        "tokens": 10,
        "token_source": "usage",
        "ttft_s": ttft_s,
        "e2e_s": None if ttft_s is None else ttft_s + 0.18,
        "tpot_s": 0.02,
        "events": 10,
        "first_ns": 100_000_000,
        "last_ns": 280_000_000,
        "gaps_s": NONE,
        "lag_ms": NONE,
        "stamps": "kernel",
    }
    return RequestMetrics(**(known | fields))


def failed(kind: str) -> RequestMetrics:
    return request(None, failure=kind, tokens=0, tpot_s=None, events=0)


def fate(each: RequestMetrics, limits: Mapping[str, float]) -> bool | None:
    """Whether it is good; ``None`` where nobody knows."""
    ((good,), (bad,)) = fates(Requests.of([each]), limits)
    assert not (good and bad)
    return True if good else False if bad else None


def test_the_limit_of_the_outermost_statistic_is_that_of_requests() -> None:
    objectives = {"ttft.p99": 1000.0, "ttft.p50": 200.0, "tpot.mean": 30.0}
    assert request_limits_ms(objectives) == {"ttft": 1000.0, "tpot": 30.0}


def test_a_request_is_good_by_all_its_limits() -> None:
    limits = {"ttft": 100.0, "tpot": 20.0, "e2e": 280.0}
    assert fate(request(), limits) is True
    assert fate(request(0.101), limits) is False
    assert fate(request(tpot_s=0.021), limits) is False
    assert fate(request(e2e_s=0.281), limits) is False
    assert fate(request(tpot_s=None), {"tpot": 1.0}) is True  # one token has no gap to be late
    assert fate(request(), {"itl": 19.0}) is False
    assert fate(request(), {"icl": 20.0}) is True  # 180 ms over nine gaps


@pytest.mark.parametrize("kind", ["timeout", "http-429", "truncated", "reset"])
def test_failures_are_bad_whatever_the_limits(kind: str) -> None:
    assert fate(failed(kind), {}) is False


def test_what_was_cut_off_is_bad_only_if_it_was_beyond_already() -> None:
    waiting = request(None, failure="cancelled", end_ns=300_000_000, tpot_s=None)
    assert fate(waiting, {"ttft": 299.0}) is False
    assert fate(waiting, {"ttft": 300.0}) is None
    assert fate(waiting, {"tpot": 1.0}) is None
    begun = request(0.1, e2e_s=None, failure="cancelled", end_ns=300_000_000, tpot_s=None)
    assert fate(begun, {"ttft": 99.0}) is False
    assert fate(begun, {"ttft": 100.0, "e2e": 299.0}) is False
    assert fate(begun, {"ttft": 100.0, "e2e": 301.0}) is None


def test_a_cut_off_request_has_waited_since_it_was_due() -> None:
    waiting = request(None, failure="cancelled", due_ns=-200_000_000, end_ns=300_000_000)
    assert fate(waiting, {"ttft": 400.0}) is False


def test_shares_and_rates() -> None:
    cut = request(None, failure="cancelled", end_ns=1, tpot_s=None, tokens=0)
    measured = [request(), request(), request(), request(0.9, tokens=30), failed("timeout"), cut]
    told = goodput(cell(requests_per_s=8.0, otps=120.0), Requests.of(measured), {"ttft.p95": 500.0})
    assert told is not None
    assert (told.good, told.bad, told.unknown, told.tokens) == (3, 2, 1, 30)
    assert told.share == pytest.approx(0.6)
    assert told.per_s == pytest.approx(6.0)  # 3 of the 4 that came through, at 8/s
    assert told.tokens_per_s == pytest.approx(60.0)  # 30 of 60 tokens
    assert told.limits_ms == {"ttft": 500.0}


def test_without_limits_every_success_is_good() -> None:
    told = goodput(cell(requests_per_s=8.0), Requests.of([request(), failed("reset")]), {})
    assert told is not None
    assert (told.good, told.bad, told.per_s, told.tokens_per_s) == (1, 1, 8.0, None)


def test_nothing_went_through() -> None:
    told = goodput(cell(ttft_ms=None), Requests.of([failed("reset")]), {"ttft.p95": 1.0})
    assert told is not None
    assert (told.good, told.share, told.per_s) == (0, 0.0, 0.0)


def test_a_withheld_metric_leaves_goodput_unknown() -> None:
    assert goodput(cell(tpot_ms=None), Requests.of([request()]), {"tpot.p99": 50.0}) is None
    assert goodput(cell(), Requests.of(()), {}) is None


def test_wilson_against_a_textbook() -> None:
    # Newcombe, Statistics in Medicine 17 (1998), table I: 81 of 263, 15 of 148, 0 of 20, 1 of 29
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson(15, 148) == pytest.approx((0.0624, 0.1605), abs=5e-5)
    assert wilson(0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)
    assert wilson(1, 29) == pytest.approx((0.0061, 0.1718), abs=5e-5)
    assert wilson(20, 20)[1] == 1.0


# ---- presets


def test_presets_are_objectives_with_a_source() -> None:
    assert {"voice", "voice-strict", "chat"} <= presets().keys()
    for name, preset in presets().items():
        assert limits_ms(preset.limits, name)
        assert preset.source
        assert name.startswith("mlperf-inspired-") == preset.source.startswith("MLPerf-inspired")


def test_names_and_pairs() -> None:
    assert read_slo("ttft.p95=500ms, tpot.p99 = 50ms") == {"ttft.p95": "500ms", "tpot.p99": "50ms"}
    assert read_slo("voice") == presets()["voice"].limits
    assert read_slo("voice,ttft.p95=1s")["ttft.p95"] == "1s"
    assert read_slo({"ttft.p95": "1s"}) == {"ttft.p95": "1s"}


def test_an_unknown_name() -> None:
    with pytest.raises(UserError, match=r"--slo: 'voise' is no preset; did you mean 'voice'\?"):
        read_slo("voise")
