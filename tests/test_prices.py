"""The price file, costs and break-evens, against figures worked out by hand."""

import csv
import datetime
import io
import json
from pathlib import Path
from typing import Any

import pytest
from test_goodput import cell, failed, request

from llmbench.errors import UserError
from llmbench.measure.cost import Costed, billed, break_evens, costed, paid
from llmbench.measure.requests import Requests
from llmbench.prices import ListedPrice, price_of, read_prices
from llmbench.records import Billed, Goodput
from llmbench.report.cost import render_cost

DAY = datetime.date(2026, 11, 24)
HOSTED = ListedPrice(name="api", date=DAY, source="their page", input=2.0, cached=1.0, output=8.0)
OWN = ListedPrice(name="gpu", date=DAY, hour=1.8, gpus=2, utilisation=0.5)


def file(folder: Path, text: str) -> Path:
    path = folder / "prices.toml"
    path.write_text(text)
    return path


def good(count: int = 50, **fields: Any) -> Goodput:
    known: dict[str, Any] = {
        "limits_ms": {"ttft": 500.0},
        "good": count,
        "bad": 100 - count,
        "unknown": 0,
        "tokens": 40 * count,
        "share": count / 100,
        "ci95": (0.4, 0.6),
        "per_s": 2.0,
        "tokens_per_s": 80.0,
    }
    return Goodput(**(known | fields))


SPENT = Billed(attempts=100, prompt_tokens=10_000, cached_tokens=2_500, output_tokens=4_000)


# ---- the file


def test_both_kinds(tmp_path: Path) -> None:
    path = file(
        tmp_path,
        """
        [[price]]
        name = "api"
        date = 2026-11-24
        source = "their page"
        input = 2
        cached = 1.0
        output = 8

        [[price]]
        name = "gpu"
        date = "2026-11-24"
        hour = 1.8
        gpus = 2
        utilisation = 0.5
        """,
    )
    assert read_prices(path) == [HOSTED, OWN]


HEAD = '[[price]]\nname = "a"\ndate = 2026-11-24\n'


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no prices; write [[price]]"),
        ("prices = 1", "unknown key 'prices'"),
        ("price = 1", "no prices"),
        ("price = [1]", "price 1: write it as a table"),
        ("[[price", "not valid TOML"),
        (HEAD + "inptu = 1\noutput = 1", "price 1 (a): unknown key 'inptu'; did you mean 'input'?"),
        ('[[price]]\nname = "a"\ninput = 1\noutput = 1', "date is missing"),
        ("[[price]]\ndate = 2026-11-24\nhour = 1", "price 1: name is missing"),
        (
            '[[price]]\nname = "a"\ndate = 2026-11-24T10:00:00\nhour = 1',
            "date: write the day alone",
        ),
        ('[[price]]\nname = "a"\ndate = "24.11.2026"\nhour = 1', "date: write the day as 2026"),
        ('[[price]]\nname = "a"\ndate = 20261124\nhour = 1', "date: write the day alone"),
        (HEAD + "input = -1\noutput = 1", "input: expected a number >= 0.0"),
        (HEAD + "input = nan\noutput = 1", "input: expected a number"),
        (HEAD + 'input = "1"\noutput = 1', "input: expected a number"),
        (HEAD + "hour = 1\nutilisation = 1.5", "utilisation: expected a number <= 1.0"),
        (HEAD + "hour = 1\ngpus = 0", "gpus: expected a number > 0.0"),
        (HEAD + "input = 1\noutput = 1\nhour = 1", "not both"),
        (HEAD + "gpus = 2", "hour is missing"),
        (HEAD + "input = 1", "give input and output"),
        (HEAD, "give input and output"),
        (HEAD + 'hour = 1\nsource = "a\\u001bb"', "source: it has characters that cannot be"),
        (2 * (HEAD + "hour = 1\n"), "a has two prices of 2026-11-24: 1, 2"),
    ],
)
def test_what_is_no_price(tmp_path: Path, text: str, words: str) -> None:
    path = file(tmp_path, text)
    with pytest.raises(UserError) as caught:
        read_prices(path)
    said = str(caught.value)
    assert words in said
    assert str(path) in said
    assert "\n" not in said


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--prices .*: cannot be read: No such file"):
        read_prices(tmp_path / "none.toml")


