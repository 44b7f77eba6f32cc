"""What the good requests of each cell cost: ``llmbench report RUN --cost --prices prices.toml``."""

from collections.abc import Callable, Iterable, Sequence

import msgspec

from llmbench.measure.cost import BreakEven, Costed, break_evens
from llmbench.records import Cell
from llmbench.report.columns import NOT_MEASURED, Column, digits, figure, load_columns
from llmbench.report.notes import insecure, places
from llmbench.report.table import as_markdown, as_text
from llmbench.report.tabular import as_csv

LOAD = (
    *("target", "model", "client", "concurrency", "batch_size", "request_rate"),
    *("prompt_tokens", "output_tokens"),
)
SCHEMA = "llmbench.cost/1"


def render_cost(rows: Sequence[Costed], style: str) -> str:
    """One row a cell, with notes below; as ``json`` and ``csv`` every figure, and in JSON the loads
    at which two targets cost the same."""
    if style == "csv":
        return as_csv([_flat(row) for row in rows])
    if style == "json":
        found = {
            "schema": SCHEMA,
            "cells": [_flat(row) for row in rows],
            "break_evens": [_flat_even(each) for each in break_evens(rows)],
        }
        return msgspec.json.format(msgspec.json.encode(found), indent=2).decode() + "\n"
    render = as_markdown if style == "markdown" else as_text
    cells = [row.cell for row in rows]
    return render([*load_columns(cells), *_columns(rows)], cells, lambda _: _notes(rows))


def _flat(row: Costed) -> dict[str, object]:
    """What is told of a cell, by its load; of an invalid one no figure."""
    cell, good, price = row.cell, row.goodput, row.price
    valid = cell.verdict != "invalid"
    load = {name: getattr(cell, name) for name in LOAD}
    return load | {
        "verdict": cell.verdict,
        "good": good.good if good and valid else None,
        "issued": cell.requests.sent,
        "good_share": good.share if good and valid else None,
        "good_share_ci95": good.ci95 if good and valid else None,
        "good_per_s": good.per_s if good and valid else None,
        "currency": price.currency if price else None,
        "price_date": price.date if price else None,
        "cost_per_1k_good_requests": row.paid.per_1k_requests if row.paid else None,
        "cost_per_1m_output_tokens": row.paid.per_1m_output_tokens if row.paid else None,
        "joules_per_token_gpu_only": cell.joules_per_token_gpu_only if valid else None,
    }


def _flat_even(even: BreakEven) -> dict[str, object]:
    own = even.self_hosted.cell
    return {
        "hosted": even.hosted.cell.target,
        "self_hosted": own.target,
        "prompt_tokens": own.prompt_tokens,
        "output_tokens": own.output_tokens,
        "good_requests_per_s": even.load_per_s,
        "capacity_per_s": even.capacity_per_s,
        "reachable": even.reachable,
    }


def _columns(rows: Sequence[Costed]) -> list[Column]:
    # A cell has no hash: it is known by its identity.
    by_cell = {id(row.cell): row for row in rows}

    def of(text: Callable[[Costed], str]) -> Callable[[Cell], str]:
        return lambda cell: text(by_cell[id(cell)])

    good = "in SLO" if any(row.goodput and row.goodput.limits_ms for row in rows) else "good"
    joules = Column("J/token\nGPU-only", of(_joules))
    return [
        Column(f"{good}\n%", of(_share)),
        Column(f"{good}\n95% CI", of(_interval), spare=4),
        Column(f"{good}\nreq/s", of(lambda row: _figure(row, _rate(row)))),
        Column("cost/1k\nrequests", of(_per_request)),
        Column("cost/1M\noutput", of(_per_token)),
        Column("currency", of(lambda row: row.price.currency if row.price else ""), spare=3),
        Column("price of", of(lambda row: f"{row.price.date}" if row.price else NOT_MEASURED)),
        *([joules] if any(row.cell.joules_per_token_gpu_only for row in rows) else []),
    ]


def _figure(row: Costed, value: float | None) -> str:
    return figure(row.cell, value)


def _rate(row: Costed) -> float | None:
    return row.goodput.per_s if row.goodput else None


def _joules(row: Costed) -> str:
    return _figure(row, row.cell.joules_per_token_gpu_only)


def _share(row: Costed) -> str:
    if row.goodput is None or row.goodput.share is None:
        return NOT_MEASURED
    return _figure(row, 100 * row.goodput.share)


