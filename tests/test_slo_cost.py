"""Objectives and costs, against figures worked out by hand."""

from typing import Any

import pytest

from llmbench.errors import UserError
from llmbench.measure.cost import cost
from llmbench.measure.slo import limits_ms, objectives
from llmbench.records import Block, Cell, Counts, Objective, Price, Range


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
        "requests": Counts(sent=10, ok=10),
        "measured_prompt_tokens": Range(100, 100, 100),
        "measured_output_tokens": Range(50, 50, 50),
    }
    return Cell(**(known | fields))


def test_limits_in_milliseconds_and_seconds() -> None:
    assert limits_ms({"ttft.p95": "500ms", "e2e.max": " 1.5 s"}) == {
        "ttft.p95": 500.0,
        "e2e.max": 1500.0,
    }


@pytest.mark.parametrize(
    ("slo", "words"),
    [
        ({"ttft": "1s"}, "'ttft' is no objective"),
        ({"ttft.p42": "1s"}, "'ttft.p42' is no objective"),
        ({"speed.p95": "1s"}, "'speed.p95' is no objective"),
        ({"ttft.p95": "500"}, "write a time, such as 500ms"),
        ({"ttft.p95": "-1s"}, "write a time"),
        ({"ttft.p95": "0ms"}, "nothing takes no time"),
    ],
)
def test_what_is_no_objective(slo: dict[str, str], words: str) -> None:
    with pytest.raises(UserError, match="--slo: ") as caught:
        limits_ms(slo, "--slo")
    assert words in str(caught.value)


def test_met_missed_and_not_known() -> None:
    measured = cell(ttft_ms=Block(n=10, p50=400.0, p95=None, max=float("inf")))
    limits = {"ttft.p50": 400.0, "ttft.max": 900.0, "ttft.p95": 500.0, "itl.p50": 9.0}
    assert objectives(measured, limits) == {
        "ttft.p50": Objective(400.0, 400.0, True),
        "ttft.max": Objective(900.0, float("inf"), False),
        "ttft.p95": Objective(500.0, None, None),
        "itl.p50": Objective(9.0, None, None),
    }
    measured.ttft_ms = Block(n=99, p50=400.0, ci95={"p50": (390.0, 420.0)})
    for limit, met in ((420.0, True), (419.0, None), (390.0, None), (389.0, False)):
        assert objectives(measured, {"ttft.p50": limit})["ttft.p50"].met is met
    measured.verdict = "invalid"
    assert objectives(measured, {"ttft.p50": 1.0})["ttft.p50"].met is None


def test_cost_by_the_token() -> None:
    # 100 in at 2 and 50 out at 8 a million: 200 + 400 millionths a request
    paid = cost(cell(), Price(input=2.0, output=8.0))
    assert paid is not None
    assert paid.per_1k_requests == pytest.approx(0.6)
    assert paid.per_1m_output_tokens == pytest.approx(12.0)


def test_cached_tokens_have_their_own_price() -> None:
    # 25 of the 100 at 1: 150 + 25 + 400 millionths a request
    warm = cost(cell(cached_share=0.25), Price(input=2.0, output=8.0, cached=1.0))
    assert warm is not None
    assert warm.per_1k_requests == pytest.approx(0.575)


def test_cost_by_the_hour() -> None:
    # 3.6 an hour at 2 requests a second: 0.0005 a request, a hundred-thousandth a token
    hired = cost(cell(requests_per_s=2.0), Price(hour=3.6))
    assert hired is not None
    assert hired.per_1k_requests == pytest.approx(0.5)
    assert hired.per_1m_output_tokens == pytest.approx(10.0)


def test_no_cost_without_figures() -> None:
    assert cost(cell(measured_output_tokens=None), Price(output=1.0)) is None
    assert cost(cell(), Price(hour=1.0)) is None
    assert cost(cell(verdict="invalid"), Price(output=1.0)) is None


def test_a_quantile_that_is_not_told_is_missed_if_a_lower_one_is() -> None:
    its = cell(ttft_ms=Block(n=60, p50=700.0))
    (told,) = objectives(its, {"ttft.p95": 500.0}).values()
    assert (told.value_ms, told.met) == (None, False)
    (told,) = objectives(its, {"ttft.p95": 800.0}).values()
    assert told.met is None