def test_a_price_is_found_by_target_then_by_model_and_the_newest_counts() -> None:
    old = ListedPrice(name="m", date=datetime.date(2026, 1, 1), input=9.0, output=9.0)
    new = ListedPrice(name="m", date=DAY, input=1.0, output=1.0)
    own = ListedPrice(name="t", date=datetime.date(2025, 1, 1), hour=1.0)
    assert price_of([old, new, own], "t", "m") == own
    assert price_of([new, old], "t", "m") == new
    assert price_of([old], "t", None) is None


# ---- costs


def test_every_attempt_is_billed_as_far_as_it_was_counted() -> None:
    bad = failed("stream-error")
    counted = request(prompt_tokens=100, cached_tokens=40)
    half = request(None, failure="stream-error", prompt_tokens=100, tokens=3)
    assert billed(Requests.of([counted, half, bad])) == Billed(
        attempts=3, uncounted=1, prompt_tokens=200, cached_tokens=40, output_tokens=13
    )


def test_hosted() -> None:
    # 7,500 × 2 + 2,500 × 1 + 4,000 × 8 = 49,500 millionths, for 50 good requests of 2,000 tokens
    told = paid(HOSTED, good(), SPENT)
    assert told is not None
    assert told.per_1k_requests == pytest.approx(0.99)
    assert told.per_1m_output_tokens == pytest.approx(24.75)


def test_cached_tokens_cost_as_much_as_others_where_nothing_else_is_said() -> None:
    plain = ListedPrice(name="api", date=DAY, input=2.0, output=8.0)
    told = paid(plain, good(), SPENT)
    assert told is not None
    assert told.per_1k_requests == pytest.approx(1.04)  # 52,000 millionths


def test_self_hosted() -> None:
    # 2 × 1.8 an hour is 0.001 a second; half used: 0.002 for 2 requests and 80 tokens
    told = paid(OWN, good(), SPENT)
    assert told is not None
    assert told.per_1k_requests == pytest.approx(1.0)
    assert told.per_1m_output_tokens == pytest.approx(25.0)
    assert paid(OWN, good(per_s=None), SPENT) is None


def test_what_nobody_can_price() -> None:
    assert paid(HOSTED, good(0), SPENT) is None
    assert paid(HOSTED, good(), Billed(attempts=9, uncounted=9)) is None
    assert costed(cell(verdict="invalid"), HOSTED, good(), SPENT).paid is None
    assert costed(cell(), None, good(), SPENT).paid is None


# ---- the break-even


def rows(per_s: float = 8.0, own: ListedPrice = OWN) -> list[Costed]:
    return [
        costed(cell(target="api"), HOSTED, good(), SPENT),
        costed(cell(target="api", concurrency=8), HOSTED, good(60, bad=40), SPENT),
        costed(cell(target="gpu"), own, good(per_s=2.0), SPENT),
        costed(cell(target="gpu", concurrency=8), own, good(per_s=per_s), SPENT),
    ]


def test_break_even() -> None:
    # 3.6 an hour against 0.0495 ÷ 60 = 0.000825 a request: 0.001 ÷ 0.000825 = 1.2121 a second
    (even,) = break_evens(rows())
    assert even.load_per_s == pytest.approx(1.21212, abs=1e-5)
    assert even.capacity_per_s == 8.0
    assert even.reachable


def test_beyond_what_the_self_hosted_one_can_carry() -> None:
    dear = ListedPrice(name="gpu", date=DAY, hour=36.0)
    (even,) = break_evens(rows(own=dear))
    assert even.load_per_s == pytest.approx(12.1212, abs=1e-4)
    assert not even.reachable
    assert "no break-even: it would take 12.1 good requests/s" in said(rows(own=dear))