def _interval(row: Costed) -> str:
    if row.goodput is None or row.goodput.ci95 is None or row.cell.verdict == "invalid":
        return NOT_MEASURED
    low, high = row.goodput.ci95
    return f"{100 * low:.1f}–{100 * high:.1f}"


def _per_request(row: Costed) -> str:
    return _money(row.paid.per_1k_requests) if row.paid else NOT_MEASURED


def _per_token(row: Costed) -> str:
    return _money(row.paid.per_1m_output_tokens) if row.paid else NOT_MEASURED


def _money(value: float) -> str:
    """Three significant digits, also of what is far below one."""
    return digits(value) if value >= 1 or not value else f"{value:.3g}"


# ---- below the table


def _notes(rows: Sequence[Costed]) -> list[str]:
    return [
        *_of_cells(rows),
        *insecure([row.cell for row in rows]),
        *_limits(rows),
        *_prices(rows),
        *(_even(even) for even in break_evens(rows)),
        *_legend(rows),
    ]


def _of_cells(rows: Sequence[Costed]) -> list[str]:
    """Why a cell shows no cost, or what is missing from it."""
    cells = [row.cell for row in rows]
    lines: dict[str, list[Cell]] = {}
    for row in rows:
        for line in _about(row):
            lines.setdefault(line, []).append(row.cell)
    return [f"{places(about, cells)}: {line}" for line, about in lines.items()]


def _about(row: Costed) -> Iterable[str]:
    if row.cell.verdict == "invalid":
        yield from (f"INVALID, {reason}" for reason in row.cell.reasons)
        return
    if row.price is None:
        yield "no price is listed by the target's name or its model's"
    if row.goodput is None:
        yield "nobody knows which requests are good: a latency with a limit is not shown"
    elif not row.goodput.good:
        yield "no request was good: nothing was bought"
    elif row.paid is None and row.price is not None:
        yield "no cost: the tokens, or the rate of the cell, are not known"
    if row.goodput is not None and row.goodput.unknown:
        yield f"{row.goodput.unknown} requests were cut off within the limits and count neither way"
    if row.billed.uncounted and row.price is not None and row.price.hosted:
        yield (
            f"{row.billed.uncounted} of {row.billed.attempts} attempts have no token count of the "
            "server's and are not in the cost"
        )


def _limits(rows: Sequence[Costed]) -> list[str]:
    limits = next((row.goodput.limits_ms for row in rows if row.goodput), {})
    if not limits:
        return []
    told = ", ".join(f"{metric} ≤ {limit_ms:g} ms" for metric, limit_ms in limits.items())
    return [f"in SLO: of all requests issued, those with {told}; failures and time-outs are bad"]


def _prices(rows: Sequence[Costed]) -> list[str]:
    """Each price in words, with its date and where it is from."""
    lines: dict[str, None] = {}
    for row in rows:
        if row.price is None:
            continue
        price = row.price
        if price.hosted:
            cached = "" if price.cached is None else f", {price.cached:g} cached"
            figures = f"{price.input:g} in{cached}, {price.output:g} out a million tokens"
        else:
            figures = (
                f"{price.hour:g} an hour × {price.gpus or 1:g}, {price.utilisation or 1:.0%} used"
            )
        source = f", {price.source}" if price.source else ""
        lines[f"{price.name}: {figures}, {price.currency}, as of {price.date}{source}"] = None
    return list(lines)


def _even(even: BreakEven) -> str:
    hosted, own = even.hosted.cell, even.self_hosted.cell
    names = f"{own.target} against {hosted.target} at {own.prompt_tokens}/{own.output_tokens}"
    load, most = digits(even.load_per_s), digits(even.capacity_per_s)
    if not even.reachable:
        return (
            f"{names}: no break-even: it would take {load} good requests/s, and {own.target} was "
            f"measured to carry {most}; {hosted.target} is cheaper at every load measured"
        )
    share = even.load_per_s / even.capacity_per_s
    return (
        f"{names}: break-even at {load} good requests/s on average, {share:.0%} of the {most} that "
        f"{own.target} was measured to carry; above it {own.target} is cheaper"
    )


def _legend(rows: Sequence[Costed]) -> list[str]:
    kinds = {row.price.hosted for row in rows if row.price}
    lines = []
    if True in kinds:
        lines.append(
            "by the token: all attempts are paid for, as the server counted them, and spread over "
            "the good ones"
        )
    if False in kinds:
        lines.append(
            "by the hour: price × GPUs ÷ (good requests or their tokens an hour × the share used)"
        )
    if len(kinds) == 2:
        lines.append("the requests are the same; whether the models are as good is not said here")
    return lines
