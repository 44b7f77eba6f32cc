"""What inference costs: by the token as a price list says, or by the hour of the hardware.

Hosted: every attempt is paid for, by the tokens that the server counted, failed ones too where they
say; only requests that are good by the objectives count as bought. Self-hosted: the hour is paid
for, whatever goes through. Nothing here knows a price: see ``prices``.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from msgspec import Struct

from llmbench.measure.requests import UNKNOWN, Requests
from llmbench.prices import ListedPrice
from llmbench.records import Billed, Cell, Cost, Goodput, Price

PER_MILLION = 1e6
SECONDS_PER_HOUR = 3600


def cost(cell: Cell, price: Price) -> Cost | None:
    """The cost of a thousand requests and of a million output tokens of ``cell``, in the currency
    of ``price``. ``None`` where tokens are not counted or nothing went through.

    By the token: the lengths that the server counted, cached prompt tokens at their own price. By
    the hour: the hourly price spread over the rate of the cell, at full use.
    """
    prompt, output = cell.measured_prompt_tokens, cell.measured_output_tokens
    if cell.verdict == "invalid" or output is None or not output.p50:
        return None
    if price.hour is not None:
        if not cell.requests_per_s:
            return None
        request = price.hour / SECONDS_PER_HOUR / cell.requests_per_s
    else:
        tokens_in = prompt.p50 if prompt is not None else cell.prompt_tokens
        cached = (cell.cached_share or 0.0) * tokens_in
        cached_price = price.input if price.cached is None else price.cached
        request = (
            (tokens_in - cached) * price.input + cached * cached_price + output.p50 * price.output
        ) / PER_MILLION
    return Cost(1e3 * request, request / output.p50 * PER_MILLION)


def billed(measured: Requests) -> Billed:
    """What a hosted API bills for ``measured`` requests, whatever became of them."""
    counted = measured.prompt_tokens != UNKNOWN
    prompts = measured.prompt_tokens[counted]
    cached = np.clip(measured.cached_tokens[counted], 0, prompts)
    return Billed(
        attempts=len(measured),
        uncounted=len(measured) - len(prompts),
        prompt_tokens=int(prompts.sum()),
        cached_tokens=int(cached.sum()),
        output_tokens=int(measured.tokens[counted].sum()),
    )


class Paid(Struct, frozen=True, kw_only=True):
    """What a cell costs by a listed price: for a thousand good requests, for a million output
    tokens of good requests, in the currency of the price."""

    per_1k_requests: float
    per_1m_output_tokens: float


def paid(price: ListedPrice, good: Goodput, spent: Billed) -> Paid | None:
    """What good requests cost. ``None`` where none was good, or nobody counted the tokens."""
    if not good.good or not good.tokens:
        return None
    if price.hosted:
        if spent.uncounted == spent.attempts:
            return None
        total = hosted_total(price, spent)
        return Paid(
            per_1k_requests=1e3 * total / good.good,
            per_1m_output_tokens=PER_MILLION * total / good.tokens,
        )
    if not good.per_s or not good.tokens_per_s:
        return None
    per_second = price.hourly / SECONDS_PER_HOUR / (price.utilisation or 1.0)
    return Paid(
        per_1k_requests=1e3 * per_second / good.per_s,
        per_1m_output_tokens=PER_MILLION * per_second / good.tokens_per_s,
    )


def hosted_total(price: ListedPrice, spent: Billed) -> float:
    """Σ[(prompt − cached)·input + cached·cached + completion·output] over all attempts."""
    input_price = price.input or 0.0
    cached_price = input_price if price.cached is None else price.cached
    fresh = spent.prompt_tokens - spent.cached_tokens
    return (
        fresh * input_price
        + spent.cached_tokens * cached_price
        + spent.output_tokens * (price.output or 0.0)
    ) / PER_MILLION


# ---- the break-even


class Costed(NamedTuple):
    """A cell with its price and what follows from it; ``None`` where that is not known."""

    cell: Cell
    price: ListedPrice | None
    goodput: Goodput | None
    billed: Billed
    paid: Paid | None


def costed(cell: Cell, price: ListedPrice | None, good: Goodput | None, spent: Billed) -> Costed:
    """One row of the cost table. An invalid cell costs nobody knows what."""
    if price is None or good is None or cell.verdict == "invalid":
        return Costed(cell, price, good, spent, None)
    return Costed(cell, price, good, spent, paid(price, good, spent))


class BreakEven(NamedTuple):
    """From ``load_per_s`` good requests a second on, the self-hosted target is the cheaper one, if
    it can carry them: it was measured to carry ``capacity_per_s``."""

    hosted: Costed
    self_hosted: Costed
    load_per_s: float
    capacity_per_s: float

    @property
    def reachable(self) -> bool:
        return self.load_per_s <= self.capacity_per_s


def break_evens(rows: Sequence[Costed]) -> list[BreakEven]:
    """Each hosted target against each self-hosted one, at the lengths and the currency that both
    have: the hosted one where it is cheapest, the other where it carries most."""
    cheapest: dict[tuple[str, int, int, str], Costed] = {}
    strongest: dict[tuple[str, int, int, str], Costed] = {}
    for row in rows:
        if row.price is None or row.paid is None:
            continue
        cell = row.cell
        key = (cell.target, cell.prompt_tokens, cell.output_tokens, row.price.currency)
        best = cheapest if row.price.hosted else strongest
        if key not in best or _rank(row) < _rank(best[key]):
            best[key] = row
    return [
        even
        for (_, *at), hosted in cheapest.items()
        for (_, *its), own in strongest.items()
        if at == its and (even := break_even(hosted, own)) is not None
    ]


def break_even(hosted: Costed, own: Costed) -> BreakEven | None:
    """The load at which the hourly price of ``own`` is what as many requests cost ``hosted``:
    hour · GPUs ÷ (3600 · cost of a request). ``None`` where that is free or nothing went through.
    """
    if not (own.price and hosted.paid and hosted.paid.per_1k_requests):
        return None
    if own.goodput is None or not own.goodput.per_s:
        return None
    load = own.price.hourly / SECONDS_PER_HOUR / (hosted.paid.per_1k_requests / 1e3)
    return BreakEven(hosted, own, load, own.goodput.per_s)


def _rank(row: Costed) -> float:
    """The less, the better."""
    assert row.price is not None
    assert row.paid is not None
    if row.price.hosted:
        return row.paid.per_1k_requests
    return -((row.goodput.per_s if row.goodput else None) or 0.0)