def test_unlike_currencies_and_lengths_are_not_compared() -> None:
    euros = ListedPrice(name="gpu", date=DAY, hour=1.8, currency="EUR")
    assert break_evens(rows(own=euros)) == []
    row = costed(cell(target="gpu", prompt_tokens=999), OWN, good(), SPENT)
    assert break_evens([*rows()[:2], row]) == []


# ---- the table


def said(about: list[Costed]) -> str:
    """The table as one line."""
    return " ".join(render_cost(about, "table").split())


def test_the_table() -> None:
    text = render_cost(rows(), "table")
    assert max(map(len, text.splitlines())) <= 100
    flat = " ".join(text.split())
    assert "in SLO" in text
    assert "2026-11-24" in text
    assert "api 4 50.0 40.0–60.0 2.00 0.99 24.8 USD 2026-11-24" in flat.replace(" 100 ", " ")
    assert "api: 2 in, 1 cached, 8 out a million tokens, USD, as of 2026-11-24, their page" in flat
    assert "gpu: 1.8 an hour × 2, 50% used, USD, as of 2026-11-24" in flat
    assert "break-even at 1.21 good requests/s on average, 15% of the 8.00 that gpu was" in flat
    assert "ttft ≤ 500 ms; failures and time-outs are bad" in flat


def test_what_is_missing_is_said() -> None:
    bare = good(limits_ms={}, unknown=3)
    flat = said(
        [
            costed(cell(target="free"), None, bare, SPENT),
            costed(cell(target="dark"), HOSTED, None, SPENT),
            costed(cell(target="lost"), HOSTED, good(0), SPENT),
            costed(cell(target="half"), HOSTED, bare, Billed(attempts=9, uncounted=2)),
            costed(cell(target="void", verdict="invalid", reasons=["so"]), HOSTED, bare, SPENT),
        ]
    )
    assert "free at 4: no price is listed" in flat
    assert "dark at 4: nobody knows which requests are good" in flat
    assert "lost at 4: no request was good" in flat
    assert "half at 4: 2 of 9 attempts have no token count" in flat
    assert "void at 4: INVALID, so" in flat
    assert "3 requests were cut off within the limits" in flat


def test_markdown() -> None:
    text = render_cost(rows(), "markdown")
    assert text.startswith("| target")
    assert "- gpu against api at 100/50: break-even at 1.21" in text


def test_for_machines() -> None:
    told = json.loads(render_cost(rows(), "json"))
    assert told["schema"] == "llmbench.cost/1"
    api, _, gpu, _ = told["cells"]
    assert (api["target"], api["concurrency"], api["currency"]) == ("api", 4, "USD")
    assert (api["good"], api["good_share"], api["good_share_ci95"]) == (50, 0.5, [0.4, 0.6])
    assert api["cost_per_1k_good_requests"] == pytest.approx(0.99)
    assert api["cost_per_1m_output_tokens"] == pytest.approx(24.75)
    (even,) = told["break_evens"]
    assert (even["hosted"], even["self_hosted"], even["reachable"]) == ("api", "gpu", True)
    assert even["good_requests_per_s"] == pytest.approx(1.21212, abs=1e-5)
    lines = list(csv.DictReader(io.StringIO(render_cost(rows(), "csv"))))
    assert [each["target"] for each in lines] == ["api", "api", "gpu", "gpu"]
    assert float(lines[2]["good_per_s"]) == gpu["good_per_s"]


def test_an_invalid_cell_has_no_figures_for_machines() -> None:
    void = costed(cell(target="void", verdict="invalid"), HOSTED, good(), SPENT)
    (told,) = json.loads(render_cost([void], "json"))["cells"]
    assert told["verdict"] == "invalid"
    assert told["good_share"] is told["cost_per_1k_good_requests"] is None
